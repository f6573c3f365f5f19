//! One simulated node: its process, its functions, its connections, what survives its death.
//!
//! The kernel's part goes on while the process stands still: connections are accepted and bytes arrive; nothing is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use faasnet_api::{FunctionId, NodeId, v1};
use faasnet_controller::state::SessionId;
use faasnet_relay::plan::StripePlan;
use faasnet_relay::wire::{self, Hello, Kind, Refusal, WaitingFor};

use crate::agenda::{MILLISECOND, SECOND, Time};
use crate::function::{Assignment, File, Function, Spec};
use crate::io::{Disk, Io, Report, parse};
use crate::network::{ConnId, Item};
use crate::plan::Bug;

/// What the process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    Running,
    /// Stopped by a signal, or starved of the processor.
    Standing,
    Gone,
}

/// A connection that was accepted and belongs to no function yet.
struct Newcomer {
    conn: ConnId,
    hello: Option<Hello>,
    since: Time,
    said: Time,
}

/// See the module's documentation.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) process: Process,
    pub(crate) incarnation: u64,
    pub(crate) functions: BTreeMap<usize, Function>,
    pub(crate) files: BTreeMap<usize, File>,
    pub(crate) disk: Disk,
    pub(crate) reports: Vec<Report>,
    pub(crate) session: Option<SessionId>,
    /// Commands that arrived while the process stood still.
    pub(crate) unread: Vec<v1::command::Command>,
    /// It died for good or was killed at some time.
    pub(crate) harmed: bool,
    /// Its card is slow: its own time says nothing about the others'.
    pub(crate) slow: bool,
    newcomers: Vec<Newcomer>,
    /// The last version heard of functions that are held no more.
    dropped: BTreeMap<usize, (u64, u64)>,
}

const NEWCOMER_PATIENCE: Time = 2 * SECOND;
const SOOTHE_EVERY: Time = 50 * MILLISECOND;

impl Node {
    pub(crate) fn new(id: NodeId, disk_rate: u64) -> Self {
        Self {
            id,
            process: Process::Gone,
            incarnation: 0,
            functions: BTreeMap::new(),
            files: BTreeMap::new(),
            disk: Disk::new(disk_rate),
            reports: Vec::new(),
            session: None,
            unread: Vec::new(),
            harmed: false,
            slow: false,
            newcomers: Vec::new(),
            dropped: BTreeMap::new(),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process == Process::Running
    }

    /// Whether it lacks something of a function that it is told to hold.
    pub(crate) fn is_fetching(&self, function: usize) -> bool {
        self.is_running() && self.functions.get(&function).is_some_and(|function| function.complete_at.is_none())
    }

    /// What it was told of one stripe.
    pub(crate) fn plan_of(&self, function: usize, stripe: usize) -> Option<&StripePlan> {
        self.functions.get(&function)?.plans.get(stripe)
    }

    /// The process ends at once; files stay.
    pub(crate) fn die(&mut self) {
        self.process = Process::Gone;
        self.session = None;
        self.unread.clear();
        self.newcomers.clear();
        self.reports.clear();
        self.dropped.clear();
        self.disk.forget();
        for (index, function) in std::mem::take(&mut self.functions) {
            self.files.insert(index, function.shared.file);
        }
    }

    /// The lowest version that a command must have to be obeyed.
    pub(crate) fn held_version(&self, function: usize) -> (u64, u64) {
        let held = self.functions.get(&function).map(|function| function.shared.version);
        held.or_else(|| self.dropped.get(&function).copied()).unwrap_or_default()
    }
}

/// A node's functions and newcomers apart from what [`Io`] borrows.
pub(crate) struct Parts<'a> {
    pub(crate) functions: &'a mut BTreeMap<usize, Function>,
    files: &'a mut BTreeMap<usize, File>,
    newcomers: &'a mut Vec<Newcomer>,
    dropped: &'a mut BTreeMap<usize, (u64, u64)>,
}

impl Node {
    /// Splits the node so that its functions can use its disk.
    pub(crate) fn parts(&mut self) -> (Parts<'_>, &mut Disk, &mut Vec<Report>) {
        let Self { functions, files, newcomers, dropped, disk, reports, .. } = self;
        (Parts { functions, files, newcomers, dropped }, disk, reports)
    }
}

impl Parts<'_> {
    /// Obeys an assignment, unless a newer command was obeyed.
    pub(crate) fn assign(&mut self, spec: &Arc<Spec>, assignment: Assignment, io: &mut Io<'_>) {
        let held = self.held(spec.index);
        if assignment.version < held && io.bug != Some(Bug::StaleEpoch) {
            return;
        }
        if assignment.version < held {
            io.tally.violate(format!("{} obeyed {:?} although it held {held:?}", io.me, assignment.version));
        }
        self.dropped.remove(&spec.index);
        match self.functions.get_mut(&spec.index) {
            Some(function) => function.follow(assignment, io),
            None => {
                let file = self.files.remove(&spec.index);
                let function = Function::new(Arc::clone(spec), file, assignment, io);
                self.functions.insert(spec.index, function);
            }
        }
        self.admit(spec, io);
    }

    /// Lets a function go, unless a newer command was obeyed.
    pub(crate) fn drop_function(&mut self, index: usize, version: (u64, u64), io: &mut Io<'_>) {
        if version < self.held(index) {
            return;
        }
        self.dropped.insert(index, version);
        if let Some(function) = self.functions.remove(&index) {
            let file = function.close(io);
            self.files.insert(index, file);
        }
    }

    /// A connection was accepted.
    pub(crate) fn accept(&mut self, conn: ConnId, io: &Io<'_>) {
        let now = io.net.now();
        self.newcomers.push(Newcomer { conn, hello: None, since: now, said: now });
    }

    /// Something arrived from a child, whoever it is.
    pub(crate) fn up(&mut self, conn: ConnId, by_id: &BTreeMap<FunctionId, Arc<Spec>>, io: &mut Io<'_>) {
        let Some(newcomer) = self.newcomers.iter_mut().find(|newcomer| newcomer.conn == conn) else {
            let end = io.net.conn(conn).child;
            if let Some(function) = self.functions.get_mut(&end.function) {
                function.child_ready(end.stripe, conn, io);
            }
            return;
        };
        if io.net.conn(conn).parent_sees_end {
            self.newcomers.retain(|newcomer| newcomer.conn != conn);
            return io.net.close_parent(conn);
        }
        if newcomer.hello.is_some() {
            return;
        }
        let Some(bytes) = io.net.conn_mut(conn).up_inbox.pop_front() else { return };
        let hello = parse(&bytes).filter(|(frame, _)| frame.kind == Kind::Hello);
        newcomer.hello = hello.and_then(|(_, payload)| Hello::parse(payload).ok());
        if let Some(hello) = newcomer.hello.filter(|hello| hello.ticket.as_bytes().iter().any(|byte| *byte != 0))
            && let Err(error) = hello.ticket.permits(hello.node, hello.function, hello.image, io.net.now() / SECOND)
        {
            io.tally.violate(format!("{} got a ticket from {} that is not good: {error}", io.me, hello.node));
        }
        match newcomer.hello.and_then(|hello| by_id.get(&hello.function)) {
            Some(spec) => self.admit(&Arc::clone(spec), io),
            None => io.tally.violate(format!("{} got something that is no Hello", io.me)),
        }
    }

    pub(crate) fn tick(&mut self, io: &mut Io<'_>) {
        for function in self.functions.values_mut() {
            function.tick(io);
        }
        let now = io.net.now();
        for newcomer in self.newcomers.iter_mut().filter(|newcomer| newcomer.hello.is_some()) {
            if now >= newcomer.said + SOOTHE_EVERY {
                newcomer.said = now;
                io.net.send_down(newcomer.conn, Item::Control(wire::encode_waiting(WaitingFor::Progress).to_vec()));
            }
        }
        let late = self.newcomers.extract_if(.., |newcomer| now > newcomer.since + NEWCOMER_PATIENCE);
        for newcomer in late {
            let refusal = Refusal::UnknownFunction.encode("this node does not have the function");
            io.net.send_down(newcomer.conn, Item::Control(refusal));
            io.net.close_parent(newcomer.conn);
        }
    }

    /// Gives the newcomers that wait for a function to it, if it is known here.
    fn admit(&mut self, spec: &Arc<Spec>, io: &mut Io<'_>) {
        let Some(function) = self.functions.get_mut(&spec.index) else { return };
        let waits = |newcomer: &Newcomer| newcomer.hello.as_ref().is_some_and(|hello| hello.function == spec.id);
        let waiting: Vec<Newcomer> = self.newcomers.extract_if(.., |newcomer| waits(newcomer)).collect();
        for newcomer in waiting {
            if let Some(hello) = newcomer.hello {
                function.adopt(newcomer.conn, &hello, io);
            }
        }
    }

    fn held(&self, function: usize) -> (u64, u64) {
        let held = self.functions.get(&function).map(|function| function.shared.version);
        held.or_else(|| self.dropped.get(&function).copied()).unwrap_or_default()
    }
}
