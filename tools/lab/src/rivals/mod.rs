//! Other systems that bring one file to many hosts, run as their users would run them on the hosts of a lab, to be compared with ours.
//!
//! Every system is a handful of daemons and one client per host; what is common to all (start, gate, clock, CPU time, end) is `stage`'s.
//! They are programs of the machine, never downloaded, and nothing of theirs outlives [`deliver`].

mod aria2;
mod bittorrent;
mod brake;
mod libtorrent;
mod nginx;
mod program;
mod relay;
mod settings;
mod stage;
mod varnish;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use brake::Brake;
pub use settings::Settings;

use crate::error::Result;
use crate::network::Network;
use program::Program;
use relay::Shape;

/// What the file is called, on the origin and on hosts.
pub const BLOB: &str = "blob";

/// One of the other systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rival {
    /// Every host reads the origin, an nginx, with curl.
    Nginx,
    /// A binary tree of nginx with `proxy_cache` and its lock.
    NginxTree,
    /// A binary tree of varnish that streams.
    VarnishTree,
    /// The same, one after the other.
    VarnishChain,
    /// BitTorrent by aria2, with opentracker.
    Aria2,
    /// BitTorrent by libtorrent; every host knows all others.
    Libtorrent,
}

/// One delivery that is wanted.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The hosts. No process but the job's may run on them.
    pub network: &'a Network,
    /// What every host shall have, called [`BLOB`]. Alone in its folder, where the origin may put notes of its own.
    pub blob: &'a Path,
    /// Its size.
    pub bytes: u64,
    /// An empty folder for configurations, logs and what the hosts receive.
    pub folder: &'a Path,
    /// Whoever is not done then has failed.
    pub patience: Duration,
    /// Of whoever may want to end it early.
    pub brake: &'a Brake,
}

/// What came of it. Nobody has looked into the files yet.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Until each host said that it has everything, in the order of the network's agents.
    pub seconds: Vec<f64>,
    /// The file of each host.
    pub files: Vec<PathBuf>,
    /// CPU time of everything that ran on those hosts meanwhile, without the origin's.
    pub cpu_seconds: f64,
    /// Bytes that left the origin's interface.
    pub origin_bytes: u64,
}

impl Rival {
    /// In the order of tables.
    pub const ALL: [Self; 6] =
        [Self::Nginx, Self::NginxTree, Self::VarnishTree, Self::VarnishChain, Self::Aria2, Self::Libtorrent];

    /// The Debian packages that this machine lacks for it.
    pub fn missing(self) -> Vec<&'static str> {
        self.programs().iter().filter(|program| program.version().is_none()).map(|program| program.package).collect()
    }

    /// Its programs with their versions.
    pub fn version(self) -> String {
        let version = |program: &Program| format!("{} {}", program.label, program.version().unwrap_or_default());
        self.programs().iter().map(version).collect::<Vec<_>>().join(", ")
    }

    /// What is tried to find its best: few settings, of which the first is the one to take without trying.
    pub fn sweep(self) -> &'static [Settings] {
        match self {
            Self::Nginx => nginx::ORIGIN_SWEEP,
            Self::NginxTree => nginx::RELAY_SWEEP,
            Self::VarnishTree | Self::VarnishChain => varnish::SWEEP,
            Self::Aria2 => aria2::SWEEP,
            Self::Libtorrent => libtorrent::SWEEP,
        }
    }

    fn programs(self) -> &'static [Program] {
        match self {
            Self::Nginx | Self::NginxTree => &[program::NGINX, program::CURL],
            Self::VarnishTree | Self::VarnishChain => &[program::VARNISH, program::NGINX, program::CURL],
            Self::Aria2 => &[program::ARIA2, program::OPENTRACKER],
            Self::Libtorrent => &[program::LIBTORRENT],
        }
    }
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nginx => "nginx",
            Self::NginxTree => "nginx-tree",
            Self::VarnishTree => "varnish-tree",
            Self::VarnishChain => "varnish-chain",
            Self::Aria2 => "aria2",
            Self::Libtorrent => "libtorrent",
        })
    }
}

/// Starts the system, lets every host fetch the file at the same moment, and ends it again, whatever happened.
pub fn deliver(rival: Rival, settings: &Settings, job: &Job<'_>) -> Result<Delivery> {
    match rival {
        Rival::Nginx => nginx::origin(settings, job),
        Rival::NginxTree => nginx::relays(settings, job, Shape::Tree),
        Rival::VarnishTree => varnish::relays(settings, job, Shape::Tree),
        Rival::VarnishChain => varnish::relays(settings, job, Shape::Chain),
        Rival::Aria2 => aria2::swarm(settings, job),
        Rival::Libtorrent => libtorrent::swarm(settings, job),
    }
}
