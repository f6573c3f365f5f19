//! A thread in the bridge's namespace that reads the interface counters of all hosts every few milliseconds, and what watched processes use.
//!
//! Owned by one run. One read of `/proc/thread-self/net/dev` gives all hosts; nothing is asked of the hosts themselves.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::enter;
use crate::error::Result;
use crate::network::{self, Network};
use crate::process::{self, Usage};
use crate::recording::{Recording, Traffic};

/// Between two looks at the counters.
const EVERY: Duration = Duration::from_millis(20);
/// Between two looks at processes, in looks at the counters: reading `/proc` of 64 processes takes milliseconds.
const PROCESSES_EVERY: u32 = 10;

/// What the thread shares with its owner.
#[derive(Debug, Default)]
struct Shared {
    now: Vec<Traffic>,
    watched: BTreeMap<u32, Watched>,
    peak_anonymous: BTreeMap<u32, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Watched {
    first: Usage,
    last: Usage,
}

/// A recording under way.
#[derive(Debug)]
pub struct Sampler {
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
    begin: Instant,
    first: Vec<Traffic>,
    thread: Option<JoinHandle<Result<Recording>>>,
}

/// What a watched process used while it was watched.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Used {
    /// CPU time.
    pub cpu_seconds: f64,
    /// The most resident memory since the process started, file cache included.
    pub peak_rss_bytes: u64,
    /// The most memory without file cache that was seen.
    pub peak_anonymous_bytes: u64,
}

impl Sampler {
    /// Begins to record.
    pub fn start(network: &Network) -> Result<Self> {
        let ports: Vec<String> = network.hosts().iter().map(|host| network::port(&host.name)).collect();
        let first_ports = ports.clone();
        let first = enter::run(&network.switch(), move || counters(&first_ports))?;
        let shared = Arc::new(Mutex::new(Shared { now: first.clone(), ..Shared::default() }));
        let stop = Arc::new(AtomicBool::new(false));
        let begin = Instant::now();
        let (theirs, stopped) = (shared.clone(), stop.clone());
        let thread = enter::spawn(&network.switch(), move || record(&ports, &theirs, &stopped, begin))?;
        Ok(Self { shared, stop, begin, first, thread: Some(thread) })
    }

    /// Seconds since the recording began.
    pub fn seconds(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Bytes that the host with this place in the network has received since the recording began.
    pub fn received(&self, host: usize) -> u64 {
        let now = lock(&self.shared).now.get(host).map_or(0, |traffic| traffic.received);
        now - self.first.get(host).map_or(0, |traffic| traffic.received)
    }

    /// Watches a process from now on.
    pub fn watch(&self, pid: u32) {
        let usage = process::usage(pid).unwrap_or_default();
        lock(&self.shared).watched.insert(pid, Watched { first: usage, last: usage });
    }

    /// What `pid` used so far, or until it ended.
    pub fn used(&self, pid: u32) -> Used {
        let fresh = process::usage(pid);
        let mut shared = lock(&self.shared);
        let peak = shared.peak_anonymous.get(&pid).copied().unwrap_or(0);
        let Some(watched) = shared.watched.get_mut(&pid) else { return Used::default() };
        if let Some(fresh) = fresh {
            watched.last = fresh;
        }
        Used {
            cpu_seconds: watched.last.cpu_seconds - watched.first.cpu_seconds,
            peak_rss_bytes: watched.last.peak_rss_bytes,
            peak_anonymous_bytes: peak.max(watched.last.anonymous_bytes),
        }
    }

    /// Ends the recording.
    pub fn stop(mut self) -> Result<Recording> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(recording)) => recording,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(Recording::default()),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn record(ports: &[String], shared: &Mutex<Shared>, stop: &AtomicBool, begin: Instant) -> Recording {
    let mut recording = Recording { seconds: Vec::new(), hosts: vec![Vec::new(); ports.len()] };
    let mut look = 0;
    loop {
        let now = counters(ports);
        recording.seconds.push(begin.elapsed().as_secs_f64());
        recording.hosts.iter_mut().zip(&now).for_each(|(host, traffic)| host.push(*traffic));
        lock(shared).now = now;
        if look % PROCESSES_EVERY == 0 {
            look_at_processes(shared);
        }
        look += 1;
        if stop.load(Ordering::Relaxed) {
            return recording;
        }
        std::thread::sleep((begin + EVERY * look).saturating_duration_since(Instant::now()));
    }
}

fn look_at_processes(shared: &Mutex<Shared>) {
    let pids: Vec<u32> = lock(shared).watched.keys().copied().collect();
    for pid in pids {
        // One that ended keeps what was seen last.
        let Some(usage) = process::usage(pid) else { continue };
        let mut shared = lock(shared);
        let peak = shared.peak_anonymous.entry(pid).or_default();
        *peak = usage.anonymous_bytes.max(*peak);
        if let Some(watched) = shared.watched.get_mut(&pid) {
            watched.last = usage;
        }
    }
}

/// The counters of `ports` in this thread's namespace, seen from the hosts: what a port transmits, its host receives.
fn counters(ports: &[String]) -> Vec<Traffic> {
    // The thread's own view: `/proc/self` would show the namespace of the process.
    let text = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    parse(&text, ports)
}

fn parse(text: &str, ports: &[String]) -> Vec<Traffic> {
    let lines: BTreeMap<&str, Traffic> = text.lines().filter_map(line).collect();
    ports.iter().map(|port| lines.get(port.as_str()).copied().unwrap_or_default()).collect()
}

/// `name: received-bytes packets … (8 columns) transmitted-bytes …`
fn line(text: &str) -> Option<(&str, Traffic)> {
    let (name, numbers) = text.split_once(':')?;
    let mut numbers = numbers.split_whitespace().map(str::parse);
    let sent = numbers.next()?.ok()?;
    let received = numbers.nth(7)?.ok()?;
    Some((name.trim(), Traffic { received, sent }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches directions that are swapped and a header line taken for a port.
    #[test]
    fn what_a_port_transmits_its_host_receives() {
        let text = "Inter-|   Receive                 |  Transmit\n face |bytes packets|bytes\n  p-n1:  11 2 0 0 0 0 0 0  99 3 0 0 0 0 0 0\n";
        let read = parse(text, &["p-n1".into(), "p-n2".into()]);
        assert_eq!(read, [Traffic { received: 99, sent: 11 }, Traffic::default()]);
    }
}
