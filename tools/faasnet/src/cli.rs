//! The command line: what can be typed, with its help. Parsing only; `run` dispatches.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Result;
use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use faasnet_api::tls::ClientFiles;

use crate::bench_commands::BenchCommand;
use crate::call::CallArgs;
use crate::certs::CertsCommand;
use crate::client::{self, Control, DEFAULT_CONTROLLER};
use crate::daemon_args::{AgentArgs, ControllerArgs};
use crate::explain::ExplainArgs;
use crate::install::{InstallArgs, UninstallArgs};
use crate::keys::KeysCommand;
use crate::lab_commands::LabCommand;
use crate::secret::SecretCommand;
use crate::sim_commands::SimArgs;
use crate::state_commands::StateCommand;
use crate::tune::TuneCommand;

const EXAMPLES: &str = "\
Examples:
  faasnet demo                                            everything on this machine, no root needed
  faasnet controller --secret-file secret                 on one host
  faasnet agent --secret-file secret --controller http://c:7400     on every host
  faasnet function create resize --image registry.example/resize:1
  faasnet provision resize --count 100
  faasnet tree resize

Settings come from flags, else from FAASNET_* environment variables, else from the file given with --config.";

/// Brings container images to many hosts at once through Function Trees
#[derive(Debug, Parser)]
#[command(name = "faasnet", version, after_help = EXAMPLES, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Print the answer as JSON
    #[arg(long, global = true, env = "FAASNET_JSON", value_parser = BoolishValueParser::new(), help_heading = "Global options")]
    pub json: bool,
    /// Where the controller is [default: http://127.0.0.1:7400]
    #[arg(long, global = true, env = "FAASNET_CONTROLLER", value_name = "URL", help_heading = "Global options")]
    pub controller: Option<String>,
    /// The cluster's secret; a file is safer, since other users of this host can see arguments
    #[arg(
        long,
        global = true,
        env = "FAASNET_SECRET",
        hide_env_values = true,
        conflicts_with = "secret_file",
        help_heading = "Global options"
    )]
    pub secret: Option<String>,
    /// A file that holds the cluster's secret
    #[arg(long, global = true, env = "FAASNET_SECRET_FILE", value_name = "FILE", help_heading = "Global options")]
    pub secret_file: Option<PathBuf>,
    /// The authority of the controller's certificate, for --controller https://… (PEM)
    #[arg(long, global = true, env = "FAASNET_TLS_CA", value_name = "FILE", help_heading = "Global options")]
    pub tls_ca: Option<PathBuf>,
    /// The certificate that this program shows (PEM); the controller's own for `faasnet controller`
    #[arg(long, global = true, env = "FAASNET_TLS_CERT", value_name = "FILE", help_heading = "Global options")]
    pub tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM)
    #[arg(long, global = true, env = "FAASNET_TLS_KEY", value_name = "FILE", help_heading = "Global options")]
    pub tls_key: Option<PathBuf>,
    /// What to log to standard error: error, warn, info, debug, trace, or module=level,… [daemons: info, others: warn]
    #[arg(long, global = true, env = "FAASNET_LOG", value_name = "LEVEL", help_heading = "Global options")]
    pub log: Option<String>,
    /// Log as JSON, one object per line
    #[arg(long, global = true, env = "FAASNET_LOG_JSON", value_parser = BoolishValueParser::new(), help_heading = "Global options")]
    pub log_json: bool,
}

impl Global {
    /// Connects to the controller that the options name.
    pub async fn connect(&self) -> Result<Control> {
        let secret = client::read_secret(self.secret.as_deref(), self.secret_file.as_deref())?;
        // A variable that is set to nothing is not set.
        let url = self.controller.as_deref().filter(|url| !url.trim().is_empty()).unwrap_or(DEFAULT_CONTROLLER);
        client::connect_with(url, secret.as_deref(), &self.tls()).await
    }

    /// The certificates of a connection to the controller.
    pub fn tls(&self) -> ClientFiles {
        ClientFiles { ca: self.tls_ca.clone(), cert: self.tls_cert.clone(), key: self.tls_key.clone() }
    }
}

/// Whose functions are meant where nobody is named.
pub const DEFAULT_TENANT: &str = "default";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the whole system on this machine: registry, controller and agents as processes, a real image
    Demo(DemoArgs),
    /// Run the control plane: functions, their trees, and where nodes stand in them
    Controller(Box<ControllerArgs>),
    /// Run a node: receive images, verify, keep and forward them
    Agent(Box<AgentArgs>),
    /// Register functions, list them, remove them
    #[command(subcommand)]
    Function(FunctionCommand),
    /// Bring a function's image to nodes, and wait until they hold it
    Provision(ProvisionArgs),
    /// Take a function from nodes
    Release(ReleaseArgs),
    /// Bring a function to a number of nodes, up or down, and wait until it is there
    Scale(ScaleArgs),
    /// Empty a node before maintenance, and wait until it holds and feeds nothing
    Drain(DrainArgs),
    /// Draw a function's trees
    Tree(TreeArgs),
    /// Tell where the time of the last pull went: queue, connections, first block, transfer, stalls, and who served it
    Explain(ExplainArgs),
    /// List the nodes
    Nodes,
    /// Call any operation of the controller by gRPC, with messages as JSON
    Call(CallArgs),
    /// Copy a stopped controller's state to a file, or from one
    #[command(subcommand)]
    State(StateCommand),
    /// Print the token that the controller's HTTP API takes from other machines
    Token,
    /// Write a function's image as an OCI layout; run on a node
    Pull(PullArgs),
    /// Make certificates for TLS between controller, agents and clients
    #[command(subcommand)]
    Certs(CertsCommand),
    /// The keys that sign nodes' tickets
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Passwords of private registries that the controller gives to the nodes that read them
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Build or look at OCI images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Serve an OCI layout as a read-only registry
    Registry(RegistryArgs),
    /// A cluster of network namespaces on this machine: experiments, faults, figures (needs root)
    #[command(subcommand)]
    Lab(LabCommand),
    /// Measure the data path on this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Make this host's container runtime ask the agent before the registry
    Install(InstallArgs),
    /// Take back what `install` did
    Uninstall(UninstallArgs),
    /// What this host's kernel settings cost
    #[command(subcommand)]
    Tune(TuneCommand),
    /// Simulate whole clusters: the real relay core, trees and controller on a virtual clock and network
    Sim(SimArgs),
}

/// Whose function it is.
#[derive(Debug, Clone, Args)]
pub struct Tenant {
    /// Who owns the function
    #[arg(long, env = "FAASNET_TENANT", default_value = DEFAULT_TENANT)]
    pub tenant: String,
}

/// How a function's trees are shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Policy {
    /// Two trees, each carrying half of the image; a node forwards in one of them
    Twin,
    /// One tree of minimum height
    Complete,
    /// One tree, balanced by rotations: the paper's
    Avl,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Twin => "twin",
            Self::Complete => "complete",
            Self::Avl => "avl",
        })
    }
}

/// How agents move bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// By the kernel and, link by link, by how bytes arrive: `splice` or `registered`, without io_uring `copy`
    Auto,
    /// Zero-copy forwarding
    Splice,
    /// Receive into buffers and send from them through io_uring: for cards that hand up single packets
    Registered,
    /// Read, verify, write; works everywhere
    Copy,
    /// As `registered`, on the tokio-uring runtime; to compare with
    TokioUring,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Splice => "splice",
            Self::Registered => "registered",
            Self::Copy => "copy",
            Self::TokioUring => "tokio-uring",
        })
    }
}

/// `faasnet function …`
#[derive(Debug, Subcommand)]
pub enum FunctionCommand {
    /// Register a function: read its image once, check every digest, keep the descriptor
    Create(CreateArgs),
    /// List the functions
    Ls,
    /// Forget a function and take it from its nodes
    Rm(RemoveArgs),
}

/// `faasnet function create`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  faasnet function create resize --image registry.example/resize:1
  faasnet function create resize --image localhost:5000/resize:1 --plain-http
  faasnet function create resize --image ./layout            (a folder that every root can read)")]
pub struct CreateArgs {
    /// The function's name
    pub name: String,
    /// A registry reference, or the path of an OCI layout
    #[arg(long, value_name = "REF")]
    pub image: String,
    /// How its trees are shaped
    #[arg(long, value_enum, default_value_t = Policy::Twin)]
    pub policy: Policy,
    /// Which image of an index, such as linux/arm64 [default: the controller's own]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Speak HTTP without TLS to the registry
    #[arg(long)]
    pub plain_http: bool,
    /// Memory that an instance needs on a node
    #[arg(long, value_name = "MIB")]
    pub memory_mib: Option<u32>,
    /// Whose it is.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// `faasnet function rm`
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The function's name
    pub name: String,
    /// Whose it is.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// `faasnet provision`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  faasnet provision resize --count 100
  faasnet provision resize --nodes n1,n2 --json")]
#[command(group(clap::ArgGroup::new("which").args(["count", "nodes"]).required(true)))]
pub struct ProvisionArgs {
    /// The function's name
    pub function: String,
    /// How many nodes shall hold it; those that do already count
    #[arg(long, value_name = "N", conflicts_with = "nodes", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
    /// These nodes, beside those that hold it already: names or ids
    #[arg(long, value_name = "NODE,…", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Whose it is.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// `faasnet release`
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The function's name
    pub function: String,
    /// Only these nodes: names or ids [default: all]
    #[arg(long, value_name = "NODE,…", value_delimiter = ',')]
    pub nodes: Vec<String>,
    /// Also free the nodes' disks: the image is not kept for reuse, unless another function there has it
    #[arg(long)]
    pub drop: bool,
    /// Whose it is.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// `faasnet scale`
#[derive(Debug, Args)]
#[command(after_help = "\
On the way down, nodes that feed nobody go first; one that feeds others goes when they have another parent.

Examples:
  faasnet scale resize 100
  faasnet scale resize 0")]
pub struct ScaleArgs {
    /// The function's name
    pub function: String,
    /// How many nodes shall hold it
    #[arg(value_name = "N")]
    pub count: u32,
    /// Whose it is.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// `faasnet drain`
#[derive(Debug, Args)]
#[command(after_help = "\
The node gets no new function. Functions that were asked for by number come to other nodes first; nodes that receive from this one
get other parents, and only when these deliver does it let go.

Examples:
  faasnet drain host7
  faasnet drain host7 --undo     it takes functions again; a quarantine ends too")]
pub struct DrainArgs {
    /// The node: name or id
    pub node: String,
    /// Let the node take functions again
    #[arg(long)]
    pub undo: bool,
}

/// `faasnet tree`
#[derive(Debug, Args)]
pub struct TreeArgs {
    /// The function's name
    pub function: String,
    /// Whose it is.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// `faasnet pull`
#[derive(Debug, Args)]
#[command(after_help = "\
Example, on a node:
  faasnet pull resize --out ./resize && skopeo copy oci:./resize containers-storage:resize")]
pub struct PullArgs {
    /// The function's name
    pub function: String,
    /// The folder to write; new, or a layout to which the image is added
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The admin endpoint of this node's agent
    #[arg(long, env = "FAASNET_AGENT", value_name = "URL", default_value = "http://127.0.0.1:7411")]
    pub agent: String,
    /// Whose it is.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// `faasnet image …`
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Build an OCI layout from folders: one gzip layer per folder, in the given order
    #[command(after_help = "Example:\n  faasnet image build --from ./rootfs --from ./app --out ./layout --tag v1")]
    Build(ImageBuildArgs),
    /// Show what an image is made of
    Inspect(ImageInspectArgs),
}

/// `faasnet image build`
#[derive(Debug, Args)]
pub struct ImageBuildArgs {
    /// A folder that becomes one layer; repeat for more
    #[arg(long, value_name = "DIR", required = true)]
    pub from: Vec<PathBuf>,
    /// The layout folder to write
    #[arg(long, value_name = "LAYOUT")]
    pub out: PathBuf,
    /// The name in the layout's index
    #[arg(long, default_value = "latest")]
    pub tag: String,
}

/// `faasnet image inspect`
#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// A registry reference, or the path of an OCI layout
    #[arg(value_name = "REF|LAYOUT")]
    pub image: String,
    /// Which image of an index, such as linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Speak HTTP without TLS to the registry
    #[arg(long)]
    pub plain_http: bool,
}

/// `faasnet registry`
#[derive(Debug, Args)]
pub struct RegistryArgs {
    /// The layout folder to serve
    #[arg(value_name = "LAYOUT")]
    pub layout: PathBuf,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5000", value_parser = parse_address)]
    pub listen: SocketAddr,
    /// Send at most this many bytes per second over all connections
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub rate: Option<u64>,
    /// Append a line per request to this file: time, client, method, path, range, status, bytes; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// The repository's name [default: the folder's]
    #[arg(long)]
    pub name: Option<String>,
    /// Answer only who has a token; who logs in with these gets one
    #[arg(long, value_name = "USER:PASSWORD", value_parser = parse_login)]
    pub login: Option<(String, String)>,
    /// How many requests a token is good for; a new one ends the one before
    #[arg(long, value_name = "COUNT", requires = "login", default_value_t = u32::MAX, hide_default_value = true)]
    pub token_requests: u32,
    /// Stop when standard input ends
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

fn parse_login(text: &str) -> Result<(String, String), String> {
    let (user, password) = text.split_once(':').ok_or("a login has the form USER:PASSWORD")?;
    Ok((user.into(), password.into()))
}

/// `faasnet demo`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  faasnet demo
  faasnet demo --agents 20 --size 64MiB
  faasnet demo --image docker.io/library/python:3 --policy complete --keep")]
pub struct DemoArgs {
    /// How many agents to start
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u8).range(1..=200))]
    pub agents: u8,
    /// How the function's trees are shaped
    #[arg(long, value_enum, default_value_t = Policy::Twin)]
    pub policy: Policy,
    /// How agents move bytes
    #[arg(long, value_enum, default_value_t = Engine::Auto)]
    pub engine: Engine,
    /// Take this image instead of building one: a registry reference, or the path of an OCI layout
    #[arg(long, value_name = "REF|LAYOUT", conflicts_with = "size")]
    pub image: Option<String>,
    /// Speak HTTP without TLS to the registry of --image
    #[arg(long, requires = "image")]
    pub plain_http: bool,
    /// About how large the built image is
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = parse_bytes)]
    pub size: u64,
    /// The built-in registry sends at most this many bytes per second
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub rate: Option<u64>,
    /// Where to make the folder for images and stores [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Keep that folder
    #[arg(long)]
    pub keep: bool,
    /// Agents use the addresses that follow this one
    #[arg(long, value_name = "ADDR", default_value = "127.77.0.1", hide = true)]
    pub first_address: IpAddr,
}

/// Reads `1048576`, `64KiB`, `256MiB`, `1.5GiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(format!("{unit:?} is not a unit; write e.g. 64KiB, 256MiB or 1.5GiB")),
    };
    let value: f64 = number.trim().parse().map_err(|_| "write a number with a unit, e.g. 256MiB".to_owned())?;
    let bytes = value * scale as f64;
    match (0.0..=1e15).contains(&bytes) {
        true => Ok(bytes as u64),
        false => Err("out of range".into()),
    }
}

/// The same for settings of other types.
pub(crate) fn parse_size<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    parse_bytes(text)?.try_into().map_err(|_| "out of range".into())
}

/// An address to listen on or to be reached at; names are not looked up.
pub(crate) fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write IP:port, such as 0.0.0.0:7410 or [::1]:7410; a name is not taken".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    /// Catches definitions that clap only refuses when the option is used.
    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// Catches a command or option without help.
    #[test]
    fn everything_says_what_it_is() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{} {} has no help", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    /// Catches usage errors that pass, and usage errors that do not exit with 2.
    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "faasnet",
            "faasnet fly",
            "faasnet provision f",
            "faasnet provision f --count 0",
            "faasnet provision f --count 1 --nodes a",
            "faasnet function create f",
            "faasnet function create f --image i --policy bush",
            "faasnet demo --agents 0",
            "faasnet demo --size many",
            "faasnet image build --out x",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    /// Catches options that stop being global: they must be accepted before and after the command.
    #[test]
    fn global_options_go_anywhere() {
        for line in ["faasnet --json --controller http://c:1 nodes", "faasnet nodes --controller http://c:1 --json"] {
            let cli = parse(line).unwrap();
            assert!(cli.global.json && cli.global.controller.as_deref() == Some("http://c:1"), "{line}");
        }
    }

    /// Catches a wrong scale of units.
    #[test]
    fn sizes_have_units() {
        let parsed = ["0", "17", "64KiB", "256MiB", "1.5GiB", "2g", "16GB"].map(|text| parse_bytes(text).unwrap());
        assert_eq!(parsed, [0, 17, 65_536, 268_435_456, 1_610_612_736, 2_147_483_648, 16_000_000_000]);
        for wrong in ["", "MiB", "-1", "1 parsec", "1e30g", "nan"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
