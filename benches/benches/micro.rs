//! Cost of one frame, one block and one bitmap. Each number has a plain baseline beside it in the same run.
//!
//! At 10 Gbit/s a node sees 4,770 blocks of 256 KiB a second: 210 µs for everything that is done with one.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{BLOCK_BYTES, BlockIndex, CHUNK_BYTES, Descriptor, Entry, Geometry, Origin, Stripe};
use faasnet_relay::wire::{Frame, Kind, encode_want};
use sha2::{Digest, Sha256};

const GIB: u64 = 1 << 30;

/// Header of a block: parsed once per block and node.
fn frame(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    let header = Frame::new(Kind::Block, BLOCK_BYTES, 17, 3).header();
    group.bench_function("parse", |bench| bench.iter(|| Frame::parse(black_box(&header))));
    group.bench_function("encode", |bench| {
        bench.iter(|| Frame::new(Kind::Block, BLOCK_BYTES, black_box(17), 3).header())
    });
    // The baseline: what merely copying the header costs.
    group.bench_function("copy", |bench| bench.iter(|| *black_box(&header)));
    group.finish();
}

/// The check of a block before it is forwarded.
fn block(criterion: &mut Criterion) {
    let payload: Vec<u8> = (0..BLOCK_BYTES).map(|n| ((n * 31) >> 3) as u8).collect();
    let descriptor = descriptor(&payload);
    let mut group = criterion.benchmark_group("block of 256 KiB");
    group.throughput(Throughput::Bytes(BLOCK_BYTES.into()));
    group.bench_function("verify", |bench| bench.iter(|| descriptor.verify(BlockIndex(0), black_box(&payload))));
    // The baselines: the hash that OCI uses, and one pass over the memory.
    group.bench_function("sha256", |bench| bench.iter(|| Sha256::digest(black_box(&payload))));
    let mut copy = payload.clone();
    group.bench_function("copy", |bench| bench.iter(|| copy.copy_from_slice(black_box(&payload))));
    group.finish();
}

/// Look-ups and bitmaps of an image of 1 GiB: 4,096 blocks.
fn maps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("image of 1 GiB");
    let Ok(geometry) = Geometry::new(CHUNK_BYTES, BLOCK_BYTES, [7_000, GIB / 2, GIB / 4, GIB / 4]) else { return };
    let last = BlockIndex(geometry.blocks() - 1);
    group.bench_function("place of a block", |bench| bench.iter(|| geometry.place(black_box(last))));
    group.bench_function("blocks of a stripe", |bench| bench.iter(|| geometry.stripe_blocks(Stripe(1), 2).count()));
    let bitmap = vec![0xa5; geometry.blocks().div_ceil(8) as usize];
    group.bench_function("encode want", |bench| bench.iter(|| encode_want(black_box(&bitmap))));
    group.finish();
}

fn descriptor(payload: &[u8]) -> Descriptor {
    let digest = format!("sha256:{}", "0".repeat(64));
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: "bench".into(),
        origin: Origin::Layout { path: "/".into() },
        manifest_media_type: String::new(),
        manifest_digest: digest.clone(),
        manifest: Vec::new(),
        entries: vec![Entry { digest, media_type: String::new(), len: payload.len() as u64 }],
        blocks: vec![*blake3::hash(payload).as_bytes()],
    };
    match Descriptor::new(parts) {
        Ok(descriptor) => descriptor,
        Err(error) => unreachable!("the bench's own descriptor is sound: {error}"),
    }
}

criterion_group!(benches, frame, block, maps);
criterion_main!(benches);
