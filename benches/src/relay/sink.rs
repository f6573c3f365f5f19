//! The children: blocking threads that take what the relay sends and throw it away in the kernel (MSG_TRUNC), counting it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use faasnet_api::{NodeId, Stripe};
use faasnet_relay::wire::{self, Challenge, Frame, HEADER_BYTES, Hello, Kind, UNSIGNED};
use rustix::net::RecvFlags;

use super::gate::{Gate, PATIENCE};
use super::network::{Network, Place};
use super::origin::{Protocol, read_head};
use super::process::{FUNCTION, KEY, ticket};
use super::stream::Stream;

/// A running child.
pub(crate) struct Sink {
    thread: JoinHandle<Result<Instant>>,
}

/// What a child is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Character {
    pub(crate) place: Place,
    pub(crate) node: NodeId,
    /// It reads no faster than this.
    pub(crate) bytes_per_second: Option<f64>,
}

impl Sink {
    /// Connects to the relay at `address` and takes the stream when the gate opens.
    pub(crate) fn start(
        network: &Network,
        character: Character,
        protocol: Protocol,
        address: SocketAddr,
        stream: Stream,
        gate: Arc<Gate>,
    ) -> Result<Self> {
        let thread = network.spawn(character.place, move || take(address, character, protocol, &stream, &gate))?;
        Ok(Self { thread })
    }

    /// When it had everything.
    pub(crate) fn join(self) -> Result<Instant> {
        self.thread.join().map_err(|_| anyhow::anyhow!("a child panicked"))?
    }
}

fn take(
    address: SocketAddr,
    character: Character,
    protocol: Protocol,
    stream: &Stream,
    gate: &Gate,
) -> Result<Instant> {
    let mut socket = TcpStream::connect(address).with_context(|| format!("a child cannot connect to {address}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    if protocol == Protocol::Frames {
        greet(&mut socket, character.node, stream)?;
    }
    gate.arrive();
    ensure!(gate.wait_open(PATIENCE), "the gate did not open");
    if protocol == Protocol::Http {
        socket.write_all(b"GET /blob HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")?;
        let head = read_head(&mut socket)?;
        ensure!(head.starts_with("HTTP/1.1 200"), "the relay answered {:?}", head.lines().next());
    }
    let begin = Instant::now();
    let mut scratch = vec![0; stream.frame_bytes()];
    for taken in 0..stream.frames() {
        match protocol {
            Protocol::Frames => take_block(&mut socket, &mut scratch)?,
            Protocol::Raw | Protocol::Http => discard(&socket, &mut scratch[..])?,
        }
        if let Some(rate) = character.bytes_per_second {
            let due = Duration::from_secs_f64(f64::from(taken + 1) * stream.frame_bytes() as f64 / rate);
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
    }
    Ok(Instant::now())
}

/// The child's part of the handshake: everything is wanted.
fn greet(socket: &mut TcpStream, node: NodeId, stream: &Stream) -> Result<()> {
    let (frame, payload) = read_frame(socket)?;
    ensure!(frame.kind == Kind::Challenge, "the relay began with {:?}", frame.kind);
    let image = stream.descriptor.id();
    let mut hello = Hello {
        function: *FUNCTION,
        image,
        node,
        term: 1,
        epoch: 1,
        ticket: ticket(node, image),
        address: SocketAddr::from(([0, 0, 0, 0], 0)),
        stripe: Stripe(0),
        stripes: 1,
        wants_descriptor: false,
        proof: UNSIGNED,
    };
    hello.proof = KEY.sign(&hello.message(&Challenge::parse(&payload)?));
    socket.write_all(&hello.encode())?;
    while read_frame(socket)?.0.kind != Kind::Welcome {}
    // Bits beyond the last block are ignored.
    let want = vec![0xff; stream.frames().div_ceil(8) as usize];
    Ok(socket.write_all(&wire::encode_want(&want))?)
}

/// One frame with its payload.
pub(crate) fn read_frame(socket: &mut TcpStream) -> Result<(Frame, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    socket.read_exact(&mut header).context("the connection ended")?;
    let frame = Frame::parse(&header)?;
    let mut payload = vec![0; frame.len as usize];
    socket.read_exact(&mut payload).context("the connection ended inside a frame")?;
    Ok((frame, payload))
}

/// Takes frames up to and with the next block.
fn take_block(socket: &mut TcpStream, scratch: &mut [u8]) -> Result<()> {
    loop {
        let mut header = [0; HEADER_BYTES];
        socket.read_exact(&mut header).context("the relay hung up")?;
        let frame = Frame::parse(&header)?;
        discard(socket, &mut scratch[..frame.len as usize])?;
        match frame.kind {
            Kind::Block => return Ok(()),
            Kind::Waiting | Kind::Path => {}
            other => bail!("the relay sent {other:?}"),
        }
    }
}

/// Throws as many bytes away as `scratch` is long; nothing is written into it.
pub(crate) fn discard(socket: &TcpStream, scratch: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < scratch.len() {
        let flags = RecvFlags::TRUNC | RecvFlags::WAITALL;
        match rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut scratch[done..], flags)) {
            Ok((_, 0)) => bail!("the relay hung up"),
            Ok((_, moved)) => done += moved,
            Err(error) => return Err(error).context("a child's connection broke"),
        }
    }
    Ok(())
}
