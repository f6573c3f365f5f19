//! What agents say: progress, failures, wishes.

use faasnet_api::{FunctionId, ImageId, NodeId, v1};

use super::io::{Now, Output, Refusal, SessionId};
use super::names::function_name;
use super::records::Key;
use super::{State, rates, words};

/// Terms and epochs above this are not taken from an agent. Far above what counting from one can reach, far below the end of the range.
const LATEST: u64 = 1 << 60;

impl State {
    pub(super) fn heard(&mut self, now: Now, session: SessionId, mut event: v1::event::Event) {
        let Some(&node) = self.sessions.get(&session) else { return };
        self.seen(now, node);
        words::tame(&mut event);
        match event {
            v1::event::Event::Attached(_) => {
                let refusal = Refusal::invalid("an agent attaches once per stream");
                self.emit(Output::Close { session, refusal });
            }
            v1::event::Event::Heartbeat(heartbeat) => {
                let mut rows = heartbeat.functions.iter();
                match rows.try_for_each(|row| self.believe(&row.function_id, row.term, row.epoch)) {
                    Ok(()) => self.heartbeat(now, node, heartbeat),
                    Err(refusal) => self.emit(Output::Close { session, refusal }),
                }
            }
            v1::event::Event::EdgeFailed(failed) => self.edge_failed(now, node, &failed),
            v1::event::Event::ImageFailed(failed) => self.image_failed(now, node, failed),
            // What a node holds no more is known from the intent; this only confirms it.
            v1::event::Event::Dropped(_) => {}
            v1::event::Event::OriginWanted(wanted) => self.origin_wanted(now, node, &wanted),
            v1::event::Event::BlocksReread(answer) => self.reread(now, node, &answer),
            v1::event::Event::JoinRequested(join) => self.join_requested(now, session, node, join),
            // The shell hears it.
            v1::event::Event::ImageRead(_) => {}
            v1::event::Event::ImageWanted(wanted) => self.image_wanted(now, session, node, &wanted),
        }
    }

    /// What an agent that attaches has already. `restarted`: nothing that was known of it before counts.
    pub(super) fn take_held(&mut self, now: Now, node: NodeId, held: &[v1::HeldFunction], restarted: bool) {
        for id in self.functions_of(&node) {
            let member = self.functions.get_mut(&id).and_then(|function| function.wanted.get_mut(&node));
            if let Some(member) = member.filter(|_| restarted) {
                let was_failed = std::mem::take(&mut member.failed);
                member.progress = None;
                if was_failed {
                    self.emit(Output::Store(Key::Function(id)));
                }
            }
        }
        for held in held {
            let Ok(id) = FunctionId::try_from(&held.function_id[..]) else { continue };
            let Some(function) = self.functions.get_mut(&id).filter(|function| function.wanted.contains_key(&node))
            else {
                self.send_drop(id, node, self.held_epoch(held.term, held.epoch), false);
                continue;
            };
            let ahead = held.term == self.term && held.epoch > function.epoch;
            let (image, image_bytes) = (function.image, function.image_bytes);
            if let Some(member) = function.wanted.get_mut(&node).filter(|_| held.image_id == image.as_bytes()) {
                let state = if held.complete { v1::FunctionState::Complete } else { v1::FunctionState::Fetching };
                let progress = member.progress.get_or_insert_with(|| v1::FunctionProgress {
                    function_id: held.function_id.clone(),
                    image_id: held.image_id.clone(),
                    bytes_total: image_bytes,
                    ..Default::default()
                });
                progress.set_state(state);
                progress.bytes_present = held.bytes_present;
            }
            if ahead {
                function.epoch = held.epoch.saturating_add(1);
                self.resend_assigns(now, id);
            }
        }
    }

    fn heartbeat(&mut self, now: Now, node: NodeId, heartbeat: v1::Heartbeat) {
        let transferring = heartbeat.functions.iter().any(|progress| progress.state() == v1::FunctionState::Fetching);
        if let Some(node) = self.nodes.get_mut(&node) {
            node.transferring = transferring;
        }
        self.note_absent(now, node, &heartbeat.functions);
        for progress in heartbeat.functions {
            self.progressed(now, node, progress);
        }
    }

    fn progressed(&mut self, now: Now, node: NodeId, mut progress: v1::FunctionProgress) {
        let Ok(id) = FunctionId::try_from(&progress.function_id[..]) else { return };
        let function = self.functions.get_mut(&id);
        let Some(function) = function.filter(|function| function.wanted.contains_key(&node)) else {
            let epoch = self.held_epoch(progress.term, progress.epoch);
            return self.send_drop(id, node, epoch, false);
        };
        let (image, function_bytes) = (function.image, function.image_bytes);
        if progress.state() == v1::FunctionState::Fetching {
            function.moving_ms = Some(now.ms);
        }
        if progress.image_id == image.as_bytes() {
            function.most_present = function.most_present.max(progress.bytes_present);
        }
        let Some(member) = function.wanted.get_mut(&node) else { return };
        if progress.image_id != image.as_bytes() || (progress.term, progress.epoch) < member.joined {
            return;
        }
        let (state, failed) = (progress.state(), member.failed);
        let is_opening = match state {
            v1::FunctionState::Waiting => true,
            v1::FunctionState::Fetching => progress.bytes_present >= function_bytes,
            _ => false,
        };
        if is_opening && member.is_complete() {
            // It registered the image and is about to open it: that it has all of it is known. Else it will say what it lacks, or why it failed.
            return;
        }
        rates::put(member.progress.as_ref(), now.ms.saturating_sub(member.reported_ms), &mut progress);
        let used = |progress: &v1::FunctionProgress| {
            (progress.uses, progress.bytes_received, progress.bytes_live + progress.bytes_from_store)
        };
        if state != v1::FunctionState::Complete || member.progress.as_ref().map(used) != Some(used(&progress)) {
            member.used_ms = now.ms;
        }
        member.take_story(now, &mut progress, &mut self.latencies);
        member.progress = Some(progress);
        member.reported_ms = now.ms;
        member.failed = match state {
            v1::FunctionState::Failed => true,
            v1::FunctionState::Complete => false,
            _ => failed,
        };
        if member.failed != failed {
            self.emit(Output::Store(Key::Function(id)));
            self.align_trees(now, id, &[node]);
        }
        self.touch_watches(id, node);
    }

    /// A neighbour's report condemns the edge, which the child has left already; the node only if our own probe fails too.
    fn edge_failed(&mut self, now: Now, node: NodeId, failed: &v1::EdgeFailed) {
        let upstream = NodeId::try_from(&failed.upstream[..]);
        let from = upstream.as_ref().map_or_else(|_| "the origin".into(), |upstream| self.name_of(upstream));
        let to = self.name_of(&node);
        self.note(format!("edge from {from} to {to}, stripe {}, failed: {}", failed.stripe, failed.reason));
        let known = upstream.ok().filter(|upstream| self.nodes.get(upstream).is_some_and(|node| !node.is_dead()));
        if let Some(upstream) = known {
            if failed.wrong_bytes {
                self.blamed(now, node, upstream, failed);
            }
            self.probe(now, upstream);
        }
    }

    /// A node that cannot hold the image cannot forward it either: out of the trees, still wanted, shown as failed.
    fn image_failed(&mut self, now: Now, node: NodeId, failed: v1::ImageFailed) {
        let Ok(id) = FunctionId::try_from(&failed.function_id[..]) else { return };
        let Some(function) = self.functions.get_mut(&id) else { return };
        if ImageId::try_from(&failed.image_id[..]) != Ok(function.image) || !function.wanted.contains_key(&node) {
            return;
        }
        let text = format!("the image of {}/{} failed: {}", function.tenant, function.name, failed.reason);
        let mut progress = function.progress(&node);
        progress.set_state(v1::FunctionState::Failed);
        progress.error = failed.reason;
        if let Some(member) = function.wanted.get_mut(&node) {
            member.progress = Some(progress);
            member.failed = true;
        }
        self.emit(Output::Store(Key::Function(id)));
        self.note(format!("node {}: {text}", self.name_of(&node)));
        self.align_trees(now, id, &[node]);
        self.touch_watches(id, node);
    }

    fn join_requested(&mut self, now: Now, session: SessionId, node: NodeId, join: v1::JoinRequested) {
        let joined = function_name(&join.tenant, &join.function)
            .and_then(|(tenant, function)| self.find_function(&tenant, &function))
            .and_then(|id| self.check_room(id, node).map(|()| id));
        match joined {
            Ok(id) => {
                self.want(now, id, &[node]);
                self.send_assign(now, id, node, true);
            }
            Err(refusal) => {
                let refused = v1::JoinRefused { tenant: join.tenant, function: join.function, reason: refusal.message };
                self.emit(Output::Send { session, command: v1::command::Command::JoinRefused(refused) });
            }
        }
    }

    /// Refuses a version that no controller can have reached. Ours must rise above those that agents hold, and above a number near the
    /// end of the range there is no room: one lying or broken agent would make all others ignore every later command.
    pub(super) fn believe(&self, function_id: &[u8], term: u64, epoch: u64) -> Result<(), Refusal> {
        let id = FunctionId::try_from(function_id).ok();
        let function = id.and_then(|id| self.functions.get(&id)).map(|function| function.epoch);
        let told = function.unwrap_or(self.retired_epoch);
        // What we said ourselves is believed whatever it is.
        if term <= self.term.max(LATEST) && (term < self.term || epoch <= told.max(LATEST)) {
            return Ok(());
        }
        Err(Refusal::invalid(format!(
            "the agent says that it holds a plan of term {term}, epoch {epoch}, which no controller gave it; restart the agent"
        )))
    }

    /// The epoch that a command must exceed to reach an agent that holds (term, epoch).
    fn held_epoch(&self, term: u64, epoch: u64) -> u64 {
        if term >= self.term { epoch } else { 0 }
    }
}
