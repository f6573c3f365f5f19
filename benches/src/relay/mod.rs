//! The relay bench: origin → relay → two children, once per row and run, all rows of one run after the other.
//!
//! The relay is a process of its own, pinned to a core of its own; origin and children are threads of this process on the other cores.
//! Knows what to run and in which order; what a relay is lies in `process` and below.

pub mod environment;
mod gate;
mod measure;
mod network;
mod nginx;
mod origin;
pub mod process;
pub mod report;
mod rows;
mod sink;
mod slow_child;
mod stream;
pub mod svg;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use faasnet_agent::WriteMode;

pub use environment::Environment;
pub use report::{Report, Row, SlowChild};
pub use rows::{Engine, Mode};

use measure::{Lab, Sample};
use network::Network;
use rows::Combination;
use stream::Stream;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which relays; empty: all that exist here.
    pub engines: Vec<Engine>,
    /// What they do with what passes; empty: everything.
    pub modes: Vec<Mode>,
    /// Payload per run.
    pub gib: f64,
    /// Of the links, where we make them.
    pub mtu: Option<u32>,
    /// Give the relay single packets, as a card that does not merge what it receives.
    pub single_packets: bool,
    /// Measure as well what a slow child costs its sibling.
    pub slow_child: bool,
    /// How often.
    pub runs: usize,
    /// Set from outside: nothing more is begun, what was made is removed.
    pub stop: Arc<AtomicBool>,
    /// Where kept files go; `None`: the system's folder for temporary files.
    pub folder: Option<PathBuf>,
    /// How the agent's worker writes what it keeps.
    pub store_write: WriteMode,
}

/// Measures. `progress` hears one line per finished run. Leaves no namespace, process or file behind.
pub fn run(options: &Options, mut progress: impl FnMut(&str)) -> Result<Report> {
    ensure!(options.runs > 0, "--runs 0 measures nothing");
    ensure!(options.gib > 0.0 && options.gib <= 64.0, "--gib {} is not between 0 and 64", options.gib);
    let (combinations, mut notes) = rows::choose(&options.engines, &options.modes)?;
    let cores = environment::cores()?;
    let files = options.folder.clone().unwrap_or_else(std::env::temp_dir);
    let files = tempfile::Builder::new()
        .prefix("faasnet-bench-")
        .tempdir_in(&files)
        .with_context(|| format!("cannot make a folder in {}", files.display()))?;
    let network = Network::up(options.mtu, options.single_packets, &mut notes)?;
    environment::pin_others(&cores)?;
    let stream = Stream::new(options.gib)?;
    let store_write = options.store_write;
    let mut lab = Lab { network, cores, folder: files.path().to_owned(), stream, store_write };
    let environment = Environment::read(&lab, options)?;
    let fragment_bytes = measure::fragment_bytes(&lab)?;
    let mut samples: Vec<Vec<Sample>> = combinations.iter().map(|_| Vec::new()).collect();
    for run in 0..options.runs {
        for step in 0..combinations.len() {
            // Every run begins with another row, so that none always follows the same neighbour.
            let index = (run + step) % combinations.len();
            let Combination { engine, mode } = combinations[index];
            ensure!(!options.stop.load(Ordering::Relaxed), "interrupted");
            let sample = measure::one(&lab, engine, mode).with_context(|| format!("{engine}, {mode}"))?;
            progress(&format!(
                "run {} of {}: {engine:12} {mode:12} {:.2} GiB/s, {:.3} s/GiB",
                run + 1,
                options.runs,
                sample.gib_per_s,
                sample.cpu_s_per_gib
            ));
            samples[index].push(sample);
        }
    }
    let rows =
        combinations.iter().zip(samples).map(|(combination, samples)| Row::new(*combination, fragment_bytes, samples));
    let mut rows: Vec<Row> = rows.collect();
    report::compare(&mut rows);
    let slow_child = match options.slow_child {
        true => slow_child::measure(&mut lab, &combinations, options.runs, &mut notes, &mut progress)?,
        false => Vec::new(),
    };
    Ok(Report { environment, rows, slow_child, notes })
}
