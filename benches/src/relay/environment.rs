//! The machine as it was: what has to stand beside every figure. Also who runs on which core.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use rustix::fs::MemfdFlags;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use super::measure::Lab;
use super::network::Place;

/// See the module's documentation.
#[derive(Debug, Clone, Serialize)]
pub struct Environment {
    /// `uname -r`.
    pub kernel: String,
    /// As the kernel calls it.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The core of the relay.
    pub relay_core: usize,
    /// Links of our own, or loopback.
    pub network: String,
    /// Payload per run.
    pub gib: f64,
    /// Runs per row.
    pub runs: usize,
    /// Memory that a process may lock, in bytes.
    pub memlock_bytes: Option<u64>,
    /// The load average of the last minute before the bench.
    pub load: f64,
    /// What the kernel was told, at the relay.
    pub sysctls: BTreeMap<String, String>,
}

/// Who runs where.
#[derive(Debug, Clone)]
pub(crate) struct Cores {
    pub(crate) relay: usize,
    others: Vec<usize>,
}

const SYSCTLS: [&str; 7] = [
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
    "net.core.rmem_max",
    "net.core.wmem_max",
    "fs.pipe-max-size",
    "kernel.io_uring_disabled",
];

/// The last core is the relay's, the others everybody else's.
pub(crate) fn cores() -> Result<Cores> {
    let set = sched_getaffinity(None).context("cannot ask for this process's cores")?;
    let mut all: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
    let relay = all.pop().context("this process may use no core at all")?;
    ensure!(!all.is_empty(), "the bench needs two cores: one for the relay, one for everything else");
    Ok(Cores { relay, others: all })
}

impl Cores {
    /// The core of the relay number `index` of several.
    pub(crate) fn turn(&self, index: usize) -> usize {
        match index % (self.others.len() + 1) {
            0 => self.relay,
            turn => self.others[turn - 1],
        }
    }
}

/// Keeps this thread, and what it starts, off the relay's core.
pub(crate) fn pin_others(cores: &Cores) -> Result<()> {
    pin(&cores.others)
}

/// Keeps this thread, and what it starts, on `cores`.
pub(crate) fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on the cores {cores:?}"))
}

/// Takes `bytes` of memory, writes to it and gives it back. In a virtual machine free memory may have been handed to the host, and the
/// first write to such a page costs many times what writing a file costs: rows that keep must all find pages that are really there.
pub(crate) fn touch_memory(bytes: u64) -> Result<()> {
    let memory = rustix::fs::memfd_create("faasnet-bench", MemfdFlags::CLOEXEC).context("cannot take memory")?;
    let portion = vec![1; 1 << 20];
    let mut done = 0;
    while done < bytes {
        done += rustix::io::pwrite(&memory, &portion, done).context("not enough memory for --gib; use less")? as u64;
    }
    Ok(())
}

impl Environment {
    pub(crate) fn read(lab: &Lab, runs: usize) -> Result<Self> {
        // Sysctls of the network are a namespace's own.
        let sysctls =
            lab.network.run(Place::Relay, || Ok(SYSCTLS.map(|name| (name.to_owned(), sysctl(name))).into()))?;
        let uname = rustix::system::uname();
        Ok(Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            processor: processor(),
            cores: lab.cores.others.len() + 1,
            relay_core: lab.cores.relay,
            network: lab.network.describe(),
            gib: lab.stream.gib(),
            runs,
            memlock_bytes: getrlimit(Resource::Memlock).current,
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            sysctls,
        })
    }
}

fn sysctl(name: &str) -> String {
    let text = read(&format!("/proc/sys/{}", name.replace('.', "/")));
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn processor() -> String {
    let text = read("/proc/cpuinfo");
    let line = text.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    line.map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

/// What cannot be read is left empty in the report.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
