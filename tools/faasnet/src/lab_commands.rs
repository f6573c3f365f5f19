//! `faasnet lab …`: a cluster of network namespaces on this machine. Arguments and dispatch; the namespaces are `faasnet-lab`'s.
//!
//! Needs root. Whatever a command makes is named `fnlab-<id>-…` and goes with it, or with `faasnet lab down` after a crash.

pub mod audit;
pub mod breaker;
pub mod chaos;
pub mod cluster;
pub mod compare;
mod comparison;
mod contest;
pub mod direct;
pub mod environment;
pub mod experiment;
pub mod fault;
pub mod image;
pub mod injector;
pub mod keeper;
pub mod origin_log;
pub mod plan;
pub mod random;
pub mod report;
pub mod session;
pub mod standard;
pub mod targets;
pub mod timeline;
pub mod transfer;
pub mod trouble;
pub mod victims;
pub mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use faasnet_lab::network::MOST_HOSTS;
use faasnet_lab::{LabId, Rate};

use crate::cli::{Engine, Global, parse_bytes};
pub use fault::FaultPlan;
pub use plan::{LabPolicy, Plan};

/// `faasnet lab …`
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Bring up hosts with an origin, a controller and agents, and leave them running
    Up(UpArgs),
    /// Take a lab down: the named one, or what crashes left and the only one that is up
    Down(DownArgs),
    /// Run a command, or a shell, on a host of a lab that is up
    Shell(ShellArgs),
    /// Bring an image to all hosts and measure it, in a lab of its own
    Provision(ProvisionArgs),
    /// Measure our trees beside other systems on the same hosts, in labs of its own
    Compare(compare::CompareArgs),
    /// Disturb a host of a lab that is up
    Fault(FaultArgs),
    /// Run an experiment that a file describes
    Run(RunArgs),
    /// Run the standard set of experiments and write a page with plots
    Report(standard::ReportArgs),
    /// Holds the daemons of `lab up`.
    #[command(hide = true)]
    Keep(UpArgs),
    /// Reads blobs over plain HTTP as fast as one connection goes.
    #[command(hide = true)]
    Read(ReadArgs),
}

/// The hosts.
#[derive(Debug, Clone, Args)]
pub struct HostArgs {
    /// How many hosts, beside the origin's and the controller's
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..=MOST_HOSTS as i64))]
    pub hosts: u16,
    /// How fast each host's link is, each way [default: 100mbit; with --chaos what fits its time]
    #[arg(long, value_name = "RATE")]
    pub rate: Option<Rate>,
    /// The lab's name [default: a fresh one]
    #[arg(long)]
    pub id: Option<LabId>,
    /// The largest packet of every link
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(plan::MTU))]
    pub mtu: Option<u32>,
    /// Where to make the folder for images, stores and logs [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How agents move bytes
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,
    /// One more argument for every agent; repeat for more
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    pub agent_arg: Vec<String>,
}

/// The image.
#[derive(Debug, Clone, Args)]
pub struct ImageArgs {
    /// How large the image is, of bytes that do not compress
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = parse_bytes)]
    pub size: u64,
    /// Take this OCI layout instead
    #[arg(long, value_name = "LAYOUT", conflicts_with = "size")]
    pub image: Option<PathBuf>,
}

/// `faasnet lab up`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Example:
  faasnet lab up --id x --hosts 7 && faasnet lab shell --id x -- faasnet nodes && faasnet lab down x")]
pub struct UpArgs {
    /// Hosts.
    #[command(flatten)]
    pub hosts: HostArgs,
    /// Image.
    #[command(flatten)]
    pub image: ImageArgs,
}

/// `faasnet lab down`
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Only this lab [default: what crashes left, and the only one that is up]
    pub id: Option<LabId>,
    /// The same, as other commands take it
    #[arg(long = "id", value_name = "ID", conflicts_with = "id")]
    pub named: Option<LabId>,
}

/// `faasnet lab shell`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  faasnet lab shell --id x                     a shell on the controller's host
  faasnet lab shell --id x --host n3 -- ip -s link")]
pub struct ShellArgs {
    /// Which lab [default: the only one]
    #[arg(long)]
    pub id: Option<LabId>,
    /// Which host: controller, origin, n1, …
    #[arg(long, default_value = "controller")]
    pub host: String,
    /// What to run [default: the user's shell]
    #[arg(last = true)]
    pub command: Vec<String>,
}

/// `faasnet lab provision`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  faasnet lab provision --hosts 15 --rate 100mbit --size 64MiB
  faasnet lab provision --policy complete --runs 3 --json --svg times.svg
  faasnet lab provision --fault kill:inner@50
  faasnet lab provision --chaos 7 --seconds 20

Faults are KIND:TARGET[@PERCENT][+SECONDS]: at so many percent of the image on the target, for so long.
  kill | stop : root | inner | leaf | half | two | controller | origin | nK    (SECONDS: until it is started again)
  link        : root | inner | leaf | nK      the cable is pulled [default: +1]
  slow        : root | inner | leaf | nK      a tenth of the rate
  flip        : root | inner | leaf | nK      every MiB that it sends has one wrong bit
  full        : nK                            its disk holds half of the image
  joins       : COUNT                         so many hosts ask for the image only now")]
pub struct ProvisionArgs {
    /// Hosts.
    #[command(flatten)]
    pub hosts: HostArgs,
    /// Image.
    #[command(flatten)]
    pub image: ImageArgs,
    /// How the image gets to the hosts
    #[arg(long, value_enum, default_value_t = LabPolicy::Twin)]
    pub policy: LabPolicy,
    /// How often; the report shows the median run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(plan::RUNS))]
    pub runs: u16,
    /// Draw each node's progress over time
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Disturb the run; repeat for more
    #[arg(long = "fault", value_name = "FAULT")]
    pub faults: Vec<FaultPlan>,
    /// Disturb the run at random, always in the same way for the same seed
    #[arg(long, value_name = "SEED", conflicts_with = "faults")]
    pub chaos: Option<u64>,
    /// For how long
    #[arg(long, value_name = "SECONDS", default_value_t = 20, requires = "chaos", value_parser = clap::value_parser!(u64).range(plan::SECONDS))]
    pub seconds: u64,
    /// Keep the folder with images, stores and logs
    #[arg(long)]
    pub keep: bool,
}

/// `faasnet lab fault`
#[derive(Debug, Args)]
#[command(after_help = "\
Targets: n1, n2, …; root, inner, leaf, half, two (as the trees are now); controller, origin; for joins a number

Examples:
  faasnet lab fault --id x kill n3
  faasnet lab fault --id x stop inner --seconds 2
  faasnet lab fault --id x link n3 --seconds 4
  faasnet lab fault --id x slow n3; faasnet lab fault --id x heal n3
  faasnet lab fault --id x joins 30")]
pub struct FaultArgs {
    /// Which lab [default: the only one]
    #[arg(long)]
    pub id: Option<LabId>,
    /// What happens
    #[arg(value_enum)]
    pub kind: trouble::Trouble,
    /// To whom, see below
    #[arg(value_name = "TARGET")]
    pub host: String,
    /// Undo it after so long, and wait for that [default: leave it so until it is healed]
    #[arg(long)]
    pub seconds: Option<f64>,
}

/// `faasnet lab run`
#[derive(Debug, Args)]
#[command(after_help = "\
A scenario has the options of `lab provision`; tools/lab/scenarios has an example with every setting. In short:
  hosts = 15
  rate = \"100mbit\"
  size = \"64MiB\"
  policy = \"twin\"
  faults = [\"kill:inner@50\"]")]
pub struct RunArgs {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    pub scenario: PathBuf,
    /// Draw each node's progress over time
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `faasnet lab read`
#[derive(Debug, Args)]
pub struct ReadArgs {
    /// The server.
    #[arg(long)]
    pub server: std::net::SocketAddr,
    /// Where to put the blobs.
    #[arg(long)]
    pub out: PathBuf,
    /// Paths on the server.
    pub paths: Vec<String>,
}

/// Runs one of the commands.
pub async fn run(global: &Global, command: LabCommand) -> Result<ExitCode> {
    match command {
        LabCommand::Up(args) => keeper::up(global, args).await?,
        LabCommand::Keep(args) => keeper::keep(args).await?,
        LabCommand::Down(args) => keeper::down(global, args)?,
        LabCommand::Shell(args) => return keeper::shell(args),
        LabCommand::Fault(args) => trouble::run(global, args).await?,
        LabCommand::Provision(args) => return experiment::run(global, Plan::from(&args), args.svg).await,
        LabCommand::Compare(args) => return compare::run(global, args).await,
        LabCommand::Run(args) => return experiment::run(global, Plan::read(&args.scenario)?, args.svg).await,
        LabCommand::Report(args) => return standard::run(global, args).await,
        LabCommand::Read(args) => direct::read(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}
