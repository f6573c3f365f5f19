//! What an experiment is: hosts, image, policy, disturbances. From flags or from a scenario file; the same settings either way.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum;
use faasnet_lab::network::MOST_HOSTS;
use faasnet_lab::{LabId, Rate};
use serde::{Deserialize, Serialize};

use super::fault::FaultPlan;
use super::image;
use super::{HostArgs, ImageArgs, ProvisionArgs, UpArgs};
use crate::cli::{Engine, parse_bytes};
use crate::room;

/// How the image gets to the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabPolicy {
    /// Two trees, each carrying half of the image
    Twin,
    /// One tree of minimum height
    Complete,
    /// The paper's balanced tree
    Avl,
    /// No tree: every host reads the origin
    Direct,
}

/// How often an experiment may be run, how long it may be disturbed, and how large packets may be: of flags and of scenario files alike.
pub const RUNS: RangeInclusive<i64> = 1..=100;
/// See [`RUNS`].
pub const SECONDS: RangeInclusive<u64> = 2..=600;
/// See [`RUNS`].
pub const MTU: RangeInclusive<i64> = 576..=65535;
/// Links of small virtual machines.
const DEFAULT_BITS: u64 = 100_000_000;
/// With chaos, an undisturbed transfer takes about this share of the time.
const CHAOS_SHARE: f64 = 0.7;

/// An experiment.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Hosts beside origin and controller.
    pub hosts: usize,
    /// Of every link, each way; see [`Plan::rate`].
    pub rate: Option<Rate>,
    /// Of the made image; of another one by [`Plan::with_image_size`].
    #[serde(deserialize_with = "bytes")]
    pub size: u64,
    /// A layout in place of a made image.
    pub image: Option<PathBuf>,
    /// How the image gets to the hosts.
    pub policy: LabPolicy,
    /// How agents move bytes.
    pub engine: Engine,
    /// How often.
    pub runs: usize,
    /// Disturbances.
    pub faults: Vec<FaultPlan>,
    /// Random disturbances.
    pub chaos: Option<u64>,
    /// For how long.
    pub seconds: u64,
    /// The largest packet.
    pub mtu: Option<u32>,
    /// More arguments for every agent.
    pub agent_args: Vec<String>,
    /// Where the folder goes.
    pub dir: Option<PathBuf>,
    /// Whether the folder stays.
    pub keep: bool,
    /// The lab's name.
    #[serde(skip)]
    pub id: Option<LabId>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            hosts: 15,
            rate: None,
            size: 64 << 20,
            image: None,
            policy: LabPolicy::Twin,
            engine: Engine::Auto,
            runs: 1,
            faults: Vec::new(),
            chaos: None,
            seconds: 20,
            mtu: None,
            agent_args: Vec::new(),
            dir: None,
            keep: false,
            id: None,
        }
    }
}

impl Plan {
    /// Reads a scenario.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the scenario {}", path.display()))?;
        toml::from_str(&text).map_err(|error: toml::de::Error| {
            anyhow!("{} is no scenario: {}; see `faasnet lab run --help`", path.display(), error.message())
        })
    }

    /// Refuses what cannot work, before anything is made.
    pub fn check(&self) -> Result<()> {
        ensure!((1..=MOST_HOSTS).contains(&self.hosts), "{} hosts; the lab has 1 to {MOST_HOSTS}", self.hosts);
        let is_in = |range: &RangeInclusive<i64>, value: usize| range.contains(&(value as i64));
        ensure!(is_in(&RUNS, self.runs), "runs = {}: from {} to {}", self.runs, RUNS.start(), RUNS.end());
        let (seconds, mtu) = (self.seconds, self.mtu.unwrap_or(1500));
        ensure!(SECONDS.contains(&seconds), "seconds = {seconds}: from {} to {}", SECONDS.start(), SECONDS.end());
        ensure!(is_in(&MTU, mtu as usize), "mtu = {mtu}: from {} to {}", MTU.start(), MTU.end());
        ensure!(self.size >= 1, "an image has at least one byte");
        let disturbed = !self.faults.is_empty() || self.chaos.is_some();
        ensure!(
            !(disturbed && self.policy == LabPolicy::Direct),
            "hosts that read the origin on their own are not disturbed; choose twin or complete"
        );
        ensure!(self.chaos.is_none() || self.faults.is_empty(), "chaos and faults exclude each other");
        ensure!(self.faults.iter().filter(|fault| fault.joins() > 0).count() <= 1, "hosts join late only once");
        let joins: usize = self.faults.iter().map(FaultPlan::joins).sum();
        ensure!(joins < self.hosts, "{joins} of {} hosts join late; at least one must be there before", self.hosts);
        self.faults.iter().try_for_each(|fault| fault.check(self.hosts))
    }

    /// Refuses an image for which `dir` has no room: once as it is made, and once per host and per run that is kept.
    pub fn check_room(&self, dir: &Path) -> Result<()> {
        let runs = if self.keep { self.runs } else { 1 };
        let copies = self.hosts * runs + usize::from(self.image.is_none());
        let needed = self.size.saturating_mul(copies as u64);
        let what = format!("{copies} copies of the image ({} hosts)", self.hosts);
        room::check(dir, needed, &what, "a smaller --size or fewer --hosts")
    }

    /// The rate of every link: as given; else 100 Mbit/s, or with chaos what makes the image take most of the time of the disturbances.
    pub fn rate(&self) -> Rate {
        let bits = match self.chaos {
            Some(_) => (self.size * 8) as f64 / (CHAOS_SHARE * self.seconds as f64),
            None => DEFAULT_BITS as f64,
        };
        self.rate.unwrap_or_else(|| Rate::nearest(bits as u64))
    }

    /// With the size of the image that is named, if one is: much follows from it.
    pub async fn with_image_size(mut self) -> Result<Self> {
        if let Some(layout) = &self.image {
            self.size = image::summary(layout).await?.total_bytes;
        }
        Ok(self)
    }

    /// Hosts that get the image from the start.
    pub fn early_hosts(&self) -> usize {
        self.hosts - self.faults.iter().map(FaultPlan::joins).sum::<usize>()
    }

    fn with(hosts: &HostArgs, image: &ImageArgs) -> Self {
        Self {
            hosts: hosts.hosts.into(),
            rate: hosts.rate,
            size: image.size,
            image: image.image.clone(),
            engine: hosts.engine,
            mtu: hosts.mtu,
            agent_args: hosts.agent_arg.clone(),
            dir: hosts.dir.clone(),
            id: hosts.id.clone(),
            ..Self::default()
        }
    }
}

impl From<&ProvisionArgs> for Plan {
    fn from(args: &ProvisionArgs) -> Self {
        Self {
            policy: args.policy,
            runs: args.runs.into(),
            faults: args.faults.clone(),
            chaos: args.chaos,
            seconds: args.seconds,
            keep: args.keep,
            ..Self::with(&args.hosts, &args.image)
        }
    }
}

impl From<&UpArgs> for Plan {
    fn from(args: &UpArgs) -> Self {
        Self::with(&args.hosts, &args.image)
    }
}

impl fmt::Display for LabPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Twin => "twin",
            Self::Complete => "complete",
            Self::Avl => "avl",
            Self::Direct => "direct",
        })
    }
}

/// `67108864` or `"64MiB"`.
fn bytes<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Bytes {
        Number(u64),
        Text(String),
    }
    match Bytes::deserialize(deserializer)? {
        Bytes::Number(bytes) => Ok(bytes),
        Bytes::Text(text) => parse_bytes(&text).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(text: &str) -> Result<Plan> {
        let plan: Plan = toml::from_str(text)?;
        plan.check().map(|()| plan)
    }

    /// Catches a scenario that means something else than the same flags, and misspelt or senseless ones that pass.
    #[test]
    fn scenarios_are_read_and_checked() {
        let plan = scenario("hosts = 31\nsize = '1MiB'\nfaults = ['joins:30@50', 'kill:n1']").unwrap();
        assert_eq!((plan.size, plan.early_hosts(), plan.runs), (1 << 20, 1, 1));
        for wrong in [
            "host = 3",
            "hosts = 0",
            "hosts = 2\nfaults = ['joins:2']",
            "hosts = 2\nfaults = ['kill:n3']",
            "faults = ['burn:n1']",
            "policy = 'bush'",
            "policy = 'direct'\nchaos = 1",
            "chaos = 1\nseconds = 1_000_000_000_000_000",
            "chaos = 1\nseconds = 1",
            "runs = 101",
            "mtu = 100",
        ] {
            assert!(scenario(wrong).is_err(), "{wrong}");
        }
    }
}
