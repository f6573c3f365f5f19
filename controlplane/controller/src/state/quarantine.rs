//! Wrong bytes: who blamed whom, and from whom nobody receives any more.
//!
//! One report condemns an edge, not a node: a bad cable, memory or card may be at either end. A node comes into quarantine when two distinct
//! reporters blame it, or when a report makes us have it read its blocks back and they are wrong. A reporter who blames three parents is
//! itself suspect: its word counts no more, and what rested on it alone is taken back. Nor does that of a node in quarantine.
//!
//! A report counts only along an edge that there is or lately was: one that we planned, or one that both of its ends have named. Else
//! anybody could have anybody put away.

use std::collections::BTreeMap;

use faasnet_api::{FunctionId, NodeId, v1};

use super::State;
use super::io::{Now, Output};
use super::records::Key;

/// Reporters that make a quarantine.
const REPORTERS: usize = 2;
/// Parents that one reporter may blame before its word is worth nothing.
const BLAMED_MAX: usize = 3;
/// Reports older than this are forgotten.
const FORGET_MS: u64 = 10 * 60 * 1_000;
/// Blocks around the one that was refused that are read back too.
const REREAD_AROUND: u32 = 8;
/// A node is not asked again before: reading back costs it its disk.
const REREAD_PAUSE_MS: u64 = 60 * 1_000;
/// Orders whose answers are waited for; with more, an older one is forgotten.
const REREADS_MAX: usize = 1_024;

/// What is held against a node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blame {
    /// Who refused its bytes, and when last.
    reporters: BTreeMap<NodeId, u64>,
    /// Whose bytes it refused, and when last.
    blamed: BTreeMap<NodeId, u64>,
    /// It needs no reporter: its own disk gave wrong bytes, or it was in quarantine before this start of the controller.
    convicted: bool,
    /// When it was last told to read blocks back.
    reread_ms: Option<u64>,
    /// Why it is in quarantine.
    pub(crate) quarantine: Option<String>,
}

impl Blame {
    /// Whether its reports count.
    fn is_suspect(&self) -> bool {
        self.blamed.len() >= BLAMED_MAX
    }

    /// As it is kept over a restart; nobody knows any more on whose word a quarantine rested.
    pub(super) fn restore(quarantine: String) -> Self {
        let quarantine = Some(quarantine).filter(|why| !why.is_empty());
        Self { convicted: quarantine.is_some(), quarantine, ..Self::default() }
    }

    fn forget(&mut self, now: Now) {
        let fresh = |_: &NodeId, at: &mut u64| now.ms < at.saturating_add(FORGET_MS);
        self.reporters.retain(fresh);
        self.blamed.retain(fresh);
    }
}

impl State {
    /// `reporter` refused a block from `parent`.
    pub(super) fn blamed(&mut self, now: Now, reporter: NodeId, parent: NodeId, failed: &v1::EdgeFailed) {
        if reporter == parent || !self.is_edge(reporter, parent, failed) {
            return self.note(format!(
                "node {} blames {}, from which it does not receive: that counts for nothing",
                self.name_of(&reporter),
                self.name_of(&parent)
            ));
        }
        // What it refuses may have been right before it came to its memory.
        let Some(node) = self.nodes.get_mut(&reporter).filter(|node| node.is_trusted()) else { return };
        node.blame.forget(now);
        let was_suspect = node.blame.is_suspect();
        node.blame.blamed.insert(parent, now.ms);
        if node.blame.is_suspect() {
            if !was_suspect {
                self.discredit(now, reporter);
            }
            return;
        }
        let Some(node) = self.nodes.get_mut(&parent) else { return };
        if node.is_trusted() {
            // What a quarantine rests on is not forgotten while it lasts.
            node.blame.forget(now);
        }
        node.blame.reporters.insert(reporter, now.ms);
        let reporters = node.blame.reporters.len();
        if reporters >= REPORTERS {
            return self.quarantine(now, parent, format!("{reporters} nodes got wrong bytes from it"));
        }
        self.order_reread(now, parent, failed);
    }

    /// Whether `reporter` may receive from `parent`, or could a moment ago: by its plan, or because both say so (a guest's edge).
    fn is_edge(&self, reporter: NodeId, parent: NodeId, failed: &v1::EdgeFailed) -> bool {
        let id = FunctionId::try_from(&failed.function_id[..]).ok();
        let Some(function) = id.and_then(|id| self.functions.get(&id)) else { return false };
        let (Some(child), Some(above)) = (function.wanted.get(&reporter), function.wanted.get(&parent)) else {
            return false;
        };
        let planned = child.sent.as_ref().is_some_and(|sent| sent.sources().contains(&parent));
        let (mut receives, mut serves) = (child.progress.iter(), above.progress.iter());
        let mut used = || {
            receives.any(|progress| progress.upstreams.iter().any(|used| used.node_id == parent.0))
                && serves.any(|progress| progress.downstreams.iter().any(|used| used.node_id == reporter.0))
        };
        planned || child.sources_before.contains(&parent) || used()
    }

    /// A node that blames everybody has a defect of its own.
    fn discredit(&mut self, now: Now, reporter: NodeId) {
        self.note(format!(
            "node {} blames {BLAMED_MAX} parents for wrong bytes: its reports count no more",
            self.name_of(&reporter)
        ));
        let accused: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|node| node.blame.reporters.contains_key(&reporter))
            .map(|node| node.id)
            .collect();
        for id in accused {
            let Some(node) = self.nodes.get_mut(&id) else { continue };
            node.blame.reporters.remove(&reporter);
            let rests = node.blame.convicted || node.blame.reporters.len() >= REPORTERS;
            if !rests && node.blame.quarantine.take().is_some() {
                self.note(format!("node {} is out of quarantine", self.name_of(&id)));
                self.emit(Output::Store(Key::Node(id)));
                self.follow_quarantine(now, id);
            }
        }
    }

    fn quarantine(&mut self, now: Now, id: NodeId, why: String) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.is_trusted()) else { return };
        node.blame.quarantine = Some(why.clone());
        self.note(format!("node {} is in quarantine: {why}", self.name_of(&id)));
        self.emit(Output::Store(Key::Node(id)));
        self.follow_quarantine(now, id);
    }

    /// Takes its places, or gives them back.
    pub(super) fn follow_quarantine(&mut self, now: Now, id: NodeId) {
        self.capacity_changed = true;
        for function in self.functions_of(&id) {
            self.align_trees(now, function, &[id]);
            self.touch_watches(function, id);
        }
    }

    /// Has a node read the refused block back from its disk, and its neighbourhood.
    fn order_reread(&mut self, now: Now, id: NodeId, failed: &v1::EdgeFailed) {
        let function = FunctionId::try_from(&failed.function_id[..]).ok().and_then(|id| self.functions.get(&id));
        let node = self.nodes.get_mut(&id);
        let node =
            node.filter(|node| node.blame.reread_ms.is_none_or(|at| now.ms >= at.saturating_add(REREAD_PAUSE_MS)));
        let Some((function, (node, session))) = function.zip(node.and_then(|node| node.session.map(|at| (node, at))))
        else {
            return;
        };
        node.blame.reread_ms = Some(now.ms);
        // An order that was not answered in all that time will not be.
        self.rereads.retain(|_, asked| *asked != id);
        let first = failed.block.saturating_sub(REREAD_AROUND);
        let (function_id, image_id) = (function.id.to_vec(), function.image.to_vec());
        self.rereads_ordered += 1;
        let request = self.rereads_ordered;
        if self.rereads.len() >= REREADS_MAX {
            self.rereads.pop_first();
        }
        self.rereads.insert(request, id);
        let blocks = (first..=failed.block.saturating_add(REREAD_AROUND)).collect();
        let reread = v1::Reread { function_id, image_id, request, blocks };
        self.emit(Output::Send { session, command: v1::command::Command::Reread(reread) });
    }

    /// The answer to an order to read blocks back.
    pub(super) fn reread(&mut self, now: Now, id: NodeId, answer: &v1::BlocksReread) {
        if self.rereads.get(&answer.request) != Some(&id) {
            return;
        }
        self.rereads.remove(&answer.request);
        if answer.wrong > 0
            && let Some(node) = self.nodes.get_mut(&id)
        {
            node.blame.convicted = true;
            let why = format!("{} of {} blocks on its disk are wrong", answer.wrong, answer.checked);
            self.quarantine(now, id, why);
        }
    }

    /// Forgets what a node that is not known any more was asked.
    pub(super) fn forget_blame(&mut self, gone: NodeId) {
        self.rereads.retain(|_, node| *node != gone);
    }
}
