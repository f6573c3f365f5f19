//! From trees to commands: what one node is told about its neighbours.

use std::collections::{BTreeSet, HashSet};

use faasnet_api::{NodeId, v1};
use faasnet_tree::Edge;

use super::function::Function;

/// The plan of one member in every stripe. `address` answers with the data address of a member.
pub(crate) fn stripe_plans(
    function: &Function,
    node: NodeId,
    address: &impl Fn(NodeId) -> String,
) -> Vec<v1::StripePlan> {
    (0..function.trees.stripes()).map(|stripe| stripe_plan(function, stripe, node, address)).collect()
}

fn stripe_plan(function: &Function, stripe: u8, node: NodeId, address: &impl Fn(NodeId) -> String) -> v1::StripePlan {
    let trees = &function.trees;
    let donor = function.donors.get(usize::from(stripe)).copied().flatten();
    let mut children: Vec<NodeId> = function.children(stripe, node).collect();
    if donor == Some(node) {
        // A donor's root is planned, or it would be served as a guest and cut after a few seconds.
        children.extend(trees.root(stripe));
    }
    let named = |id: NodeId| v1::Upstream {
        upstream: Some(v1::upstream::Upstream::Node(v1::NodeAddress { node_id: id.to_vec(), address: address(id) })),
    };
    let origin = || v1::Upstream { upstream: Some(v1::upstream::Upstream::Origin(v1::OriginRead {})) };
    let (upstream, mut fallbacks) = match (function.parent(stripe, &node), donor) {
        (Some(parent), _) => {
            (named(parent), fallback_nodes(function, stripe, node, parent).into_iter().map(named).collect())
        }
        (None, Some(donor)) => (named(donor), vec![origin()]),
        (None, None) => (origin(), Vec::new()),
    };
    if trees.heir(stripe) == Some(node) {
        // Nobody but root and heir reads the origin on its own, so a lost root costs one more reader, not a crowd.
        fallbacks.push(origin());
    }
    v1::StripePlan { upstream: Some(upstream), fallbacks, children: children.into_iter().map(NodeId::to_vec).collect() }
}

/// Grandparent, the parent's sibling, the heir. None of them is below the node: the heir is below nobody but the root.
fn fallback_nodes(function: &Function, stripe: u8, node: NodeId, parent: NodeId) -> Vec<NodeId> {
    let trees = &function.trees;
    let grandparent = trees.parent(stripe, &parent);
    let uncle = grandparent.and_then(|above| trees.children(stripe, &above).find(|child| *child != parent));
    let mut fallbacks = Vec::with_capacity(3);
    for candidate in [grandparent, uncle, trees.heir(stripe)].into_iter().flatten() {
        if candidate != node && candidate != parent && !fallbacks.contains(&candidate) {
            fallbacks.push(candidate);
        }
    }
    fallbacks
}

/// The members whose plan may differ after these edges came or went: those at both ends, the children of the lower end (their grandparent
/// changed), and everybody two levels below the upper end (their parent's sibling changed).
pub(crate) fn concerned(function: &Function, edges: &HashSet<Edge<NodeId>>) -> BTreeSet<NodeId> {
    let mut nodes = BTreeSet::new();
    let mut seen = HashSet::new();
    for edge in edges {
        nodes.insert(edge.node);
        nodes.extend(function.children(edge.stripe, edge.node));
        let Some(parent) = edge.parent.filter(|parent| seen.insert((edge.stripe, *parent))) else { continue };
        nodes.insert(parent);
        for child in function.children(edge.stripe, parent) {
            nodes.insert(child);
            nodes.extend(function.children(edge.stripe, child));
        }
    }
    nodes.retain(|node| function.has_place(node));
    nodes
}
