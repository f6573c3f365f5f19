//! `faasnet bench …`: arguments and output; what is measured, and how, is `faasnet-benches`.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use faasnet_benches::relay::depth::DepthOptions;
use faasnet_benches::relay::targets::Target;
use faasnet_benches::relay::{self, Engine, Knobs, Mode, Options, Report, Sweep};
use faasnet_lab::Rate;

use crate::cli::Global;
use crate::crowd;
use crate::daemon::shutdown;
use crate::idle;
use crate::{output, progress};

/// `faasnet bench …`
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Relay a stream to two children: the agent's worker against copy loops, tokio and nginx (two cores; better as root)
    #[command(after_help = "\
Engines: auto, splice, registered, copy, tokio-uring (the agent's worker); copy-256k, copy-1m, tokio, nginx-cache, direct (to compare with)
Modes:   forward, keep, keep+xxh3, keep+blake3

As root the relay sits between network namespaces of its own, else on loopback. It has a core for itself.

Examples:
  faasnet bench relay
  faasnet bench relay --engine splice,copy-256k --mode keep+blake3 --runs 9 --svg relay.svg
  faasnet bench relay --slow-child --json
  faasnet bench relay --engine splice,copy-256k --mode keep --sweep mtu=1500,4000,9000 --svg mtu.svg")]
    Relay(Box<RelayArgs>),
    /// What relays in a row add to the last byte, over links of one rate (as root; else loopback without a rate)
    #[command(after_help = "\
Example:
  faasnet bench depth --relays 6 --rate 1gbit --pairs 9 --json")]
    Depth(DepthArgs),
    /// What an agent costs while nothing is to be done: memory of its own, wake-ups
    Idle {
        /// For how long to watch it
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
    /// What a controller costs while very many agents hold a session and nothing is to be done
    Agents {
        /// How many agents, each with a connection of its own
        #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=60_000))]
        count: u32,
        /// For how long to watch the controller
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=600))]
        seconds: u64,
    },
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
    /// What is not as it is by default.
    #[command(flatten)]
    pub knobs: KnobArgs,
    /// Measure at each of several values of one knob: one table, one plot; `default` is a value, too
    #[arg(long, value_name = "KEY=A,B,…")]
    pub sweep: Option<Sweep>,
    /// Measure also what a child at a tenth of the rate costs its sibling
    #[arg(long)]
    pub slow_child: bool,
    /// How often; the rows take turns
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub runs: usize,
    /// Where to put kept files [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Draw the table into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `faasnet bench depth`
#[derive(Debug, Args)]
pub struct DepthArgs {
    /// How many relays, 1 to 8
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub relays: usize,
    /// How they move bytes: auto, splice, registered, copy, tokio-uring
    #[arg(long, default_value = "auto")]
    pub engine: Engine,
    /// What they do with what passes
    #[arg(long, default_value = "keep+blake3")]
    pub mode: Mode,
    /// How fast every link is
    #[arg(long, default_value = "1gbit")]
    pub rate: Rate,
    /// How often; each pair is one run without relays and one with all of them
    #[arg(long, value_name = "N", default_value_t = 9)]
    pub pairs: usize,
}

/// The knobs: their names without dashes are the keys of `--sweep`.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Knobs (each is a key of --sweep)")]
pub struct KnobArgs {
    /// The largest packet of the links [default: 1500]
    #[arg(long, value_name = "BYTES")]
    pub mtu: Option<String>,
    /// The largest run of packets that the links handle as one; above 65536: BIG TCP [default: the kernel's]
    #[arg(long, value_name = "BYTES")]
    pub gso: Option<String>,
    /// TCP congestion control of all hosts [default: cubic]
    #[arg(long, value_name = "NAME")]
    pub congestion: Option<String>,
    /// The most that a receive buffer grows to, of all hosts [default: the kernel's]
    #[arg(long, value_name = "BYTES")]
    pub rmem: Option<String>,
    /// The most that a send buffer grows to, of all hosts [default: the kernel's]
    #[arg(long, value_name = "BYTES")]
    pub wmem: Option<String>,
    /// Give the relay single packets, as a card does that does not merge what it receives
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off")]
    pub single_packets: Option<String>,
    /// Bytes of a block of the image [default: 262144]
    #[arg(long, value_name = "BYTES")]
    pub block_bytes: Option<String>,
    /// What a child's pipe holds, in our engines [default: 1048576]
    #[arg(long, value_name = "BYTES")]
    pub pipe_bytes: Option<String>,
    /// Poll the cards for so long before sleeping, in our engines; 0 = do not [default: 0]
    #[arg(long, value_name = "US")]
    pub busy_poll: Option<String>,
    /// A kernel thread takes submissions and sleeps after so long, in our engines; 0 = none [default: 0]
    #[arg(long, value_name = "MS")]
    pub sqpoll: Option<String>,
    /// Buffers on huge pages, in our engines [default: on]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on", value_name = "on|off")]
    pub huge_pages: Option<String>,
    /// Buffers of a block each, in our engines [default: 24]
    #[arg(long, value_name = "N")]
    pub buffers: Option<String>,
    /// How our engines write what they keep, as the agent's flag of this name [default: auto]
    #[arg(long, value_name = "auto|direct|buffered")]
    pub store_write: Option<String>,
}

impl KnobArgs {
    fn knobs(&self) -> Result<Knobs> {
        let given = [
            ("mtu", &self.mtu),
            ("gso", &self.gso),
            ("congestion", &self.congestion),
            ("rmem", &self.rmem),
            ("wmem", &self.wmem),
            ("single-packets", &self.single_packets),
            ("block-bytes", &self.block_bytes),
            ("pipe-bytes", &self.pipe_bytes),
            ("busy-poll", &self.busy_poll),
            ("sqpoll", &self.sqpoll),
            ("huge-pages", &self.huge_pages),
            ("buffers", &self.buffers),
            ("store-write", &self.store_write),
        ];
        let mut knobs = Knobs::default();
        for (key, value) in given {
            value.iter().try_for_each(|value| knobs.set(key, value))?;
        }
        Ok(knobs)
    }
}

/// Runs the command.
pub async fn run(global: &Global, command: BenchCommand) -> Result<()> {
    let args = match command {
        BenchCommand::Relay(args) => args,
        BenchCommand::Depth(args) => return depth(global, args).await,
        BenchCommand::Idle { seconds } => return idle(global, seconds).await,
        BenchCommand::Agents { count, seconds } => return agents(global, count, seconds).await,
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
        knobs: args.knobs.knobs()?,
        sweep: args.sweep,
        slow_child: args.slow_child,
        runs: args.runs,
        folder: args.dir,
        stop: stop_on_signal()?,
    };
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

/// Set when the user wants it to end: without a listener the signal would end this process before it has removed its namespaces.
fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let (interrupted, theirs) = (shutdown(false)?, Arc::clone(&stop));
    tokio::spawn(async move {
        interrupted.await;
        theirs.store(true, Ordering::Relaxed);
    });
    Ok(stop)
}

async fn depth(global: &Global, args: DepthArgs) -> Result<()> {
    let DepthArgs { relays, engine, mode, rate, pairs } = args;
    let options = DepthOptions { relays, engine, mode, pairs, link_bits_per_s: rate.bits(), stop: stop_on_signal()? };
    let bench = tokio::task::spawn_blocking(move || relay::depth::run(&options, |line| eprintln!("{line}")));
    let report = bench.await.context("the bench panicked; its message is above")??;
    match global.json {
        true => output::json(&report),
        false => report.lines().iter().try_for_each(output::line),
    }
}

async fn idle(global: &Global, seconds: u64) -> Result<()> {
    let idle = idle::of_a_fresh_agent(Duration::from_secs(seconds)).await?;
    match global.json {
        true => output::json(&idle),
        false => output::line(format!(
            "{:.1} MiB without file cache (target: < {}), {:.2} voluntary context switches a second over {:.0} s (target: ≤ {}): {}",
            idle.anonymous_bytes as f64 / f64::from(1u32 << 20),
            idle::MOST_BYTES >> 20,
            idle.voluntary_switches_per_s,
            idle.seconds,
            idle::MOST_SWITCHES_PER_S,
            if idle.met { "met" } else { "NOT met" }
        )),
    }
}

async fn agents(global: &Global, count: u32, seconds: u64) -> Result<()> {
    let bar = progress::count(global.json, "agents", count.into());
    let told = |accepted: usize| bar.set_position(accepted as u64);
    let crowd = crowd::run(count as usize, Duration::from_secs(seconds), told).await?;
    bar.finish_and_clear();
    match global.json {
        true => output::json(&crowd),
        false => output::line(format!(
            "{} idle agents: the controller takes {:.1} % of a core, its state machine {:.2} %, and {:.0} MiB without file cache, over {:.0} s; \
             they attached within {:.1} s",
            crowd.agents,
            crowd.cores * 100.0,
            crowd.state_machine_cores * 100.0,
            crowd.anonymous_bytes as f64 / f64::from(1u32 << 20),
            crowd.seconds,
            crowd.attach_seconds
        )),
    }
}

fn print(report: &Report) -> Result<()> {
    let (above, below) = report.remarks();
    output::line(above)?;
    output::line(output::table(&report.columns(), report.cells()))?;
    output::line("speed and CPU: against copy-256k in the same mode, median over the rounds")?;
    if !report.targets.is_empty() {
        output::line(output::table(&Target::COLUMNS, report.targets.iter().map(Target::cells)))?;
    }
    below.iter().try_for_each(output::line)
}
