//! What can be varied between runs: links, kernel settings of the namespaces, and the knobs of the agent's worker.
//!
//! A knob has one name, whether it is a flag or the key of a sweep. Values are checked here; `network` and `process` apply them.

use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use faasnet_agent::WriteMode;
use serde::{Deserialize, Serialize};

/// One setting of every knob; `None` leaves the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knobs {
    /// Of the links: the largest packet.
    pub mtu: Option<u32>,
    /// Of the links: the largest run of packets that is handled as one.
    pub gso_bytes: Option<u32>,
    /// Of the hosts: TCP congestion control.
    pub congestion: Option<String>,
    /// Of the hosts: the third value of tcp_rmem.
    pub rmem_bytes: Option<u64>,
    /// Of the hosts: the third value of tcp_wmem.
    pub wmem_bytes: Option<u64>,
    /// The relay gets single packets.
    pub single_packets: bool,
    /// Of the stream: bytes of a block.
    pub block_bytes: Option<u32>,
    /// Of our worker: a child's pipe.
    pub pipe_bytes: Option<usize>,
    /// Of our worker: polling of the card.
    pub busy_poll_us: Option<u32>,
    /// Of our worker: a kernel thread for submissions, and when it sleeps.
    pub sqpoll_idle_ms: Option<u32>,
    /// Of our worker: buffers on huge pages.
    pub huge_pages: Option<bool>,
    /// Of our worker: how many buffers it has.
    pub buffers: Option<usize>,
    /// Of our worker: how it writes what it keeps.
    pub store_write: WriteMode,
}

/// One knob, and the values that it takes one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    /// One of [`Knobs::KEYS`].
    pub key: String,
    /// At least one.
    pub values: Vec<String>,
}

/// What a row of a sweep was measured with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The knob.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// All namespaces of a sweep exist at once.
const MOST_VALUES: usize = 16;

impl Knobs {
    /// Their names.
    pub const KEYS: [&'static str; 13] = [
        "mtu",
        "gso",
        "congestion",
        "rmem",
        "wmem",
        "single-packets",
        "block-bytes",
        "pipe-bytes",
        "busy-poll",
        "sqpoll",
        "huge-pages",
        "buffers",
        "store-write",
    ];

    /// Turns one knob. `default` leaves it as it is without.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let default = value == "default";
        match key {
            "mtu" => self.mtu = number(key, value, 576, 65_535)?,
            "gso" => self.gso_bytes = number(key, value, 2_000, 524_280)?,
            "congestion" => self.congestion = (!default).then(|| value.to_owned()),
            "rmem" => self.rmem_bytes = number(key, value, 4_096, 1 << 30)?,
            "wmem" => self.wmem_bytes = number(key, value, 4_096, 1 << 30)?,
            "single-packets" => self.single_packets = !default && switch(key, value)?,
            "block-bytes" => {
                self.block_bytes = number(key, value, 4_096, 256 << 10)?;
                ensure!(self.block_bytes.is_none_or(u32::is_power_of_two), "block-bytes={value} is not a power of two");
            }
            "pipe-bytes" => self.pipe_bytes = number(key, value, 4_096, 64 << 20)?,
            "busy-poll" => self.busy_poll_us = number(key, value, 0, 10_000)?.filter(|us| *us > 0),
            "sqpoll" => self.sqpoll_idle_ms = number(key, value, 0, 60_000)?.filter(|ms| *ms > 0),
            "huge-pages" if default => self.huge_pages = None,
            "huge-pages" => self.huge_pages = Some(switch(key, value)?),
            "buffers" => self.buffers = number(key, value, 8, 4096)?,
            "store-write" if default => self.store_write = WriteMode::default(),
            "store-write" => self.store_write = value.parse().map_err(anyhow::Error::msg)?,
            _ => bail!("there is no knob {key:?}; there are {}", Self::KEYS.join(", ")),
        }
        Ok(())
    }

    /// Whether they need hosts and links of our own.
    pub(crate) fn need_namespaces(&self) -> bool {
        let Self { mtu, gso_bytes, congestion, rmem_bytes, wmem_bytes, single_packets, .. } = self;
        mtu.is_some()
            || gso_bytes.is_some()
            || congestion.is_some()
            || rmem_bytes.is_some()
            || wmem_bytes.is_some()
            || *single_packets
    }

    /// The knobs of our worker that are turned, which rows to compare with do not have.
    pub(crate) fn of_worker_only(&self) -> Vec<&'static str> {
        let turned = [
            ("pipe-bytes", self.pipe_bytes.is_some()),
            ("busy-poll", self.busy_poll_us.is_some()),
            ("sqpoll", self.sqpoll_idle_ms.is_some()),
            ("huge-pages", self.huge_pages.is_some()),
            ("buffers", self.buffers.is_some()),
            ("store-write", self.store_write != WriteMode::default()),
        ];
        turned.into_iter().filter(|(_, turned)| *turned).map(|(key, _)| key).collect()
    }
}

impl Sweep {
    /// The knobs of each value, and what to call them.
    pub(crate) fn over(&self, knobs: &Knobs) -> Result<Vec<(Option<Setting>, Knobs)>> {
        let one = |value: &String| {
            let mut knobs = knobs.clone();
            knobs.set(&self.key, value)?;
            Ok((Some(Setting { key: self.key.clone(), value: value.clone() }), knobs))
        };
        self.values.iter().map(one).collect()
    }
}

impl FromStr for Sweep {
    type Err = anyhow::Error;

    /// `key=a,b,c`
    fn from_str(text: &str) -> Result<Self> {
        let Some((key, values)) = text.split_once('=') else {
            bail!("{text:?} is not of the form key=a,b,c; keys are {}", Knobs::KEYS.join(", "));
        };
        let values: Vec<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
        ensure!(values.len() <= MOST_VALUES, "{} values are too many for one sweep; take {MOST_VALUES}", values.len());
        let sweep = Self { key: key.to_owned(), values };
        sweep.over(&Knobs::default())?;
        Ok(sweep)
    }
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(key: &str, text: &str, least: T, most: T) -> Result<Option<T>> {
    if text == "default" {
        return Ok(None);
    }
    match text.parse::<T>() {
        Ok(value) if value >= least && value <= most => Ok(Some(value)),
        _ => bail!("{key}={text} is not between {least} and {most}, nor `default`"),
    }
}

fn switch(key: &str, text: &str) -> Result<bool> {
    match text {
        "on" | "true" | "1" => Ok(true),
        "off" | "false" | "0" => Ok(false),
        _ => bail!("{key}={text} is neither on nor off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a key that exists in name only, and an unknown one whose error does not name the known ones.
    #[test]
    fn every_key_turns_its_knob() {
        for key in Knobs::KEYS {
            let value = match key {
                "congestion" => "reno",
                "store-write" => "buffered",
                "single-packets" | "huge-pages" => "on",
                "buffers" => "96",
                _ => "8192",
            };
            let mut knobs = Knobs::default();
            knobs.set(key, value).unwrap();
            assert_ne!(knobs, Knobs::default(), "{key}");
            knobs.set(key, "default").unwrap();
            assert_eq!(knobs, Knobs::default(), "{key}");
        }
        let error = "warp=1".parse::<Sweep>().unwrap_err().to_string();
        assert!(Knobs::KEYS.iter().all(|key| error.contains(key)), "{error}");
    }

    /// Catches values that could only fail in the middle of a bench.
    #[test]
    fn impossible_values_are_refused() {
        for text in ["mtu", "mtu=", "mtu=1", "block-bytes=5000", "huge-pages=maybe", "sqpoll=-1", "rmem=1k"] {
            assert!(text.parse::<Sweep>().is_err(), "{text}");
        }
        let sweep: Sweep = "mtu=1500, 9000".parse().unwrap();
        let values = sweep.over(&Knobs { huge_pages: Some(false), ..Knobs::default() }).unwrap();
        assert_eq!(values[1].1, Knobs { mtu: Some(9000), huge_pages: Some(false), ..Knobs::default() });
        assert_eq!(values.len(), 2);
    }
}
