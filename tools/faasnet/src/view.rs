//! The shapes that `--json` prints and tables are made from: plain values made of protobuf messages, with names in place of ids.

use std::collections::HashMap;

use faasnet_api::v1;
use serde::{Deserialize, Serialize};

/// Names of nodes by their 16-byte ids.
pub type Names = HashMap<Vec<u8>, String>;

/// One node's share in one function.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// The agent's name.
    pub name: String,
    /// Its id, hexadecimal.
    pub id: String,
    /// `waiting`, `fetching`, `complete` or `failed`.
    pub state: String,
    /// Why it failed, or empty.
    pub error: String,
    /// Whether the controller hears from it.
    pub alive: bool,
    /// From the assignment to the last block, or to now.
    pub seconds: f64,
    /// The image's length; 0 while unknown.
    pub bytes_total: u64,
    /// Verified and stored.
    pub bytes_present: u64,
    /// Payload from upstreams, the origin included.
    pub bytes_received: u64,
    /// Payload of blocks that were complete already.
    pub bytes_refetched: u64,
    /// Taken from another image on the node's own disk.
    pub bytes_reused: u64,
    /// Sent to children as the block passed.
    pub bytes_live: u64,
    /// Sent to children later, from the store.
    pub bytes_from_store: u64,
    /// Sent to children through a user-space buffer.
    pub bytes_copied: u64,
    /// `splice` or `copy`.
    pub mover: String,
    /// From whom it received, in the order of use.
    pub upstreams: Vec<UpstreamView>,
    /// Per stripe: edges between the node and its root.
    pub levels: Vec<u32>,
    /// Upstreams given up.
    pub edges_failed: u64,
    /// Blocks that failed verification.
    pub blocks_refused: u64,
}

/// One upstream of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UpstreamView {
    /// Which tree.
    pub stripe: u32,
    /// A node's name, or `origin`.
    pub node: String,
    /// Payload.
    pub bytes: u64,
}

/// Where the time of a node's last pull went; seconds since it was assigned the image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StoryView {
    /// From the wish until the node began.
    pub queued_seconds: f64,
    /// A parent, or the origin's feed, let it in.
    pub welcomed_seconds: Option<f64>,
    /// The descriptor was known and the image's file open.
    pub opened_seconds: Option<f64>,
    /// The first block was verified.
    pub first_block_seconds: Option<f64>,
    /// Time for verifying, all blocks together.
    pub verifying_seconds: f64,
    /// Blocks that were verified.
    pub blocks_verified: u64,
    /// Silences, by stripe.
    pub stalls: Vec<StallsView>,
    /// The upstreams that were given up last.
    pub given_up: Vec<GivenUpView>,
}

/// Silences of a stripe in which blocks were missing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StallsView {
    /// Which tree.
    pub stripe: u32,
    /// How many.
    pub count: u64,
    /// All together.
    pub seconds: f64,
    /// The longest time between two blocks, stall or not.
    pub longest_seconds: f64,
}

/// An upstream that was given up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GivenUpView {
    /// When.
    pub at_seconds: f64,
    /// In which tree.
    pub stripe: u32,
    /// A node's name, or `origin`.
    pub node: String,
    /// Why.
    pub reason: String,
}

/// A function as registered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FunctionView {
    /// Who deployed it.
    pub tenant: String,
    /// Its name.
    pub function: String,
    /// Its id, hexadecimal.
    pub function_id: String,
    /// Its image's id, hexadecimal.
    pub image_id: String,
    /// The image's reference as given.
    pub reference: String,
    /// `twin` or `complete`.
    pub policy: String,
    /// How many trees it has.
    pub stripes: u32,
    /// The image's length.
    pub image_bytes: u64,
    /// Config and layers.
    pub blobs: u32,
    /// How many nodes hold it or shall hold it.
    pub nodes: u32,
    /// Something to know, or empty.
    pub note: String,
}

/// A node as the controller sees it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// The agent's name.
    pub name: String,
    /// Its id, hexadecimal.
    pub id: String,
    /// Where children connect.
    pub data_address: String,
    /// `live`, `suspect` or `dead`.
    pub state: String,
    /// How many functions it holds.
    pub functions: u32,
    /// How often the agent started.
    pub incarnation: u64,
    /// The agent's version.
    pub version: String,
    /// Since the last sign of life.
    pub last_seen_ms: u64,
    /// It gets no new function.
    pub draining: bool,
    /// Why nobody receives from it; empty: it is trusted.
    pub quarantine: String,
    /// `slow` or `receives only` for a straggler; else empty.
    pub pace: String,
    /// Whose functions it holds; empty: it is free.
    pub tenant: String,
    /// 0: unknown.
    pub memory_mib: u64,
    /// What its functions need.
    pub memory_used_mib: u64,
}

/// One tree as edges from parents to children.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TreeView {
    /// Which stripe.
    pub stripe: u32,
    /// Parents before children.
    pub edges: Vec<EdgeView>,
}

/// One edge.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EdgeView {
    /// The child's name.
    pub node: String,
    /// The parent's name, or `origin`.
    pub parent: String,
}

impl NodeView {
    /// The view of one row of a progress message; upstreams are named with `names`.
    pub fn new(node: &v1::NodeProgress, names: &Names) -> Self {
        let progress = node.progress.clone().unwrap_or_default();
        Self {
            name: node.name.clone(),
            id: hex(&node.node_id),
            state: state_name(progress.state()).to_owned(),
            alive: node.alive,
            seconds: progress.elapsed_us as f64 / 1e6,
            bytes_total: progress.bytes_total,
            bytes_present: progress.bytes_present,
            bytes_received: progress.bytes_received,
            bytes_refetched: progress.bytes_refetched,
            bytes_reused: progress.bytes_reused,
            bytes_live: progress.bytes_live,
            bytes_from_store: progress.bytes_from_store,
            bytes_copied: progress.bytes_copied,
            upstreams: progress.upstreams.iter().map(|upstream| UpstreamView::new(upstream, names)).collect(),
            levels: progress.levels,
            edges_failed: progress.edges_failed,
            blocks_refused: progress.blocks_refused,
            mover: progress.mover,
            error: progress.error,
        }
    }

    /// The views of a whole message, sorted by name.
    pub fn all(nodes: &[v1::NodeProgress], names: &Names) -> Vec<Self> {
        let mut views: Vec<_> = nodes.iter().map(|node| Self::new(node, names)).collect();
        views.sort_by_key(|view| natural(&view.name));
        views
    }

    /// Whether the node holds every block.
    pub fn is_complete(&self) -> bool {
        self.state == state_name(v1::FunctionState::Complete)
    }

    /// `3 of 7 MiB`-like share in percent; 100 for an empty image that is complete.
    pub fn percent(&self) -> u64 {
        match (self.is_complete(), self.bytes_total) {
            (true, _) => 100,
            (false, 0) => 0,
            (false, total) => (self.bytes_present.min(total) * 100 / total).min(99),
        }
    }
}

impl StoryView {
    /// The view of a story; upstreams are named with `names`.
    pub fn new(story: &v1::PullStory, names: &Names) -> Self {
        let seconds = |us: u64| us as f64 / 1e6;
        let known = |us: u64| (us > 0).then_some(seconds(us));
        let stalls = |stalls: &v1::StripeStalls| StallsView {
            stripe: stalls.stripe,
            count: stalls.count,
            seconds: seconds(stalls.total_us),
            longest_seconds: seconds(stalls.longest_us),
        };
        let given_up = |entry: &v1::UpstreamGivenUp| GivenUpView {
            at_seconds: seconds(entry.at_us),
            stripe: entry.stripe,
            node: name_of(&entry.node_id, names),
            reason: entry.reason.clone(),
        };
        Self {
            queued_seconds: seconds(story.queued_us),
            welcomed_seconds: known(story.welcomed_us),
            opened_seconds: known(story.opened_us),
            first_block_seconds: known(story.first_block_us),
            verifying_seconds: seconds(story.verifying_us),
            blocks_verified: story.blocks_verified,
            stalls: story.stalls.iter().map(stalls).collect(),
            given_up: story.given_up.iter().map(given_up).collect(),
        }
    }
}

impl UpstreamView {
    fn new(upstream: &v1::UpstreamUse, names: &Names) -> Self {
        Self { stripe: upstream.stripe, node: name_of(&upstream.node_id, names), bytes: upstream.bytes }
    }

    /// Whether it was the origin.
    pub fn is_origin(&self) -> bool {
        self.node == ORIGIN
    }
}

impl From<&v1::FunctionInfo> for FunctionView {
    fn from(info: &v1::FunctionInfo) -> Self {
        Self {
            tenant: info.tenant.clone(),
            function: info.function.clone(),
            function_id: hex(&info.function_id),
            image_id: hex(&info.image_id),
            reference: info.reference.clone(),
            policy: info.policy.clone(),
            stripes: info.stripes,
            image_bytes: info.image_bytes,
            blobs: info.blobs,
            nodes: info.nodes,
            note: info.note.clone(),
        }
    }
}

impl From<&v1::NodeInfo> for HostView {
    fn from(info: &v1::NodeInfo) -> Self {
        Self {
            name: info.name.clone(),
            id: hex(&info.node_id),
            data_address: info.data_address.clone(),
            state: info.state.clone(),
            functions: info.functions,
            incarnation: info.incarnation,
            version: info.version.clone(),
            last_seen_ms: info.last_seen_ms,
            draining: info.draining,
            quarantine: info.quarantine.clone(),
            pace: info.pace.clone(),
            tenant: info.tenant.clone(),
            memory_mib: info.memory_mib,
            memory_used_mib: info.memory_used_mib,
        }
    }
}

impl TreeView {
    /// The views of a function's trees.
    pub fn all(trees: &[v1::Tree], names: &Names) -> Vec<Self> {
        let edge = |edge: &v1::TreeEdge| EdgeView {
            node: name_of(&edge.node_id, names),
            parent: name_of(&edge.parent, names),
        };
        trees
            .iter()
            .zip(0..)
            .map(|(tree, stripe)| Self { stripe, edges: tree.edges.iter().map(edge).collect() })
            .collect()
    }

    /// The tree drawn, each node with the text that `label` gives for its name.
    pub fn draw(&self, label: impl Fn(&str) -> String) -> Vec<String> {
        let parent = |edge: &EdgeView| (edge.parent != ORIGIN).then_some(edge.parent.clone());
        let names: Vec<(String, Option<String>)> = self.edges.iter().map(|e| (e.node.clone(), parent(e))).collect();
        let index: HashMap<&str, usize> = names.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
        // A parent outside the snapshot gets a number that no node has.
        let place = |name: &String| index.get(name.as_str()).copied().unwrap_or(usize::MAX);
        let edges: Vec<_> = names.iter().map(|(node, parent)| (place(node), parent.as_ref().map(place))).collect();
        crate::tree_view::draw(ORIGIN, &edges, |node| label(&names[node].0))
    }

    /// Whether `name` has a node above and nodes below itself in this tree.
    pub fn is_inner(&self, name: &str) -> bool {
        let has_parent = self.edges.iter().any(|edge| edge.node == name && edge.parent != ORIGIN);
        has_parent && self.edges.iter().any(|edge| edge.parent == name)
    }
}

/// How the origin is called among upstreams.
pub const ORIGIN: &str = "origin";

/// The names in a list of nodes.
pub fn names<'a>(nodes: impl IntoIterator<Item = (&'a Vec<u8>, &'a String)>) -> Names {
    nodes.into_iter().map(|(id, name)| (id.clone(), name.clone())).collect()
}

/// A state as people read it.
pub fn state_name(state: v1::FunctionState) -> &'static str {
    match state {
        v1::FunctionState::Unspecified | v1::FunctionState::Waiting => "waiting",
        v1::FunctionState::Fetching => "fetching",
        v1::FunctionState::Complete => "complete",
        v1::FunctionState::Failed => "failed",
    }
}

/// Sorts `n2` before `n10`: digits count as a number.
pub fn natural(name: &str) -> (String, u64, String) {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (stem, number) = name.split_at(name.len() - digits);
    (stem.to_owned(), number.parse().unwrap_or(u64::MAX), name.to_owned())
}

fn name_of(id: &[u8], names: &Names) -> String {
    if id.is_empty() {
        return ORIGIN.to_owned();
    }
    names.get(id).cloned().unwrap_or_else(|| hex(&id[..id.len().min(4)]))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a list that is sorted as text: people expect n10 after n9.
    #[test]
    fn names_sort_by_their_number() {
        let mut names = ["n10", "n9", "a", "n1"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["a", "n1", "n9", "n10"]);
    }

    /// Catches a root or a leaf that is counted as an inner node, or a parent outside the snapshot that breaks the drawing.
    #[test]
    fn inner_nodes_have_a_node_above_and_below() {
        let edge = |node: &str, parent: &str| EdgeView { node: node.into(), parent: parent.into() };
        let edges = vec![edge("a", ORIGIN), edge("b", "a"), edge("c", "b"), edge("d", "gone")];
        let tree = TreeView { stripe: 0, edges };
        assert_eq!(["a", "b", "c", "d"].map(|name| tree.is_inner(name)), [false, true, false, false]);
        assert_eq!(tree.draw(str::to_owned).len(), 6);
    }
}
