//! `faasnet lab compare`: our trees and other systems bring the same bytes to the same hosts over the same links, one system after the other.
//!
//! Owns the labs that it measures in, one per number of hosts. What a run is lies in `contest`; what is printed in `comparison`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use faasnet_lab::Rate;
use faasnet_lab::network::MOST_HOSTS;
use faasnet_lab::plot;
use faasnet_lab::rivals::{Brake, Rival};
use serde::{Deserialize, Serialize};

use super::comparison::Comparison;
use super::contest::Contest;
use super::experiment;
use super::plan::{LabPolicy, Plan};
use super::session::{self, Session};
use crate::cli::{Global, parse_bytes};
use crate::{daemon, output};

/// `faasnet lab compare`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  faasnet lab compare --hosts 7,15 --runs 3 --svg ratio.svg
  faasnet lab compare --hosts 15 --systems twin,varnish-chain --size 16MiB --json

Systems:
  twin complete avl direct      ours; direct: every host reads the origin
  nginx                         every host reads an nginx with curl
  nginx-tree                    a binary tree of nginx caching relays
  varnish-tree varnish-chain    streaming relays in memory, each feeding two or one
  aria2 libtorrent              BitTorrent, the origin seeds
What is not installed is named with its Debian package and left out.")]
pub struct CompareArgs {
    /// How many hosts, beside the origin's and the controller's; several numbers make several labs, one after the other
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "7,15", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub hosts: Vec<u16>,
    /// Which systems, in this order [default: all]
    #[arg(long, value_name = "SYSTEM,…", value_delimiter = ',')]
    pub systems: Vec<System>,
    /// How many bytes every host gets
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = parse_bytes)]
    pub size: u64,
    /// How fast each host's link is, each way
    #[arg(long, value_name = "RATE", default_value = "100mbit")]
    pub rate: Rate,
    /// How often each system runs; the table shows its median run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub runs: u16,
    /// Take each other system's first settings, without trying which are best here
    #[arg(long)]
    pub no_sweep: bool,
    /// Draw the slowest host's time over the number of hosts, a line per system
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Where to make the folder for files and logs [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Who brings the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum System {
    /// Ours.
    Own(LabPolicy),
    /// Somebody else's.
    Rival(Rival),
}

/// What is compared.
#[derive(Debug, Clone, Serialize)]
pub struct ComparePlan {
    /// Numbers of hosts.
    pub hosts: Vec<usize>,
    /// In the order of the table.
    pub systems: Vec<System>,
    /// Bytes that every host gets.
    pub size: u64,
    /// Of every link, each way.
    pub rate: Rate,
    /// How often each system runs.
    pub runs: usize,
    /// Whether each other system first tries its settings, once each, and goes on with the best.
    pub sweep: bool,
    /// Where the folders go.
    pub dir: Option<PathBuf>,
    /// Whether nothing is printed on the way.
    #[serde(skip)]
    pub quiet: bool,
}

/// One system on one number of hosts: its median run. Numbers are missing when no run delivered the right bytes to every host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CompareRow {
    /// Its name.
    pub(crate) system: String,
    /// Its version; empty when it is not installed.
    pub(crate) version: String,
    /// The settings that it ran with.
    pub(crate) settings: String,
    /// How many hosts.
    pub(crate) hosts: usize,
    /// Until the slowest host had everything.
    pub(crate) seconds: Option<f64>,
    /// The same for one raw TCP flow.
    pub(crate) bound_seconds: Option<f64>,
    /// `seconds` ÷ `bound_seconds`.
    pub(crate) ratio: Option<f64>,
    /// CPU time on the hosts, without the origin's, ÷ GiB that they hold together.
    pub(crate) cpu_seconds_per_gib: Option<f64>,
    /// Bytes that left the origin's interface ÷ bytes of the image.
    pub(crate) origin_share: Option<f64>,
    /// Whether in every run the bytes of every host have the right hash.
    pub(crate) verified: bool,
    /// What went wrong, or why there are no numbers.
    pub(crate) note: String,
    /// `ratio` of every run that delivered, in their order.
    pub(crate) ratios: Vec<f64>,
    /// What was tried to find the settings; empty without a choice.
    pub(crate) sweep: Vec<Tried>,
}

/// One run of a sweep; it counts for nothing else.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tried {
    /// The settings.
    pub(crate) settings: String,
    /// Slowest host ÷ bound; missing when not every host got the right bytes.
    pub(crate) ratio: Option<f64>,
    /// What went wrong.
    pub(crate) note: String,
}

/// Runs the command. A failure unless every system that is installed delivered the right bytes and left nothing.
pub async fn run(global: &Global, args: CompareArgs) -> Result<ExitCode> {
    let plan = ComparePlan { quiet: global.json, ..ComparePlan::from(&args) };
    args.svg.as_deref().map(plot::check).transpose()?;
    let interrupted = daemon::shutdown(false)?;
    let comparison = tokio::select! {
        comparison = measure(&plan) => comparison?,
        () = interrupted => {
            eprintln!("interrupted: the lab is taken down");
            return Ok(ExitCode::from(experiment::INTERRUPTED));
        }
    };
    match global.json {
        true => output::json(&comparison)?,
        false => output::line(comparison.text())?,
    }
    if let Some(path) = &args.svg {
        comparison.draw(path)?;
    }
    Ok(if comparison.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs every system on every number of hosts. Dropping the future takes the lab down.
pub(crate) async fn measure(plan: &ComparePlan) -> Result<Comparison> {
    plan.check()?;
    let mut comparison = Comparison::new(plan.clone());
    for hosts in &plan.hosts {
        let lab = plan.lab(*hosts);
        let session = Session::open(&lab, false)?;
        let (network, plan, folder) = (session.network.clone(), plan.clone(), session.folder().to_owned());
        // Dropped before the session, which ends all processes that it finds.
        let brake = PullOnDrop(Brake::default());
        let shared = brake.0.clone();
        let work = async { Contest::new(network, plan, lab, folder, shared).await?.rows().await };
        let rows = session.inside(work).await;
        drop(brake);
        let closed = session.close(false)?;
        comparison.rows.extend(rows?);
        comparison.leftovers.extend(closed.left);
    }
    Ok(comparison)
}

/// Whoever drops the future of [`measure`] wants nothing more to be started.
struct PullOnDrop(Brake);

impl Drop for PullOnDrop {
    fn drop(&mut self) {
        self.0.pull();
    }
}

impl ComparePlan {
    fn check(&self) -> Result<()> {
        ensure!(!self.hosts.is_empty() && !self.systems.is_empty(), "name at least one number of hosts and one system");
        ensure!(
            self.hosts.iter().all(|hosts| (1..=MOST_HOSTS).contains(hosts)),
            "--hosts {:?}: the lab has 1 to {MOST_HOSTS}",
            self.hosts
        );
        ensure!(self.size > 0 && self.runs > 0, "no bytes or no runs measure nothing");
        let folder = session::parent(self.dir.as_deref())?;
        ensure!(
            !self.systems.iter().any(|system| matches!(system, System::Rival(_))) || is_plain(&folder),
            "{}: the folder's name goes into other systems' configurations, which do not take every character; choose one of letters, digits and ._- with --dir",
            folder.display()
        );
        Ok(())
    }

    /// The same as an experiment of ours.
    fn lab(&self, hosts: usize) -> Plan {
        Plan { hosts, rate: Some(self.rate), size: self.size, dir: self.dir.clone(), ..Plan::default() }
    }
}

/// Whether nginx, varnish and their like read the path as one word that means itself.
fn is_plain(path: &Path) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    path.to_str().is_some_and(|text| text.chars().all(is_plain))
}

impl From<&CompareArgs> for ComparePlan {
    fn from(args: &CompareArgs) -> Self {
        Self {
            hosts: args.hosts.iter().copied().map(usize::from).collect(),
            systems: if args.systems.is_empty() { System::all() } else { args.systems.clone() },
            size: args.size,
            rate: args.rate,
            runs: args.runs.into(),
            sweep: !args.no_sweep,
            dir: args.dir.clone(),
            quiet: false,
        }
    }
}

impl System {
    /// In the order of the table.
    pub fn all() -> Vec<Self> {
        let own = LabPolicy::value_variants().iter().copied().map(Self::Own);
        own.chain(Rival::ALL.map(Self::Rival)).collect()
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(policy) => policy.fmt(f),
            Self::Rival(rival) => rival.fmt(f),
        }
    }
}

impl FromStr for System {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = || Self::all().iter().map(Self::to_string).collect::<Vec<_>>().join(", ");
        let found = Self::all().into_iter().find(|system| system.to_string() == text);
        found.ok_or_else(|| anyhow!("there is no system {text:?}; there are {}", names()))
    }
}

impl TryFrom<String> for System {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<System> for String {
    fn from(system: System) -> Self {
        system.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a folder whose name breaks the other systems' configuration only after the lab is up.
    #[test]
    fn odd_folders_are_refused_where_others_run() {
        let plan = |dir: &str, system: &str| ComparePlan {
            hosts: vec![1],
            systems: vec![system.parse().unwrap()],
            size: 1,
            rate: "10mbit".parse().unwrap(),
            runs: 1,
            sweep: false,
            dir: Some(dir.into()),
            quiet: true,
        };
        for odd in ["/tmp/a b", "/tmp/a;b", "/tmp/$x", "/tmp/\"x"] {
            assert!(plan(odd, "nginx").check().is_err(), "{odd}");
            assert!(plan(odd, "twin").check().is_ok(), "{odd}");
        }
        assert!(plan("/tmp/a-b_c.9", "nginx").check().is_ok());
    }
}
