//! What an agent costs its host while nothing is to be done: memory of its own, and how often its threads wake up.
//!
//! Reads `/proc`; asks the agent nothing, since that would wake it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use faasnet_lab::process;
use serde::Serialize;

use crate::cluster::Cluster;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Idle {
    /// For how long it was watched.
    pub seconds: f64,
    /// Memory without file cache (RssAnon and RssShmem), at the end.
    pub anonymous_bytes: u64,
    /// Voluntary context switches of all threads.
    pub voluntary_switches_per_s: f64,
    /// Whether that is as little as it has to be: [`MOST_BYTES`], [`MOST_SWITCHES_PER_S`].
    pub met: bool,
}

/// An idle agent has less memory than this; what a small host can spare.
pub const MOST_BYTES: u64 = 32 << 20;
/// An idle agent wakes up no more often.
pub const MOST_SWITCHES_PER_S: f64 = 4.0;

/// Watches the process `pid` for `period`.
pub async fn watch(pid: u32, period: Duration) -> Result<Idle> {
    let gone = || format!("the process {pid} has ended");
    let before = process::voluntary_switches(pid).with_context(gone)?;
    let begin = Instant::now();
    tokio::time::sleep(period).await;
    let after = process::voluntary_switches(pid).with_context(gone)?;
    let seconds = begin.elapsed().as_secs_f64();
    let anonymous_bytes = process::usage(pid).with_context(gone)?.anonymous_bytes;
    // A thread that ended meanwhile takes its last switches along; one that is new began with none.
    let switches: u64 = after.iter().map(|(thread, count)| count - before.get(thread).copied().unwrap_or(0)).sum();
    let voluntary_switches_per_s = switches as f64 / seconds;
    let met = anonymous_bytes < MOST_BYTES && voluntary_switches_per_s <= MOST_SWITCHES_PER_S;
    Ok(Idle { seconds, anonymous_bytes, voluntary_switches_per_s, met })
}

/// The same for an agent that is started for this, beside a controller, with the settings that both have by default.
pub async fn of_a_fresh_agent(period: Duration) -> Result<Idle> {
    let (mut cluster, _dir) = Cluster::start_fresh(1, [127, 78, 0, 1].into()).await?;
    let watched = match cluster.agents[0].pid() {
        Some(pid) => watch(pid, period).await,
        None => Err(anyhow::anyhow!("the idle agent has ended")),
    };
    cluster.stop().await?;
    watched
}
