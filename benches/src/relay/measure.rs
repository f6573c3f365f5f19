//! One run of one row, and the size of a fragment on this network.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use faasnet_ring::{Outcome, Pipe, socket};

use super::environment::{self, Cores};
use super::gate::{Gate, PATIENCE};
use super::knobs::Knobs;
use super::memory::Peak;
use super::network::{Network, Place};
use super::nginx::Nginx;
use super::origin::{Origin, Protocol};
use super::process::{CHILD_NODES, Job, Ledger, ORIGIN_NODE, RELAY_NODE, RelayProcess};
use super::rows::{Engine, Mode};
use super::sink::{Character, Sink};
use super::stream::{FRAME_BYTES, Stream};

/// What every run needs.
pub(crate) struct Lab {
    pub(crate) network: Network,
    pub(crate) cores: Cores,
    pub(crate) folder: PathBuf,
    pub(crate) stream: Stream,
    pub(crate) knobs: Knobs,
}

/// What one run came to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) gib_per_s: f64,
    pub(crate) cpu_s_per_gib: f64,
    pub(crate) copies_per_byte: Option<f64>,
    /// Without file cache; `None`: not one process.
    pub(crate) peak_anonymous_bytes: Option<u64>,
    /// From the start until the first child had everything.
    pub(crate) first_child_s: f64,
}

/// The relay of one run.
enum Relay {
    Process(RelayProcess),
    Nginx(Nginx),
}

/// Runs one row once, with both children as fast as they can be.
pub(crate) fn one(lab: &Lab, engine: Engine, mode: Mode) -> Result<Sample> {
    let places = if engine == Engine::Direct { &[][..] } else { &[Place::Left, Place::Right] };
    let child = |(place, node): (&Place, _)| Character { place: *place, node, bytes_per_second: None };
    let children: Vec<_> = places.iter().zip(CHILD_NODES).map(child).collect();
    with_children(lab, engine, mode, &children)
}

/// Runs one row once. A child with a rate is not waited for.
pub(crate) fn with_children(lab: &Lab, engine: Engine, mode: Mode, children: &[Character]) -> Result<Sample> {
    if mode != Mode::Forward {
        environment::touch_memory(lab.stream.wire_bytes())?;
    }
    let gate = Arc::new(Gate::default());
    let protocol = match engine {
        ours if ours.is_ours() => Protocol::Frames,
        Engine::NginxCache => Protocol::Http,
        _ => Protocol::Raw,
    };
    let origin = Origin::start(&lab.network, protocol, lab.stream.clone(), Arc::clone(&gate))?;
    let mut relay = Relay::start(lab, engine, mode, &origin, children)?;
    let sinks: Vec<_> = children
        .iter()
        .map(|child| {
            let (stream, gate) = (lab.stream.clone(), Arc::clone(&gate));
            let address = SocketAddr::new(lab.network.address(Place::Relay, child.place), relay.port());
            Ok((child, Sink::start(&lab.network, *child, protocol, address, stream, gate)?))
        })
        .collect::<Result<_>>()?;
    gate.wait_ready(children.len() + usize::from(protocol != Protocol::Http))?;
    let cpu_before = relay.cpu_seconds()?;
    let memory = relay.pid().map(Peak::of);
    let start = gate.open();
    let (waited, left): (Vec<_>, Vec<_>) = sinks.into_iter().partition(|(child, _)| child.bytes_per_second.is_none());
    let ends: Vec<Instant> = waited.into_iter().map(|(_, sink)| sink.join()).collect::<Result<_>>()?;
    let (cpu_after, ledger) = relay.finish()?;
    let took = start.elapsed().as_secs_f64();
    let peak_anonymous_bytes = memory.and_then(Peak::bytes);
    // Children that are not waited for lose their connection with the relay.
    drop(relay);
    // Ignored: that is what they complain about.
    left.into_iter().for_each(|(_, sink)| drop(sink.join()));
    origin.join()?;
    let first = ends.iter().min().map_or(took, |end| (*end - start).as_secs_f64());
    Ok(Sample {
        gib_per_s: lab.stream.gib() / took,
        cpu_s_per_gib: (cpu_after - cpu_before) / lab.stream.gib(),
        copies_per_byte: ledger.map(|ledger| ledger.copied_bytes as f64 / ledger.upstream_bytes.max(1) as f64),
        peak_anonymous_bytes,
        first_child_s: first,
    })
}

impl Relay {
    fn start(lab: &Lab, engine: Engine, mode: Mode, origin: &Origin, children: &[Character]) -> Result<Self> {
        if engine == Engine::NginxCache {
            return Ok(Self::Nginx(Nginx::start(&lab.network, &lab.cores, &lab.folder, origin.address)?));
        }
        let job = Job {
            engine,
            mode,
            core: lab.cores.relay,
            gib: lab.stream.gib(),
            origin: origin.address,
            node: RELAY_NODE,
            upstream: ORIGIN_NODE,
            children: children.iter().map(|child| child.node).collect(),
            folder: lab.folder.clone(),
            knobs: lab.knobs.clone(),
        };
        Ok(Self::Process(RelayProcess::start(&lab.network, Place::Relay, &job)?))
    }

    fn port(&self) -> u16 {
        match self {
            Self::Process(process) => process.port(),
            Self::Nginx(nginx) => nginx.port(),
        }
    }

    fn pid(&self) -> Option<u32> {
        match self {
            Self::Process(process) => Some(process.pid()),
            Self::Nginx(_) => None,
        }
    }

    fn cpu_seconds(&mut self) -> Result<f64> {
        match self {
            Self::Process(process) => process.cpu_seconds(),
            Self::Nginx(nginx) => nginx.cpu_seconds(),
        }
    }

    /// Waits until everything is passed on and kept.
    fn finish(&mut self) -> Result<(f64, Option<Ledger>)> {
        match self {
            Self::Process(process) => process.finish().map(|(cpu, ledger)| (cpu, Some(ledger))),
            Self::Nginx(nginx) => Ok((nginx.cpu_seconds()?, None)),
        }
    }
}

/// Bytes in one fragment of a socket buffer at the relay: what `splice` moves, by the slots that it fills.
pub(crate) fn fragment_bytes(lab: &Lab) -> Result<u64> {
    let gate = Arc::new(Gate::default());
    let origin = Origin::start(&lab.network, Protocol::Raw, lab.stream.clone(), Arc::clone(&gate))?;
    let (address, bytes) = (origin.address, lab.stream.wire_bytes());
    let measured = lab.network.run(Place::Relay, move || {
        let mut connection = TcpStream::connect(address)?;
        gate.wait_ready(1)?;
        gate.open();
        // The first fragments are those of a slow start.
        connection.set_read_timeout(Some(PATIENCE))?;
        let (mut buffer, mut skipped) = (vec![0; FRAME_BYTES], 0);
        while skipped < (bytes / 2).min(128 << 20) {
            let moved = connection.read(&mut buffer)?;
            ensure!(moved > 0, "the origin hung up");
            skipped += moved as u64;
        }
        connection.set_nonblocking(true)?;
        // Whole portions, not what has just come.
        std::thread::sleep(Duration::from_millis(20));
        let pipe = Pipe::new(PROBE_SLOTS * 4096).context("cannot make a pipe")?;
        let deadline = Instant::now() + PATIENCE;
        // Only a full pipe tells: it is full when bytes stay in the socket.
        loop {
            ensure!(Instant::now() < deadline, "the origin does not fill a pipe of {} slots", pipe.slots());
            match pipe.fill_from_socket(&connection, 1 << 20) {
                Outcome::WouldBlock if socket::readable_bytes(&connection)? > 0 => break,
                Outcome::Moved(_) | Outcome::WouldBlock => {}
                other => bail!("the origin does not fill a pipe of {} slots: {other:?}", pipe.slots()),
            }
        }
        Ok((pipe.buffered() / pipe.slots()) as u64)
    });
    // Ignored: the probe hangs up in the middle.
    let _ = origin.join();
    measured
}

const PROBE_SLOTS: usize = 64;
