//! What goes into the state machine and what comes out of it.

use faasnet_api::{Descriptor, NodeId, v1};
use faasnet_origin::Credentials;
use faasnet_tree::Policy;

use super::counts::Counts;
use super::records::Key;

/// The time of an input, told by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a clock that never goes back.
    pub ms: u64,
    /// Seconds since the Unix epoch, for tickets only.
    pub unix_s: u64,
}

/// One agent's stream, numbered by the shell; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// One client's call, numbered by the shell; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One connection attempt to a node's data address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(pub u64);

/// What came of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// The address accepts connections. A stopped process does that too.
    Reachable,
    /// Nobody listens there.
    Refused,
    /// No answer, or no way there.
    Silent,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input {
    /// An agent's stream was opened.
    Attached {
        /// Its stream.
        session: SessionId,
        /// The stream's first event.
        attached: Box<v1::Attached>,
    },
    /// A later event on a stream.
    Heard {
        /// Its stream.
        session: SessionId,
        /// What the agent says.
        event: v1::event::Event,
    },
    /// An agent's stream ended.
    Detached {
        /// Its stream.
        session: SessionId,
    },
    /// An [`Output::Probe`] ended.
    Probed {
        /// Who was probed.
        node: NodeId,
        /// The probe's number.
        probe: ProbeId,
        /// What came of it.
        answer: ProbeAnswer,
    },
    /// A client asks for something.
    Asked {
        /// The call.
        request: RequestId,
        /// What for.
        ask: Ask,
    },
    /// A client that watched a provision went away.
    Abandoned {
        /// The call.
        request: RequestId,
    },
    /// Time passed; about ten times a second.
    Tick,
}

/// A registered image on its way to becoming a function.
#[derive(Debug, Clone)]
pub struct NewFunction {
    /// Whose; a valid name.
    pub tenant: String,
    /// Its name; a valid name.
    pub name: String,
    /// The policy asked for.
    pub policy: Policy,
    /// The memory that one instance needs.
    pub memory_mib: u32,
    /// The image.
    pub descriptor: Descriptor,
    /// The stream of the node that has all of it already, if one has.
    pub holder: Option<SessionId>,
}

/// A registered image on its way to becoming a function's next one.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Whose function; a valid name.
    pub tenant: String,
    /// The function; a valid name.
    pub name: String,
    /// The image.
    pub descriptor: Descriptor,
    /// Its members take it now; else with the next provision.
    pub at_once: bool,
    /// As in [`NewFunction`].
    pub holder: Option<SessionId>,
}

/// What the controller is to keep of a private registry.
#[derive(Debug, Clone)]
pub struct NewSecret {
    /// Whose.
    pub tenant: String,
    /// Host, and port if it is not the usual one.
    pub registry: String,
    /// User name and password.
    pub credentials: Credentials,
}

/// What is known of an image for one node's tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownImage {
    /// The node, as notes name it.
    pub node: String,
    /// Whose the node is; a node in the free pool counts as the default tenant's.
    pub tenant: String,
    /// A function of that tenant with that image.
    pub function: Option<String>,
    /// The digest of its manifest.
    pub manifest: Option<String>,
    /// What is kept of its registry for that tenant, if the node may have the image.
    pub login: Option<Credentials>,
    /// Why the node may not have it now.
    pub obstacle: Option<String>,
}

/// A client's call.
#[derive(Debug)]
pub enum Ask {
    /// Stores a new function.
    Create(Box<NewFunction>),
    /// Forgets a function.
    Remove(v1::RemoveFunctionRequest),
    /// Gives a function another image, to be taken up by the next provision.
    Update(Box<NewImage>),
    /// Asks for a function with an image, on behalf of the node behind a stream.
    FindImage {
        /// The node's stream.
        session: SessionId,
        /// See [`faasnet_origin::image_names`].
        reference: String,
    },
    /// Shows one function.
    GetFunction(v1::GetFunctionRequest),
    /// Lists functions.
    ListFunctions,
    /// Puts nodes into a function's trees; answered by [`Output::Progress`] until done.
    Provision(v1::ProvisionRequest),
    /// Takes nodes out of a function's trees.
    Release(v1::ReleaseRequest),
    /// Brings a function to a number of nodes; answered by [`Output::Progress`] until done.
    Scale(v1::ScaleRequest),
    /// Empties a node, or lets it take functions again; answered by [`Output::Drained`] until done.
    Drain(v1::DrainRequest),
    /// Shows a function's trees.
    GetTree(v1::GetTreeRequest),
    /// Counts for metrics.
    Count,
    /// Says the term.
    GetTerm,
    /// Lists nodes.
    ListNodes,
    /// Keeps user name and password of a registry.
    SetSecret(Box<NewSecret>),
    /// Forgets them.
    RemoveSecret {
        /// Whose.
        tenant: String,
        /// Which.
        registry: String,
    },
    /// Which there are, without the passwords.
    ListSecrets,
    /// What is kept of an image's registry, for the controller's own reading.
    FindLogin {
        /// For whom.
        tenant: String,
        /// The image.
        reference: String,
    },
    /// Lists the keys that sign tickets.
    ListKeys,
    /// Makes a new one.
    RotateKeys {
        /// What it is made of; random.
        seed: [u8; 32],
    },
    /// Makes a key's tickets worthless.
    RevokeKey {
        /// How its id begins.
        key_id: String,
        /// What another is made of, if it is the current one; random.
        seed: [u8; 32],
    },
}

/// A successful answer.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Answer {
    Created(v1::FunctionInfo),
    Function(v1::FunctionInfo),
    Image(KnownImage),
    Removed,
    Functions(Vec<v1::FunctionInfo>),
    Released(u32),
    Tree(v1::GetTreeReply),
    Term(u64),
    Counts(Counts),
    Nodes(v1::ListNodesReply),
    Keys(v1::ListKeysReply),
    Secrets(v1::ListSecretsReply),
    Login(Option<Credentials>),
}

/// The kinds of refusal, as far as a caller can act on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum RefusalKind {
    Invalid,
    NotFound,
    AlreadyExists,
    /// Right in itself, but not now.
    Precondition,
}

/// Why a client or an agent does not get what it asked for: cause and next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

impl Refusal {
    /// A request that can never be right.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Invalid, message: message.into() }
    }

    /// Something that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::NotFound, message: message.into() }
    }

    /// Something that is there already.
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::AlreadyExists, message: message.into() }
    }

    /// A request that may be right later.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self { kind: RefusalKind::Precondition, message: message.into() }
    }
}

/// Something to do.
#[derive(Debug)]
pub enum Output {
    /// Commit this record as [`super::State::record`] gives it, before any other output of the same input.
    Store(Key),
    /// Send a command to an agent.
    Send {
        /// Its stream.
        session: SessionId,
        /// The command.
        command: v1::command::Command,
    },
    /// End an agent's stream.
    Close {
        /// Its stream.
        session: SessionId,
        /// What the agent is told.
        refusal: Refusal,
    },
    /// Try to connect to a node's data address.
    Probe {
        /// Who.
        node: NodeId,
        /// To be repeated in the answer.
        probe: ProbeId,
        /// Where.
        address: std::net::SocketAddr,
    },
    /// Answer a client. A provision is answered by this only when it is refused or cannot go on.
    Answer {
        /// The call.
        request: RequestId,
        /// The answer.
        answer: Result<Answer, Refusal>,
    },
    /// Tell a client how its drain stands; the last one says `done`. A newer one replaces an older one not yet sent.
    Drained {
        /// The call.
        request: RequestId,
        /// Where it stands.
        progress: v1::DrainProgress,
    },
    /// Say to people what happened.
    Note(String),
    /// Tell a client how its provision stands; the last one says `done`. A newer one replaces an older one not yet sent.
    Progress {
        /// The call.
        request: RequestId,
        /// Where it stands.
        progress: v1::ProvisionProgress,
    },
}
