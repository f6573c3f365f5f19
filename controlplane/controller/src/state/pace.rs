//! Stragglers, judged by their edges: what a node's neighbours say about blocks that could flow to or from it and do not.
//!
//! A *full* edge is one whose parent has blocks for the child that it does not get rid of. A node is slow to send when all edges to its
//! children are full, at least two of them, and together they carry much less than two edges of its function usually do. It is slow to
//! receive when every edge to it is full while the same parents serve its siblings much faster. One slow child makes one full edge: no
//! parent is blamed for that. A verdict needs three judgements in a row; it is forgotten after some time or when the agent starts again.
//!
//! Rates are what children say of themselves. What is usual is therefore a percentile over the children of one function, each counted
//! once: a child that says it receives far too much moves nobody but itself, and a quick host makes no slow ones of the others.
//!
//! A slow node moves to the lowest inner places of its trees; one below half of the line rate leaves them and only receives, from a
//! node that has leaves below it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use faasnet_api::{FunctionId, NodeId, v1};

use super::State;
use super::function::Function;
use super::io::Now;

/// How a node is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Level {
    #[default]
    Usual,
    /// Where it holds up few.
    Slow,
    /// Feeds nobody.
    ReceivesOnly,
}

/// What is known of a node's speed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    pub(crate) level: Level,
    since_ms: u64,
    /// Judgements in a row that were worse than the level, and the mildest of them.
    worse: u8,
    mildest: Level,
    judged_ms: u64,
}

impl Pace {
    pub(crate) fn name(&self) -> &'static str {
        match self.level {
            Level::Usual => "",
            Level::Slow => "slow",
            Level::ReceivesOnly => "receives only",
        }
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.level != Level::Usual
    }

    /// Takes in a judgement; answers whether the level is another now.
    fn judge(&mut self, now: Now, verdict: Level) -> bool {
        let in_a_row = now.ms <= self.judged_ms + 3 * JUDGE_EVERY_MS;
        self.judged_ms = now.ms;
        if rank(verdict) <= rank(self.level) {
            self.worse = 0;
            return false;
        }
        self.mildest =
            if self.worse == 0 || !in_a_row || rank(verdict) < rank(self.mildest) { verdict } else { self.mildest };
        self.worse = if in_a_row { self.worse + 1 } else { 1 };
        if self.worse < JUDGEMENTS {
            return false;
        }
        *self = Self { level: self.mildest, since_ms: now.ms, judged_ms: now.ms, ..Self::default() };
        true
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::Usual => 0,
        Level::Slow => 1,
        Level::ReceivesOnly => 2,
    }
}

const JUDGE_EVERY_MS: u64 = 1_000;
/// Judgements in a row that make a verdict.
const JUDGEMENTS: u8 = 3;
/// So many blocks lie ready on a full edge: what passes live never waits in such numbers.
const FULL_BLOCKS: u32 = 8;
/// Slower than that, nobody is judged: somebody waits for something else than the network.
const LEAST_RATE: u64 = 1 << 20;
/// With fewer children of a function nobody can tell which of them is unusual.
const CROWD: usize = 3;
/// Reports older than this say nothing.
const FRESH_MS: u64 = 2_000;

/// One edge that still has something to carry.
struct Flow {
    function: FunctionId,
    stripe: u32,
    parent: NodeId,
    child: NodeId,
    bytes_per_second: u64,
    full: bool,
}

/// What all edges say together.
struct Flows {
    edges: Vec<Flow>,
    by_parent: HashMap<NodeId, Vec<usize>>,
    by_child: HashMap<NodeId, Vec<usize>>,
    /// What an edge of a function usually carries.
    usual: HashMap<FunctionId, Usual>,
}

/// See [`Flows::usual`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usual {
    bytes_per_second: u64,
    /// Enough children to compare one with the others.
    crowd: bool,
}

impl State {
    /// Judges every node that has moving edges, and moves those whose level changed.
    pub(super) fn judge_paces(&mut self, now: Now) {
        if now.ms < self.judged_ms + JUDGE_EVERY_MS {
            return;
        }
        self.judged_ms = now.ms;
        self.forgive(now);
        let moving = |function: &&Function| function.moving_ms.is_some_and(|at| now.ms <= at + FRESH_MS);
        let edges: Vec<Flow> =
            self.functions.values().filter(moving).flat_map(|function| flows(function, now)).collect();
        if edges.is_empty() {
            return;
        }
        let flows = Flows::new(edges);
        let (slow, only) = (self.settings.slow_percent, self.settings.receive_only_percent);
        let judged: BTreeSet<NodeId> = flows.by_parent.keys().chain(flows.by_child.keys()).copied().collect();
        for id in judged {
            let Some(percent) = flows.percent_of(&id) else { continue };
            let verdict = match percent {
                percent if percent < only.into() => Level::ReceivesOnly,
                percent if percent < slow.into() => Level::Slow,
                _ => Level::Usual,
            };
            if self.nodes.get_mut(&id).is_some_and(|node| node.pace.judge(now, verdict)) {
                self.slow.insert(id);
                self.note(format!("node {} is slow: {percent} % of the usual rate", self.name_of(&id)));
                self.follow_pace(now, id);
            }
        }
    }

    /// Stragglers get another try after some time.
    fn forgive(&mut self, now: Now) {
        let retry = self.settings.straggler_retry_ms;
        let over = |pace: &Pace| pace.is_slow() && now.ms >= pace.since_ms.saturating_add(retry);
        self.slow.retain(|id| self.nodes.contains_key(id));
        let nodes = self.slow.iter().filter_map(|id| self.nodes.get(id));
        let due: Vec<NodeId> = nodes.filter(|node| over(&node.pace)).map(|node| node.id).collect();
        for id in due {
            self.forget_pace(now, id);
        }
    }

    pub(super) fn forget_pace(&mut self, now: Now, id: NodeId) {
        self.slow.remove(&id);
        if self.nodes.get_mut(&id).is_some_and(|node| std::mem::take(&mut node.pace).is_slow()) {
            self.follow_pace(now, id);
        }
    }

    /// Gives a node whose level changed its new places.
    fn follow_pace(&mut self, now: Now, id: NodeId) {
        let demoted = self.nodes.get(&id).is_some_and(|node| node.pace.level == Level::Slow);
        for function in self.functions_of(&id) {
            match demoted {
                true => self.demote(now, function, id),
                false => drop(self.align_trees(now, function, &[id])),
            }
            let refused = self.functions.get(&function).is_some_and(|function| function.trees.contains(&id));
            if refused && self.nodes.get(&id).is_some_and(|node| node.pace.level == Level::ReceivesOnly) {
                // There are riders enough: at least it shall hold up few.
                self.demote(now, function, id);
            }
        }
    }
}

impl Flows {
    fn new(edges: Vec<Flow>) -> Self {
        let (mut by_parent, mut by_child): (HashMap<_, Vec<usize>>, HashMap<_, Vec<usize>>) = Default::default();
        for (index, edge) in edges.iter().enumerate() {
            by_parent.entry(edge.parent).or_default().push(index);
            by_child.entry(edge.child).or_default().push(index);
        }
        let mut children: HashMap<FunctionId, HashMap<NodeId, u64>> = HashMap::new();
        for edge in &edges {
            let best = children.entry(edge.function).or_default().entry(edge.child).or_default();
            *best = edge.bytes_per_second.max(*best);
        }
        let usual = children.into_iter().map(|(function, best)| (function, usual(best.into_values().collect())));
        Self { usual: usual.collect(), edges, by_parent, by_child }
    }

    /// How a node's rate compares with what its edges could carry; `None`: they say nothing about it.
    fn percent_of(&self, node: &NodeId) -> Option<u64> {
        let sends = self.sending_percent(node);
        sends.into_iter().chain(self.receiving_percent(node)).min()
    }

    fn sending_percent(&self, node: &NodeId) -> Option<u64> {
        let edges = self.by_parent.get(node).filter(|edges| edges.len() >= 2)?;
        let edges = || edges.iter().map(|index| &self.edges[*index]);
        let usual =
            edges().filter_map(|edge| self.usual.get(&edge.function)).map(|usual| usual.bytes_per_second).max()?;
        // Two children are what every policy gives; a third shares what the two would have.
        let line_rate = usual.saturating_mul(2);
        (edges().all(|edge| edge.full) && line_rate >= LEAST_RATE)
            .then(|| percent(edges().map(|edge| edge.bytes_per_second), line_rate))
    }

    fn receiving_percent(&self, node: &NodeId) -> Option<u64> {
        let edges = self.by_child.get(node)?;
        let (mut received, mut expected) = (Vec::new(), 0u64);
        for edge in edges.iter().map(|index| &self.edges[*index]) {
            let siblings = self.by_parent.get(&edge.parent).into_iter().flatten().map(|index| &self.edges[*index]);
            let same = |other: &&Flow| (other.function, other.stripe) == (edge.function, edge.stripe);
            let sibling = siblings.filter(|other| other.child != *node).filter(same);
            if !edge.full {
                return None;
            }
            // An only child cannot be compared.
            let Some(fair) = sibling.map(|other| other.bytes_per_second).max() else { continue };
            let usual = self.usual.get(&edge.function).filter(|usual| usual.crowd);
            let fair = usual.map_or(fair, |usual| fair.min(usual.bytes_per_second));
            received.push(edge.bytes_per_second);
            expected = expected.saturating_add(fair);
        }
        (expected >= LEAST_RATE / 2).then(|| percent(received.into_iter(), expected))
    }
}

/// How much of `whole` the parts are.
fn percent(parts: impl Iterator<Item = u64>, whole: u64) -> u64 {
    let sum: u128 = parts.map(u128::from).sum();
    u64::try_from(sum * 100 / u128::from(whole.max(1))).unwrap_or(u64::MAX)
}

/// What three of four children stay below, of those that receive at all. Among few, the best one never sets it.
fn usual(mut best: Vec<u64>) -> Usual {
    best.retain(|rate| *rate > 0);
    best.sort_unstable();
    let at = best.len().saturating_sub(1) * 3 / 4;
    Usual { bytes_per_second: best.get(at).copied().unwrap_or(0), crowd: best.len() >= CROWD }
}

/// The edges of a function along which blocks are still to pass, as both of their ends report them.
fn flows(function: &Function, now: Now) -> Vec<Flow> {
    let mut ready: BTreeMap<(u32, NodeId, NodeId), u32> = BTreeMap::new();
    let fresh = |member: &super::function::Member| now.ms <= member.reported_ms + FRESH_MS;
    let reports = || function.wanted.iter().filter(|(_, member)| fresh(member));
    for (parent, member) in reports() {
        for used in member.progress.iter().flat_map(|progress| &progress.downstreams) {
            if let Ok(child) = NodeId::try_from(&used.node_id[..]) {
                ready.insert((used.stripe, *parent, child), used.blocks_ready);
            }
        }
    }
    let mut flows = Vec::new();
    for (child, member) in reports() {
        let fetching = member.progress.iter().filter(|progress| progress.state() == v1::FunctionState::Fetching);
        for used in fetching.flat_map(|progress| &progress.upstreams) {
            let Ok(parent) = NodeId::try_from(&used.node_id[..]) else { continue };
            // An edge that its parent does not name has ended.
            let Some(blocks) = ready.get(&(used.stripe, parent, *child)) else { continue };
            flows.push(Flow {
                function: function.id,
                stripe: used.stripe,
                parent,
                child: *child,
                bytes_per_second: used.bytes_per_second,
                full: *blocks >= FULL_BLOCKS,
            });
        }
    }
    flows
}
