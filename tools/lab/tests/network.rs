//! Real namespaces, links and token buckets. Needs root; without it every test here says loudly that it is skipped, and in CI it fails.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use faasnet_lab::sampler::Sampler;
use faasnet_lab::state::State;
use faasnet_lab::{LabError, LabId, Network, NetworkOptions, enter, flow, leftovers, process};

/// A network that goes even when the test fails.
struct Guard(Network);

impl Drop for Guard {
    fn drop(&mut self) {
        leftovers::remove(self.0.id()).unwrap();
    }
}

fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must run the lab's tests as root");
    eprintln!("SKIPPED: the lab's tests make network namespaces and need root: sudo tools/check tests");
    false
}

fn up(hosts: usize, rate: &str) -> Guard {
    let options = NetworkOptions { id: LabId::fresh(), hosts, rate: rate.parse().unwrap(), mtu: None };
    Guard(Network::up(options).unwrap())
}

/// The interfaces of the machine's own namespace.
fn own_interfaces() -> BTreeSet<String> {
    std::fs::read_dir("/sys/class/net").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

/// Catches a lab of 64 hosts that takes a coffee, touches the machine's own interfaces, or leaves anything behind.
#[test]
fn sixty_four_hosts_come_up_in_seconds_and_go_without_a_trace() {
    if !root() {
        return;
    }
    let before = own_interfaces();
    let begin = Instant::now();
    let guard = up(64, "100mbit");
    let id = guard.0.id().clone();
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    println!("64 hosts in {:?}", begin.elapsed());
    assert_eq!(leftovers::namespaces(&id).unwrap().len(), 64 + 3);
    assert_eq!(own_interfaces(), before);
    assert!(leftovers::labs().unwrap().contains(&id));
    drop(guard);
    assert_eq!(leftovers::find(&id).unwrap(), leftovers::Leftovers::default());
    assert!(!leftovers::labs().unwrap().contains(&id));
}

/// Catches links that are not shaped, are shaped in one direction only, or crawl because the bucket is too small.
#[test]
fn both_directions_have_the_rate() {
    if !root() {
        return;
    }
    let Guard(network) = &up(2, "40mbit");
    let (origin, host) = (network.origin(), &network.agents()[0]);
    for (from, to) in [(origin, host), (host, origin)] {
        let bits = 8.0 * flow::payload_rate(from, to, 8 << 20).unwrap();
        assert!((30e6..=40.5e6).contains(&bits), "{bits} bit/s from {} to {}", from.name, to.name);
    }
    network.set_rate(host, network.rate().divided(10)).unwrap();
    let bits = 8.0 * flow::payload_rate(origin, host, 512 << 10).unwrap();
    assert!(bits <= 4.5e6, "{bits} bit/s at a tenth");
}

/// Catches counters that miss traffic or count it for another host.
#[test]
fn the_sampler_counts_what_moves() {
    if !root() {
        return;
    }
    let Guard(network) = &up(2, "100mbit");
    let sampler = Sampler::start(network).unwrap();
    flow::payload_rate(network.origin(), &network.agents()[1], 2 << 20).unwrap();
    let recording = sampler.stop().unwrap();
    let payload = (2 << 20) + (2 << 20);
    let received = recording.total(3).received;
    assert!((payload..payload * 11 / 10).contains(&received), "{received} bytes for a payload of {payload}");
    assert!(recording.total(0).sent >= payload);
    assert!(recording.total(2).received < 100_000);
}

/// Catches a cut link that still carries traffic, or that stays cut.
#[test]
fn a_link_goes_down_and_comes_back() {
    if !root() {
        return;
    }
    let Guard(network) = &up(1, "100mbit");
    let host = &network.agents()[0];
    network.set_link(host, false).unwrap();
    let address = (network.origin().address, 1).into();
    let connect = || {
        let connected = enter::run(&host.namespace, move || {
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)).unwrap_err().kind()
        });
        connected.unwrap()
    };
    assert_ne!(connect(), std::io::ErrorKind::ConnectionRefused);
    network.set_link(host, true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while connect() != std::io::ErrorKind::ConnectionRefused {
        assert!(Instant::now() < deadline, "the link does not come back");
    }
}

/// Catches a clean-up that leaves processes in the namespaces, or that ends processes elsewhere.
#[test]
fn processes_in_the_namespaces_end_with_the_lab() {
    if !root() {
        return;
    }
    let guard = up(1, "100mbit");
    let namespace = guard.0.agents()[0].namespace.clone();
    let start = || Command::new("sleep").arg("60").spawn().unwrap();
    let mut inside = enter::run(&namespace, start).unwrap();
    let mut outside = start();
    assert_eq!(leftovers::find(guard.0.id()).unwrap().processes, [inside.id()]);
    drop(guard);
    assert!(!inside.wait().unwrap().success());
    assert!(process::started(outside.id()).is_some());
    outside.kill().unwrap();
    outside.wait().unwrap();
}

/// Catches an audit that sees no process because the names of its namespaces are gone, and an empty note that a crash left and that stays.
#[test]
fn what_outlives_its_namespace_is_found() {
    if !root() {
        return;
    }
    let guard = up(1, "100mbit");
    let id = guard.0.id().clone();
    let namespace = guard.0.agents()[0].namespace.clone();
    let mut survivor = enter::run(&namespace, || Command::new("sleep").arg("60").spawn().unwrap()).unwrap();
    let pinned = leftovers::Pinned::of(&id).unwrap();
    for name in leftovers::namespaces(&id).unwrap() {
        assert!(Command::new("ip").args(["netns", "delete", &name]).status().unwrap().success());
    }
    assert_eq!(leftovers::find(&id).unwrap().processes, [0; 0]);
    assert_eq!(pinned.processes(), [survivor.id()]);
    survivor.kill().unwrap();
    survivor.wait().unwrap();
    assert_eq!(pinned.processes(), [0; 0]);
    std::fs::write(format!("/run/faasnet-lab/{id}.json"), "").unwrap();
    assert!(State::read(&id).is_none() && leftovers::labs().unwrap().contains(&id));
    drop(guard);
    assert!(!leftovers::labs().unwrap().contains(&id));
}

/// Catches two labs of one name that would take each other down.
#[test]
fn a_name_is_used_once() {
    if !root() {
        return;
    }
    let Guard(network) = &up(1, "100mbit");
    let options = NetworkOptions { id: network.id().clone(), hosts: 1, rate: network.rate(), mtu: None };
    assert!(matches!(Network::up(options), Err(LabError::Exists(_))));
    assert_eq!(leftovers::namespaces(network.id()).unwrap().len(), 4);
    assert!(State::read(network.id()).unwrap().is_owned());
}
