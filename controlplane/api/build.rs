//! Generates the gRPC code from `proto/` with a pure Rust protobuf compiler, so that building needs no `protoc`.
//!
//! Every message also gets a JSON form, which is what the controller's HTTP API speaks: the names of the contract, ids as hexadecimal,
//! and a missing field means its default.

#[cfg(feature = "rpc")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_file("faasnet/v1/faasnet.proto")?;
    // What the reflection service tells clients, comments included.
    compiler.include_source_info(true);
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("faasnet.bin"), compiler.encode_file_descriptor_set())?;
    let mut builder = tonic_prost_build::configure()
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".", "#[serde(default, deny_unknown_fields)]")
        .field_attribute("FunctionProgress.state", "#[serde(with = \"crate::json::function_state\")]");
    // Passwords are not printed: see `login`.
    builder = builder.skip_debug(["faasnet.v1.Login", "faasnet.v1.SetSecretRequest"]);
    for id in ["node_id", "function_id", "image_id", "next_image_id", "parent"] {
        builder = builder.field_attribute(id, "#[serde(with = \"crate::json::hexadecimal\")]");
    }
    for ids in ["nodes_gone", "members_gone"] {
        builder = builder.field_attribute(ids, "#[serde(with = \"crate::json::hexadecimals\")]");
    }
    builder.compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

#[cfg(not(feature = "rpc"))]
fn main() {}
