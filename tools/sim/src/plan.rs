//! What to simulate: the cluster, its image, its functions, what goes wrong, and which defect is planted.
//!
//! Plain values: the same plan and seed give the same history.

use std::str::FromStr;

use faasnet_tree::Policy;

use crate::random::Random;

/// Who plans the edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topology {
    /// The real controller with a tree policy.
    Trees(Policy),
    /// Every node reads the origin itself; for comparison.
    Registry,
    /// Every node receives from the one before it; for comparison.
    Chain,
    /// A tree of its own, in an order of its own, for each of so many layers; for comparison.
    Layers(u32),
}

/// A defect put into the simulated agents, to see that the checks find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Nobody looks at the ids from the root, so cycles of parents stay.
    NoPathCheck,
    /// A block counts as stored when it has arrived, before its write has completed.
    MarkedBeforeWritten,
    /// A block that passes to several children reaches all but the last one.
    WrongTeeCount,
    /// A command is obeyed although the agent holds a newer one.
    StaleEpoch,
}

/// What goes wrong. Shares are of all nodes; times are seconds after the first provision.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Faults {
    /// Nodes that die for good while the image travels; half of them lose their power, half only their process.
    pub deaths: f64,
    /// Nodes whose process is killed and comes back.
    pub restarts: f64,
    /// Nodes that stand still for a while.
    pub stops: f64,
    /// Nodes that send and receive at a tenth of the rate.
    pub slow: f64,
    /// Nodes whose disk takes half of the line rate.
    pub slow_disks: f64,
    /// Blocks damaged on their way.
    pub damaged: f64,
    /// Commands that arrive a second time, later.
    pub repeated_commands: f64,
    /// Rings of nodes that are told to receive from each other at the same moment.
    pub crossings: u32,
    /// So many nodes lose their parent, grandparent, uncle and heir at the same moment.
    pub orphans: u32,
    /// The controller is away from then for so long.
    pub controller_away: Option<(f64, f64)>,
    /// The origin answers nothing from then for so long.
    pub origin_away: Option<(f64, f64)>,
}

/// Everything that a simulation needs to know.
#[derive(Debug, Clone, PartialEq)]
pub struct SimPlan {
    /// Hosts.
    pub nodes: usize,
    /// Bytes of one image.
    pub image_bytes: u64,
    /// Payload rate of a host's card, each way, in bits per second.
    pub rate_bits: u64,
    /// From one host to another, one way, in microseconds.
    pub latency_us: u64,
    /// What the origin sends in all, in bits per second.
    pub origin_bits: u64,
    /// Connections that the origin serves at the same time; others are turned away.
    pub origin_connections: usize,
    /// What a disk takes, in bytes per second.
    pub disk_bytes: u64,
    /// Who plans the edges.
    pub topology: Topology,
    /// Functions, each with an image of its own.
    pub functions: usize,
    /// Nodes of each function; they are dealt out evenly.
    pub nodes_per_function: usize,
    /// Waves of provisions, so many seconds apart: each takes an equal share of the nodes.
    pub waves: Option<(usize, f64)>,
    /// What goes wrong.
    pub faults: Faults,
    /// The controller moves stragglers out of the way; without it, what they cost shows.
    pub judges_stragglers: bool,
    /// A planted defect.
    pub bug: Option<Bug>,
    /// Where all chance comes from.
    pub seed: u64,
    /// Give up after so many simulated seconds.
    pub deadline_seconds: f64,
}

impl SimPlan {
    /// One function on all of `nodes` hosts of 1 Gbit/s, nothing goes wrong.
    pub fn new(nodes: usize, image_bytes: u64, topology: Topology, seed: u64) -> Self {
        Self {
            nodes,
            image_bytes,
            rate_bits: 1_000_000_000,
            latency_us: 200,
            origin_bits: 10_000_000_000,
            origin_connections: usize::MAX,
            disk_bytes: 1 << 30,
            topology,
            functions: 1,
            nodes_per_function: nodes,
            waves: None,
            faults: Faults::default(),
            judges_stragglers: true,
            bug: None,
            seed,
            deadline_seconds: 600.0,
        }
    }

    /// A small cluster in which, by the seed, anything may go wrong: at most 50 nodes and 64 MiB.
    pub fn chaos(seed: u64) -> Self {
        let mut random = Random::new(seed, "chaos");
        let policies = [Policy::Twin, Policy::Complete, Policy::Avl];
        let policy = policies[random.below(3) as usize];
        let nodes = random.between(2, 50) as usize;
        let mut plan = Self::new(nodes, random.between(1, 64) << 20, Topology::Trees(policy), seed);
        plan.rate_bits = [100_000_000, 250_000_000, 1_000_000_000][random.below(3) as usize];
        plan.latency_us = [100, 1_000, 10_000][random.below(3) as usize];
        plan.origin_bits = plan.rate_bits * random.between(1, 4) / 2;
        plan.functions = random.between(1, 3) as usize;
        plan.nodes_per_function = random.between(nodes as u64 / 2 + 1, nodes as u64) as usize;
        let bound = plan.bound_seconds();
        let mut sometimes = |share: f64| if random.chance(0.5) { share } else { 0.0 };
        plan.faults = Faults {
            deaths: sometimes(0.15),
            restarts: sometimes(0.15),
            stops: sometimes(0.15),
            slow: sometimes(0.1),
            slow_disks: sometimes(0.2),
            damaged: sometimes(0.0005),
            repeated_commands: sometimes(0.3),
            crossings: sometimes(4.0) as u32,
            orphans: 0,
            controller_away: None,
            origin_away: None,
        };
        let mut away = || random.chance(0.3).then(|| (random.below(1000) as f64 / 1000.0 * bound, 3.0));
        (plan.faults.controller_away, plan.faults.origin_away) = (away(), away());
        plan.waves = random.chance(0.4).then_some((3, bound / 3.0));
        // Drawn last, so that older seeds keep the rest of their histories.
        plan.faults.orphans = u32::from(random.chance(0.3));
        plan
    }

    /// The time that one node needs to receive its images at line rate, S/B.
    pub fn bound_seconds(&self) -> f64 {
        let images = (self.functions * self.nodes_per_function).div_ceil(self.nodes.max(1)).max(1);
        (images as u64 * self.image_bytes) as f64 * 8.0 / self.rate_bits as f64
    }
}

impl FromStr for Bug {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "no-path-check" => Self::NoPathCheck,
            "marked-before-written" => Self::MarkedBeforeWritten,
            "wrong-tee-count" => Self::WrongTeeCount,
            "stale-epoch" => Self::StaleEpoch,
            other => {
                return Err(format!(
                    "{other:?} is no planted defect; use no-path-check, marked-before-written, wrong-tee-count or stale-epoch"
                ));
            }
        })
    }
}
