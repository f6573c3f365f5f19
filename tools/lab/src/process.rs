//! What a process uses, from `/proc`: CPU time, peak memory, descriptors. No control groups needed.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddrV4;

use serde::Serialize;

/// What one process used since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// User and system time of all its threads, those that ended included.
    pub cpu_seconds: f64,
    /// The most memory it ever had resident, mapped files included.
    pub peak_rss_bytes: u64,
    /// Its memory now, without file cache.
    pub anonymous_bytes: u64,
}

/// Usage of `pid`; `None` when it is gone.
pub fn usage(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ticks: u64 = field(&stat, 14)? + field(&stat, 15)?;
    Some(Usage {
        cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        peak_rss_bytes: kib(&status, "VmHWM:").unwrap_or(0),
        // io_uring's buffers and shared anonymous mappings count as shmem.
        anonymous_bytes: kib(&status, "RssAnon:").unwrap_or(0) + kib(&status, "RssShmem:").unwrap_or(0),
    })
}

/// CPU time of `pid` and of its children that have ended; `None` when it is gone.
pub fn cpu_seconds_with_children(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = (14..=17).map(|number| field(&stat, number)).sum::<Option<u64>>()?;
    Some(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// When `pid` started, in clock ticks since boot; `None` when there is no such process, or only what is left of it (a zombie).
pub fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    match state(&stat)? {
        'Z' | 'X' => None,
        _ => field(&stat, 22),
    }
}

/// The open descriptors of `pid` by what they are: `socket`, `pipe`, `anon_inode:[io_uring]`, a path.
pub fn descriptors(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let kind = |target: String| match target.split_once(":[") {
        Some((kind @ ("socket" | "pipe"), _)) => kind.to_owned(),
        _ => target,
    };
    let mut kinds: Vec<_> = entries
        .filter_map(|entry| Some(kind(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned())))
        .collect();
    kinds.sort();
    kinds
}

/// How often the threads that `pid` has now went to sleep by themselves since they started; `None` when it is gone.
pub fn voluntary_switches(pid: u32) -> Option<BTreeMap<u32, u64>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let switches = |thread: fs::DirEntry| {
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((thread.file_name().to_str()?.parse().ok()?, line.trim().parse().ok()?))
    };
    Some(threads.filter_map(switches).collect())
}

/// How many TCP connections to `remote` are established in the network namespace of `pid`.
pub fn connections(pid: u32, remote: SocketAddrV4) -> usize {
    let text = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    established(&text, remote)
}

/// `sl: local remote state …`, addresses as hexadecimal numbers of the machine's byte order; state 1 is ESTABLISHED.
fn established(text: &str, remote: SocketAddrV4) -> usize {
    let address = u32::from_ne_bytes(remote.ip().octets());
    let wanted = format!("{address:08X}:{:04X}", remote.port());
    let fields = text.lines().map(|line| line.split_whitespace().skip(2).take(2).collect::<Vec<_>>());
    fields.filter(|fields| fields[..] == [wanted.as_str(), "01"]).count()
}

/// The field with the number that proc(5) gives it. The second one, the name, may hold spaces and brackets.
fn field(stat: &str, number: usize) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(number - 3)?.parse().ok()
}

fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn kib(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches fields that shift when a process's name holds a bracket or a space.
    #[test]
    fn fields_are_counted_after_the_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 11 12 13 14 20 0 1 0 99 1000";
        assert_eq!(
            (field(stat, 14), field(stat, 15), field(stat, 22), state(stat)),
            (Some(11), Some(12), Some(99), Some('S'))
        );
    }

    /// Catches addresses that are read in the wrong byte order, and connections that are closing taken for established ones.
    #[test]
    #[cfg(target_endian = "little")]
    fn connections_are_counted_by_their_far_end() {
        let text = "  sl  local rem st\n 0: 0400D50A:91FA 0200D50A:1388 01 x\n 1: 0400D50A:91FB 0200D50A:1388 06 x\n";
        assert_eq!(established(text, "10.213.0.2:5000".parse().unwrap()), 1);
        assert_eq!(established(text, "10.213.0.2:5001".parse().unwrap()), 0);
    }

    /// Catches a reader that finds nothing on a real system.
    #[test]
    fn this_process_uses_something() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.peak_rss_bytes > 1 << 20 && usage.anonymous_bytes > 0);
        assert!(started(std::process::id()).is_some() && started(u32::MAX >> 1).is_none());
        assert!(!descriptors(std::process::id()).is_empty());
        assert!(voluntary_switches(std::process::id()).unwrap().contains_key(&std::process::id()));
    }
}
