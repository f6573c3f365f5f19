//! The disturbances of an experiment as people write them: `kill:inner@50+3`. Pure.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// A fault counts only if its victim held this share of the image, in percent.
pub const COUNTS: std::ops::RangeInclusive<u8> = 20..=80;
/// How long the origin and a cable are away when nothing else is said.
const ORIGIN_AWAY: f64 = 2.0;
const LINK_AWAY: f64 = 1.0;
/// When nothing else is said.
const PERCENT: u8 = 50;

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// SIGKILL; started again after the given time, if there is one.
    Kill,
    /// SIGSTOP; continued after the given time, if there is one.
    Stop,
    /// The cable is pulled.
    Link,
    /// A tenth of the rate.
    Slow,
    /// One wrong bit in every MiB that it sends.
    Flip,
    /// Its disk is too small.
    Full,
    /// Hosts that come late.
    Joins,
}

/// To whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The root of the first tree.
    Root,
    /// A node with nodes above and below it.
    Inner,
    /// A node that feeds nobody, or as few as there are.
    Leaf,
    /// Every second node.
    Half,
    /// Two inner nodes at the same moment.
    Two,
    /// The control plane.
    Controller,
    /// The registry.
    Origin,
    /// This node; 0 is `n1`.
    Node(usize),
    /// So many hosts.
    Count(usize),
}

/// One disturbance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FaultPlan {
    /// What.
    pub kind: Kind,
    /// To whom.
    pub target: Target,
    /// When the victim (of daemons that hold no image: the median node) holds so many percent of the image.
    pub percent: u8,
    /// For how long.
    pub seconds: Option<f64>,
}

impl Target {
    /// What is missing when no host is this target.
    pub fn absence(&self) -> &'static str {
        match self {
            Self::Root => "no living host read the origin for the first tree",
            Self::Inner => {
                "no host was inner (one above it, one below it): the trees need more hosts, such as --hosts 7"
            }
            Self::Two => "no two inner hosts fed different ones: the trees need more hosts, such as --hosts 15",
            _ => "no living host was that",
        }
    }
}

impl FaultPlan {
    /// How many hosts it keeps back.
    pub fn joins(&self) -> usize {
        match (self.kind, &self.target) {
            (Kind::Joins, Target::Count(count)) => *count,
            _ => 0,
        }
    }

    /// The node whose disk is too small.
    pub fn small_disk(&self) -> Option<usize> {
        match (self.kind, &self.target) {
            (Kind::Full, Target::Node(node)) => Some(*node),
            _ => None,
        }
    }

    /// For how long, in an experiment: without the origin nobody can finish, and a cable is plugged in again.
    pub fn lasts(&self) -> Option<f64> {
        self.seconds.or(match (self.kind, &self.target) {
            (_, Target::Origin) => Some(ORIGIN_AWAY),
            (Kind::Link, _) => Some(LINK_AWAY),
            _ => None,
        })
    }

    /// Refuses what cannot be done to `hosts` hosts.
    pub fn check(&self, hosts: usize) -> Result<()> {
        if let Target::Node(node) = self.target {
            ensure!(node < hosts, "{self}: there is no n{} among {hosts} hosts", node + 1);
        }
        Ok(())
    }

    fn fits(&self) -> bool {
        use Target::*;
        match self.kind {
            Kind::Kill | Kind::Stop => !matches!(self.target, Count(_)),
            Kind::Link | Kind::Slow | Kind::Flip => matches!(self.target, Root | Inner | Leaf | Node(_)),
            Kind::Full => matches!(self.target, Node(_)),
            Kind::Joins => matches!(self.target, Count(1..)),
        }
    }
}

impl FromStr for FaultPlan {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            "a fault is KIND:TARGET[@PERCENT][+SECONDS], such as kill:inner@50; see `faasnet lab provision --help`";
        let (rest, seconds) = match text.split_once('+') {
            Some((rest, seconds)) => {
                (rest, Some(seconds.parse::<f64>().map_err(|_| anyhow::anyhow!("{text:?}: {wrong}"))?))
            }
            None => (text, None),
        };
        let (rest, percent) = match rest.split_once('@') {
            Some((rest, percent)) => (rest, percent.parse().map_err(|_| anyhow::anyhow!("{text:?}: {wrong}"))?),
            None => (rest, PERCENT),
        };
        let Some((kind, target)) = rest.split_once(':') else { bail!("{text:?}: {wrong}") };
        let Some(kind) = KINDS.iter().find(|(_, name)| *name == kind).map(|(kind, _)| *kind) else {
            bail!("{text:?}: {wrong}")
        };
        let Some(target) = parse_target(target) else { bail!("{text:?}: {wrong}") };
        let plan = Self { kind, target, percent, seconds };
        ensure!(plan.fits(), "{text:?} cannot happen to that target: {wrong}");
        ensure!(percent <= 100, "{text:?}: {percent} percent");
        ensure!(seconds.is_none_or(|seconds| (0.0..=600.0).contains(&seconds)), "{text:?}: at most 600 seconds");
        Ok(plan)
    }
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Kill, "kill"),
    (Kind::Stop, "stop"),
    (Kind::Link, "link"),
    (Kind::Slow, "slow"),
    (Kind::Flip, "flip"),
    (Kind::Full, "full"),
    (Kind::Joins, "joins"),
];

const TARGETS: [(Target, &str); 7] = [
    (Target::Root, "root"),
    (Target::Inner, "inner"),
    (Target::Leaf, "leaf"),
    (Target::Half, "half"),
    (Target::Two, "two"),
    (Target::Controller, "controller"),
    (Target::Origin, "origin"),
];

fn parse_target(text: &str) -> Option<Target> {
    let named = TARGETS.iter().find(|(_, name)| *name == text).map(|(target, _)| target.clone());
    let node = || Some(Target::Node(text.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)?));
    named.or_else(node).or_else(|| text.parse().ok().map(Target::Count))
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(KINDS.iter().find(|(kind, _)| kind == self).map_or("", |(_, name)| name))
    }
}

impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.kind)?;
        match &self.target {
            Target::Node(node) => write!(f, "n{}", node + 1)?,
            Target::Count(count) => write!(f, "{count}")?,
            target => f.write_str(TARGETS.iter().find(|(named, _)| named == target).map_or("", |(_, name)| name))?,
        }
        write!(f, "@{}", self.percent)?;
        self.seconds.map_or(Ok(()), |seconds| write!(f, "+{seconds}"))
    }
}

impl TryFrom<String> for FaultPlan {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<FaultPlan> for String {
    fn from(plan: FaultPlan) -> Self {
        plan.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a fault that is read as another one, and nonsense that passes.
    #[test]
    fn faults_are_read_as_they_are_written() {
        for text in [
            "kill:inner@50",
            "stop:root@30+2",
            "link:n3@40+4",
            "joins:30@50",
            "full:n1@50",
            "kill:two@50",
            "flip:inner@25",
        ] {
            assert_eq!(text.parse::<FaultPlan>().unwrap().to_string(), text);
        }
        assert_eq!("kill:half".parse::<FaultPlan>().unwrap().to_string(), "kill:half@50");
        for wrong in [
            "",
            "kill",
            "kill:",
            "kill:n0",
            "kill:30",
            "burn:n1",
            "full:root",
            "joins:0",
            "link:half",
            "kill:n1@x",
            "kill:n1@101",
            "kill:n1+-1",
        ] {
            assert!(wrong.parse::<FaultPlan>().is_err(), "{wrong}");
        }
    }
}
