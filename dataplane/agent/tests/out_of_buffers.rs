//! Children that take all the buffers which sending may use. In a process of its own: its CPU time is measured.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use faasnet_agent::tuning::Tuning;
use faasnet_agent::{Engine, WorkerLink};
use faasnet_api::NodeId;
use faasnet_relay::wire::Kind;
use support::{Image, Node, Stranger, cpu_time, nobody};

/// As few as may be: four of them are kept for receiving.
const BUFFERS: usize = 8;
const BLOCKS: usize = 24;

/// Catches a worker that spins for a child to which it has no buffer to give, one that forgets that child, and wrong bytes when it goes
/// on.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_without_a_buffer_waits_quietly() {
    let images = [Image::new(0, BLOCKS << 18), Image::new(1, BLOCKS << 18)];
    let mut node = Node::start(Engine::Copy, BUFFERS, Tuning::default()).await;
    let ids: Vec<NodeId> = (1..=6).map(|n| NodeId([n; 16])).collect();
    images.iter().for_each(|image| node.assign(image, nobody(), &ids[..2], true));
    // Six children that read nothing: each holds a buffer at least as soon as its socket is full.
    let taken = |(n, id): (usize, &NodeId)| Stranger::wanting_all(&node, &images[n % 2], *id);
    let silent: Vec<Stranger> = ids.iter().enumerate().map(taken).collect();
    settled(&mut node).await;
    let mut starved = Stranger::wanting_all(&node, &images[0], NodeId([2; 16]));
    let before = cpu_time();
    let heard = listen(&mut starved, Duration::from_millis(400));
    let spent = cpu_time() - before;
    assert_eq!(heard, 0, "there was a buffer left: the test is not what it says");
    assert!(spent < Duration::from_millis(200), "{spent:?} of CPU in 400 ms");
    drop(silent);
    starved.stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
    let mut blocks = 0;
    while blocks < BLOCKS {
        let (frame, payload) = starved.read().unwrap();
        if frame.kind == Kind::Block {
            let block = frame.chunk as usize * 16 + frame.block as usize;
            assert!(payload == images[0].block(block), "block {block}");
            blocks += 1;
        }
    }
    node.worker.stop();
}

/// Waits until nothing is sent any more.
async fn settled(node: &mut Node) {
    let mut sent = Vec::new();
    loop {
        let reports = node.until("a report", |_| true).await;
        let now: Vec<u64> = reports.iter().map(|report| report.bytes_copied).collect();
        if now == sent && now.iter().all(|bytes| *bytes > 0) {
            return;
        }
        sent = now;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many blocks come within `patience`.
fn listen(child: &mut Stranger, patience: Duration) -> usize {
    let (mut blocks, start) = (0, std::time::Instant::now());
    while start.elapsed() < patience {
        child.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // `Waiting` frames are small, so a time-out falls between frames.
        if let Ok((frame, _)) = child.read() {
            blocks += usize::from(frame.kind == Kind::Block);
        }
    }
    blocks
}
