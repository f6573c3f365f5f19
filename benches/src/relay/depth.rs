//! What relays in a row add to the last byte: pairs of runs over links of one rate, the child at the origin, and below all relays.
//!
//! Every relay is a process and a host of its own, with the agent's worker. Owned by one command; nothing remains of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use faasnet_api::NodeId;
use serde::Serialize;

use super::environment;
use super::gate::Gate;
use super::measure::Lab;
use super::network::{MOST_RELAYS, Network, Place};
use super::origin::{Origin, Protocol};
use super::process::{CHILD_NODES, Job, ORIGIN_NODE, RelayProcess};
use super::report::median;
use super::sink::{Character, Sink};
use super::stream::Stream;
use super::{Engine, Environment, Knobs, Mode};

/// What to measure.
#[derive(Debug, Clone)]
pub struct DepthOptions {
    /// How many relays there are in the row.
    pub relays: usize,
    /// What each of them is; one of ours.
    pub engine: Engine,
    /// What they do with what passes.
    pub mode: Mode,
    /// How often.
    pub pairs: usize,
    /// Of every link.
    pub link_bits_per_s: u64,
    /// Set from outside: nothing more is begun, what was made is removed.
    pub stop: Arc<AtomicBool>,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub struct DepthReport {
    /// The machine.
    pub environment: Environment,
    /// Which relays.
    pub engine: Engine,
    /// What they did.
    pub mode: Mode,
    /// How many in a row.
    pub relays: usize,
    /// Of every link; `None`: loopback.
    pub link_bits_per_s: Option<u64>,
    /// Of the image: what a relay has to have of it before it passes it on.
    pub block_bytes: u32,
    /// Pairs of runs.
    pub pairs: usize,
    /// Until the last byte at a child of the origin: median.
    pub direct_s: f64,
    /// The same below the last relay.
    pub relayed_s: f64,
    /// What the row adds: median of the pairs' differences.
    pub added_ms: f64,
    /// The least of them.
    pub added_ms_min: f64,
    /// The most of them.
    pub added_ms_max: f64,
    /// By relay.
    pub added_ms_per_relay: f64,
    /// What is good enough at 1 Gbit/s.
    pub most_ms: f64,
    /// Whether it is.
    pub met: bool,
    /// What to know about the figures.
    pub notes: Vec<String>,
}

/// About half a second at 1 Gbit/s.
const GIB: f64 = 1.0 / 16.0;
/// Six relays may add 15 ms.
const MOST_MS_PER_RELAY: f64 = 2.5;

/// Measures. `progress` hears one line per pair. Leaves no namespace, process or file behind.
pub fn run(options: &DepthOptions, mut progress: impl FnMut(&str)) -> Result<DepthReport> {
    let DepthOptions { relays, engine, mode, pairs, link_bits_per_s, .. } = *options;
    ensure!((1..=MOST_RELAYS).contains(&relays), "{relays} relays; a row has 1 to {MOST_RELAYS}");
    ensure!(pairs > 0, "no pairs of runs measure nothing");
    ensure!(engine.is_ours(), "{engine} cannot stand in a row: only the agent's worker speaks with itself");
    let folder = tempfile::Builder::new().prefix("faasnet-bench-").tempdir().context("cannot make a folder")?;
    let (knobs, mut notes) = (Knobs::default(), Vec::new());
    let network = Network::row(relays, &knobs, &mut notes)?;
    network.shape_row(link_bits_per_s).context("cannot shape the links of the row")?;
    let stream = Stream::new(GIB, None)?;
    let lab = Lab { network, cores: environment::cores()?, folder: folder.path().to_owned(), stream, knobs };
    let environment = Environment::read(&lab, pairs)?;
    let (mut direct, mut relayed) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        ensure!(!options.stop.load(Ordering::Relaxed), "interrupted");
        direct.push(last_byte_s(&lab, engine, mode, 0).context("the child of the origin")?);
        relayed.push(last_byte_s(&lab, engine, mode, relays).context("the child below the row")?);
        progress(&format!(
            "pair {} of {pairs}: direct {:.4} s, below {relays} relays {:.4} s",
            pair + 1,
            direct[pair],
            relayed[pair]
        ));
    }
    let added: Vec<f64> = direct.iter().zip(&relayed).map(|(direct, relayed)| (relayed - direct) * 1e3).collect();
    let (added_ms, most_ms) = (median(&added), MOST_MS_PER_RELAY * relays as f64);
    Ok(DepthReport {
        environment,
        engine,
        mode,
        relays,
        link_bits_per_s: (!lab.network.is_loopback()).then_some(link_bits_per_s),
        block_bytes: lab.stream.descriptor.geometry().block_bytes(),
        pairs,
        direct_s: median(&direct),
        relayed_s: median(&relayed),
        added_ms,
        added_ms_min: added.iter().copied().fold(f64::INFINITY, f64::min),
        added_ms_max: added.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        added_ms_per_relay: added_ms / relays as f64,
        most_ms,
        met: added_ms <= most_ms,
        notes,
    })
}

/// From the start until a child below `relays` relays has everything.
fn last_byte_s(lab: &Lab, engine: Engine, mode: Mode, relays: usize) -> Result<f64> {
    let gate = Arc::new(Gate::default());
    let network = &lab.network;
    let origin = Origin::start(network, Protocol::Frames, lab.stream.clone(), Arc::clone(&gate))?;
    let mut row: Vec<RelayProcess> = Vec::new();
    let mut above = origin.address;
    for index in 0..relays {
        let job = Job {
            engine,
            mode,
            core: lab.cores.turn(index),
            gib: lab.stream.gib(),
            origin: above,
            node: node(index + 1),
            upstream: node(index),
            children: vec![if index + 1 == relays { CHILD_NODES[0] } else { node(index + 2) }],
            folder: lab.folder.clone(),
            knobs: lab.knobs.clone(),
        };
        let relay = RelayProcess::start(network, Place::relay(index), &job)?;
        let below = if index + 1 == relays { Place::Left } else { Place::relay(index + 1) };
        above = SocketAddr::new(network.address(Place::relay(index), below), relay.port());
        row.push(relay);
    }
    // Without relays the child stands where the first of them would.
    let place = if relays == 0 { Place::Relay } else { Place::Left };
    let child = Character { place, node: CHILD_NODES[0], bytes_per_second: None };
    let sink = Sink::start(network, child, Protocol::Frames, above, lab.stream.clone(), Arc::clone(&gate))?;
    gate.wait_ready(2)?;
    let start = gate.open();
    let end = sink.join()?;
    row.iter_mut().try_for_each(|relay| relay.finish().map(drop))?;
    drop(row);
    origin.join()?;
    Ok((end - start).as_secs_f64())
}

/// The origin, and the relays below it.
fn node(index: usize) -> NodeId {
    match index {
        0 => ORIGIN_NODE,
        index => NodeId([0x10 + index as u8; 16]),
    }
}

impl DepthReport {
    /// What a person reads.
    pub fn lines(&self) -> Vec<String> {
        let Environment { kernel, cores, load, .. } = &self.environment;
        let rate = self.link_bits_per_s.map_or("loopback".into(), |bits| format!("{} Mbit/s", bits / 1_000_000));
        let mut lines = vec![
            format!(
                "{} relays in a row ({}, {}), {rate}, blocks of {} bytes; {} pairs; Linux {kernel}, {cores} cores, load {load}",
                self.relays, self.engine, self.mode, self.block_bytes, self.pairs
            ),
            format!(
                "last byte: {:.4} s from the origin, {:.4} s below the row (medians)",
                self.direct_s, self.relayed_s
            ),
            format!(
                "added: {:.2} ms ({:.2} to {:.2}), {:.2} ms by relay; at 1 Gbit/s up to {:.1} ms are good enough: {}",
                self.added_ms,
                self.added_ms_min,
                self.added_ms_max,
                self.added_ms_per_relay,
                self.most_ms,
                if self.met { "yes" } else { "NO" }
            ),
        ];
        lines.extend(self.notes.iter().cloned());
        lines
    }
}
