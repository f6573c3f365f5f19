//! Hosts whose kernel settings leave little room for sockets and pipes.

use std::process::Command;

use faasnet::demo::report::Report;

use crate::common::said_loudly;

/// Runs a demo in a network namespace of its own whose `tcp_rmem` maximum is `max` bytes.
fn demo_with_rmem(max: u32) -> Option<Report> {
    if !is_root() {
        said_loudly("tcp_rmem cannot be set in a network namespace of its own without root");
        return None;
    }
    let script = format!(
        "ip link set lo up && echo '4096 16384 {max}' > /proc/sys/net/ipv4/tcp_rmem && \
         exec timeout 120 \"$0\" demo --agents 5 --size 48MiB --json"
    );
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", &script, env!("CARGO_BIN_EXE_faasnet")])
        .output()
        .expect("unshare is part of every Debian");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")))
}

/// Catches a relay that waits for ever for a frame that the receive buffer cannot hold, or spins on it.
#[test]
fn receive_buffers_smaller_than_a_block() {
    for max in [65_536, 262_144] {
        let Some(report) = demo_with_rmem(max) else { return };
        assert!(report.verified, "tcp_rmem maximum {max}");
        assert!(report.nodes.iter().all(|node| node.node.bytes_refetched == 0), "tcp_rmem maximum {max}");
        assert!(report.nodes.iter().all(|node| node.node.mover == "splice"), "tcp_rmem maximum {max}");
    }
}
