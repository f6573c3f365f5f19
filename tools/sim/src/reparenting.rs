//! What a change of the trees costs those who are not concerned: re-parented nodes per operation, by policy and size.

use anyhow::{Result, anyhow};
use faasnet_tree::{FunctionTrees, Plan, Policy};
use serde::Serialize;

use crate::random::Random;

/// Re-parented nodes, the joining or leaving one aside, over all trees of the policy.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct Reparenting {
    pub policy: String,
    pub nodes: usize,
    pub per_insert_mean: f64,
    pub per_insert_max: usize,
    pub per_remove_mean: f64,
    pub per_remove_max: usize,
    pub per_demote_mean: f64,
    pub per_demote_max: usize,
}

/// Operations of each kind per size.
const OPERATIONS: usize = 2_000;

const SIZES: [usize; 9] = [10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000];

/// Every policy at sizes from 10 to 100,000.
pub fn reparenting_table(seed: u64) -> Result<Vec<Reparenting>> {
    let policies = [Policy::Avl, Policy::Complete, Policy::Twin];
    policies.into_iter().flat_map(|policy| SIZES.map(|nodes| reparenting(policy, nodes, seed))).collect()
}

/// Measures a policy at a size: pairs of a removal and an insert on a tree with a history, then demotions.
fn reparenting(policy: Policy, nodes: usize, seed: u64) -> Result<Reparenting> {
    let mut random = Random::new(seed, "reparenting");
    let mut trees = FunctionTrees::new(policy);
    let mut members: Vec<u64> = (0..nodes as u64).collect();
    for node in &members {
        trees.insert(*node)?;
    }
    let [mut inserts, mut removes, mut demotes] = [Vec::new(), Vec::new(), Vec::new()];
    for operation in 0..OPERATIONS as u64 {
        let place = random.below(members.len() as u64) as usize;
        let leaving = members[place];
        removes.push(moved(&trees.remove(leaving)?, leaving));
        let joining = nodes as u64 + operation;
        members[place] = joining;
        inserts.push(moved(&trees.insert(joining)?, joining));
        let slow = members[random.below(members.len() as u64) as usize];
        demotes.push(moved(&trees.demote(slow, |_| false)?, u64::MAX));
    }
    trees.check_invariants().map_err(|broken| anyhow!("policy {policy}: {broken}"))?;
    let mean = |counts: &[usize]| counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64;
    let most = |counts: &[usize]| counts.iter().copied().max().unwrap_or(0);
    Ok(Reparenting {
        policy: policy.to_string(),
        nodes,
        per_insert_mean: mean(&inserts),
        per_insert_max: most(&inserts),
        per_remove_mean: mean(&removes),
        per_remove_max: most(&removes),
        per_demote_mean: mean(&demotes),
        per_demote_max: most(&demotes),
    })
}

fn moved(plan: &Plan<u64>, except: u64) -> usize {
    plan.changed.iter().filter(|edge| edge.node != except).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a policy that moves more nodes per change than it promises.
    #[test]
    fn changes_move_few() {
        for (policy, insert, remove) in [(Policy::Complete, 0, 5), (Policy::Twin, 1, 9), (Policy::Avl, 0, 25)] {
            let row = reparenting(policy, 100, 1).unwrap();
            assert!(row.per_insert_max <= insert && row.per_remove_max <= remove, "{row:?}");
        }
    }
}
