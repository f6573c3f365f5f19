//! What clients that watch are told: everything once, then the differences.
//!
//! Each watcher looks at the state every period and compares; nothing is remembered for it in the state machine.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use faasnet_api::v1;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::clients::{Replies, unexpected};
use super::owner::{Handle, stopping};
use crate::state::{Answer, Ask};

const PERIOD_MS: u32 = 500;
/// Looking costs the owner time in proportion to the nodes.
const PERIOD_MIN_MS: u32 = 100;
/// A watcher hears something this often even if nothing changes, so that it knows that the call lives.
const QUIET: Duration = Duration::from_secs(5);

type Id = Vec<u8>;

/// What one watcher was told last.
#[derive(Default)]
struct Told {
    nodes: HashMap<Id, v1::NodeInfo>,
    functions: Option<v1::ListFunctionsReply>,
    tree: Option<v1::GetTreeReply>,
    members: HashMap<Id, v1::NodeProgress>,
}

/// What there is now.
struct Seen {
    nodes: v1::ListNodesReply,
    functions: v1::ListFunctionsReply,
    tree: Option<v1::GetTreeReply>,
}

/// Watches in a task of its own until the client goes or the controller stops.
pub(super) fn start(owner: Handle, request: v1::WatchRequest, stop: CancellationToken) -> Replies<v1::WatchReply> {
    let (replies, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        let ended = tokio::select! {
            () = stop.cancelled() => stopping(),
            () = replies.closed() => return,
            ended = run(&owner, &request, &replies) => ended,
        };
        // Ignored: the client may be gone.
        let _ = replies.send(Err(ended)).await;
    });
    ReceiverStream::new(stream)
}

async fn run(
    owner: &Handle,
    request: &v1::WatchRequest,
    replies: &mpsc::Sender<Result<v1::WatchReply, Status>>,
) -> Status {
    let period = if request.period_ms == 0 { PERIOD_MS } else { request.period_ms.max(PERIOD_MIN_MS) };
    let mut ticks = tokio::time::interval(Duration::from_millis(period.into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut told, mut told_at) = (Told::default(), None::<Instant>);
    loop {
        ticks.tick().await;
        let seen = match look(owner, request).await {
            Ok(seen) => seen,
            Err(status) => return status,
        };
        let reply = v1::WatchReply { first: told_at.is_none(), ..told.differences(seen) };
        let quiet = told_at.is_some_and(|at| at.elapsed() < QUIET);
        if quiet && is_empty(&reply) {
            continue;
        }
        if replies.send(Ok(reply)).await.is_err() {
            return stopping();
        }
        told_at = Some(Instant::now());
    }
}

async fn look(owner: &Handle, request: &v1::WatchRequest) -> Result<Seen, Status> {
    let nodes = match owner.ask(Ask::ListNodes).await? {
        Answer::Nodes(nodes) => nodes,
        other => return Err(unexpected(&other)),
    };
    let functions = match owner.ask(Ask::ListFunctions).await? {
        Answer::Functions(functions) => v1::ListFunctionsReply { functions },
        other => return Err(unexpected(&other)),
    };
    if request.function.is_empty() {
        return Ok(Seen { nodes, functions, tree: None });
    }
    let get = v1::GetTreeRequest { tenant: request.tenant.clone(), function: request.function.clone() };
    let tree = match owner.ask(Ask::GetTree(get)).await {
        Ok(Answer::Tree(tree)) => Some(tree),
        Ok(other) => return Err(unexpected(&other)),
        // A function that is not there yet, or any more, is watched all the same.
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(status),
    };
    Ok(Seen { nodes, functions, tree })
}

fn is_empty(reply: &v1::WatchReply) -> bool {
    let v1::WatchReply { first, term: _, nodes, nodes_gone, functions, tree, members, members_gone } = reply;
    !first
        && nodes.is_empty()
        && nodes_gone.is_empty()
        && functions.is_none()
        && tree.is_none()
        && members.is_empty()
        && members_gone.is_empty()
}

impl Told {
    /// What a client that was told `self` must hear to know `seen`; afterwards it was told that.
    fn differences(&mut self, seen: Seen) -> v1::WatchReply {
        let term = seen.nodes.term;
        let quiet = |node: &v1::NodeInfo| v1::NodeInfo { last_seen_ms: 0, ..node.clone() };
        let (nodes, nodes_gone) = differences(
            &mut self.nodes,
            seen.nodes.nodes.into_iter().map(|node| (node.node_id.clone(), node)),
            // How long ago a node was heard changes all the time.
            |old, new| quiet(old) == quiet(new),
        );
        let functions = (self.functions.as_ref() != Some(&seen.functions)).then(|| seen.functions.clone());
        self.functions = Some(seen.functions);
        let (tree, rows) = match seen.tree {
            Some(mut tree) => {
                let rows = std::mem::take(&mut tree.nodes);
                (Some(tree), rows)
            }
            None => (None, Vec::new()),
        };
        let changed = tree.clone().filter(|tree| self.tree.as_ref() != Some(tree));
        self.tree = tree;
        let rows = rows.into_iter().map(|row| (row.node_id.clone(), row));
        let (members, members_gone) = differences(&mut self.members, rows, |old, new| old == new);
        v1::WatchReply { first: false, term, nodes, nodes_gone, functions, tree: changed, members, members_gone }
    }
}

/// The entries that are new or not the `same`, and the keys that are gone; `told` becomes `seen`.
fn differences<K: Clone + Eq + Hash, V: Clone>(
    told: &mut HashMap<K, V>,
    seen: impl Iterator<Item = (K, V)>,
    same: impl Fn(&V, &V) -> bool,
) -> (Vec<V>, Vec<K>) {
    let mut before = std::mem::take(told);
    let mut changed = Vec::new();
    for (key, value) in seen {
        if before.remove(&key).is_none_or(|old| !same(&old, &value)) {
            changed.push(value.clone());
        }
        told.insert(key, value);
    }
    (changed, before.into_keys().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8, state: &str, last_seen_ms: u64) -> v1::NodeInfo {
        v1::NodeInfo { node_id: vec![n], state: state.into(), last_seen_ms, ..Default::default() }
    }

    fn seen(nodes: Vec<v1::NodeInfo>, epoch: u64, rows: &[(u8, bool)]) -> Seen {
        let row = |(n, alive): &(u8, bool)| v1::NodeProgress { node_id: vec![*n], alive: *alive, ..Default::default() };
        let nodes = v1::ListNodesReply { nodes, term: 1 };
        let tree = v1::GetTreeReply { epoch, nodes: rows.iter().map(row).collect(), ..Default::default() };
        Seen { nodes, functions: v1::ListFunctionsReply::default(), tree: Some(tree) }
    }

    /// Catches a change that is not told, and one that is told again and again.
    #[test]
    fn only_differences_are_told() {
        let mut told = Told::default();
        let first = told.differences(seen(vec![node(1, "live", 0), node(2, "live", 0)], 1, &[(1, true), (2, true)]));
        assert_eq!((first.nodes.len(), first.members.len()), (2, 2));
        assert!(first.functions.is_some() && first.tree.is_some());
        let same = told.differences(seen(vec![node(1, "live", 70), node(2, "live", 9)], 1, &[(1, true), (2, true)]));
        assert!(is_empty(&same), "{same:?}");
        let dead = told.differences(seen(vec![node(1, "dead", 70)], 2, &[(1, false)]));
        assert_eq!((dead.nodes.len(), dead.nodes_gone), (1, vec![vec![2]]));
        assert_eq!((dead.members.len(), dead.members_gone), (1, vec![vec![2]]));
        assert_eq!(dead.tree.map(|tree| tree.epoch), Some(2));
    }
}
