//! `faasnet demo` as people run it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use faasnet::demo::report::Report;

use crate::common::{DEADLINE, MIB, demo, faasnet, run};

/// What must hold for every demo: all right on disk, the origin read once, no block twice.
fn check(report: &Report, agents: usize) {
    assert_eq!(report.nodes.len(), agents);
    for node in &report.nodes {
        assert!(node.verified, "{}: {}", node.node.name, node.problem);
        assert_eq!(node.node.bytes_refetched, 0, "{}", node.node.name);
    }
    let (sent, image) = (report.origin.bytes_sent, report.image.bytes);
    assert!(image >= 16 * MIB, "the image has only {image} bytes");
    assert!(sent as f64 <= image as f64 * 1.02, "the origin sent {sent} of {image}");
    assert!(sent >= image);
    assert_eq!(report.origin.lost_with_root_bytes, 0);
    assert_eq!(report.origin.counted_by, "registry");
    assert!(report.origin.requests > 0 && report.origin.registration_bytes >= image - 4096);
    let received: u64 = report.nodes.iter().flat_map(|node| &node.node.upstreams).map(|up| up.bytes).sum();
    assert_eq!(received, image * agents as u64, "upstreams are not all counted");
}

/// Of what nodes between a parent and children sent: the share that was sent as it passed and not through a user-space buffer.
fn live_share(report: &Report) -> Option<f64> {
    let inner = |name: &str| report.trees.iter().any(|tree| tree.is_inner(name));
    let nodes: Vec<_> = report.nodes.iter().map(|node| &node.node).filter(|node| inner(&node.name)).collect();
    let sent: u64 = nodes.iter().map(|node| node.bytes_live + node.bytes_from_store).sum();
    let live: u64 = nodes.iter().map(|node| node.bytes_live.saturating_sub(node.bytes_copied)).sum();
    (!nodes.is_empty()).then_some(live as f64 / sent as f64)
}

/// Runs the demo at a rate that children can follow on a busy machine too, and asks for most bytes live and in splice. Twice at most:
/// a child that was kept off its core for a moment is served from the store, as it should be.
fn demo_live(arguments: &[&str]) -> Report {
    let mut shares = Vec::new();
    for _ in 0..2 {
        let report = demo(&[arguments, &["--size", "48MiB", "--rate", "24MiB"]].concat());
        assert!(report.nodes.iter().all(|node| node.node.mover == "splice"), "not all nodes splice");
        match live_share(&report) {
            Some(share) if share <= 0.8 => shares.push(share),
            _ => return report,
        }
    }
    panic!("inner nodes passed only these shares of their bytes live in splice: {shares:.2?}");
}

/// Catches a single node that cannot be both roots, and anything that only works with neighbours.
#[test]
fn one_agent() {
    check(&demo(&["--agents", "1", "--size", "48MiB"]), 1);
}

/// Catches two roots that do not feed each other.
#[test]
fn two_agents() {
    check(&demo(&["--agents", "2", "--size", "48MiB"]), 2);
}

/// Catches a smallest tree that reads the origin more than once.
#[test]
fn three_agents() {
    let report = demo_live(&["--agents", "3"]);
    check(&report, 3);
}

/// Catches forwarding that is not live: with one tree, inner nodes stand between a parent and two children each.
#[test]
fn seven_agents_in_one_tree() {
    let report = demo_live(&["--agents", "7", "--policy", "complete"]);
    check(&report, 7);
    assert_eq!(report.trees.len(), 1);
}

/// Catches what only a full-size image shows: the demo as a newcomer starts it.
#[test]
fn seven_agents_and_a_full_image() {
    let report = demo(&[]);
    check(&report, 7);
    assert_eq!((report.trees.len(), report.image.layers), (2, 5));
    assert!(report.image.bytes.abs_diff(256 * MIB) < 128 * MIB, "about 256 MiB, not {}", report.image.bytes);
}

/// Catches what only a deeper tree shows: levels beyond the second, many processes at once.
#[test]
fn twenty_agents() {
    let report = demo_live(&["--agents", "20"]);
    check(&report, 20);
    assert!(report.nodes.iter().flat_map(|node| &node.node.levels).any(|level| *level >= 3));
}

/// Catches a fallback mover that is not chosen, or does not work.
#[test]
fn the_copy_engine() {
    let report = demo(&["--agents", "7", "--size", "48MiB", "--engine", "copy"]);
    check(&report, 7);
    assert!(report.nodes.iter().all(|node| node.node.mover == "copy"));
}

/// Catches text that is wider than it may be, and files that stay although nobody asked for them.
#[test]
fn text_for_people_and_nothing_left() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(&["demo", "--agents", "3", "--size", "20MiB", "--dir", dir.path().to_str().unwrap()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for expected in ["stripe 0", "stripe 1", "└── n", "origin sent", "verified", "on their own", "n3  complete"] {
        assert!(text.contains(expected), "{expected:?} is missing in:\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert_eq!(entries(dir.path()), 0);
}

/// Catches `--keep` that keeps nothing, or keeps processes too.
#[test]
fn keep_keeps_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let report = demo(&["--agents", "2", "--size", "17MiB", "--keep", "--dir", dir.path().to_str().unwrap()]);
    let kept = report.dir.unwrap();
    assert!(kept.join("n1/images").is_dir() && kept.join("controller.log").is_file());
    assert_eq!(processes_in(dir.path()), [""; 0]);
}

/// Catches processes or files that survive Ctrl-C in the middle of a transfer.
#[test]
fn ctrl_c_in_the_middle() {
    interrupt_in_the_middle("INT", Some(130));
}

/// The same for the signal that service managers send.
#[test]
fn sigterm_in_the_middle() {
    interrupt_in_the_middle("TERM", Some(130));
}

/// Catches daemons that outlive a demo which had no chance to stop them.
#[test]
fn kill_9_in_the_middle_leaves_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = slow_demo(dir.path());
    demo.kill().unwrap();
    demo.wait().unwrap();
    wait_until("no daemon runs", || processes_in(dir.path()).is_empty());
}

fn interrupt_in_the_middle(signal: &str, code: Option<i32>) {
    let dir = tempfile::tempdir().unwrap();
    let mut demo = slow_demo(dir.path());
    let pid = demo.id().to_string();
    let killed = std::process::Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
    assert!(killed.success());
    assert_eq!(demo.wait().unwrap().code(), code);
    assert_eq!(processes_in(dir.path()), [""; 0]);
    assert_eq!(entries(dir.path()), 0, "files are left");
}

/// A demo whose origin is so slow that it would take half a minute, in the middle of its transfer.
fn slow_demo(dir: &Path) -> std::process::Child {
    let place = dir.to_str().unwrap().to_owned();
    let layout = tempfile::tempdir().unwrap();
    let image = crate::common::layout(layout.path(), "slow", &[crate::common::noise(9, 8 * MIB)]);
    let arguments = ["demo", "--agents", "3", "--rate", "500KiB", "--image", image.to_str().unwrap(), "--dir", &place];
    let child = faasnet(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Registration reads the image at the same slow rate; a node's image file says that provisioning has begun.
    wait_until("bytes flow to a node", || {
        let stores = std::fs::read_dir(dir).into_iter().flatten().flatten();
        stores.map(|demo| demo.path().join("n1/images")).any(|images| entries(&images) > 0)
    });
    child
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < DEADLINE, "it never happened that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

/// Command lines of running processes that name `dir`.
fn processes_in(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = all.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(dir)).collect()
}
