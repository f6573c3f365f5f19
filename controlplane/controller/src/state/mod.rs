//! The controller's state machine: `(state, now, input) → outputs`, with one owner and neither clock, thread nor I/O.
//!
//! LIFECYCLE of a node: registered (known from the state store) → live (its stream is open) ⇄ suspect (stream closed or silent) → dead
//! (a probe failed or the silence lasted) → live again when it is heard. Of a member of a function: wanted by intent, planned into the
//! trees unless its node is dead or the image failed there, assigned as soon as a stream can carry it.
//!
//! Outputs are to be carried out after the records they name were committed, so nothing that was acknowledged can be lost.

mod counts;
mod function;
mod images;
mod io;
mod keys;
mod latency;
mod leading;
mod leases;
mod leaving;
mod liveness;
mod membership;
mod migrate;
mod names;
mod node;
mod pace;
mod placement;
mod plan;
mod quarantine;
mod rates;
mod records;
mod reports;
mod requests;
mod restart;
mod riding;
mod secrets;
mod settings;
#[cfg(test)]
mod tests;
mod update;
mod watch;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use faasnet_api::{FunctionId, NodeId};

pub use counts::Counts;
pub use io::{
    Answer, Ask, Input, KnownImage, NewFunction, NewImage, NewSecret, Now, Output, ProbeAnswer, ProbeId, Refusal,
    RefusalKind, RequestId, SessionId,
};
pub use latency::{BOUNDS_MS, Histogram};
pub use migrate::{Records, SCHEMA, migrate};
pub use names::function_name;
pub use records::{Key, RestoreError};
pub use settings::Settings;
pub(crate) use words::tame;

use function::Function;
use keys::Keyring;
use leaving::DrainWatch;
use node::Node;
use secrets::Secrets;
use watch::Watch;

/// The longest line in the log.
const NOTE_BYTES: usize = 2_000;

/// Everything that the controller knows.
pub struct State {
    settings: Settings,
    /// How often the controller was started, and above every term that an agent reported.
    term: u64,
    started_ms: u64,
    last_tick_ms: u64,
    tickets_checked_s: u64,
    probes: u64,
    nodes: BTreeMap<NodeId, Node>,
    sessions: HashMap<SessionId, NodeId>,
    keyring: Keyring,
    secrets: Secrets,
    /// Who attached last from a data address.
    addresses: HashMap<SocketAddr, NodeId>,
    /// Who is called by a name.
    names: HashMap<String, NodeId>,
    functions: BTreeMap<FunctionId, Function>,
    /// The functions that have an image, by the names under which runtimes ask for it.
    images: BTreeMap<String, BTreeSet<FunctionId>>,
    /// Not below the last epoch of any function that was removed in this term: a new function of the same name goes on from there.
    retired_epoch: u64,
    /// Members on their way out.
    leaving: BTreeSet<(FunctionId, NodeId)>,
    /// Of all provisions that ended since this start.
    latencies: Histogram,
    /// Clients that wait until a node is empty.
    drains: BTreeMap<RequestId, DrainWatch>,
    /// Orders to read blocks back that were not answered yet.
    rereads: BTreeMap<u64, NodeId>,
    rereads_ordered: u64,
    /// When stragglers were looked for last.
    judged_ms: u64,
    /// When idle members were.
    reclaimed_ms: u64,
    watches: BTreeMap<RequestId, Watch>,
    /// Nodes came or went: functions that ask for a number of nodes may be short of some, or no longer.
    capacity_changed: bool,
    /// Functions from the store whose agents are still on their way back.
    unsettled: BTreeSet<FunctionId>,
    /// Nodes that are treated as stragglers.
    slow: BTreeSet<NodeId>,
    out: Vec<Output>,
}

impl State {
    /// Applies one input and answers what has to be done about it, in order.
    pub fn handle(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Attached { session, attached } => self.attached(now, session, *attached),
            Input::Heard { session, event } => self.heard(now, session, event),
            Input::Detached { session } => self.detached(now, session),
            Input::Probed { node, probe, answer } => self.probed(now, node, probe, answer),
            Input::Asked { request, ask } => self.asked(now, request, ask),
            Input::Abandoned { request } => {
                self.watches.remove(&request);
                self.drains.remove(&request);
            }
            Input::Tick => self.tick(now),
        }
        if std::mem::take(&mut self.capacity_changed) {
            self.reconcile(now);
        }
        self.end_settled_watches(now);
        std::mem::take(&mut self.out)
    }

    /// The number of controller starts, raised above what agents report.
    pub fn term(&self) -> u64 {
        self.term
    }

    fn emit(&mut self, output: Output) {
        self.out.push(output);
    }

    fn note(&mut self, text: String) {
        // Names and reasons in it come from agents and clients.
        self.emit(Output::Note(words::plain(&text, NOTE_BYTES)));
    }

    /// A node as notes name it.
    fn name_of(&self, id: &NodeId) -> String {
        self.nodes.get(id).map_or_else(|| id.to_string(), |node| format!("{} ({})", node.name, id.short()))
    }
}
