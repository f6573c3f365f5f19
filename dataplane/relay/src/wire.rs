//! The frames of one edge: one TCP connection per edge, image and stripe.
//!
//! Every frame is a [`FrameHeader`] of 16 bytes, little-endian, and `len` bytes of payload. The parent speaks first: `Challenge`, with its id
//! and a nonce that is good for this connection only. The child answers `Hello` with its ticket and a signature by its node's key over
//! nonce, parent and all that `Hello` says, so that neither ticket nor `Hello` is of use to who copies it. The parent
//! answers `Welcome`, `Busy` or `Refused`. A child without the descriptor sets [`HELLO_WANTS_DESCRIPTOR`] and receives it in
//! `Descriptor` frames. The child then sends `Want`: which blocks it lacks. From there on the parent sends `Block` frames, and `Waiting`
//! when it has nothing to send and `Path` when its own place in the tree changes; the child may send `Request` (a block that
//! somebody waits for) and `Stop` (send nothing more: the parent ends the connection after the frame it is in).
//!
//! A block frame is the same bytes for every child, so that it can be teed from an upstream to the children header and all.
//! What parsed is valid in itself; whether a block exists in the image is the geometry's to say.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use faasnet_api::ticket::{SIGNATURE_BYTES, TICKET_BYTES};
use faasnet_api::{FunctionId, ImageId, MAX_BLOCK_BYTES, NodeId, Stripe, Ticket};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of `Challenge` and `Hello`, so that a stranger is told apart at once: "FaaS".
pub const MAGIC: u32 = 0x5361_6146;
/// The protocol versions that this program speaks. Version 1 had no `Challenge`: its tickets could be copied.
pub const MIN_VERSION: u16 = 2;
/// See [`MIN_VERSION`].
pub const MAX_VERSION: u16 = 2;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 32;
/// Bytes of a frame header.
pub const HEADER_BYTES: usize = size_of::<FrameHeader>();
/// The longest payload of a frame that is not a block: `Want` carries one bit per block in parts of this size.
pub const MAX_CONTROL_BYTES: u32 = 64 << 10;
/// The most nodes in a path: the height of any tree, with room for detours.
pub const MAX_PATH: usize = 1024;
/// The most addresses in a `Busy`.
pub const MAX_BUSY_ADDRESSES: usize = 4;
/// `Hello` flag: the child has no descriptor yet.
pub const HELLO_WANTS_DESCRIPTOR: u8 = 1;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Child → parent, in answer to `Challenge`: [`HelloFrame`].
    Hello = 1,
    /// Parent → child: the path of node ids from the root to the parent.
    Welcome = 2,
    /// Parent → child: no room; addresses of its children. The parent closes after it.
    Busy = 3,
    /// Parent → child: [`Refusal`] in `block`, text as payload. The parent closes after it.
    Refused = 4,
    /// Parent → child: a part of the encoded descriptor; `chunk` = offset of the part, `block` = length of the whole.
    Descriptor = 5,
    /// Child → parent: a part of the bitmap of missing blocks of the whole image; `chunk` = first block of the part (a multiple of 8),
    /// `block` = 1 in the last part.
    Want = 6,
    /// Parent → child: payload is block `block` of chunk `chunk`.
    Block = 7,
    /// Parent → child: nothing to send now; `chunk` = [`WaitingFor`].
    Waiting = 8,
    /// Parent → child: the parent's path has changed.
    Path = 9,
    /// Child → parent: block `block` of chunk `chunk` first, please; `len` = 0.
    Request = 10,
    /// Child → parent: end after the frame that you are in.
    Stop = 11,
    /// Parent → child, first: [`ChallengeFrame`].
    Challenge = 12,
}

/// What a parent that says `Waiting` waits for, as the word was passed on hop by hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum WaitingFor {
    /// Somebody on the path lost its upstream and looks for another.
    Upstream = 0,
    /// The root lives and waits for the origin: moving would not help.
    Origin = 1,
    /// Everybody on the path lives and bytes arrive, only not yet a whole block.
    Progress = 2,
}

/// The first 16 bytes of every frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FrameHeader {
    kind: u8,
    reserved: [u8; 3],
    len: U32,
    chunk: U32,
    block: U32,
}

/// A header that has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Bytes of payload; within the bounds of the kind.
    pub len: u32,
    /// See [`Kind`].
    pub chunk: u32,
    /// See [`Kind`].
    pub block: u32,
}

/// Why bytes are not a frame of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No such kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Reserved bytes that are not zero.
    #[error("reserved bytes of a frame are not zero")]
    Reserved,
    /// Longer or shorter than a frame of its kind can be.
    #[error("a {kind:?} frame cannot have {len} bytes")]
    Length {
        /// The frame's kind.
        kind: Kind,
        /// The length that it claims.
        len: u32,
    },
    /// The connection does not begin with our magic number.
    #[error("the connection does not speak FaaSNet")]
    Magic,
    /// No version in common.
    #[error("the neighbour speaks protocol versions {min} to {max}; this node speaks {MIN_VERSION} to {MAX_VERSION}")]
    Version {
        /// The neighbour's lowest.
        min: u16,
        /// The neighbour's highest.
        max: u16,
    },
    /// A field that contradicts another.
    #[error("malformed {0:?} frame: {1}")]
    Malformed(Kind, &'static str),
}

impl Frame {
    /// A frame of `kind` with `len` bytes of payload.
    pub fn new(kind: Kind, len: u32, chunk: u32, block: u32) -> Self {
        Self { kind, len, chunk, block }
    }

    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let header = FrameHeader::read_from_bytes(bytes).map_err(|_| WireError::Reserved)?;
        let kind = Kind::from_byte(header.kind)?;
        if header.reserved != [0; 3] {
            return Err(WireError::Reserved);
        }
        let frame = Self::new(kind, header.len.get(), header.chunk.get(), header.block.get());
        if !kind.lengths().contains(&frame.len) {
            return Err(WireError::Length { kind, len: frame.len });
        }
        Ok(frame)
    }

    /// The header's bytes.
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let header = FrameHeader {
            kind: self.kind as u8,
            reserved: [0; 3],
            len: U32::new(self.len),
            chunk: U32::new(self.chunk),
            block: U32::new(self.block),
        };
        zerocopy::transmute!(header)
    }

    /// Bytes of header and payload.
    pub fn total_bytes(&self) -> usize {
        HEADER_BYTES + self.len as usize
    }

    /// The frame's bytes: header and `payload`, whose length must be the frame's.
    pub fn with_payload(&self, payload: &[u8]) -> Vec<u8> {
        assert_eq!(payload.len(), self.len as usize, "a frame's payload has the length that its header says");
        let mut bytes = Vec::with_capacity(self.total_bytes());
        bytes.extend_from_slice(&self.header());
        bytes.extend_from_slice(payload);
        bytes
    }
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Self, WireError> {
        const ALL: [Kind; 12] = [
            Kind::Hello,
            Kind::Welcome,
            Kind::Busy,
            Kind::Refused,
            Kind::Descriptor,
            Kind::Want,
            Kind::Block,
            Kind::Waiting,
            Kind::Path,
            Kind::Request,
            Kind::Stop,
            Kind::Challenge,
        ];
        ALL.into_iter().find(|kind| *kind as u8 == byte).ok_or(WireError::Kind(byte))
    }

    fn lengths(self) -> std::ops::RangeInclusive<u32> {
        match self {
            Self::Hello => HELLO_BYTES as u32..=HELLO_BYTES as u32,
            Self::Challenge => CHALLENGE_BYTES as u32..=CHALLENGE_BYTES as u32,
            Self::Block => 1..=MAX_BLOCK_BYTES,
            Self::Waiting | Self::Request | Self::Stop => 0..=0,
            Self::Welcome | Self::Path => 0..=(MAX_PATH * 16) as u32,
            Self::Busy => 0..=(MAX_BUSY_ADDRESSES * ADDRESS_BYTES) as u32,
            Self::Refused => 0..=1024,
            Self::Descriptor => 1..=MAX_CONTROL_BYTES,
            Self::Want => 0..=MAX_CONTROL_BYTES,
        }
    }
}

/// Bytes of an encoded socket address: IPv6 (or mapped IPv4) address and port.
pub const ADDRESS_BYTES: usize = 18;

/// Payload of `Hello`, as it travels.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HelloFrame {
    magic: U32,
    min_version: U16,
    max_version: U16,
    function: [u8; 16],
    image: [u8; 32],
    node: [u8; 16],
    term: U64,
    epoch: U64,
    ticket: [u8; TICKET_BYTES],
    address: [u8; ADDRESS_BYTES],
    stripe: u8,
    stripes: u8,
    flags: u8,
    reserved: [u8; 3],
    /// Last, so that what is before it is what it covers.
    proof: [u8; SIGNATURE_BYTES],
}

const HELLO_BYTES: usize = size_of::<HelloFrame>();
/// A proof that is still to be made.
pub const UNSIGNED: [u8; SIGNATURE_BYTES] = [0; SIGNATURE_BYTES];
const HELLO_CONTEXT: &[u8] = b"faasnet hello 2";

/// Payload of `Challenge`, as it travels.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChallengeFrame {
    magic: U32,
    min_version: U16,
    max_version: U16,
    node: [u8; 16],
    nonce: [u8; NONCE_BYTES],
}

const CHALLENGE_BYTES: usize = size_of::<ChallengeFrame>();

/// What a parent says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge {
    /// Who the parent is.
    pub node: NodeId,
    /// Never used twice, not to be foreseen.
    pub nonce: [u8; NONCE_BYTES],
}

impl Challenge {
    /// The frame's bytes, header included.
    pub fn encode(&self) -> Vec<u8> {
        let payload = ChallengeFrame {
            magic: U32::new(MAGIC),
            min_version: U16::new(MIN_VERSION),
            max_version: U16::new(MAX_VERSION),
            node: self.node.0,
            nonce: self.nonce,
        };
        Frame::new(Kind::Challenge, CHALLENGE_BYTES as u32, 0, 0).with_payload(payload.as_bytes())
    }

    /// Reads the payload of a `Challenge` frame.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let challenge = ChallengeFrame::ref_from_bytes(payload)
            .map_err(|_| WireError::Malformed(Kind::Challenge, "wrong length"))?;
        check_version(challenge.magic, challenge.min_version, challenge.max_version)?;
        Ok(Self { node: NodeId(challenge.node), nonce: challenge.nonce })
    }
}

fn check_version(magic: U32, min: U16, max: U16) -> Result<(), WireError> {
    if magic.get() != MAGIC {
        return Err(WireError::Magic);
    }
    let (min, max) = (min.get(), max.get());
    if min > MAX_VERSION || max < MIN_VERSION {
        return Err(WireError::Version { min, max });
    }
    Ok(())
}

/// What a child says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Whose function.
    pub function: FunctionId,
    /// Which image.
    pub image: ImageId,
    /// Who asks.
    pub node: NodeId,
    /// The controller's term of the plan that the child follows.
    pub term: u64,
    /// The epoch of that plan.
    pub epoch: u64,
    /// The permission.
    pub ticket: Ticket,
    /// Where the child itself can be reached, for `Busy`.
    pub address: SocketAddr,
    /// Which stripe this connection is for.
    pub stripe: Stripe,
    /// Into how many stripes the image is cut: 1 or 2.
    pub stripes: u8,
    /// The child has no descriptor yet.
    pub wants_descriptor: bool,
    /// The node's signature over [`Hello::message`]; [`UNSIGNED`] before.
    pub proof: [u8; SIGNATURE_BYTES],
}

impl Hello {
    /// The frame's bytes, header included.
    pub fn encode(&self) -> Vec<u8> {
        Frame::new(Kind::Hello, HELLO_BYTES as u32, 0, 0).with_payload(self.payload().as_bytes())
    }

    /// What the node signs: the parent's challenge and everything that `Hello` says.
    pub fn message(&self, challenge: &Challenge) -> Vec<u8> {
        let payload = self.payload();
        let said = &payload.as_bytes()[..HELLO_BYTES - SIGNATURE_BYTES];
        [HELLO_CONTEXT, &challenge.node.0, &challenge.nonce, said].concat()
    }

    fn payload(&self) -> HelloFrame {
        HelloFrame {
            magic: U32::new(MAGIC),
            min_version: U16::new(MIN_VERSION),
            max_version: U16::new(MAX_VERSION),
            function: self.function.0,
            image: self.image.0,
            node: self.node.0,
            term: U64::new(self.term),
            epoch: U64::new(self.epoch),
            ticket: *self.ticket.as_bytes(),
            address: encode_address(self.address),
            stripe: self.stripe.0,
            stripes: self.stripes,
            flags: if self.wants_descriptor { HELLO_WANTS_DESCRIPTOR } else { 0 },
            reserved: [0; 3],
            proof: self.proof,
        }
    }

    /// Reads the payload of a `Hello` frame.
    pub fn parse(payload: &[u8]) -> Result<Self, WireError> {
        let malformed = |what| WireError::Malformed(Kind::Hello, what);
        let hello = HelloFrame::ref_from_bytes(payload).map_err(|_| malformed("wrong length"))?;
        check_version(hello.magic, hello.min_version, hello.max_version)?;
        if !(1..=2).contains(&hello.stripes) || hello.stripe >= hello.stripes {
            return Err(malformed("no such stripe"));
        }
        if hello.flags & !HELLO_WANTS_DESCRIPTOR != 0 || hello.reserved != [0; 3] {
            return Err(malformed("unknown flags"));
        }
        Ok(Self {
            function: FunctionId(hello.function),
            image: ImageId(hello.image),
            node: NodeId(hello.node),
            term: hello.term.get(),
            epoch: hello.epoch.get(),
            ticket: Ticket::from_bytes(hello.ticket),
            address: decode_address(&hello.address),
            stripe: Stripe(hello.stripe),
            stripes: hello.stripes,
            wants_descriptor: hello.flags & HELLO_WANTS_DESCRIPTOR != 0,
            proof: hello.proof,
        })
    }
}

/// Why a parent refuses a child; travels in `block` of a `Refused` frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// The ticket does not permit it.
    Ticket = 1,
    /// The parent does not have this function (any more, or not yet).
    UnknownFunction = 2,
    /// The child stands above the parent: serving it would close a cycle.
    Cycle = 3,
    /// The child's frames make no sense, or its version is not spoken here.
    Protocol = 4,
    /// The parent is stopping.
    Stopping = 5,
    /// A reason that a later version knows.
    Other = 6,
}

impl Refusal {
    /// The refusal that a frame carries.
    pub fn from_frame(frame: &Frame) -> Self {
        match frame.block {
            1 => Self::Ticket,
            2 => Self::UnknownFunction,
            3 => Self::Cycle,
            4 => Self::Protocol,
            5 => Self::Stopping,
            _ => Self::Other,
        }
    }

    /// The frame's bytes, with a text for the child's log (cut at 1,024 bytes).
    pub fn encode(self, text: &str) -> Vec<u8> {
        let text = &text.as_bytes()[..text.len().min(1024)];
        Frame::new(Kind::Refused, text.len() as u32, 0, self as u32).with_payload(text)
    }
}

/// `Welcome` or `Path` with the ids from the root to the sender.
pub fn encode_path(kind: Kind, path: &[NodeId]) -> Vec<u8> {
    let path = &path[path.len().saturating_sub(MAX_PATH)..];
    let payload: Vec<u8> = path.iter().flat_map(|node| node.0).collect();
    Frame::new(kind, payload.len() as u32, 0, 0).with_payload(&payload)
}

/// Reads the payload of `Welcome` or `Path`.
pub fn parse_path(kind: Kind, payload: &[u8]) -> Result<Vec<NodeId>, WireError> {
    let (ids, rest) = payload.as_chunks::<16>();
    if !rest.is_empty() {
        return Err(WireError::Malformed(kind, "a piece of an id"));
    }
    Ok(ids.iter().map(|id| NodeId(*id)).collect())
}

/// `Busy` with the addresses of the sender's children (at most [`MAX_BUSY_ADDRESSES`]).
pub fn encode_busy(children: impl IntoIterator<Item = SocketAddr>) -> Vec<u8> {
    let payload: Vec<u8> = children.into_iter().take(MAX_BUSY_ADDRESSES).flat_map(encode_address).collect();
    Frame::new(Kind::Busy, payload.len() as u32, 0, 0).with_payload(&payload)
}

/// Reads the payload of `Busy`.
pub fn parse_busy(payload: &[u8]) -> Result<Vec<SocketAddr>, WireError> {
    let (addresses, rest) = payload.as_chunks::<ADDRESS_BYTES>();
    if !rest.is_empty() {
        return Err(WireError::Malformed(Kind::Busy, "a piece of an address"));
    }
    Ok(addresses.iter().map(decode_address).collect())
}

/// `Waiting`.
pub fn encode_waiting(reason: WaitingFor) -> [u8; HEADER_BYTES] {
    Frame::new(Kind::Waiting, 0, reason as u32, 0).header()
}

impl WaitingFor {
    /// What a `Waiting` frame says; anything unknown counts as [`WaitingFor::Upstream`], the impatient one.
    pub fn from_frame(frame: &Frame) -> Self {
        match frame.chunk {
            1 => Self::Origin,
            2 => Self::Progress,
            _ => Self::Upstream,
        }
    }
}

/// `Descriptor` frames that carry `bytes`.
pub fn encode_descriptor(bytes: &[u8]) -> Vec<u8> {
    let mut frames = Vec::with_capacity(bytes.len() + 1024);
    for (part, payload) in bytes.chunks(MAX_CONTROL_BYTES as usize).enumerate() {
        let offset = part * MAX_CONTROL_BYTES as usize;
        let frame = Frame::new(Kind::Descriptor, payload.len() as u32, offset as u32, bytes.len() as u32);
        frames.extend_from_slice(&frame.with_payload(payload));
    }
    frames
}

/// `Want` frames for a bitmap in which bit `n % 8` of byte `n / 8` says that block `n` is missing.
pub fn encode_want(bitmap: &[u8]) -> Vec<u8> {
    let parts = bitmap.len().div_ceil(MAX_CONTROL_BYTES as usize).max(1);
    let mut frames = Vec::with_capacity(bitmap.len() + parts * HEADER_BYTES);
    for part in 0..parts {
        let start = part * MAX_CONTROL_BYTES as usize;
        let payload = &bitmap[start..bitmap.len().min(start + MAX_CONTROL_BYTES as usize)];
        let last = u32::from(part + 1 == parts);
        frames.extend_from_slice(
            &Frame::new(Kind::Want, payload.len() as u32, start as u32 * 8, last).with_payload(payload),
        );
    }
    frames
}

fn encode_address(address: SocketAddr) -> [u8; ADDRESS_BYTES] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_le_bytes());
    bytes
}

fn decode_address(bytes: &[u8; ADDRESS_BYTES]) -> SocketAddr {
    let mut ip = [0; 16];
    ip.copy_from_slice(&bytes[..16]);
    let ip = Ipv6Addr::from(ip);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    SocketAddr::new(ip, u16::from_le_bytes([bytes[16], bytes[17]]))
}
