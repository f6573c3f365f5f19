//! SIGSTOP in the middle of a transfer: the kernel goes on accepting connections and filling buffers for a process that stands still.

use std::process::Command;
use std::time::Duration;

use faasnet::view::{ORIGIN, TreeView};

use crate::common::{Lab, index_of, root_of};
use crate::failures::{AGENTS, again, bytes_flow, check_refetched, in_the_middle};

/// Longer than a child's patience, shorter than the controller's.
const PAUSE: Duration = Duration::from_millis(700);

pub(crate) fn signal(lab: &Lab, agent: usize, signal: &str) {
    let pid = lab.cluster.agents[agent].pid().unwrap().to_string();
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
    assert!(sent.success());
}

/// A node with nobody below it.
fn leaf_of(tree: &TreeView) -> usize {
    let is_leaf = |name: &str| tree.edges.iter().all(|edge| edge.parent != name);
    let edge = tree.edges.iter().find(|edge| edge.parent != ORIGIN && is_leaf(&edge.node)).unwrap();
    index_of(&edge.node)
}

/// Stops the root of the first tree for a while; all must finish, and the origin be read little more than once.
async fn pause_the_root(policy: &str) {
    let (lab, function) = in_the_middle(policy).await;
    lab.wait_agent(0, "app", "in the trees", |_| true).await;
    let root = root_of(&lab.trees("app").await.trees[0]);
    lab.wait_agent(root, "app", "receiving", bytes_flow).await;
    signal(&lab, root, "STOP");
    // The length of the pause is what is tested; nothing is waited for.
    tokio::time::sleep(PAUSE).await;
    signal(&lab, root, "CONT");
    lab.wait_verified(&function, 0..AGENTS).await;
    check_refetched(&lab, &(0..AGENTS).collect::<Vec<_>>()).await;
    let again = again(&lab, &function);
    assert!(again <= function.image_bytes / 10, "the origin sent {again} bytes again");
}

/// Catches a root that comes back after its children left it and then reads the image a second time beside its heir.
#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_the_only_tree_stands_still_for_a_while() {
    pause_the_root("complete").await;
}

/// The same where the root is below others in a second tree.
#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_one_of_two_trees_stands_still_for_a_while() {
    pause_the_root("twin").await;
}

/// Catches a parent that waits for a child which reads no more, and makes the child's siblings wait too.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_stands_still_for_good() {
    let (lab, function) = in_the_middle("complete").await;
    lab.wait_agent(0, "app", "in the trees", |_| true).await;
    let leaf = leaf_of(&lab.trees("app").await.trees[0]);
    lab.wait_agent(leaf, "app", "receiving", bytes_flow).await;
    signal(&lab, leaf, "STOP");
    let others: Vec<usize> = (0..AGENTS).filter(|index| *index != leaf).collect();
    lab.wait_verified(&function, others.iter().copied()).await;
    check_refetched(&lab, &others).await;
    let again = again(&lab, &function);
    assert!(again <= function.image_bytes / 50, "the origin sent {again} bytes again");
}
