//! Roots and heirs that have data: what they lack has to be read from the origin once more.
//!
//! When a leader is gone, the policies fill its place by their shape alone; the node that comes there may have joined a moment ago. Then it
//! changes places with a neighbour that has much more of the image. Pure.

use faasnet_api::NodeId;
use faasnet_tree::Edge;

use super::function::Function;

/// A neighbour takes the place when it has at least so many times the leader's bytes.
const MUCH_MORE: u64 = 2;

/// Exchanges leaders without data with those next to them that have some. Answers the edges that changed.
pub(super) fn lead_with_data(function: &mut Function, is_slow: &impl Fn(&NodeId) -> bool) -> Vec<Edge<NodeId>> {
    let mut edges = Vec::new();
    for stripe in 0..function.trees.stripes() {
        for leader in [function.trees.root(stripe), function.trees.heir(stripe)].into_iter().flatten() {
            let enough = bytes_present(function, &leader).saturating_mul(MUCH_MORE).max(1);
            if function.most_present < enough {
                continue;
            }
            // A straggler with data would hold up everybody, which costs more than reading again.
            let has_enough = |node: &NodeId| bytes_present(function, node) >= enough && !is_slow(node);
            let better = best_beside(function, stripe, leader).filter(has_enough);
            let Some(better) = better.or_else(|| best_anywhere(function, stripe, leader).filter(has_enough)) else {
                // Whoever had that much is gone.
                function.most_present =
                    function.wanted.keys().map(|node| bytes_present(function, node)).max().unwrap_or(0);
                continue;
            };
            let change = function.trees.exchange(leader, better).unwrap_or_default();
            edges.extend(change.changed.into_iter().chain(change.freed));
        }
    }
    edges
}

/// Among the nodes at the top of the tree that forward this stripe, the one with the most data. The root itself is no candidate for the
/// heir's place: it leads already.
fn best_beside(function: &Function, stripe: u8, leader: NodeId) -> Option<NodeId> {
    let trees = &function.trees;
    let root = trees.root(stripe)?;
    let second: Vec<NodeId> = trees.children(stripe, &root).collect();
    let third = second.iter().flat_map(|node| trees.children(stripe, node));
    let near = second.iter().copied().chain(third).filter(|node| *node != leader);
    // In `twin` a node that is a leaf here forwards the other stripe: an exchange would move it in both trees.
    let forwards = near.filter(|node| trees.children(stripe, node).next().is_some());
    forwards.max_by_key(|node| bytes_present(function, node))
}

/// The same among all nodes that forward this stripe.
fn best_anywhere(function: &Function, stripe: u8, leader: NodeId) -> Option<NodeId> {
    let trees = &function.trees;
    let others = trees.members().filter(|node| *node != leader && Some(*node) != trees.root(stripe));
    let forwards = others.filter(|node| trees.children(stripe, node).next().is_some());
    forwards.max_by_key(|node| bytes_present(function, node))
}

fn bytes_present(function: &Function, node: &NodeId) -> u64 {
    let progress = function.wanted.get(node).and_then(|member| member.progress.as_ref());
    progress.map_or(0, |progress| progress.bytes_present)
}
