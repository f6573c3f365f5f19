//! The trees against a naive model, under random histories of joins and leaves.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use faasnet_tree::{Edge, FunctionTrees, Order, Plan, Policy, TreeError};
use proptest::prelude::*;

type Edges = BTreeMap<(u8, u32), Option<u32>>;

fn edges(trees: &FunctionTrees<u32>) -> Edges {
    (0..trees.stripes()).flat_map(|s| trees.edges(s).map(|e| ((s, e.node), e.parent)).collect::<Vec<_>>()).collect()
}

fn as_set(edges: &Edges) -> BTreeSet<Edge<u32>> {
    edges.iter().map(|(&(stripe, node), &parent)| Edge { stripe, node, parent }).collect()
}

/// The number of (stripe, node) pairs, other than those of `except`, whose parent differs.
fn reparented(before: &Edges, after: &Edges, except: u32) -> usize {
    after.iter().filter(|(key, parent)| key.1 != except && before.get(key) != Some(parent)).count()
}

/// Checks one tree from its edges alone: one root, two children at most, everybody reached, minimum height.
fn check_tree(trees: &FunctionTrees<u32>, stripe: u8, members: &BTreeSet<u32>) -> Result<BTreeSet<u32>, TestCaseError> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut roots = Vec::new();
    for edge in trees.edges(stripe) {
        match edge.parent {
            Some(parent) => children.entry(parent).or_default().push(edge.node),
            None => roots.push(edge.node),
        }
        prop_assert_eq!(trees.parent(stripe, &edge.node), edge.parent);
    }
    prop_assert_eq!(roots.len(), usize::from(!members.is_empty()));
    prop_assert_eq!(trees.root(stripe), roots.first().copied());
    let mut reached = BTreeSet::new();
    let mut level: Vec<u32> = roots;
    let mut height = 0;
    while !level.is_empty() {
        for node in &level {
            prop_assert!(reached.insert(*node), "{} is reached twice", node);
            prop_assert_eq!(trees.depth(stripe, node), Some(height));
            let listed: BTreeSet<u32> = trees.children(stripe, node).collect();
            let real: BTreeSet<u32> = children.get(node).into_iter().flatten().copied().collect();
            prop_assert!(real.len() <= 2);
            prop_assert_eq!(listed, real);
        }
        level = level.iter().flat_map(|node| children.get(node).cloned().unwrap_or_default()).collect();
        height += 1;
    }
    prop_assert_eq!(&reached, members);
    match trees.policy() {
        Policy::Avl => check_balance(&children, trees.root(stripe), members.len())?,
        _ => prop_assert_eq!(height as u32, usize::BITS - members.len().leading_zeros(), "{} nodes", members.len()),
    }
    Ok(children.into_keys().collect())
}

/// The height below `node`, after checking that left and right differ by at most one everywhere.
fn balanced_height(children: &BTreeMap<u32, Vec<u32>>, node: Option<u32>) -> Result<u32, TestCaseError> {
    let Some(node) = node else { return Ok(0) };
    let mut below = children.get(&node).into_iter().flatten().copied();
    let (one, other) = (balanced_height(children, below.next())?, balanced_height(children, below.next())?);
    prop_assert!(one.abs_diff(other) <= 1, "heights {} and {} below {}", one, other, node);
    Ok(1 + one.max(other))
}

fn check_balance(children: &BTreeMap<u32, Vec<u32>>, root: Option<u32>, nodes: usize) -> Result<(), TestCaseError> {
    let height = balanced_height(children, root)?;
    // Adelson-Velsky and Landis 1962.
    prop_assert!(f64::from(height) <= 1.4405 * ((nodes + 2) as f64).log2() - 0.3, "height {} of {}", height, nodes);
    Ok(())
}

/// Where the paper puts the next node: the first in breadth-first order with a free side.
fn first_free(trees: &FunctionTrees<u32>) -> Option<u32> {
    let mut level: Vec<u32> = trees.root(0).into_iter().collect();
    while !level.is_empty() {
        if let Some(free) = level.iter().find(|node| trees.children(0, node).count() < 2) {
            return Some(*free);
        }
        level = level.iter().flat_map(|node| trees.children(0, node)).collect();
    }
    None
}

/// A demotion: the same members and invariants, and the straggler stands where it should.
fn demote(trees: &mut FunctionTrees<u32>, members: &BTreeSet<u32>, key: u32, slow: u32) -> Result<(), TestCaseError> {
    let before = edges(trees);
    if !members.contains(&key) {
        prop_assert_eq!(trees.demote(key, |_| false), Err(TreeError::NotMember));
        return Ok(());
    }
    let is_slow = |node: &u32| slow & (1 << (node % 32)) != 0;
    let plan = trees.demote(key, is_slow).unwrap();
    let after = edges(trees);
    check_plan(&plan, &before, &after)?;
    prop_assert!(reparented(&before, &after, u32::MAX) <= 9);
    let below: usize = (0..trees.stripes()).map(|stripe| trees.children(stripe, &key).count()).sum();
    let someone_else_is_quick = members.iter().any(|node| *node != key && !is_slow(node));
    if slow == 0 && someone_else_is_quick {
        let allowed = usize::from(trees.policy() == Policy::Twin && members.len().is_multiple_of(2));
        prop_assert!(below <= allowed, "{} children below a straggler among {}", below, members.len());
    }
    check_all(trees, members)
}

/// An exchange: the same members and invariants, and the two have changed places where they are inner nodes.
fn exchange(
    trees: &mut FunctionTrees<u32>,
    members: &BTreeSet<u32>,
    one: u32,
    other: u32,
) -> Result<(), TestCaseError> {
    let before = edges(trees);
    if !members.contains(&one) || !members.contains(&other) {
        prop_assert_eq!(trees.exchange(one, other), Err(TreeError::NotMember));
        return Ok(());
    }
    let led = (0..trees.stripes()).any(|stripe| trees.root(stripe) == Some(one));
    let plan = trees.exchange(one, other).unwrap();
    let after = edges(trees);
    check_plan(&plan, &before, &after)?;
    prop_assert!(reparented(&before, &after, u32::MAX) <= 6 * usize::from(trees.stripes()));
    prop_assert!(
        !led || (0..trees.stripes()).any(|stripe| trees.root(stripe) == Some(other)),
        "the root was not replaced"
    );
    check_all(trees, members)
}

/// The member that goes first when there are too many: nobody or few receive from it.
fn check_expendable(trees: &FunctionTrees<u32>) -> Result<(), TestCaseError> {
    let expendable = trees.expendable();
    prop_assert_eq!(expendable.is_none(), trees.is_empty());
    let Some(node) = expendable else { return Ok(()) };
    let below: usize = (0..trees.stripes()).map(|stripe| trees.children(stripe, &node).count()).sum();
    let inner_once = trees.policy() == Policy::Twin && trees.len().is_multiple_of(2);
    prop_assert!(below <= usize::from(inner_once), "{} children below the expendable of {}", below, trees.len());
    Ok(())
}

fn check_all(trees: &FunctionTrees<u32>, members: &BTreeSet<u32>) -> Result<(), TestCaseError> {
    prop_assert_eq!(trees.check_invariants(), Ok(()));
    prop_assert_eq!(&trees.members().collect::<BTreeSet<_>>(), members);
    let mut inner = BTreeSet::new();
    for stripe in 0..trees.stripes() {
        for node in check_tree(trees, stripe, members)? {
            prop_assert!(inner.insert(node), "{} is an inner node twice", node);
        }
    }
    let reds = trees.to_order().reds as usize;
    if trees.policy() == Policy::Twin {
        prop_assert!(reds.abs_diff(members.len() - reds) <= 1);
    }
    Ok(())
}

fn check_plan(plan: &Plan<u32>, before: &Edges, after: &Edges) -> Result<(), TestCaseError> {
    let (before, after) = (as_set(before), as_set(after));
    let changed: BTreeSet<_> = plan.changed.iter().copied().collect();
    let freed: BTreeSet<_> = plan.freed.iter().copied().collect();
    prop_assert_eq!((changed.len(), freed.len()), (plan.changed.len(), plan.freed.len()), "an edge is named twice");
    prop_assert_eq!(changed, &after - &before);
    prop_assert_eq!(freed, &before - &after);
    Ok(())
}

/// One step of a history: the key joins when it is not a member, leaves when it is; both refusals are tried on the way.
fn step(trees: &mut FunctionTrees<u32>, members: &mut BTreeSet<u32>, key: u32) -> Result<(), TestCaseError> {
    let before = edges(trees);
    if members.insert(key) {
        prop_assert_eq!(trees.remove(key), Err(TreeError::NotMember));
        let expected = first_free(trees);
        let plan = trees.insert(key).unwrap();
        let after = edges(trees);
        if trees.policy() != Policy::Twin {
            prop_assert_eq!(trees.parent(0, &key), expected);
        }
        check_plan(&plan, &before, &after)?;
        let bound = usize::from(trees.stripes()) - 1;
        prop_assert!(reparented(&before, &after, key) <= bound);
        return check_all(trees, members);
    }
    prop_assert_eq!(trees.insert(key), Err(TreeError::AlreadyMember));
    members.remove(&key);
    let was_root = (0..trees.stripes()).any(|stripe| trees.root(stripe) == Some(key));
    let heirs: Vec<_> = (0..trees.stripes()).map(|stripe| (trees.root(stripe), trees.heir(stripe))).collect();
    let plan = trees.remove(key).unwrap();
    let after = edges(trees);
    check_plan(&plan, &before, &after)?;
    let bound = match trees.policy() {
        Policy::Complete => 3,
        Policy::Twin => 7,
        Policy::Avl => 3 + 4 * (members.len() + 1).ilog2() as usize,
    } + 2 * usize::from(was_root);
    prop_assert!(reparented(&before, &after, key) <= bound);
    for (stripe, (root, heir)) in (0u8..).zip(heirs) {
        if trees.policy() == Policy::Avl {
            // A rotation may lift another node above the root or the heir; never one from further down than their children.
            continue;
        }
        if root != Some(key) {
            prop_assert_eq!(trees.root(stripe), root, "a root changed without need");
        } else if trees.policy() == Policy::Complete || members.len() > 2 {
            prop_assert_eq!(trees.root(stripe), heir, "the heir was passed over");
        }
    }
    check_all(trees, members)
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Complete), Just(Policy::Twin), Just(Policy::Avl)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Catches a broken tree, an edge that a plan forgets or invents, and re-parenting beyond the bounds.
    #[test]
    fn any_history_keeps_the_invariants(policy in policies(),
                                        keys in prop::collection::vec((0u32..40, 0u8..8, any::<u32>()), 0..150)) {
        let (mut trees, mut members) = (FunctionTrees::new(policy), BTreeSet::new());
        for (key, what, slow) in keys {
            match what {
                0 => demote(&mut trees, &members, key, slow)?,
                1 => demote(&mut trees, &members, key, 0)?,
                2 => exchange(&mut trees, &members, key, slow % 40)?,
                _ => step(&mut trees, &mut members, key)?,
            }
            check_expendable(&trees)?;
        }
        let restored = FunctionTrees::from_order(policy, trees.to_order()).unwrap();
        prop_assert_eq!(edges(&restored), edges(&trees));
        for key in members.clone() {
            step(&mut trees, &mut members, key)?;
        }
        prop_assert!(trees.is_empty());
        prop_assert_eq!(trees.remove(0), Err(TreeError::NotMember));
    }

    /// Catches a stored order that is accepted although no history leads to it, or that makes the reader panic.
    #[test]
    fn damaged_orders_are_refused(policy in policies(), lists in prop::collection::vec(prop::collection::vec(0u32..9, 0..9), 0..4),
                                  reds in 0u64..12) {
        let stripes = lists;
        if let Ok(trees) = FunctionTrees::from_order(policy, Order { stripes, reds }) {
            check_all(&trees, &trees.members().collect())?;
        }
    }
}

/// Catches a query that panics for somebody who is not there.
#[test]
fn strangers_have_no_place() {
    for policy in [Policy::Complete, Policy::Twin, Policy::Avl] {
        let trees = FunctionTrees::<u32>::new(policy);
        assert_eq!((trees.root(0), trees.heir(1), trees.parent(0, &1), trees.depth(9, &1)), (None, None, None, None));
        assert_eq!(trees.children(7, &1).count() + trees.path(0, &1).len() + trees.edges(3).count(), 0);
    }
}

/// Catches a walk over the whole tree in `insert` or `remove`: quadratic work would take minutes here.
#[test]
fn a_large_burst_is_cheap() {
    let start = Instant::now();
    for policy in [Policy::Twin, Policy::Avl] {
        let mut trees = FunctionTrees::new(policy);
        for key in 0..100_000u32 {
            trees.insert(key).unwrap();
        }
        for key in (0..100_000u32).step_by(2) {
            trees.remove(key).unwrap();
        }
        assert_eq!((trees.len(), trees.check_invariants()), (50_000, Ok(())));
    }
    assert!(start.elapsed() < Duration::from_secs(10), "took {:?}", start.elapsed());
}

/// Catches a policy name that does not survive being printed and read.
#[test]
fn policy_names_round_trip() {
    for policy in [Policy::Complete, Policy::Twin, Policy::Avl] {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    assert!("avl2".parse::<Policy>().is_err());
}
