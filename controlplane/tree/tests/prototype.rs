//! The known defects of the published tree prototype, each as a test, and the shape that the paper draws.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use faasnet_tree::{FunctionTrees, Policy, TreeError};

fn avl(nodes: u32) -> FunctionTrees<u32> {
    let mut trees = FunctionTrees::new(Policy::Avl);
    (1..=nodes).for_each(|node| drop(trees.insert(node).unwrap()));
    trees
}

fn children(trees: &FunctionTrees<u32>, node: u32) -> Vec<u32> {
    trees.children(0, &node).collect()
}

/// Everybody who is reached from the root.
fn reached(trees: &FunctionTrees<u32>) -> Vec<u32> {
    let mut open: Vec<u32> = trees.root(0).into_iter().collect();
    let mut reached = Vec::new();
    while let Some(node) = open.pop() {
        reached.push(node);
        open.extend(trees.children(0, &node));
    }
    reached.sort_unstable();
    reached
}

/// The drawn shape: 1 → (2, 3), 2 → (4, 5), 3 → (6), 4 → (7).
fn drawn() -> FunctionTrees<u32> {
    let mut trees = avl(6);
    trees.insert(70).unwrap();
    trees.insert(7).unwrap();
    trees.remove(70).unwrap();
    assert_eq!([1, 2, 3, 4].map(|node| children(&trees, node)), [vec![2, 3], vec![4, 5], vec![6], vec![7]]);
    trees
}

/// Catches a removal that leaves the tree unbalanced, or balances it in another way than by one rotation to the right.
#[test]
fn removing_6_rotates_right_and_makes_2_the_root() {
    let mut trees = drawn();
    let plan = trees.remove(6).unwrap();
    assert_eq!(trees.root(0), Some(2));
    assert_eq!([2, 4, 1].map(|node| children(&trees, node)), [vec![4, 1], vec![7], vec![5, 3]]);
    let mut changed: Vec<(u32, Option<u32>)> = plan.changed.iter().map(|edge| (edge.node, edge.parent)).collect();
    changed.sort_unstable();
    assert_eq!(changed, [(1, Some(2)), (2, None), (5, Some(1))]);
    assert_eq!(trees.check_invariants(), Ok(()));
}

/// Defect 1: the new root kept the deleted one as its parent, and a later rotation brought the dead node back.
#[test]
fn defect_1_a_root_with_one_child_leaves_a_root_without_parent() {
    let mut trees = avl(2);
    trees.remove(1).unwrap();
    assert_eq!((trees.root(0), trees.parent(0, &2), trees.len()), (Some(2), None, 1));
    for node in 3..40 {
        trees.insert(node).unwrap();
    }
    for node in (3..40).rev() {
        trees.remove(node).unwrap();
        assert!(!reached(&trees).contains(&1));
    }
}

/// Defect 2: the length never shrank, and ids were made of it.
#[test]
fn defect_2_the_length_follows_the_members() {
    let mut trees = avl(10);
    (1..=10).for_each(|node| drop(trees.remove(node).unwrap()));
    assert_eq!((trees.len(), trees.root(0)), (0, None));
    trees.insert(5).unwrap();
    assert_eq!((trees.len(), reached(&trees)), (1, vec![5]));
}

/// Defect 3: deleting a leaf twice cut off its sibling, and an inner node twice lost a subtree.
#[test]
fn defect_3_the_second_removal_of_a_node_changes_nothing() {
    for node in [15, 2, 1] {
        let mut trees = avl(15);
        trees.remove(node).unwrap();
        let before = reached(&trees);
        assert_eq!(trees.remove(node), Err(TreeError::NotMember));
        assert_eq!((reached(&trees), before.len()), (before, 14));
    }
}

/// Defect 4: deleting an unknown node, or from an empty tree, crashed.
#[test]
fn defect_4_unknown_nodes_and_empty_trees_are_refusals() {
    assert_eq!(avl(0).remove(1), Err(TreeError::NotMember));
    assert_eq!(avl(0).demote(1, |_| false), Err(TreeError::NotMember));
    assert_eq!(avl(5).remove(99), Err(TreeError::NotMember));
}

/// Defect 5: inserting a deleted node again made a cycle.
#[test]
fn defect_5_a_node_that_comes_back_is_a_leaf_again() {
    let mut trees = avl(15);
    for node in [1, 2, 8, 4] {
        trees.remove(node).unwrap();
        trees.insert(node).unwrap();
        assert_eq!(trees.children(0, &node).count(), 0);
        assert_eq!(reached(&trees), (1..=15).collect::<Vec<_>>());
    }
    assert_eq!(trees.insert(3), Err(TreeError::AlreadyMember));
}

/// Defect 6: insert walked the whole tree. A hundred thousand of these would take minutes.
#[test]
fn defect_6_insert_does_not_walk_the_tree() {
    let start = Instant::now();
    assert_eq!(avl(100_000).check_invariants(), Ok(()));
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

/// Defect 7: nobody learnt which nodes were re-parented.
#[test]
fn defect_7_a_removal_names_every_node_whose_parent_changed() {
    let mut trees = avl(31);
    let before: Vec<Option<u32>> = (1..=31).map(|node| trees.parent(0, &node)).collect();
    let plan = trees.remove(2).unwrap();
    let moved = (1..=31u32).filter(|node| *node != 2 && trees.parent(0, node) != before[*node as usize - 1]);
    let mut named: Vec<u32> = plan.changed.iter().map(|edge| edge.node).collect();
    named.sort_unstable();
    assert_eq!(moved.collect::<Vec<_>>(), named);
    assert!(plan.freed.iter().any(|edge| edge.node == 2));
}

/// Defect 8: a leaf without data became the root. Here the heir does, which has nearly all that the root had.
#[test]
fn defect_8_the_heir_takes_the_place_of_the_root() {
    for policy in [Policy::Avl, Policy::Complete, Policy::Twin] {
        let mut trees = FunctionTrees::new(policy);
        (1..=20u32).for_each(|node| drop(trees.insert(node).unwrap()));
        let (root, heir) = (trees.root(0).unwrap(), trees.heir(0));
        trees.remove(root).unwrap();
        assert_eq!(trees.root(0), heir, "{policy}");
    }
}

/// Catches a stored tree that comes back in another shape, so that a restart of the controller would move everybody.
#[test]
fn the_shape_survives_storing() {
    let trees = drawn();
    let restored = FunctionTrees::from_order(Policy::Avl, trees.to_order()).unwrap();
    assert_eq!(reached(&restored), reached(&trees));
    assert!((1..=7).all(|node| children(&restored, node) == children(&trees, node)));
}
