//! `faasnet lab` as root: real namespaces and links. Without root every test here says loudly that it is skipped; in CI it fails.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::faasnet;

/// Labs run one at a time: each loads the machine as much as a whole cluster.
static LAB: Mutex<()> = Mutex::new(());

/// The right to run a lab until the guard drops; `None` without root.
pub(crate) fn root() -> Option<MutexGuard<'static, ()>> {
    if rustix::process::geteuid().is_root() {
        return Some(LAB.lock().unwrap_or_else(PoisonError::into_inner));
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must run the lab's tests as root");
    eprintln!("SKIPPED: `faasnet lab` makes network namespaces and needs root: sudo tools/check tests");
    None
}

/// Runs an experiment in a folder of its own; it must succeed and leave nothing in that folder.
fn provision(arguments: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let output = faasnet(&[&["lab", "provision", "--json", "--dir", path], arguments].concat()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}: {}{text}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{arguments:?} left files behind");
    serde_json::from_str(&text).unwrap()
}

/// The victims' share and neighbours must have been such that the fault meant something.
fn counts(report: &Value) -> bool {
    report["faults"].as_array().unwrap().iter().any(|fault| fault["counts"] == true)
}

/// Catches fields that scripts rely on, a bound that is no bound, and an origin that is read more than once.
#[test]
fn an_experiment_is_measured_and_audited() {
    let Some(_alone) = root() else { return };
    let report = provision(&["--hosts", "3", "--size", "8MiB", "--rate", "80mbit", "--runs", "2"]);
    for path in [
        "/image/bytes",
        "/origin/bytes_sent",
        "/seconds/max",
        "/nodes/2/bytes_received",
        "/bound_seconds",
        "/ratio",
        "/cpu_seconds_per_gib",
        "/peak_memory_bytes",
        "/origin_interface_bytes",
        "/scheduling/seconds",
        "/runs/1/ratio",
        "/settings/rate",
        "/environment/kernel",
        "/hosts/2/longest_stall_seconds",
        "/hosts/2/stripes/1/seconds",
        "/targets",
    ] {
        assert!(report.pointer(path).is_some(), "{path} is missing: {report}");
    }
    let share = report["origin_share"].as_f64().unwrap();
    assert!((1.0..1.2).contains(&share), "the origin sent {share} images");
    assert!(report["ratio"].as_f64().unwrap() > 0.9, "faster than the link: {}", report["ratio"]);
}

/// Catches a baseline that does not read the origin once per host.
#[test]
fn direct_reads_the_origin_for_every_host() {
    let Some(_alone) = root() else { return };
    let report = provision(&["--hosts", "3", "--size", "4MiB", "--policy", "direct"]);
    let sent = report["origin"]["bytes_sent"].as_u64().unwrap();
    assert!(report["origin"]["counted_by"] == "registry" && sent >= 12 << 20, "{}", report["origin"]);
    assert!(report["origin_share"].as_f64().unwrap() >= 3.0);
}

/// Catches wrong bytes, repeated bytes or left-overs after each single fault. Times are not judged: the machine may be busy.
#[test]
fn every_fault_ends_with_a_clean_audit() {
    let Some(_alone) = root() else { return };
    let faults = [
        "kill:root",
        "kill:inner",
        "kill:leaf",
        "kill:half",
        "kill:two",
        "stop:inner@40+1",
        "kill:controller",
        "kill:origin@40+1",
        "link:inner@40+1",
        "flip:inner@30",
        "full:n3",
        "joins:4@40",
    ];
    for fault in faults {
        let report = provision(&["--hosts", "7", "--size", "12MiB", "--rate", "40mbit", "--fault", fault]);
        assert!(counts(&report), "{fault} did not count: {}", report["faults"]);
        if fault.starts_with("flip") {
            assert!(report["audit"]["blocks_refused"].as_u64().unwrap() > 0, "no wrong block was noticed");
        }
    }
}

/// Catches an agent that dies unasked, in the middle of a clean-looking run, and is told by nobody.
#[test]
fn a_death_that_nobody_asked_for_fails_the_audit() {
    let Some(_alone) = root() else { return };
    let id = format!("d{:05x}", std::process::id() & 0xf_ffff);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let arguments = ["lab", "provision", "--json", "--id", &id, "--hosts", "3", "--size", "6MiB", "--rate", "20mbit"];
    let run = faasnet(&[&arguments[..], &["--dir", path]].concat()).stdout(std::process::Stdio::piped()).spawn();
    let mut run = run.unwrap();
    let images = dir.path().join(format!("fnlab-{id}-files/run1/n3/images"));
    let deadline = Instant::now() + Duration::from_secs(60);
    while std::fs::read_dir(&images).map_or(0, |images| images.count()) == 0 {
        assert!(Instant::now() < deadline && run.try_wait().unwrap().is_none(), "n3 gets no image");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(process_on(&id, "n3"));
    let output = run.wait_with_output().unwrap();
    assert!(!output.status.success(), "a run in which an agent died is a success");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let problems = report["audit"]["problems"].to_string();
    assert!(problems.contains("n3 ended by itself") && problems.contains("signal: 9"), "{problems}");
    assert!(report["verified"] == false && report["audit"]["verified"] == 2, "{report}");
}

/// The only process on a host: its agent.
fn process_on(id: &str, host: &str) -> u32 {
    let pids = faasnet_lab::leftovers::processes(&[format!("fnlab-{id}-{host}")]);
    assert_eq!(pids.len(), 1, "{pids:?} run on {host}");
    pids[0]
}

/// As only somebody else would.
fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

/// Catches what only comes with several faults at once; the seed is printed with the failure.
#[test]
fn chaos_ends_with_a_clean_audit() {
    let Some(_alone) = root() else { return };
    for seed in ["1", "2", "3"] {
        let report = provision(&["--hosts", "7", "--size", "24MiB", "--chaos", seed, "--seconds", "20"]);
        assert!(counts(&report), "seed {seed}: no fault counted");
    }
}

/// Catches a lab that cannot be used while it is up, faults that do not reach it, and leftovers of a keeper that was killed.
#[test]
fn a_lab_stays_until_it_is_taken_down_even_after_a_crash() {
    let Some(_alone) = root() else { return };
    let id = format!("t{:05x}", std::process::id() & 0xf_ffff);
    let dir = tempfile::tempdir().unwrap();
    let lab = |arguments: &[&str]| {
        let output = faasnet(&[&["lab"], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let path = dir.path().to_str().unwrap();
    lab(&["up", "--id", &id, "--hosts", "2", "--size", "1MiB", "--dir", path]);
    let exe = crate::common::exe();
    let nodes = || lab(&["shell", "--id", &id, "--", exe.to_str().unwrap(), "nodes"]);
    assert_eq!(nodes().matches("live").count(), 2);
    let fault = |arguments: &[&str]| lab(&[&["fault", "--id", &id], arguments].concat());
    let wait_live = |count: usize| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while nodes().matches("live").count() != count {
            assert!(Instant::now() < deadline, "not {count} live agents: {}", nodes());
        }
    };
    fault(&["kill", "n2"]);
    wait_live(1);
    fault(&["heal", "n2"]);
    wait_live(2);
    assert!(fault(&["joins", "2"]).contains("n1 n2"));
    assert!(fault(&["stop", "root", "--seconds", "0.2"]).contains("stop:root"));
    assert!(
        !faasnet(&["lab", "fault", "--id", &id, "slow", "n3"]).output().unwrap().status.success(),
        "there is no n3"
    );
    for kind in ["flip", "full"] {
        fault(&[kind, "n1"]);
        fault(&["heal", "n1"]);
        wait_live(2);
    }
    // What cannot be undone: the agent that should go on is gone. The lab stays, says so, and can be healed.
    let mut stopped = faasnet(&["lab", "fault", "--id", &id, "stop", "n2", "--seconds", "2"]);
    let stopped = stopped.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pid = process_on(&id, "n2");
    let deadline = Instant::now() + Duration::from_secs(30);
    while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ") {
        assert!(Instant::now() < deadline, "n2 is not stopped");
    }
    kill(pid);
    let stopped = stopped.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&stopped.stderr);
    assert!(!stopped.status.success() && errors.contains("n2: stop could not be undone"), "{errors}");
    fault(&["heal", "n2"]);
    wait_live(2);
    let state = std::fs::read_to_string(format!("/run/faasnet-lab/{id}.json")).unwrap();
    let state: Value = serde_json::from_str(&state).unwrap();
    let killed = Command::new("kill").args(["-9", &state["owner"].to_string()]).status().unwrap();
    assert!(killed.success());
    lab(&["down", &id]);
    let again = faasnet(&["lab", "down", &id]).output().unwrap();
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("there is no lab"));
    let namespaces =
        std::fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(namespaces.filter(|name| name.starts_with(&format!("fnlab-{id}-"))).count(), 0);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Catches an example in the repository that no longer works, and a scenario whose faults are not those that it names.
#[test]
fn the_example_scenario_runs() {
    let Some(_alone) = root() else { return };
    let scenario = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/scenarios/inner-node-dies.toml");
    let output = faasnet(&["lab", "run", scenario, "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let faults: Vec<_> = report["faults"].as_array().unwrap().iter().map(|fault| fault["fault"].clone()).collect();
    assert_eq!(faults, ["kill:inner@50", "link:leaf@60+1"]);
    assert!(report["faults"][0]["counts"] == true && report["audit"]["problems"].as_array().unwrap().is_empty());
    assert!(
        report["origin"]["counted_by"] == "registry" && report["origin"]["bytes_sent"].as_u64().unwrap() >= 12 << 20
    );
}
