//! How many there are of what, for metrics.

use std::collections::BTreeMap;

use faasnet_api::v1::FunctionState;

use super::State;
use super::latency::Histogram;

/// Numbers of nodes, functions and members, and how fast bytes flow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// See [`State::term`].
    pub term: u64,
    /// By state, as `ListNodes` names them.
    pub nodes: BTreeMap<&'static str, u64>,
    /// Registered ones.
    pub functions: u64,
    /// Pairs of a function and a node that shall hold it, by state.
    pub members: BTreeMap<&'static str, u64>,
    /// From origins to roots, over the last reports.
    pub origin_bytes_per_second: u64,
    /// From nodes to nodes.
    pub node_bytes_per_second: u64,
    /// Clients that wait for a provision.
    pub provisions: u64,
    /// From the wish to the complete image, of every node's provision since this start.
    pub latencies: Histogram,
}

impl State {
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts {
            term: self.term,
            nodes: ["registered", "live", "suspect", "dead"].map(|state| (state, 0)).into(),
            functions: self.functions.len() as u64,
            members: ["waiting", "fetching", "complete", "failed"].map(|state| (state, 0)).into(),
            provisions: self.watches.len() as u64,
            latencies: self.latencies.clone(),
            ..Counts::default()
        };
        for node in self.nodes.values() {
            *counts.nodes.entry(node.state_name()).or_default() += 1;
        }
        for member in self.functions.values().flat_map(|function| function.wanted.values()) {
            let state = match member.progress.as_ref().map(|progress| progress.state()) {
                Some(FunctionState::Fetching) => "fetching",
                Some(FunctionState::Complete) => "complete",
                Some(FunctionState::Failed) => "failed",
                Some(FunctionState::Waiting | FunctionState::Unspecified) | None => "waiting",
            };
            *counts.members.entry(state).or_default() += 1;
            for used in member.progress.iter().flat_map(|progress| &progress.upstreams) {
                let rate = match used.node_id.is_empty() {
                    true => &mut counts.origin_bytes_per_second,
                    false => &mut counts.node_bytes_per_second,
                };
                *rate = rate.saturating_add(used.bytes_per_second);
            }
        }
        counts
    }
}
