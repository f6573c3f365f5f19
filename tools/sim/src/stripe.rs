//! One stripe of one function on one simulated node: the connections around the real relay core.
//!
//! It does what the agent's worker does with sockets, pipes and a disk, decision for decision, so that the relay core is driven in the
//! same order; it must not decide anything that the core decides.

use std::sync::Arc;
use std::time::Duration;

use faasnet_api::{BlockIndex, NodeId, Stripe as StripeId};
use faasnet_relay::blocks::BlockSet;
use faasnet_relay::downstream::ChildId;
use faasnet_relay::plan::{StripePlan, Target};
use faasnet_relay::stripe::{Greeting, StripeRelay};
use faasnet_relay::upstream::{LinkId, UpstreamAction};
use faasnet_relay::wire::{self, Frame, Hello, Kind, Refusal, WaitingFor};

use crate::child::Child;
use crate::function::Shared;
use crate::io::{Io, Report, frames_of};
use crate::network::{ConnId, Content, Item};
use crate::plan::Bug;

/// One connection to an upstream.
struct Link {
    conn: ConnId,
    link: LinkId,
    target: Target,
    connected: bool,
    welcomed: bool,
    /// `Want` is due as soon as the descriptor is known.
    want_due: bool,
    wanted: bool,
}

/// See the module's documentation.
pub(crate) struct Stripe {
    id: StripeId,
    core: StripeRelay,
    links: Vec<Link>,
    children: Vec<Child>,
}

impl Stripe {
    pub(crate) fn new(id: StripeId, stripes: u8, plan: StripePlan, io: &Io<'_>) -> Self {
        let core = StripeRelay::new(io.me, id, stripes, plan, io.patience);
        Self { id, core, links: Vec::new(), children: Vec::new() }
    }

    /// Remembers members who are not in this stripe's plan.
    pub(crate) fn meet(&mut self, members: Vec<Target>) {
        self.core.upstreams.meet(members);
    }

    /// The controller's answer to a node that has nobody left.
    pub(crate) fn origin_leave(&mut self, lease: Duration, shared: &mut Shared, io: &mut Io<'_>) {
        self.core.upstreams.origin_leave(io.now(), lease);
        self.settle(shared, io);
    }

    pub(crate) fn set_plan(&mut self, plan: StripePlan, shared: &mut Shared, io: &mut Io<'_>) {
        self.core.set_plan(plan);
        self.settle(shared, io);
    }

    pub(crate) fn open_image(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        self.core.set_image(Arc::clone(&shared.spec.geometry), &shared.file.marked);
        for index in (0..self.links.len()).rev() {
            if self.links[index].want_due {
                self.send_want(index, io);
            }
        }
        for index in (0..self.children.len()).rev() {
            self.greet_with_image(index, shared, io);
            self.serve(index, shared, io);
        }
        self.settle(shared, io);
    }

    /// How many children are connected: never more than planned ones, guests and a donor's root.
    pub(crate) fn children(&self) -> usize {
        self.core.downstream.len()
    }

    pub(crate) fn upstream(&self) -> Option<Target> {
        self.core.upstreams.active().map(|(_, target)| target)
    }

    /// The connection that delivers, once it was asked to.
    pub(crate) fn streaming(&self) -> Option<ConnId> {
        let (active, _) = self.core.upstreams.active()?;
        self.links.iter().find(|link| link.link == active && link.wanted).map(|link| link.conn)
    }

    /// Blocks that have not arrived.
    pub(crate) fn missing(&self) -> u32 {
        self.core.want_bitmap().iter().map(|byte| byte.count_ones()).sum()
    }

    /// Blocks that a child is owed; `None` before its `Want` and after its `Stop`.
    pub(crate) fn owes(&self, conn: ConnId) -> Option<u32> {
        let child = self.children.iter().find(|child| child.conn == conn && child.wanted && !child.stopping)?;
        Some(self.core.downstream.owed_count(child.id()))
    }

    /// The children that are served, and the blocks that lie ready for each.
    pub(crate) fn downstreams(&self) -> impl Iterator<Item = (ConnId, u32)> + '_ {
        let served = self.children.iter().filter(|child| !child.stopping);
        served.map(|child| (child.conn, self.core.backlog(child.id())))
    }

    /// What is missing, and why nothing comes, for people.
    pub(crate) fn describe(&self, shared: &Shared, plan: &StripePlan) -> String {
        format!(
            "stripe {} lacks {} blocks, receives from {:?}, waits for {:?}, {} links, has image: {}, path {:?}, plan: {:?} else {:?}",
            self.id.0,
            self.missing(),
            self.upstream(),
            self.waiting_for(shared),
            self.links.len(),
            self.core.has_image(),
            self.core.path(),
            plan.upstream,
            plan.fallbacks,
        )
    }

    /// A newcomer whose `Hello` is for this stripe.
    pub(crate) fn adopt(&mut self, conn: ConnId, hello: &Hello, shared: &mut Shared, io: &mut Io<'_>) {
        let (displaced, parting) = match self.core.greet(io.now(), ChildId(conn.0), hello) {
            Greeting::Welcome { displaced } => (displaced, None),
            Greeting::Busy(children) => (Vec::new(), Some(wire::encode_busy(children))),
            Greeting::Refused(refusal, text) => (Vec::new(), Some(refusal.encode(text))),
        };
        if let Some(bytes) = parting {
            io.net.send_down(conn, Item::Control(bytes));
            return io.net.close_parent(conn);
        }
        for old in displaced {
            if let Some(index) = self.children.iter().position(|child| child.id() == old) {
                self.remove_child(index, io);
            }
        }
        let path = wire::encode_path(Kind::Welcome, &self.core.path());
        io.net.send_down(conn, Item::Control(path));
        self.children.push(Child::new(conn, hello.wants_descriptor));
        let index = self.children.len() - 1;
        self.greet_with_image(index, shared, io);
        self.child_ready(conn, shared, io);
    }

    /// The connection attempt ended: the parent's challenge is here, or nobody answers.
    pub(crate) fn answered(
        &mut self,
        conn: ConnId,
        answer: Result<(), &'static str>,
        shared: &mut Shared,
        io: &mut Io<'_>,
    ) {
        let Some(index) = self.links.iter().position(|link| link.conn == conn) else { return };
        match answer {
            Ok(()) => {
                let hello = shared.hello(self.id, !self.core.has_image(), io);
                let link = &mut self.links[index];
                link.connected = true;
                self.core.upstreams.connected(link.link, io.now());
                io.net.send_up(conn, hello.encode());
            }
            Err(reason) => self.end_link(conn, reason, false, io),
        }
        self.settle(shared, io);
    }

    /// Something arrived from an upstream, or there is room again for what had arrived.
    pub(crate) fn link_ready(&mut self, conn: ConnId, shared: &mut Shared, io: &mut Io<'_>) {
        if self.pump(conn, shared, io) {
            self.settle(shared, io);
        }
    }

    /// Something arrived from a child, or there is room again on its connection.
    pub(crate) fn child_ready(&mut self, conn: ConnId, shared: &mut Shared, io: &mut Io<'_>) {
        let Some(index) = self.children.iter().position(|child| child.conn == conn) else { return };
        if self.read_child(index, shared, io).is_err() {
            self.remove_child(index, io);
        } else {
            self.serve(index, shared, io);
        }
        // The stream may have been held for this child.
        self.resume(shared, io);
    }

    /// A block is on disk.
    pub(crate) fn stored(&mut self, block: BlockIndex, shared: &mut Shared, io: &mut Io<'_>) {
        self.core.stored(block);
        for index in (0..self.children.len()).rev() {
            self.serve(index, shared, io);
        }
    }

    /// Reads on where reading was held.
    pub(crate) fn resume(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        for at in (0..self.links.len()).rev() {
            if let Some(conn) = self.links.get(at).map(|link| link.conn).filter(|conn| io.has_unread(*conn)) {
                self.link_ready(conn, shared, io);
            }
        }
    }

    /// Judges time-outs, tells quiet children that we live.
    pub(crate) fn tick(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        let now = io.now();
        for link in &self.links {
            if link.connected && io.net.is_child_hearing(link.conn) {
                self.core.upstreams.heard(link.link, now);
            }
        }
        self.resume(shared, io);
        for index in (0..self.children.len()).rev() {
            if self.children[index].is_stuck(io) {
                self.remove_child(index, io);
                continue;
            }
            if self.children[index].is_quiet(io) {
                let waiting = wire::encode_waiting(self.waiting_for(shared));
                self.children[index].said(io);
                io.net.send_down(self.children[index].conn, Item::Control(waiting.to_vec()));
            }
            self.serve(index, shared, io);
        }
        self.settle(shared, io);
    }

    /// Lets go of everybody.
    pub(crate) fn close(self, io: &mut Io<'_>) {
        self.links.iter().for_each(|link| io.net.close_child(link.conn));
        self.children.iter().for_each(|child| io.net.close_parent(child.conn));
    }

    fn waiting_for(&self, shared: &Shared) -> WaitingFor {
        if shared.opening && !self.core.has_image() { WaitingFor::Progress } else { self.core.waiting_for() }
    }

    fn settle(&mut self, shared: &mut Shared, io: &mut Io<'_>) {
        let needed = self.core.is_needed();
        loop {
            let actions = self.core.upstreams.poll(io.now(), needed);
            if actions.is_empty() {
                break;
            }
            for action in actions {
                self.act(action, shared, io);
            }
        }
        if let Some(path) = self.core.changed_path() {
            for child in &self.children {
                io.net.send_down(child.conn, Item::Control(wire::encode_path(Kind::Path, &path)));
            }
        }
    }

    fn act(&mut self, action: UpstreamAction, shared: &mut Shared, io: &mut Io<'_>) {
        match action {
            UpstreamAction::Connect(link, target) => match io.resolve(target) {
                Some(parent) => {
                    let conn = io.net.connect(io.end(shared.spec.index, self.id.index()), parent);
                    let (connected, welcomed, want_due, wanted) = (false, false, false, false);
                    self.links.push(Link { conn, link, target, connected, welcomed, want_due, wanted });
                }
                None => self.core.upstreams.closed(link, io.now(), "no such address", false),
            },
            UpstreamAction::Want(link) => {
                if let Some(index) = self.links.iter().position(|other| other.link == link) {
                    self.send_want(index, io);
                }
            }
            UpstreamAction::Stop(link) => {
                if let Some(link) = self.links.iter().find(|other| other.link == link) {
                    io.net.send_up(link.conn, Frame::new(Kind::Stop, 0, 0, 0).header().to_vec());
                }
            }
            UpstreamAction::Close(link) => {
                if let Some(index) = self.links.iter().position(|other| other.link == link) {
                    io.net.close_child(self.links.swap_remove(index).conn);
                }
            }
            UpstreamAction::AskForOrigin => {
                io.reports.push(Report::OriginWanted { function: shared.spec.index, stripe: self.id });
            }
            UpstreamAction::Report { target, reason, wrong_bytes } => {
                let (function, stripe) = (shared.spec.index, self.id);
                io.reports.push(Report::EdgeFailed { function, stripe, target, reason, wrong_bytes });
            }
        }
    }

    fn send_want(&mut self, index: usize, io: &mut Io<'_>) {
        let link = &mut self.links[index];
        link.want_due = !self.core.has_image();
        if link.want_due || link.wanted {
            return;
        }
        link.wanted = true;
        for frame in frames_of(&wire::encode_want(&self.core.want_bitmap())) {
            io.net.send_up(link.conn, frame);
        }
    }

    fn end_link(&mut self, conn: ConnId, reason: &str, wrong_bytes: bool, io: &mut Io<'_>) {
        let Some(index) = self.links.iter().position(|link| link.conn == conn) else { return };
        let link = self.links.swap_remove(index);
        self.core.upstreams.closed(link.link, io.now(), reason, wrong_bytes);
        io.net.close_child(conn);
    }

    /// Reads what has arrived on a link; answers whether the core has something to decide.
    fn pump(&mut self, conn: ConnId, shared: &mut Shared, io: &mut Io<'_>) -> bool {
        let mut decide = false;
        loop {
            let Some(index) = self.links.iter().position(|link| link.conn == conn) else { return decide };
            let Some(head) = io.net.conn(conn).inbox.front() else { break };
            if matches!(head, Item::Block { .. }) && (io.disk.is_full() || self.must_hold(io)) {
                return decide;
            }
            let Some(item) = io.net.conn_mut(conn).inbox.pop_front() else { break };
            let ended = match item {
                Item::Control(bytes) => {
                    decide = true;
                    self.control(index, &bytes, io)
                }
                Item::Descriptor(_) => {
                    decide = true;
                    self.core.upstreams.heard(self.links[index].link, io.now());
                    shared.descriptor_arrived(io);
                    Ok(())
                }
                Item::Block { block, len, content } => {
                    io.net.consumed(conn);
                    self.arrived(index, block, len, content, shared, io)
                }
            };
            if let Err((reason, wrong_bytes)) = ended {
                self.end_link(conn, reason, wrong_bytes, io);
                return true;
            }
            decide |= !self.core.is_needed();
        }
        if io.net.conn(conn).child_sees_end {
            self.end_link(conn, "the connection ended", false, io);
            return true;
        }
        decide
    }

    fn must_hold(&mut self, io: &Io<'_>) -> bool {
        // All of them are asked: each counts its own waiting.
        self.children.iter_mut().filter_map(|child| child.holds_stream(io).then_some(())).count() > 0
    }

    fn control(&mut self, index: usize, bytes: &[u8], io: &mut Io<'_>) -> Result<(), (&'static str, bool)> {
        let (link, now) = (&mut self.links[index], io.now());
        let (frame, payload) = io.parse(bytes);
        let upstreams = &mut self.core.upstreams;
        let malformed = |_| ("a malformed frame", false);
        upstreams.heard(link.link, now);
        match frame.kind {
            Kind::Welcome => {
                let path = wire::parse_path(frame.kind, payload).map_err(malformed)?;
                if path.is_empty() != (link.target == Target::Origin) {
                    return Err(("a welcome with an impossible path", false));
                }
                link.welcomed = true;
                if let (Target::Address(address), Some(node)) = (link.target, path.last()) {
                    link.target = Target::Node(*node, address);
                }
                upstreams.welcomed(link.link, now, planted_path(path, io));
            }
            Kind::Refused => {
                let text = String::from_utf8_lossy(payload).into_owned();
                upstreams.refused(link.link, now, Refusal::from_frame(&frame), &text);
            }
            Kind::Busy => upstreams.busy(link.link, now, &wire::parse_busy(payload).map_err(malformed)?),
            Kind::Waiting => upstreams.waiting(link.link, now, WaitingFor::from_frame(&frame)),
            Kind::Path if link.welcomed => {
                let path = wire::parse_path(frame.kind, payload).map_err(malformed)?;
                upstreams.path_changed(link.link, now, planted_path(path, io));
            }
            _ => return Err(("a frame that an upstream does not send now", false)),
        }
        Ok(())
    }

    fn arrived(
        &mut self,
        index: usize,
        block: BlockIndex,
        len: u32,
        content: Content,
        shared: &mut Shared,
        io: &mut Io<'_>,
    ) -> Result<(), (&'static str, bool)> {
        let link = &self.links[index];
        let frame = self.core.frame_of(block);
        let frame = frame.filter(|_| link.wanted).ok_or(("a block before it was asked for", false))?;
        self.core.expect(&frame).map_err(|_| ("a block that does not fit the image", false))?;
        shared.received(self.id, link.target, len, io);
        if content != Content::Right {
            if content == Content::Unwritten {
                io.tally.violate(format!("{} got block {} that its parent had never written", io.me, block.0));
            }
            return Err(("a block failed verification", true));
        }
        self.core.upstreams.block(link.link, io.now());
        if !self.core.received(block) {
            shared.counters.refetched_bytes += u64::from(len);
            return Ok(());
        }
        self.forward(block, len, io);
        io.disk.write(io.net, io.host, io.incarnation, shared.spec.index, block, len);
        if io.bug == Some(Bug::MarkedBeforeWritten) {
            shared.file.marked.insert(block);
            self.core.stored(block);
        }
        Ok(())
    }

    /// Passes a block on to the children that are ready for it.
    fn forward(&mut self, block: BlockIndex, len: u32, io: &mut Io<'_>) {
        let (mut live, children) = (Vec::new(), &self.children);
        let ready = |id| children.iter().any(|child: &Child| child.id() == id && child.is_ready_for_live(io));
        self.core.downstream.forward(block, ready, &mut live);
        if io.bug == Some(Bug::WrongTeeCount) && live.len() > 1 {
            live.pop();
        }
        for child in live {
            io.send_block(ConnId(child.0), block, len, Content::Right);
        }
    }

    /// Gives a child what it is owed and is here, as far as its connection has room.
    fn serve(&mut self, index: usize, shared: &mut Shared, io: &mut Io<'_>) {
        let (conn, id) = (self.children[index].conn, self.children[index].id());
        while self.children[index].has_room_for_stored(io) && self.core.has_image() {
            // Caught up, all but a few: from here on blocks are passed on as they arrive, and these few in between.
            self.children[index].attached |= self.core.backlog(id) <= ATTACH_BACKLOG;
            let Some(block) = self.core.next_from_store(id) else { break };
            let Some(place) = shared.spec.geometry.place(block) else { return };
            let written = shared.file.written.contains(block);
            io.send_block(conn, block, place.len, if written { Content::Right } else { Content::Unwritten });
        }
        let child = &self.children[index];
        if child.stopping && io.net.is_queue_empty(conn) {
            self.remove_child(index, io);
        }
    }

    /// What a child has to hear once the descriptor is known here.
    fn greet_with_image(&mut self, index: usize, shared: &Shared, io: &mut Io<'_>) {
        if !self.core.has_image() {
            return;
        }
        let child = &mut self.children[index];
        if std::mem::take(&mut child.wants_descriptor) {
            io.net.send_down(child.conn, Item::Descriptor(shared.spec.descriptor_bytes));
        }
        if child.want_is_whole && !child.wanted {
            child.wanted = self.core.wanted(child.id(), &child.want);
            child.want = Vec::new();
        }
    }

    /// Reads what a child says; an error means that it has to go.
    fn read_child(&mut self, index: usize, shared: &mut Shared, io: &mut Io<'_>) -> Result<(), ()> {
        let conn = self.children[index].conn;
        while let Some(bytes) = io.net.conn_mut(conn).up_inbox.pop_front() {
            let (frame, payload) = io.parse(&bytes);
            let child = &mut self.children[index];
            match frame.kind {
                Kind::Want => {
                    child.want.extend_from_slice(payload);
                    child.want_is_whole = frame.block == 1;
                    self.greet_with_image(index, shared, io);
                }
                Kind::Stop => {
                    (child.stopping, child.attached) = (true, false);
                    let id = child.id();
                    self.core.downstream.set_owed(id, BlockSet::default());
                }
                _ => return Err(()),
            }
        }
        if io.net.conn(conn).parent_sees_end { Err(()) } else { Ok(()) }
    }

    fn remove_child(&mut self, index: usize, io: &mut Io<'_>) {
        let child = self.children.remove(index);
        self.core.downstream.remove(child.id());
        io.net.close_parent(child.conn);
    }
}

/// A child that is owed no more stored blocks than this is attached again.
const ATTACH_BACKLOG: u32 = 4;

/// The path as the core hears it: nothing at all under the planted defect that nobody looks at paths.
fn planted_path(path: Vec<NodeId>, io: &Io<'_>) -> Vec<NodeId> {
    if io.bug == Some(Bug::NoPathCheck) { Vec::new() } else { path }
}
