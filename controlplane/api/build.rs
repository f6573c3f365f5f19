//! Generates the gRPC code from `proto/` with a pure Rust protobuf compiler, so that building needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    #[cfg(feature = "rpc")]
    tonic_prost_build::configure().compile_fds(protox::compile(["proto/faasnet/v1/faasnet.proto"], ["proto"])?)?;
    Ok(())
}
