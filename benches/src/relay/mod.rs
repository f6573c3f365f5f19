//! The relay bench: origin → relay → two children, once per row and run, all rows of one run after the other.
//!
//! The relay is a process of its own, pinned to a core of its own; origin and children are threads of this process on the other cores.
//! Knows what to run and in which order; what a relay is lies in `process` and below.

pub mod depth;
pub mod environment;
mod gate;
pub mod knobs;
mod measure;
mod memory;
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
pub mod targets;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};

pub use environment::Environment;
pub use knobs::{Knobs, Setting, Sweep};
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
    /// What is not as it is by default.
    pub knobs: Knobs,
    /// One knob that takes several values, one after the other in each round.
    pub sweep: Option<Sweep>,
    /// Measure as well what a slow child costs its sibling.
    pub slow_child: bool,
    /// How often.
    pub runs: usize,
    /// Set from outside: nothing more is begun, what was made is removed.
    pub stop: Arc<AtomicBool>,
    /// Where kept files go; `None`: the system's folder for temporary files.
    pub folder: Option<PathBuf>,
}

/// The rows for one setting of the knobs.
struct Setup {
    setting: Option<Setting>,
    lab: Lab,
    fragment_bytes: u64,
    /// By combination.
    samples: Vec<Vec<Sample>>,
}

/// Measures. `progress` hears one line per finished run. Leaves no namespace, process or file behind.
pub fn run(options: &Options, mut progress: impl FnMut(&str)) -> Result<Report> {
    ensure!(options.runs > 0, "--runs 0 measures nothing");
    ensure!(options.gib > 0.0 && options.gib <= 64.0, "--gib {} is not between 0 and 64", options.gib);
    ensure!(
        options.sweep.is_none() || !options.slow_child,
        "--slow-child is measured at one setting; leave --sweep out"
    );
    ensure!(
        !options.slow_child || options.modes.is_empty() || options.modes.iter().any(|mode| *mode != Mode::Forward),
        "--slow-child needs a mode that keeps: where nothing is kept a child that falls behind holds the stream, by design; add --mode keep"
    );
    let (combinations, mut notes) = rows::choose(&options.engines, &options.modes)?;
    let files = options.folder.clone().unwrap_or_else(std::env::temp_dir);
    let files = tempfile::Builder::new()
        .prefix("faasnet-bench-")
        .tempdir_in(&files)
        .with_context(|| format!("cannot make a folder in {}", files.display()))?;
    let mut setups = set_up(options, files.path(), combinations.len(), &mut notes)?;
    let environment = Environment::read(&setups[0].lab, options.runs)?;
    for run in 0..options.runs {
        for index in 0..setups.len() {
            // Every run begins with another setting and another row, so that none always follows the same neighbour.
            let setup = (run + index) % setups.len();
            round(run, options, &combinations, &mut setups[setup], &mut progress)?;
        }
    }
    let slow_child = match options.slow_child {
        true => slow_child::measure(&mut setups[0].lab, &combinations, options.runs, &mut notes, &mut progress)?,
        false => Vec::new(),
    };
    let mut rows: Vec<Row> = setups.into_iter().flat_map(|setup| setup.rows(&combinations)).collect();
    report::compare(&mut rows);
    let targets = targets::judge(&rows, &slow_child);
    notes.extend(targets::note(&rows));
    Ok(Report { environment, rows, targets, slow_child, notes })
}

fn set_up(options: &Options, folder: &Path, combinations: usize, notes: &mut Vec<String>) -> Result<Vec<Setup>> {
    let settings = match &options.sweep {
        Some(sweep) => sweep.over(&options.knobs)?,
        None => vec![(None, options.knobs.clone())],
    };
    let cores = environment::cores()?;
    environment::pin_others(&cores)?;
    let mut setups = Vec::new();
    for (setting, knobs) in settings {
        for key in knobs.of_worker_only() {
            let note =
                format!("{key}: for splice and the other engines of ours; the rows to compare with do not have it");
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        let network = Network::star(&knobs, notes)?;
        let stream = Stream::new(options.gib, knobs.block_bytes)?;
        let lab = Lab { network, cores: cores.clone(), folder: folder.to_owned(), stream, knobs };
        let fragment_bytes = measure::fragment_bytes(&lab)?;
        setups.push(Setup { setting, lab, fragment_bytes, samples: vec![Vec::new(); combinations] });
    }
    Ok(setups)
}

/// Every row of one setting once.
fn round(
    run: usize,
    options: &Options,
    combinations: &[Combination],
    setup: &mut Setup,
    progress: &mut impl FnMut(&str),
) -> Result<()> {
    let at = setup.setting.as_ref().map(|Setting { key, value }| format!("{key}={value} ")).unwrap_or_default();
    for step in 0..combinations.len() {
        let index = (run + step) % combinations.len();
        let Combination { engine, mode } = combinations[index];
        ensure!(!options.stop.load(Ordering::Relaxed), "interrupted");
        let sample = measure::one(&setup.lab, engine, mode).with_context(|| format!("{at}{engine}, {mode}"))?;
        progress(&format!(
            "run {} of {}: {at}{engine:12} {mode:12} {:.2} GiB/s, {:.3} s/GiB",
            run + 1,
            options.runs,
            sample.gib_per_s,
            sample.cpu_s_per_gib
        ));
        setup.samples[index].push(sample);
    }
    Ok(())
}

impl Setup {
    fn rows(self, combinations: &[Combination]) -> Vec<Row> {
        let Self { setting, fragment_bytes, samples, .. } = self;
        let rows = combinations.iter().zip(samples);
        rows.map(|(combination, samples)| Row::new(*combination, setting.clone(), fragment_bytes, samples)).collect()
    }
}
