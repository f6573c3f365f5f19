//! Riders: nodes that only receive, because they are slow or in quarantine; outside the trees, each from a host that feeds it beside its planned
//! children.
//!
//! A host stands as low as possible: nobody is below it but leaves, so what the rider costs it delays few. Pure.

use std::collections::{BTreeMap, HashSet};

use faasnet_api::NodeId;
use faasnet_tree::Edge;

use super::function::Function;
use super::node::Node;

/// One rider for so many members, and always one: every rider is a third child of somebody, and the others have to feed all of them.
const MEMBERS_PER_RIDER: usize = 4;

/// How many riders a function has because they are slow.
pub(super) fn slow(function: &Function, nodes: &BTreeMap<NodeId, Node>) -> usize {
    function.riders.keys().filter(|rider| nodes.get(rider).is_none_or(Node::is_trusted)).count()
}

/// How many of those it may have. Who is in quarantine rides in any case: it has no other place.
pub(super) fn most(function: &Function) -> usize {
    (function.wanted.len() / MEMBERS_PER_RIDER).max(1)
}

/// Gives every rider a host in each stripe, keeping those that can stay. Without anybody else in the trees a rider has to lead them, if
/// it is trusted; who is in quarantine then stays without a host and reads the origin.
/// Answers whose plan that changes.
pub(super) fn host_riders(
    function: &mut Function,
    nodes: &BTreeMap<NodeId, Node>,
    edges: &mut HashSet<Edge<NodeId>>,
) -> Vec<NodeId> {
    let mut concerned = Vec::new();
    let leads = |rider: &&NodeId| nodes.get(rider).is_some_and(Node::is_trusted);
    if function.trees.is_empty()
        && let Some(rider) = function.riders.keys().find(leads).copied()
    {
        function.riders.remove(&rider);
        let change = function.trees.insert(rider).unwrap_or_default();
        edges.extend(change.changed);
        concerned.push(rider);
    }
    let riders: Vec<NodeId> = function.riders.keys().copied().collect();
    for rider in riders {
        let before = function.riders.insert(rider, Vec::new()).unwrap_or_default();
        for stripe in 0..function.trees.stripes() {
            let kept = before.get(usize::from(stripe)).copied().filter(|host| function.trees.contains(host));
            // Unless the trees are empty there is a host; the root is a poor one, but one.
            let Some(host) = kept.or_else(|| choose_host(function, nodes)).or_else(|| function.trees.root(stripe))
            else {
                // It reads the origin from now on.
                concerned.extend(before.get(usize::from(stripe)).map(|_| rider));
                continue;
            };
            if kept.is_none() {
                concerned.extend([rider, host].into_iter().chain(before.get(usize::from(stripe)).copied()));
            }
            if let Some(hosts) = function.riders.get_mut(&rider) {
                hosts.push(host);
            }
        }
    }
    concerned
}

/// A node with as few riders as possible, of ordinary speed, that has nothing but leaves below it.
fn choose_host(function: &Function, nodes: &BTreeMap<NodeId, Node>) -> Option<NodeId> {
    let mut burden: BTreeMap<NodeId, usize> = BTreeMap::new();
    function.riders.values().flatten().for_each(|host| *burden.entry(*host).or_default() += 1);
    let trees = &function.trees;
    let leaves_below = |node: &NodeId| {
        (0..trees.stripes())
            .all(|stripe| trees.children(stripe, node).all(|child| trees.children(stripe, &child).next().is_none()))
    };
    let usual = |node: &NodeId| nodes.get(node).is_some_and(|node| !node.pace.is_slow());
    let good = trees.members().rev().filter(|node| usual(node) && leaves_below(node));
    let load = |node: &NodeId| burden.get(node).copied().unwrap_or(0);
    let mut best: Option<(usize, NodeId)> = None;
    for node in good {
        let load = load(&node);
        if load == 0 {
            return Some(node);
        }
        if best.is_none_or(|(least, _)| load < least) {
            best = Some((load, node));
        }
    }
    best.map(|(_, node)| node)
}
