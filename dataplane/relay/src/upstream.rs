//! From whom a stripe is received: connecting, waiting, moving to a fallback, coming back to the plan.
//!
//! There are at most two links: the active one, which delivers, and a candidate, which is being established. A candidate takes over only
//! when it has been welcomed and the active link, told to stop, has ended at a frame boundary; so a planned change loses no byte.
//! A target that failed is distrusted for a while; the first target in order that is not distrusted is tried next.
//!
//! LIFECYCLE of a link: Connecting → Greeting (Hello sent) → Welcomed → Streaming (Want sent) → Stopping (Stop sent) → gone. The shell
//! owns the connection and reports what happens to it; [`Upstreams::poll`] says what to do.

use std::net::SocketAddr;
use std::time::Duration;

use faasnet_api::NodeId;

use crate::leave::Leave;
use crate::plan::{Patience, StripePlan, Target};
use crate::wire::{MAX_PATH, Refusal, WaitingFor};

/// Time since some fixed moment; the shell's monotonic clock or a simulator's.
pub type Now = Duration;

/// The name of one connection to an upstream; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkId(pub u32);

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamAction {
    /// Open a connection and send `Hello` on it.
    Connect(LinkId, Target),
    /// Send `Want`: the link is now the one that delivers.
    Want(LinkId),
    /// Send `Stop` and go on receiving until the parent ends the connection.
    Stop(LinkId),
    /// Close the connection.
    Close(LinkId),
    /// Ask the controller for leave to read the origin; the answer goes to [`Upstreams::origin_leave`].
    AskForOrigin,
    /// Tell the controller that an edge failed.
    Report {
        /// Who failed.
        target: Target,
        /// Why, for people.
        reason: String,
        /// A block failed verification.
        wrong_bytes: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Connecting { since: Now },
    Greeting { since: Now },
    Welcomed { since: Now },
    Streaming,
    Stopping { since: Now },
}

#[derive(Debug)]
struct Link {
    id: LinkId,
    target: Target,
    phase: Phase,
    /// Ids from the root to the parent; empty when the parent is the origin.
    path: Vec<NodeId>,
    last_heard: Now,
    last_block: Now,
    usual_gap: Duration,
    /// What the parent said last when it had nothing to send, and since when it says only that.
    waiting: Option<(WaitingFor, Now)>,
}

#[derive(Debug)]
struct Distrust {
    target: Target,
    until: Now,
    failures: u32,
}

/// The upstream side of one stripe.
#[derive(Debug)]
pub struct Upstreams {
    me: NodeId,
    plan: StripePlan,
    patience: Patience,
    active: Option<Link>,
    candidate: Option<Link>,
    distrusted: Vec<Distrust>,
    /// Children of busy parents, tried before the planned fallbacks.
    suggested: Vec<Target>,
    /// Members that are no fallbacks of this stripe; tried when nothing has come for long.
    acquaintances: Vec<Target>,
    leave: Leave,
    next_id: u32,
    actions: Vec<UpstreamAction>,
    last_level: Option<u32>,
}

impl Upstreams {
    /// Starts without a link; the first [`Upstreams::poll`] opens one.
    pub fn new(me: NodeId, plan: StripePlan, patience: Patience) -> Self {
        Self {
            me,
            plan,
            patience,
            active: None,
            candidate: None,
            distrusted: Vec::new(),
            suggested: Vec::new(),
            acquaintances: Vec::new(),
            leave: Leave::default(),
            next_id: 0,
            actions: Vec::new(),
            last_level: None,
        }
    }

    /// Follows a new plan. A link to somebody else goes on until the planned one is welcomed; one that is not welcomed yet is dropped for
    /// it: after a death the plan comes milliseconds later, and a fallback's uplink, which feeds others, takes far longer to let go again.
    pub fn set_plan(&mut self, plan: StripePlan) {
        if plan.upstream != self.plan.upstream {
            // A new plan is a new reason to try: its author knows more about the target than our last failure does.
            self.distrusted.retain(|distrust| distrust.target != plan.upstream);
            let outdated = |link: &&Link| link.target != plan.upstream && !matches!(link.phase, Phase::Welcomed { .. });
            let outdated = self.candidate.as_ref().filter(outdated).map(|link| link.id);
            outdated.into_iter().for_each(|id| self.close(id));
        }
        if (plan.upstream, &plan.fallbacks) != (self.plan.upstream, &self.plan.fallbacks) {
            self.leave.reset();
        }
        self.suggested.clear();
        self.plan = plan;
    }

    /// Remembers members who may have the bytes when nobody in the plan has; the last ones met count.
    pub fn meet(&mut self, members: impl IntoIterator<Item = Target>) {
        for member in members {
            self.acquaintances.retain(|known| *known != member);
            self.acquaintances.push(member);
        }
        let excess = self.acquaintances.len().saturating_sub(MAX_ACQUAINTANCES);
        self.acquaintances.drain(..excess);
    }

    /// The controller's answer to [`UpstreamAction::AskForOrigin`]: leave for so long, or none (zero).
    pub fn origin_leave(&mut self, now: Now, lease: Duration) {
        let given = self.leave.answered(now, lease);
        if !given && self.reads_origin() && !self.plan.names_origin() {
            // Somebody else reads it; the next plan leads there.
            let reading = self.active.as_ref().map(|link| link.id);
            reading.into_iter().for_each(|id| self.close(id));
        }
    }

    /// The connection is established; the shell has sent `Hello`.
    pub fn connected(&mut self, id: LinkId, now: Now) {
        if let Some(link) = self.link(id) {
            link.phase = Phase::Greeting { since: now };
            link.last_heard = now;
        }
    }

    /// `Welcome` arrived.
    pub fn welcomed(&mut self, id: LinkId, now: Now, path: Vec<NodeId>) {
        if let Some(link) = self.link(id)
            && matches!(link.phase, Phase::Greeting { .. })
        {
            link.phase = Phase::Welcomed { since: now };
            link.last_heard = now;
            self.path_changed(id, now, path);
        }
    }

    /// `Path` (or the path in `Welcome`) arrived.
    pub fn path_changed(&mut self, id: LinkId, now: Now, path: Vec<NodeId>) {
        let cycle = path.contains(&self.me) || path.len() >= MAX_PATH;
        let Some(link) = self.link(id) else { return };
        link.path = path;
        if cycle {
            // Nobody's fault: two nodes moved at the same moment. Not reported; the jitter of the distrust breaks the tie.
            let target = link.target;
            self.distrust(target, now, Duration::from_millis(200));
            self.close(id);
        } else if self.active.as_ref().is_some_and(|link| link.id == id) {
            // A parent that has everything begins a path of its own: that says nothing about where the bytes came from.
            self.last_level = self.last_level.max(self.path().map(|path| path.len() as u32));
        }
    }

    /// Bytes arrived, whether or not they are a whole frame yet.
    pub fn heard(&mut self, id: LinkId, now: Now) {
        if let Some(link) = self.link(id) {
            link.last_heard = now;
        }
    }

    /// A whole block arrived.
    pub fn block(&mut self, id: LinkId, now: Now) {
        let Some(link) = self.link(id) else { return };
        let gap = now.saturating_sub(link.last_block);
        link.usual_gap = if link.last_block.is_zero() { Duration::ZERO } else { (link.usual_gap * 7 + gap) / 8 };
        link.last_block = now;
        link.last_heard = now;
        link.waiting = None;
        let target = link.target;
        self.leave.fed(now, target == Target::Origin);
        self.distrusted.retain(|distrust| distrust.target != target);
    }

    /// `Waiting` arrived.
    pub fn waiting(&mut self, id: LinkId, now: Now, reason: WaitingFor) {
        let Some(link) = self.link(id) else { return };
        link.last_heard = now;
        link.waiting = match link.waiting {
            Some((before, since)) if before == reason => Some((before, since)),
            _ => Some((reason, now)),
        };
        // A parent that bytes flow past may only have found somebody who has none either; one that parks us has just to be told.
        let promises = reason == WaitingFor::Origin
            || (reason == WaitingFor::Progress && matches!(link.phase, Phase::Greeting { .. }));
        let target = link.target;
        if promises {
            // While the origin is read, a parent that is yet to let us in does not end the leave for it.
            let from_origin = target == Target::Origin || self.reads_origin();
            self.leave.fed(now, from_origin);
        }
    }

    /// `Busy` arrived: the parent's children may have room.
    pub fn busy(&mut self, id: LinkId, now: Now, children: &[SocketAddr]) {
        let Some(target) = self.link(id).map(|link| link.target) else { return };
        let known = |address: &SocketAddr| {
            let planned = std::iter::once(&self.plan.upstream).chain(&self.plan.fallbacks);
            planned.chain(&self.suggested).any(|target| target.address() == Some(*address))
        };
        let fresh: Vec<Target> = children.iter().filter(|a| !known(a)).map(|a| Target::Address(*a)).collect();
        self.suggested.extend(fresh);
        self.suggested.truncate(MAX_SUGGESTED);
        self.distrust(target, now, Duration::from_secs(1));
        self.close(id);
    }

    /// `Refused` arrived.
    pub fn refused(&mut self, id: LinkId, now: Now, refusal: Refusal, text: &str) {
        let Some(target) = self.link(id).map(|link| link.target) else { return };
        match refusal {
            // The parent has not been told yet, or two nodes moved at once: soon over, and nobody's fault.
            Refusal::UnknownFunction | Refusal::Cycle => self.distrust(target, now, Duration::from_millis(200)),
            _ => {
                self.distrust(target, now, Duration::from_secs(2));
                self.report(target, format!("refused: {text}"), false);
            }
        }
        self.close(id);
    }

    /// The connection ended or failed; the shell has drained and closed it.
    pub fn closed(&mut self, id: LinkId, now: Now, reason: &str, wrong_bytes: bool) {
        let Some(link) = self.take(id) else { return };
        if matches!(link.phase, Phase::Stopping { .. }) && !wrong_bytes {
            return;
        }
        let bar = if wrong_bytes { Duration::from_secs(30) } else { Duration::from_millis(200) };
        self.distrust(link.target, now, bar);
        self.report(link.target, reason.to_owned(), wrong_bytes);
    }

    /// Decides; call after every input and on every tick. `needed` tells whether anything is still missing.
    pub fn poll(&mut self, now: Now, needed: bool) -> Vec<UpstreamAction> {
        if needed {
            self.give_up_silent(now);
            self.consider_origin(now);
            self.promote(now);
            self.open(now);
        } else {
            for id in [&self.active, &self.candidate].into_iter().flatten().map(|link| link.id).collect::<Vec<_>>() {
                self.close(id);
            }
        }
        std::mem::take(&mut self.actions)
    }

    /// Ids from the root to the present parent; `None` without one.
    pub fn path(&self) -> Option<&[NodeId]> {
        self.active.as_ref().map(|link| &link.path[..])
    }

    /// Edges to the root when the present (or last) upstream began to deliver, or later if its path grew.
    pub fn level(&self) -> Option<u32> {
        self.last_level
    }

    /// What to tell children when there is nothing to send.
    pub fn waiting_for(&self) -> WaitingFor {
        match &self.active {
            Some(Link { phase: Phase::Streaming, waiting, .. }) => {
                waiting.map_or(WaitingFor::Progress, |(what, _)| what)
            }
            // A planned change of parents, or the first words of a join: over within a round trip.
            Some(_) => WaitingFor::Progress,
            None => WaitingFor::Upstream,
        }
    }

    /// Whether the present upstream says that it has nothing to send now, and why does not matter: it lives.
    pub fn is_told_to_wait(&self) -> bool {
        self.active.as_ref().is_some_and(|link| link.waiting.is_some())
    }

    /// Whether a link to `node` exists or is being made, so that both sides of a crossing attachment can tell.
    pub fn is_attaching_to(&self, node: NodeId) -> bool {
        [&self.active, &self.candidate].into_iter().flatten().any(|link| {
            link.path.last() == Some(&node) || matches!(link.target, Target::Node(target, _) if target == node)
        })
    }

    /// Who delivers now.
    pub fn active(&self) -> Option<(LinkId, Target)> {
        self.active.as_ref().map(|link| (link.id, link.target))
    }

    fn give_up_silent(&mut self, now: Now) {
        // With no other node to turn to, a parent that only pauses is worth more patience than reading the origin a second time.
        let last_resort = self.active.as_ref().is_some_and(|active| self.is_last_node(active.target, now));
        let silence = if last_resort { self.patience.waiting } else { self.patience.silence };
        let bar = if last_resort { Duration::from_millis(300) } else { Duration::from_secs(3) };
        let patience = Patience { silence, ..self.patience };
        let links = [&self.active, &self.candidate];
        let failed: Vec<_> = links
            .into_iter()
            .flatten()
            .filter_map(|link| Some((link.id, link.target, link.verdict(now, &patience)?)))
            .collect();
        for (id, target, verdict) in failed {
            self.close(id);
            if let Some(reason) = verdict {
                self.distrust(target, now, bar);
                self.report(target, reason, false);
            }
        }
    }

    /// Asks for leave to read the origin when nobody is left, and takes it when nobody answers.
    fn consider_origin(&mut self, now: Now) {
        if self.plan.names_origin() {
            return;
        }
        let reads = self.reads_origin();
        let stranded = !reads && self.leave.is_hungry(now, &self.patience) && self.has_failed_everywhere();
        self.leave.expire(now, reads);
        if self.leave.asks(now, stranded, reads) {
            self.actions.push(UpstreamAction::AskForOrigin);
        }
        if stranded && self.leave.is_without_answer(now, self.me, &self.patience) {
            let known: Vec<Target> = self.known().collect();
            self.leave.begin_last_round(known);
        }
    }

    fn reads_origin(&self) -> bool {
        self.active.as_ref().is_some_and(|link| link.target == Target::Origin)
    }

    /// Every node that could be asked.
    fn known(&self) -> impl Iterator<Item = Target> + '_ {
        let planned = std::iter::once(&self.plan.upstream).chain(&self.suggested).chain(&self.plan.fallbacks);
        planned.chain(&self.acquaintances).copied().filter(|target| *target != Target::Origin)
    }

    /// Whether everybody known has failed since bytes came from there.
    fn has_failed_everywhere(&self) -> bool {
        let fed_by = self.active.as_ref().filter(|link| !link.is_unfed());
        fed_by.is_none() && self.known().all(|target| self.distrusted.iter().any(|failed| failed.target == target))
    }

    fn promote(&mut self, now: Now) {
        let Some(candidate) = &mut self.candidate else { return };
        if !matches!(candidate.phase, Phase::Welcomed { .. }) {
            return;
        }
        match &mut self.active {
            Some(active) if active.phase == Phase::Streaming => {
                active.phase = Phase::Stopping { since: now };
                self.actions.push(UpstreamAction::Stop(active.id));
            }
            Some(_) => {}
            None => {
                candidate.phase = Phase::Streaming;
                candidate.last_heard = now;
                self.actions.push(UpstreamAction::Want(candidate.id));
                self.last_level = Some(candidate.path.len() as u32);
                self.active = self.candidate.take();
            }
        }
    }

    fn open(&mut self, now: Now) {
        if self.candidate.is_some() {
            return;
        }
        let unfed = self.active.as_ref().is_none_or(Link::is_unfed);
        let target = match &self.active {
            Some(active) if active.phase != Phase::Streaming => return,
            // What the plan names has failed: tried now and then, and otherwise only when somebody says no or the plan changes.
            Some(active) if active.target == Target::Origin && self.leave.is_given() => self.look_back(now),
            _ if unfed && self.leave.is_given() && !self.is_distrusted(Target::Origin, now) => {
                Some(self.leave.next_target())
            }
            Some(active) if active.target == self.plan.upstream => return,
            // Received from somebody outside the plan: back to the plan as soon as it can be trusted.
            Some(_) => Some(self.plan.upstream).filter(|target| !self.is_distrusted(*target, now)),
            None => self.next_target(now),
        };
        if let Some(target) = target {
            self.next_id += 1;
            let id = LinkId(self.next_id);
            self.actions.push(UpstreamAction::Connect(id, target));
            self.candidate = Some(Link::new(id, target, now));
        }
    }

    /// A node of the plan that may be there again.
    fn look_back(&mut self, now: Now) -> Option<Target> {
        let looks = self.leave.looks_back(now)?;
        let planned: Vec<Target> = std::iter::once(&self.plan.upstream).chain(&self.plan.fallbacks).copied().collect();
        Some(planned[looks % planned.len()]).filter(|target| !self.is_distrusted(*target, now))
    }

    fn next_target(&mut self, now: Now) -> Option<Target> {
        let planned = std::iter::once(&self.plan.upstream);
        // Root and heir need nobody's help: the origin is theirs.
        let hungry = !self.plan.names_origin() && self.leave.is_hungry(now, &self.patience);
        let acquaintances = self.acquaintances.iter().filter(|_| hungry);
        // Origin comes after every node: it is read only when nobody has the bytes.
        let (origins, nodes): (Vec<&Target>, Vec<&Target>) =
            self.suggested.iter().chain(&self.plan.fallbacks).partition(|target| **target == Target::Origin);
        planned
            .chain(nodes)
            .chain(acquaintances)
            .chain(origins)
            .copied()
            .find(|target| !self.is_distrusted(*target, now))
    }

    /// Whether nobody but the origin would be left to turn to without `target`.
    fn is_last_node(&self, target: Target, now: Now) -> bool {
        let others = std::iter::once(&self.plan.upstream).chain(&self.suggested).chain(&self.plan.fallbacks);
        !others
            .into_iter()
            .any(|other| *other != Target::Origin && *other != target && !self.is_distrusted(*other, now))
    }

    fn is_distrusted(&self, target: Target, now: Now) -> bool {
        self.distrusted.iter().any(|distrust| distrust.target == target && now < distrust.until)
    }

    /// Bars `target` for `bar`, doubled with each failure in a row up to 16-fold and spread by up to a half, so that nodes which
    /// failed together do not return together.
    fn distrust(&mut self, target: Target, now: Now, bar: Duration) {
        self.distrusted.retain(|distrust| now.saturating_sub(distrust.until) < FORGET_AFTER);
        let index = self.distrusted.iter().position(|distrust| distrust.target == target).unwrap_or_else(|| {
            self.distrusted.push(Distrust { target, until: now, failures: 0 });
            self.distrusted.len() - 1
        });
        let distrust = &mut self.distrusted[index];
        let bar = (bar * (1 << distrust.failures.min(4))).min(MAX_BAR.max(bar));
        let seed = u32::from(self.me.0[0]) * 7 + u32::from(self.me.0[1]) * 31 + distrust.failures * 101;
        distrust.until = now + bar + bar * (seed % 256) / 512;
        distrust.failures += 1;
        self.suggested.retain(|suggested| *suggested != target);
    }

    fn report(&mut self, target: Target, reason: String, wrong_bytes: bool) {
        self.actions.push(UpstreamAction::Report { target, reason, wrong_bytes });
    }

    fn close(&mut self, id: LinkId) {
        if self.take(id).is_some() {
            self.actions.push(UpstreamAction::Close(id));
        }
    }

    fn take(&mut self, id: LinkId) -> Option<Link> {
        let slot = [&mut self.active, &mut self.candidate];
        slot.into_iter().find(|link| link.as_ref().is_some_and(|link| link.id == id))?.take()
    }

    fn link(&mut self, id: LinkId) -> Option<&mut Link> {
        [&mut self.active, &mut self.candidate].into_iter().flatten().find(|link| link.id == id)
    }
}

impl Link {
    fn new(id: LinkId, target: Target, now: Now) -> Self {
        Self {
            id,
            target,
            phase: Phase::Connecting { since: now },
            path: Vec::new(),
            last_heard: now,
            last_block: Duration::ZERO,
            usual_gap: Duration::ZERO,
            waiting: None,
        }
    }

    /// Whether the parent says that it has nobody above it.
    fn is_unfed(&self) -> bool {
        matches!(self.waiting, Some((WaitingFor::Upstream, _)))
    }

    /// `Some(reason)` when the link has to go; the reason is missing when it ends as planned.
    fn verdict(&self, now: Now, patience: &Patience) -> Option<Option<String>> {
        let quiet = now.saturating_sub(self.last_heard);
        match self.phase {
            Phase::Connecting { since } | Phase::Greeting { since }
                if now.saturating_sub(since) > patience.greeting =>
            {
                // A parent that parks us until it knows the function says `Waiting` meanwhile.
                let parked = quiet <= patience.silence && now.saturating_sub(since) <= patience.waiting;
                (!parked).then(|| Some(format!("no answer within {:?}", patience.greeting)))
            }
            Phase::Streaming => {
                let bound = patience.silence.max(self.usual_gap * 4).min(MAX_SILENCE.max(patience.silence));
                if quiet > bound {
                    return Some(Some(format!("silent for {} ms", quiet.as_millis())));
                }
                let (reason, since) = self.waiting?;
                let waited = now.saturating_sub(since);
                let said = |why: &str| Some(Some(format!("{why} for {} ms", waited.as_millis())));
                match reason {
                    WaitingFor::Upstream if waited > patience.waiting => said("without an upstream of its own"),
                    WaitingFor::Progress if waited > MAX_PROGRESS => said("alive but without a new block"),
                    _ => None,
                }
            }
            Phase::Welcomed { since } if quiet > MAX_SILENCE && now.saturating_sub(since) > MAX_SILENCE => {
                Some(Some("silent after its welcome".into()))
            }
            Phase::Stopping { since } if now.saturating_sub(since) > STOP_PATIENCE => Some(None),
            _ => None,
        }
    }
}

impl Target {
    fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Node(_, address) | Self::Address(address) => Some(*address),
            Self::Origin => None,
        }
    }
}

const MAX_SUGGESTED: usize = 8;
/// Both neighbourhoods of another stripe, and the last children.
const MAX_ACQUAINTANCES: usize = 12;
/// A failure is forgotten this long after its bar has ended, so that the list stays short whatever addresses neighbours name.
const FORGET_AFTER: Duration = Duration::from_secs(30);
const MAX_BAR: Duration = Duration::from_secs(3);
const MAX_SILENCE: Duration = Duration::from_secs(4);
/// How long a parent may say that bytes flow while no whole block comes: its disk may hang.
const MAX_PROGRESS: Duration = Duration::from_secs(10);
/// How long a parent that was told to stop may take to end; what it still sends after that is asked for again elsewhere.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
