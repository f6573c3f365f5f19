//! kill -9 in the middle of a transfer: everyone else finishes with the right bytes.

use std::time::Duration;

use faasnet::admin::Held;
use faasnet::registry::RegistryOptions;
use faasnet::view::{FunctionView, NodeView, TreeView};

use crate::common::{Lab, MIB, inner_of, noise, root_of};

pub(crate) const AGENTS: usize = 7;
/// The image, and the origin's rate: a transfer of four seconds.
const IMAGE_BYTES: u64 = 40 * MIB;
const RATE: u64 = 10 * MIB;
const BLOCK: u64 = 256 << 10;
/// The most that may be read again when a root dies: what it alone had, which its buffers and the sockets around it bound. Measured:
/// 0.2 to 4.3 MiB.
const LOST_WITH_A_ROOT: u64 = 8 * MIB;

/// A cluster in the middle of a transfer.
pub(crate) async fn in_the_middle(policy: &str) -> (Lab, FunctionView) {
    let layers = vec![noise(1, IMAGE_BYTES / 2), noise(2, IMAGE_BYTES / 2 + 333)];
    let options = RegistryOptions { rate: Some(RATE), ..RegistryOptions::default() };
    let lab = Lab::start(AGENTS, &[("app", layers)], options).await;
    let function = lab.create("app", policy).await.unwrap();
    lab.begin_provision("app").await;
    (lab, function)
}

/// A fifth of the image is there and more than half is missing.
pub(crate) fn bytes_flow(held: &Held) -> bool {
    let flows = held.state == "fetching" && held.bytes_present > held.bytes_total / 5;
    assert!(!flows || held.bytes_present < held.bytes_total / 2, "too late to be in the middle: {held:?}");
    flows
}

/// What a node says of itself.
async fn row(lab: &Lab, index: usize) -> NodeView {
    let mut node = NodeView::default();
    lab.held(index, "app").await.unwrap().refresh(&mut node, &Default::default());
    node
}

/// Body bytes that the origin sent again: registration reads the image once, the transfer once.
pub(crate) fn again(lab: &Lab, function: &FunctionView) -> u64 {
    lab.origin_bytes().saturating_sub(2 * function.image_bytes)
}

/// Fails if one of `agents` was sent more of what it had than a block for each edge that ever led to it.
pub(crate) async fn check_refetched(lab: &Lab, agents: &[usize]) {
    for &index in agents {
        let node = row(lab, index).await;
        let edges = node.upstreams.len() as u64;
        let twice = node.bytes_refetched;
        assert!(twice <= edges * BLOCK, "{twice} bytes came twice to n{} over {edges} edges", index + 1);
    }
}

/// Kills the node that `choose` names while it transfers. The others must finish, and the origin must not be read again beyond what was
/// lost with the node: nothing unless the node `feeds` from the origin.
async fn kill_node(policy: &str, choose: impl Fn(&TreeView) -> usize, feeds: bool) {
    let (mut lab, function) = in_the_middle(policy).await;
    lab.wait_agent(0, "app", "in the trees", |_| true).await;
    let victim = choose(&lab.trees("app").await.trees[0]);
    lab.wait_agent(victim, "app", "receiving", bytes_flow).await;
    let others: Vec<usize> = (0..AGENTS).filter(|index| *index != victim).collect();
    lab.cluster.agents[victim].kill().await.unwrap();
    lab.wait_verified(&function, others.iter().copied()).await;
    check_refetched(&lab, &others).await;
    let again = again(&lab, &function);
    let limit = if feeds { LOST_WITH_A_ROOT } else { function.image_bytes / 50 };
    assert!(again <= limit, "the origin sent {again} bytes again, more than {limit}");
}

/// Catches an origin feed that dies with its root.
#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_the_only_tree_is_killed() {
    kill_node("complete", root_of, true).await;
}

/// Catches a stripe that stands still when its root dies.
#[tokio::test(flavor = "multi_thread")]
async fn the_root_of_one_of_two_trees_is_killed() {
    kill_node("twin", root_of, true).await;
}

/// Catches children that starve when their parent dies.
#[tokio::test(flavor = "multi_thread")]
async fn an_inner_node_is_killed() {
    kill_node("twin", inner_of, false).await;
}

/// Catches transfers that need the controller while they run.
#[tokio::test(flavor = "multi_thread")]
async fn the_controller_is_killed() {
    let (mut lab, function) = in_the_middle("twin").await;
    for index in 0..AGENTS {
        lab.wait_agent(index, "app", "in the trees", |held| held.bytes_present > 0).await;
    }
    lab.wait_agent(0, "app", "receiving", bytes_flow).await;
    lab.cluster.controller.kill().await.unwrap();
    lab.wait_verified(&function, 0..AGENTS).await;
    let provisioning = lab.origin_bytes() - function.image_bytes;
    assert!(provisioning as f64 <= function.image_bytes as f64 * 1.02, "the origin sent {provisioning}");
    // A new controller takes over where the old one was.
    lab.cluster.restart_controller().await.unwrap();
    lab.cluster.wait_live(AGENTS).await.unwrap();
    let trees = lab.trees("app").await;
    assert_eq!(trees.nodes.len(), AGENTS);
    assert!(trees.term >= 2, "the term did not rise");
}

/// Catches a restarted agent that asks for blocks which it has on its disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_comes_back_and_keeps_its_blocks() {
    let (mut lab, function) = in_the_middle("twin").await;
    lab.wait_agent(0, "app", "in the trees", |_| true).await;
    let victim = inner_of(&lab.trees("app").await.trees[0]);
    lab.wait_agent(victim, "app", "receiving", bytes_flow).await;
    lab.cluster.agents[victim].kill().await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), lab.cluster.restart_agent(victim)).await.unwrap().unwrap();
    lab.wait_verified(&function, 0..AGENTS).await;
    let node = row(&lab, victim).await;
    let limit = function.image_bytes - function.image_bytes / 5 + 2 * BLOCK;
    assert!(node.bytes_received <= limit, "it received {} of {}", node.bytes_received, function.image_bytes);
}
