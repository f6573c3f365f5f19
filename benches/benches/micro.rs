//! Cost of one frame, one block and one bitmap. Each number has a plain baseline beside it in the same run.
//!
//! At 10 Gbit/s a node sees 4,770 blocks of 256 KiB a second: 210 µs for everything that is done with one.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public items")]

use std::hint::black_box;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use faasnet_agent::worker::mailbox::WorkerCommand;
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{
    BLOCK_BYTES, BlockDigest, BlockIndex, CHUNK_BYTES, Descriptor, Entry, Geometry, Origin, Stripe, Verify,
};
use faasnet_relay::wire::{Frame, Kind, encode_want};
use faasnet_ring::{Outcome, Pipe, Waker, socket};
use faasnet_store::Store;
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
    for mode in [Verify::Blake3, Verify::Xxh3] {
        let name = format!("verify {mode}");
        group.bench_function(name, |bench| bench.iter(|| descriptor.verify(BlockIndex(0), black_box(&payload), mode)));
    }
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

/// Marking a block present: one word of the map, into the page cache.
fn block_map(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block map");
    let Ok(folder) = tempfile::tempdir() else { return };
    let Ok(store) = Store::open(folder.path(), None) else { return };
    let many = Arc::new(descriptor_of(&[0; BLOCK_BYTES as usize], BLOCKS));
    group.bench_function("mark", |bench| {
        bench.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            let mut left = rounds;
            while left > 0 {
                // Only the first mark of a block writes: every 4,096 rounds a fresh image.
                let Ok(image) = store.open_image("bench", Arc::clone(&many)) else { return took };
                let now = left.min(BLOCKS.into()) as u32;
                let begin = Instant::now();
                (0..now).for_each(|block| drop(black_box(image.mark(BlockIndex(block)))));
                took += begin.elapsed();
                left -= u64::from(now);
                drop(image);
                if store.remove(many.id()).is_err() {
                    return took;
                }
            }
            took
        });
    });
    let Ok(file) = tempfile::tempfile() else { return };
    // The baseline: the system call alone.
    group.bench_function("write 8 bytes", |bench| bench.iter(|| file.write_all_at(black_box(&[7; 8]), 4096)));
    group.finish();
}

/// One command from the control side: the queue, and the wake-up that ends the worker's wait.
fn mailbox(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mailbox");
    let (sender, receiver) = crossbeam::channel::bounded(1024);
    group.bench_function("queue", |bench| {
        bench.iter(|| sender.send(black_box(WorkerCommand::Report)).is_ok() && receiver.try_recv().is_ok());
    });
    let Ok(waker) = Waker::new() else { return };
    group.bench_function("queue and wake", |bench| {
        bench.iter(|| {
            let sent = sender.send(black_box(WorkerCommand::Report)).is_ok();
            waker.wake();
            waker.drain() && sent && receiver.try_recv().is_ok()
        });
    });
    group.finish();
}

/// A block from a socket through two pipes to a socket, as a relay with one more child does it; the baseline reads and writes it.
fn pipe(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("block through a pipe");
    group.throughput(Throughput::Bytes(BLOCK_BYTES.into()));
    let (Ok((mut near, far)), Ok(transit), Ok(branch)) = (connection(), Pipe::new(1 << 20), Pipe::new(1 << 20)) else {
        return;
    };
    let mut block = vec![7; BLOCK_BYTES as usize];
    group.bench_function("fill, tee, discard both", |bench| {
        bench.iter(|| {
            let mut left = block.len();
            while left > 0 {
                if near.write_all(&block[..left.min(PORTION)]).is_err() {
                    return;
                }
                let mut portion = left.min(PORTION);
                while portion > 0 {
                    let Outcome::Moved(moved) = transit.fill_from_socket(&far, portion) else { continue };
                    let (_, _) = (transit.tee_to(&branch, moved), transit.discard(moved));
                    branch.discard(moved);
                    (portion, left) = (portion - moved, left - moved);
                }
            }
        });
    });
    group.bench_function("recv", |bench| {
        bench.iter(|| {
            for start in (0..block.len()).step_by(PORTION) {
                if near.write_all(&block[start..start + PORTION]).is_err() {
                    return;
                }
                let mut done = 0;
                while done < PORTION {
                    if let Outcome::Moved(moved) = socket::recv(&far, &mut block[start + done..start + PORTION]) {
                        done += moved;
                    }
                }
            }
        });
    });
    group.finish();
}

/// So much of a block lies in the socket at once.
const PORTION: usize = 64 << 10;
/// Blocks of the image whose map is measured: 1 GiB.
const BLOCKS: u32 = 4096;

fn connection() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    far.set_nonblocking(true)?;
    Ok((near, far))
}

fn descriptor(payload: &[u8]) -> Descriptor {
    descriptor_of(payload, 1)
}

fn descriptor_of(payload: &[u8], blocks: u32) -> Descriptor {
    let digest = format!("sha256:{}", "0".repeat(64));
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: "bench".into(),
        origin: Origin::Layout { path: "/".into() },
        manifest_media_type: String::new(),
        manifest_digest: digest.clone(),
        manifest: Vec::new(),
        entries: vec![Entry { digest, media_type: String::new(), len: payload.len() as u64 * u64::from(blocks) }],
        blocks: vec![BlockDigest::of(payload); blocks as usize],
    };
    match Descriptor::new(parts) {
        Ok(descriptor) => descriptor,
        Err(error) => unreachable!("the bench's own descriptor is sound: {error}"),
    }
}

criterion_group!(benches, frame, block, maps, block_map, mailbox, pipe);
criterion_main!(benches);
