//! `faasnet bench …`: arguments and output; what is measured, and how, is `faasnet-benches`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use faasnet_agent::WriteMode;
use faasnet_benches::relay::{self, Engine, Mode, Options, Report};

use crate::cli::Global;
use crate::daemon::shutdown;
use crate::output;

/// `faasnet bench …`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Relay a stream to two children: the agent's worker against copy loops, tokio and nginx (two cores; better as root)
    #[command(after_help = "\
Engines: splice, copy (the agent's worker); copy-256k, copy-1m, tokio, nginx-cache, direct (to compare with)
Modes:   forward, keep, keep+xxh3, keep+blake3

As root the relay sits between network namespaces of its own, else on loopback. It has a core for itself.

Examples:
  faasnet bench relay
  faasnet bench relay --engine splice,copy-256k --mode keep+blake3 --runs 9 --svg relay.svg
  faasnet bench relay --slow-child --json")]
    Relay(RelayArgs),
    /// The relay's process; started by `bench relay`
    #[command(hide = true)]
    RelayProcess {
        /// What to do
        job: String,
    },
}

/// `faasnet bench relay`
#[derive(Debug, Args)]
pub struct RelayArgs {
    /// Which relays [default: all]
    #[arg(long, value_name = "ENGINE,…", value_delimiter = ',')]
    pub engine: Vec<Engine>,
    /// What they do with what passes [default: all]
    #[arg(long, value_name = "MODE,…", value_delimiter = ',')]
    pub mode: Vec<Mode>,
    /// How much flows per run
    #[arg(long, value_name = "GIB", default_value_t = 1.0)]
    pub gib: f64,
    /// The largest packet of the links [default: 1500]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<u32>,
    /// Give the relay single packets, as a card does that does not merge what it receives
    #[arg(long)]
    pub single_packets: bool,
    /// Measure also what a child at a tenth of the rate costs its sibling
    #[arg(long)]
    pub slow_child: bool,
    /// How often; the rows take turns
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub runs: usize,
    /// Where to put kept files [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How the agent's worker writes what it keeps, as the agent's flag of this name
    #[arg(long, value_name = "auto|direct|buffered", default_value_t = WriteMode::Auto)]
    pub store_write: WriteMode,
    /// Draw the table into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Runs the command.
pub async fn run(global: &Global, command: BenchCommand) -> Result<()> {
    let args = match command {
        BenchCommand::Relay(args) => args,
        BenchCommand::RelayProcess { job } => {
            return tokio::task::spawn_blocking(move || relay::process::main(&job))
                .await
                .context("the relay panicked")?;
        }
    };
    let options = Options {
        engines: args.engine,
        modes: args.mode,
        gib: args.gib,
        mtu: args.mtu,
        single_packets: args.single_packets,
        slow_child: args.slow_child,
        runs: args.runs,
        folder: args.dir,
        store_write: args.store_write,
        stop: Arc::new(AtomicBool::new(false)),
    };
    // Without a listener the signal would end this process before it has removed its namespaces.
    let stop = Arc::clone(&options.stop);
    let interrupted = shutdown(false)?;
    tokio::spawn(async move {
        interrupted.await;
        stop.store(true, Ordering::Relaxed);
    });
    let bench = tokio::task::spawn_blocking(move || relay::run(&options, |line| eprintln!("{line}")));
    let report = bench.await.context("the bench panicked; its message is above")??;
    if let Some(file) = &args.svg {
        std::fs::write(file, relay::svg::draw(&report)?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match global.json {
        true => output::json(&report),
        false => print(&report),
    }
}

fn print(report: &Report) -> Result<()> {
    let (above, below) = report.remarks();
    output::line(above)?;
    output::line(output::table(&Report::COLUMNS, report.cells()))?;
    output::line("speed and CPU: against copy-256k in the same mode, median over the rounds")?;
    below.iter().try_for_each(output::line)
}
