//! How the data workers use their host: how many there are, on which cores, and what they ask of the kernel beyond the ordinary.
//!
//! Values only; `config` reads and checks them, the workers apply them.

use std::fmt;
use std::str::FromStr;

use faasnet_ring::{DriverKind, DriverOptions};
use serde::{Deserialize, Serialize};

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Data threads; each has a ring, buffers and images of its own.
    pub workers: usize,
    /// Which core each of them stays on; `None`: wherever the kernel puts it.
    pub pin: Option<Pin>,
    /// What their drivers are asked for.
    pub driver: DriverOptions,
    /// Another driver than the engine's own, for comparisons.
    pub driver_kind: Option<DriverKind>,
    /// Buffers on huge pages, where the host has them: then a block is one or two parts for the disk, not 65.
    pub huge_pages: bool,
    /// Of the pipe that each child gets, and of the one through which blocks pass.
    pub pipe_bytes: usize,
    /// What all children together may be sent; `None`: what the links carry.
    pub limit_bytes_per_second: Option<u64>,
}

/// The cores of the workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pin {
    /// The first cores on which this process may run.
    Auto,
    /// One per worker, in this order.
    Cores(Vec<usize>),
}

/// What a pipe may hold unless set otherwise; more than this needs CAP_SYS_RESOURCE on an ordinary host (fs.pipe-max-size).
pub const PIPE_BYTES: usize = 1 << 20;
/// The highest core number that a list may name.
const MOST_CORES: usize = 4096;

impl Default for Tuning {
    fn default() -> Self {
        Self {
            workers: 1,
            pin: None,
            driver: DriverOptions::default(),
            driver_kind: None,
            huge_pages: true,
            pipe_bytes: PIPE_BYTES,
            limit_bytes_per_second: None,
        }
    }
}

impl Pin {
    /// The core of each of `workers` among the `allowed` ones; the error is a sentence.
    pub(crate) fn cores(&self, workers: usize, allowed: &[usize]) -> Result<Vec<usize>, String> {
        let wanted = match self {
            Self::Auto => allowed,
            Self::Cores(cores) => cores,
        };
        if wanted.len() < workers {
            return Err(format!("{workers} workers need as many cores, and there are {}", wanted.len()));
        }
        match wanted.iter().find(|core| !allowed.contains(core)) {
            Some(core) => Err(format!("core {core} is not one on which this process may run ({})", join(allowed))),
            None => Ok(wanted[..workers].to_vec()),
        }
    }
}

impl FromStr for Pin {
    type Err = String;

    /// `auto`, or cores and ranges of cores such as `0-2,6`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < MOST_CORES => cores.extend(first..=last),
                _ => return Err(format!("{text:?} is not a list of cores; write `auto`, or one like 0-2,6")),
            }
        }
        let mut distinct = cores.clone();
        distinct.sort_unstable();
        distinct.dedup();
        match distinct.len() == cores.len() {
            true => Ok(Self::Cores(cores)),
            false => Err(format!("{text:?} names a core twice; workers do not share cores")),
        }
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cores(cores) => f.write_str(&join(cores)),
        }
    }
}

impl TryFrom<String> for Pin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|problem| format!("pin: {problem}"))
    }
}

impl From<Pin> for String {
    fn from(pin: Pin) -> Self {
        pin.to_string()
    }
}

fn join(cores: &[usize]) -> String {
    cores.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a list that is read wrongly, or nonsense that passes for one.
    #[test]
    fn lists_of_cores() {
        assert_eq!("0-2,6".parse(), Ok(Pin::Cores(vec![0, 1, 2, 6])));
        assert_eq!("auto".parse(), Ok(Pin::Auto));
        assert_eq!("3".parse::<Pin>().unwrap().to_string(), "3");
        for nonsense in ["", "a", "2-1", "1,,2", "0,0", "0-99999", "-1"] {
            assert!(nonsense.parse::<Pin>().is_err(), "{nonsense}");
        }
    }

    /// Catches two workers on one core, or a worker on a core that it may not use.
    #[test]
    fn each_worker_gets_a_core_of_its_own() {
        let allowed = [1, 3, 5];
        assert_eq!(Pin::Auto.cores(2, &allowed), Ok(vec![1, 3]));
        assert_eq!(Pin::Cores(vec![5, 1]).cores(2, &allowed), Ok(vec![5, 1]));
        assert!(Pin::Auto.cores(4, &allowed).unwrap_err().contains("there are 3"));
        assert!(Pin::Cores(vec![0]).cores(1, &allowed).unwrap_err().contains("core 0"));
    }
}
