//! The origin: one blocking thread that sends the stream to whoever connects, as frames after a handshake, as raw bytes, or by HTTP.

use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faasnet_relay::wire::{self, Challenge, Kind, NONCE_BYTES, WaitingFor};

use super::gate::{Gate, PATIENCE};
use super::network::{Network, Place};
use super::process::ORIGIN_NODE;
use super::sink::read_frame;
use super::stream::Stream;

/// How origin, relay and children talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Our own: handshake, then frames.
    Frames,
    /// The frames' bytes as soon as the gate opens.
    Raw,
    /// GET and an answer whose body is the frames' bytes.
    Http,
}

/// A running origin.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    thread: JoinHandle<Result<()>>,
}

/// A waiting parent says that it lives this often.
const WAITING_EVERY: Duration = Duration::from_millis(20);

impl Origin {
    pub(crate) fn start(network: &Network, protocol: Protocol, stream: Stream, gate: Arc<Gate>) -> Result<Self> {
        let ip = network.address(Place::Origin, Place::Relay);
        let listener = network.run(Place::Origin, move || {
            TcpListener::bind(SocketAddr::new(ip, 0)).context("the origin cannot listen")
        })?;
        let address = listener.local_addr()?;
        let thread = network.spawn(Place::Origin, move || serve(&listener, protocol, &stream, &gate))?;
        Ok(Self { address, thread })
    }

    /// How it ended. Call it when the relay has all bytes or is gone: until then it may wait for a connection.
    pub(crate) fn join(self) -> Result<()> {
        self.thread.join().map_err(|_| anyhow::anyhow!("the origin panicked"))?
    }
}

fn serve(listener: &TcpListener, protocol: Protocol, stream: &Stream, gate: &Gate) -> Result<()> {
    let (mut socket, _) = listener.accept().context("the origin cannot accept")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    match protocol {
        Protocol::Frames => {
            greet(&mut socket)?;
            gate.arrive();
            while !gate.wait_open(WAITING_EVERY) {
                socket.write_all(&wire::encode_waiting(WaitingFor::Origin))?;
            }
        }
        Protocol::Raw => {
            gate.arrive();
            ensure!(gate.wait_open(PATIENCE), "the gate did not open");
        }
        Protocol::Http => {
            read_head(&mut socket)?;
            let length = stream.wire_bytes();
            write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
        }
    }
    send(&socket, stream).context("the relay stopped reading")?;
    // The relay closes when it has everything; closing first could look like a failure to it.
    if protocol == Protocol::Frames {
        // Ignored: a reset is as good an end here.
        let _ = std::io::copy(&mut socket, &mut std::io::sink());
    }
    Ok(())
}

/// The parent's part of the handshake.
fn greet(socket: &mut TcpStream) -> Result<()> {
    socket.write_all(&Challenge { node: ORIGIN_NODE, nonce: [0; NONCE_BYTES] }.encode())?;
    let (hello, _) = read_frame(socket)?;
    ensure!(hello.kind == Kind::Hello, "the relay began with {:?}", hello.kind);
    socket.write_all(&wire::encode_path(Kind::Welcome, &[ORIGIN_NODE]))?;
    loop {
        let (frame, _) = read_frame(socket)?;
        if frame.kind == Kind::Want && frame.block == 1 {
            return Ok(());
        }
    }
}

/// Reads an HTTP head to its empty line.
pub(crate) fn read_head(socket: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 16 << 10, "an endless HTTP head");
        socket.read_exact(&mut byte).context("an HTTP head broke off")?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Sends every frame from the same hot payload.
fn send(mut socket: &TcpStream, stream: &Stream) -> std::io::Result<()> {
    for index in 0..stream.frames() {
        let header = stream.header(index);
        let mut slices = [IoSlice::new(&header), IoSlice::new(&stream.payload)];
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let sent = socket.write_vectored(left)?;
            IoSlice::advance_slices(&mut left, sent);
        }
    }
    Ok(())
}
