//! What an agent costs while nothing is to be done.

use std::time::Duration;

use faasnet::cluster::{Cluster, ClusterOptions};
use faasnet::idle::{self, Idle, MOST_BYTES, MOST_SWITCHES_PER_S};

use crate::common::{exe, run};

/// Several heartbeats and several of a worker's longest waits.
const PERIOD: Duration = Duration::from_secs(12);

/// Catches timers that run though nothing is to be done, and buffers beyond those of the start-up budget. Heartbeats are those of the
/// defaults: other tests have faster ones.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_agent_sleeps() {
    let dir = tempfile::tempdir().unwrap();
    let options = ClusterOptions {
        exe: exe(),
        dir: dir.path().to_owned(),
        agents: 1,
        first_address: "127.77.0.1".parse().unwrap(),
        agent_args: Vec::new(),
        controller_args: Vec::new(),
    };
    let cluster = Cluster::start(options).await.unwrap();
    let pid = cluster.agents[0].pid().unwrap();
    let Idle { anonymous_bytes, voluntary_switches_per_s, .. } = idle::watch(pid, PERIOD).await.unwrap();
    println!("idle: {} KiB anonymous, {voluntary_switches_per_s:.2} switches/s", anonymous_bytes / 1024);
    assert!(anonymous_bytes < MOST_BYTES, "an idle agent has {anonymous_bytes} bytes");
    assert!(voluntary_switches_per_s <= MOST_SWITCHES_PER_S, "{voluntary_switches_per_s} voluntary switches a second");
}

/// Catches a crowd of which the controller accepts nobody, or that it loses while nothing happens.
#[test]
fn a_crowd_stays_attached() {
    let output = run(&["bench", "agents", "--count", "40", "--seconds", "1", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let crowd: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(crowd["agents"], 40);
    // The kernel counts a process's time in ticks of 10 ms, the controller its own in nanoseconds: a quiet second may be no tick at all.
    let (whole, state_machine) = (crowd["cores"].as_f64().unwrap(), crowd["state_machine_cores"].as_f64().unwrap());
    assert!(state_machine > 0.0 && state_machine <= whole + 0.02, "{crowd}");
}
