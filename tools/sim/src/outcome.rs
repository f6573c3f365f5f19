//! What a run came to.

use anyhow::{Result, bail};
use serde::Serialize;

use crate::agenda::SECOND;
use crate::cluster::Cluster;
use crate::node::Node;
use crate::plan::SimPlan;

/// Times from a node's provision to its last block, in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[allow(missing_docs)]
pub struct Seconds {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// The figures of a run that kept all promises.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Repeats the run.
    pub seed: u64,
    /// Hosts.
    pub nodes: usize,
    /// S/B: what one node needs to receive its images at line rate.
    pub bound_seconds: f64,
    /// Over the nodes that nothing happened to.
    pub seconds: Seconds,
    /// The same without those that are slow themselves.
    pub others: Seconds,
    /// The slowest of them against the bound.
    pub ratio: f64,
    /// The 99th percentile of them against the bound.
    pub ratio_p99: f64,
    /// Payload that the origin sent.
    pub origin_bytes: u64,
    /// The same against one copy of every image.
    pub origin_copies: f64,
    /// The longest time between two blocks of one stripe, over the same nodes.
    pub longest_stall_seconds: f64,
    /// Planned parents that changed after the first plan, over all nodes and stripes.
    pub reparented: u64,
    /// (node, function) pairs that nothing happened to.
    pub survivors: usize,
    /// Edges that were given up.
    pub edges_failed: u64,
    /// Payload of blocks that were complete where they arrived.
    pub refetched_bytes: u64,
    /// Commands that the controller sent.
    pub commands: u64,
    /// The most children that one node had in one tree.
    pub most_children: usize,
    /// Simulated seconds in all.
    pub simulated_seconds: f64,
    /// Events of the simulation.
    pub events: u64,
    /// Real seconds that it took.
    pub real_seconds: f64,
}

/// Runs a plan. An error names the seed and what was violated.
pub fn run(plan: &SimPlan) -> Result<Outcome> {
    let began = std::time::Instant::now();
    let mut cluster = Cluster::new(plan)?;
    let end = cluster.run();
    if !cluster.tally.violations.is_empty() {
        let at = end as f64 / SECOND as f64;
        bail!("seed {} failed after {at:.3} simulated seconds: {}", plan.seed, cluster.tally.violations.join("; "));
    }
    Ok(outcome(&cluster, plan, end, began.elapsed().as_secs_f64()))
}

fn outcome(cluster: &Cluster, plan: &SimPlan, end: u64, real_seconds: f64) -> Outcome {
    let (seconds, survivors) = seconds_of(cluster, |node| !node.harmed);
    let (others, _) = seconds_of(cluster, |node| !node.harmed && !node.slow);
    let bound_seconds = plan.bound_seconds();
    let origin_bytes = cluster.net.sent_bytes(plan.nodes);
    let images: u64 = cluster.specs.iter().map(|spec| spec.geometry.image_bytes()).sum();
    let functions = cluster.nodes.iter().flat_map(|node| node.functions.values());
    let unharmed = cluster.nodes.iter().filter(|node| !node.harmed).flat_map(|node| node.functions.values());
    let longest_stall = unharmed.map(|function| function.shared.counters.longest_stall).max();
    Outcome {
        seed: plan.seed,
        nodes: plan.nodes,
        bound_seconds,
        seconds,
        others,
        ratio: seconds.max / bound_seconds,
        ratio_p99: seconds.p99 / bound_seconds,
        origin_bytes,
        origin_copies: origin_bytes as f64 / images.max(1) as f64,
        longest_stall_seconds: longest_stall.unwrap_or_default() as f64 / SECOND as f64,
        reparented: cluster.tally.reparented,
        survivors,
        edges_failed: cluster.tally.edges_failed,
        refetched_bytes: functions.map(|function| function.shared.counters.refetched_bytes).sum(),
        commands: cluster.control.commands,
        most_children: cluster.tally.most_children,
        simulated_seconds: end as f64 / SECOND as f64,
        events: cluster.net.agenda.done(),
        real_seconds,
    }
}

/// The times of those nodes that `counts` names, and how many there are.
fn seconds_of(cluster: &Cluster, counts: impl Fn(&Node) -> bool) -> (Seconds, usize) {
    let counted = cluster.done.iter().filter(|((host, _), _)| counts(&cluster.nodes[*host]));
    let mut times: Vec<f64> = counted.map(|(key, at)| (at - cluster.wanted[key]) as f64 / SECOND as f64).collect();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get(((times.len() as f64 * share).ceil() as usize).max(1) - 1).copied().unwrap_or(0.0);
    (Seconds { p50: at(0.5), p99: at(0.99), max: at(1.0) }, times.len())
}
