//! The machine that figures come from: without it they say little.

use std::fs;

use serde::{Deserialize, Serialize};

/// What can change a figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// This program's, with the commit that it was built from where that is known.
    pub version: String,
    /// The kernel.
    pub kernel: String,
    /// Processor and cores.
    pub processor: String,
    /// Cores that may be used.
    pub cores: usize,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Settings of TCP.
    pub sysctls: Vec<(String, String)>,
}

impl Environment {
    /// Of this machine.
    pub fn read() -> Self {
        let sysctls = ["tcp_congestion_control", "tcp_rmem", "tcp_wmem"].map(|name| {
            let value = text(&format!("/proc/sys/net/ipv4/{name}"));
            (format!("net.ipv4.{name}"), value.split_whitespace().collect::<Vec<_>>().join(" "))
        });
        Self {
            version: version(),
            kernel: text("/proc/sys/kernel/osrelease"),
            processor: line("/proc/cpuinfo", "model name").trim_start_matches([' ', '\t', ':']).to_owned(),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            memory_bytes: line("/proc/meminfo", "MemTotal:")
                .split_whitespace()
                .next()
                .and_then(|kib| kib.parse::<u64>().ok())
                .unwrap_or(0)
                * 1024,
            sysctls: sysctls.into(),
        }
    }
}

/// `0.1.0 (151ada90956d)`; `-dirty` after the commit means that files had changed since, and outside of a checkout there is none.
pub fn version() -> String {
    match option_env!("FAASNET_COMMIT") {
        Some(commit) => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
        None => env!("CARGO_PKG_VERSION").into(),
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn line(path: &str, prefix: &str) -> String {
    let text = text(path);
    text.lines().find_map(|line| line.strip_prefix(prefix)).unwrap_or_default().to_owned()
}
