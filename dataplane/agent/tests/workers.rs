//! Several workers in one node: many functions at once, spread, handed over, and within the budget.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use faasnet_agent::budget::{Budget, SocketLimits};
use faasnet_agent::tuning::{Pin, Tuning};
use faasnet_agent::worker::mailbox::WorkerCommand;
use faasnet_agent::{Config, Engine, WorkerLink};
use support::{Image, Node, anonymous_bytes, nobody};

const FUNCTIONS: usize = 20;
const IMAGE_BYTES: usize = (2 << 20) + 12_345;
const BUFFERS: usize = 16;

/// Catches a child that reaches the wrong worker, or none; images that pile up on one worker; bytes of one function in another's file; and
/// memory that grows with the number of functions.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_functions_between_two_nodes_of_two_workers() {
    let two = Tuning { workers: 2, ..Tuning::default() };
    let images: Vec<Image> = (0..FUNCTIONS).map(|seed| Image::new(seed, IMAGE_BYTES)).collect();
    let before = anonymous_bytes();
    let parent = Node::start(Engine::Auto, BUFFERS, two.clone()).await;
    let mut child = Node::start(Engine::Auto, BUFFERS, two).await;
    let ids = [parent.store.node_id(), child.store.node_id()];
    // Half of the children come before their parent knows the function: the front holds them until it learns where they go.
    let (early, late) = images.split_at(FUNCTIONS / 2);
    early.iter().for_each(|image| child.assign(image, parent.target(), &[], false));
    images.iter().for_each(|image| parent.assign(image, nobody(), &ids[1..], true));
    late.iter().for_each(|image| child.assign(image, parent.target(), &[], false));
    let received = child.complete(&images).await;
    assert_eq!(received.len(), FUNCTIONS);
    for report in received {
        assert_eq!((report.bytes_received, report.bytes_refetched), (IMAGE_BYTES as u64, 0));
        assert_eq!((report.edges_failed, report.blocks_refused), (0, 0));
        assert_eq!(report.upstreams.len(), 1);
    }
    for node in [&parent, &child] {
        let mut load = BTreeMap::<_, usize>::new();
        images.iter().for_each(|image| *load.entry(node.worker.worker_of(image.function)).or_default() += 1);
        assert_eq!(load.len(), 2, "one worker has everything: {load:?}");
        assert!(load.values().all(|functions| *functions >= 3), "{load:?}");
    }
    let config = Config { workers: 2, buffers: BUFFERS, ..Config::default() };
    let budget = Budget::new(&config, SocketLimits { receive_bytes: 0, send_bytes: 0 });
    let (grown, allowed) = (anonymous_bytes().saturating_sub(before), 2 * budget.user_bytes());
    // Beside the buffers: rings, stacks, runtime, the store's maps. They do not depend on what flows.
    assert!(grown < allowed + (24 << 20), "{grown} bytes grown, {allowed} bytes of buffers");
    child.worker.stop();
    parent.worker.stop();
}

/// Catches knobs that only parse: a pinned worker on huge pages, with a polling thread, small pipes and a rate limit, moves the right bytes.
#[tokio::test(flavor = "multi_thread")]
async fn every_knob_at_once_moves_the_right_bytes() {
    let mut tuning = Tuning { pin: Some(Pin::Auto), huge_pages: true, pipe_bytes: 128 << 10, ..Tuning::default() };
    tuning.driver.sqpoll_idle_ms = Some(5);
    tuning.driver.busy_poll_us = Some(10);
    tuning.limit_bytes_per_second = Some(100 << 20);
    let images = [Image::new(100, 9 << 20), Image::new(101, 1)];
    let parent = Node::start(Engine::Auto, BUFFERS, tuning.clone()).await;
    let mut child = Node::start(Engine::Auto, BUFFERS, tuning).await;
    let ids = [child.store.node_id()];
    images.iter().for_each(|image| parent.assign(image, nobody(), &ids, true));
    images.iter().for_each(|image| child.assign(image, parent.target(), &[], false));
    child.complete(&images).await;
    child.worker.stop();
    parent.worker.stop();
}

/// Catches a rate limit that each child, or each worker, gets to itself.
#[tokio::test(flavor = "multi_thread")]
async fn children_of_two_workers_share_the_rate_limit() {
    const LIMIT: u64 = 32 << 20;
    let limited = Tuning { workers: 2, limit_bytes_per_second: Some(LIMIT), ..Tuning::default() };
    let images: Vec<Image> = (0..4).map(|seed| Image::new(seed, 12 << 20)).collect();
    let parent = Node::start(Engine::Auto, BUFFERS, limited).await;
    let mut child = Node::start(Engine::Auto, BUFFERS, Tuning { workers: 2, ..Tuning::default() }).await;
    let ids = [child.store.node_id()];
    images.iter().for_each(|image| parent.assign(image, nobody(), &ids, true));
    let start = std::time::Instant::now();
    images.iter().for_each(|image| child.assign(image, parent.target(), &[], false));
    child.complete(&images).await;
    // 48 MiB at 32 MiB/s; undivided it would be 12 MiB at 32 MiB/s. What leaves before the first division is slack.
    let took = start.elapsed().as_secs_f64();
    assert!(took > 0.8, "{took} s: the limit was not divided");
    child.worker.stop();
    parent.worker.stop();
}

/// Catches an update that leaves one image with two owners, a function that is reported twice or not at all after it has moved, and one
/// that cannot come back after it was dropped.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_follows_its_image_to_another_worker() {
    let two = Tuning { workers: 2, ..Tuning::default() };
    let [first, second] = [Image::new(0, 1 << 20), Image::new(1, 1 << 20)];
    let mut parent = Node::start(Engine::Auto, BUFFERS, two.clone()).await;
    let mut child = Node::start(Engine::Auto, BUFFERS, two).await;
    let ids = [child.store.node_id()];
    for image in [&first, &second] {
        parent.assign(image, nobody(), &ids, true);
        child.assign(image, parent.target(), &[], false);
    }
    let (stayed, function) = (second.function, first.function);
    let home = parent.worker.worker_of(stayed);
    assert_ne!(parent.worker.worker_of(function), home);
    // The child still holds the old image of the first function when its parent has the new one already.
    let updated = Image::new(1, 1 << 20).of(function);
    parent.assign(&updated, nobody(), &ids, true);
    child.assign(&updated, parent.target(), &[], false);
    assert_eq!(parent.worker.worker_of(function), home);
    child.complete(&[updated, second]).await;
    let reports = parent.until("two functions", |reports| reports.len() == 2).await;
    assert!(reports.iter().all(|report| report.image == Image::new(1, 1 << 20).descriptor.id()));
    child.worker.send(WorkerCommand::Drop { function, term: 1, epoch: 1 }).unwrap();
    child.until("dropped", |reports| reports.len() == 1).await;
    assert_eq!(child.worker.worker_of(function), None);
    child.assign(&first, parent.target(), &[], false);
    child.until("back", |reports| reports.len() == 2).await;
    child.worker.stop();
    parent.worker.stop();
}
