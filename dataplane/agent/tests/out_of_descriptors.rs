//! A worker that may open nothing more. In a process of its own: the limit is everybody's.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use faasnet_agent::Engine;
use faasnet_agent::WorkerLink;
use faasnet_agent::tuning::Tuning;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Node, cpu_time};

/// Catches an accept loop that spins while there are no descriptors (the listener stays readable all the time), and one that has
/// forgotten the listener when there are some again.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_descriptors_rests_and_recovers() {
    let node = Node::start(Engine::Auto, 8, Tuning::default()).await;
    let address: SocketAddr = node.worker.data_address();
    // The descriptor is there before the limit is; connecting needs no other.
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    let mut child = std::net::TcpStream::from(socket);
    child.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    let before = cpu_time();
    let mut greeting = [0; 16];
    let unheard = child.read(&mut greeting).unwrap_err();
    let spent = cpu_time() - before;
    setrlimit(Resource::Nofile, limit).unwrap();
    assert!(matches!(unheard.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{unheard}");
    assert!(spent < Duration::from_millis(200), "{spent:?} of CPU in 600 ms");
    child.set_read_timeout(Some(support::DEADLINE)).unwrap();
    let start = Instant::now();
    child.read_exact(&mut greeting).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "accepted only after {:?}", start.elapsed());
    node.worker.stop();
}
