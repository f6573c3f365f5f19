//! Named simulations: the paper's experiments with what they are compared to, and what may go wrong.

use std::str::FromStr;

use faasnet_tree::Policy;

use crate::plan::{Faults, SimPlan, Topology};

/// A set of simulations with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// 8 to 128 nodes at once, 758 MB; also from the registry alone, along a chain, and by a tree per layer.
    AtOnce,
    /// 1,000 nodes that hold 2,500 functions' instances of 428 MB.
    Thousand,
    /// Four waves of provisions.
    Bursts,
    /// One and eight functions on the same nodes.
    ManyFunctions,
    /// 1 % of the nodes die while the image travels.
    Deaths,
    /// The controller is away for most of the transfer, while nodes die.
    ControllerAway,
    /// A tenth of the nodes send and receive at a tenth of the rate.
    SlowTenth,
    /// Nodes that are told to receive from each other at the same moment.
    Crossing,
    /// Nodes that lose everybody whom they would turn to, with a controller and without.
    Orphans,
}

/// One simulation of a scenario.
#[derive(Debug, Clone)]
pub struct Case {
    /// What is special about it.
    pub label: String,
    /// What to run.
    pub plan: SimPlan,
}

const MEGABYTE: u64 = 1_000_000;
/// The paper's image.
const IMAGE: u64 = 758 * MEGABYTE;
const TREES: [Policy; 3] = [Policy::Twin, Policy::Complete, Policy::Avl];

impl Scenario {
    /// All of them, by name.
    pub const ALL: [(&'static str, Self); 9] = [
        ("at-once", Self::AtOnce),
        ("thousand", Self::Thousand),
        ("bursts", Self::Bursts),
        ("many-functions", Self::ManyFunctions),
        ("deaths", Self::Deaths),
        ("controller-away", Self::ControllerAway),
        ("slow-tenth", Self::SlowTenth),
        ("crossing", Self::Crossing),
        ("orphans", Self::Orphans),
    ];

    /// What it runs, by this seed.
    pub fn cases(self, seed: u64) -> Vec<Case> {
        match self {
            Self::AtOnce => [8, 16, 32, 64, 128].into_iter().flat_map(|nodes| at_once(nodes, IMAGE, seed)).collect(),
            Self::Thousand => by_policy(1_000, 428 * MEGABYTE, seed, |plan| {
                // Five functions of 500 instances each: 2.5 on a node.
                (plan.functions, plan.nodes_per_function) = (5, 500);
            }),
            Self::Bursts => by_policy(256, IMAGE, seed, |plan| plan.waves = Some((4, 2.0))),
            Self::ManyFunctions => [1, 8]
                .into_iter()
                .flat_map(|functions| by_policy(32, 200 * MEGABYTE, seed, |plan| plan.functions = functions))
                .collect(),
            Self::Deaths => faulty(1_000, seed, Faults { deaths: 0.01, ..Faults::default() }),
            Self::ControllerAway => {
                faulty(128, seed, Faults { deaths: 0.05, controller_away: Some((0.5, 5.0)), ..Faults::default() })
            }
            Self::SlowTenth => {
                let judged = faulty(128, seed, Faults { slow: 0.1, ..Faults::default() });
                // What the same stragglers cost when nobody moves them.
                let left = judged.iter().cloned().map(|mut case| {
                    case.label += ", stragglers stay";
                    case.plan.judges_stragglers = false;
                    case
                });
                left.collect::<Vec<_>>().into_iter().chain(judged).collect()
            }
            Self::Crossing => faulty(128, seed, Faults { crossings: 40, ..Faults::default() }),
            Self::Orphans => {
                let orphans = Faults { orphans: 1, ..Faults::default() };
                let alone = Faults { controller_away: Some((0.1, 60.0)), ..orphans };
                let mut cases = faulty(128, seed, orphans);
                cases.extend(
                    faulty(128, seed, alone)
                        .into_iter()
                        .map(|case| Case { label: case.label + ", controller away", ..case }),
                );
                cases
            }
        }
    }
}

/// Every topology on so many nodes.
pub fn at_once(nodes: usize, image_bytes: u64, seed: u64) -> Vec<Case> {
    let mut cases = by_policy(nodes, image_bytes, seed, |_| {});
    let others = [("chain", Topology::Chain), ("registry", Topology::Registry), ("5 layers", Topology::Layers(5))];
    cases.extend(
        others.into_iter().map(|(label, topology)| Case {
            label: label.into(),
            plan: SimPlan::new(nodes, image_bytes, topology, seed),
        }),
    );
    cases
}

fn by_policy(nodes: usize, image_bytes: u64, seed: u64, change: impl Fn(&mut SimPlan)) -> Vec<Case> {
    let case = |policy: Policy| {
        let mut plan = SimPlan::new(nodes, image_bytes, Topology::Trees(policy), seed);
        change(&mut plan);
        Case { label: policy.to_string(), plan }
    };
    TREES.into_iter().map(case).collect()
}

fn faulty(nodes: usize, seed: u64, faults: Faults) -> Vec<Case> {
    by_policy(nodes, IMAGE, seed, |plan| plan.faults = faults)
}

impl FromStr for Scenario {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|(name, _)| *name == text).map(|(_, scenario)| scenario);
        found.ok_or_else(|| format!("{text:?} is no scenario; use {}", Self::ALL.map(|(name, _)| name).join(", ")))
    }
}

impl FromStr for Topology {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "registry" => Ok(Self::Registry),
            "chain" => Ok(Self::Chain),
            "layers" => Ok(Self::Layers(5)),
            policy => policy.parse().map(Self::Trees).map_err(|_| {
                format!("{policy:?} is no way to spread an image; use twin, complete, avl, registry, chain or layers")
            }),
        }
    }
}
