//! The flags of the daemons: one per setting, each with its environment variable. What is not given does not serialize, so that it
//! leaves the file's value or the default alone. Meaning and defaults belong to the daemons' own `Config` types.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use faasnet_agent::{MirrorListen, OnMiss, WriteMode};
use faasnet_api::Verify;
use serde::Serialize;

use crate::cli::{Engine, parse_address, parse_size};

/// What both daemons take beside their settings.
#[derive(Debug, Args)]
pub struct Common {
    /// Read settings from this TOML file; flags and FAASNET_* variables win over it
    #[arg(long, env = "FAASNET_CONFIG", value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// Print the settings as they would be used, secrets hidden, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Send spans to the OpenTelemetry collector there: OTLP by gRPC, without TLS (http://127.0.0.1:4317)
    #[cfg(feature = "otel")]
    #[arg(long, env = "FAASNET_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Stop when standard input ends: a parent process that dies takes this one along
    #[arg(long, hide = true)]
    pub exit_with_stdin: bool,
}

/// `faasnet agent`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  faasnet agent --controller http://controller:7400 --secret-file /etc/faasnet/secret
  faasnet agent --config /etc/faasnet/agent.toml --print-config

Prints one line when it is ready: `ready listen=ADDR admin=ADDR mirror=ADDR`. SIGTERM and SIGINT stop it cleanly.")]
pub struct AgentArgs {
    /// File and printing.
    #[command(flatten)]
    pub common: Common,
    /// The settings.
    #[command(flatten)]
    pub settings: AgentSettings,
}

/// Where `--help` lists the knobs of the data path.
const TUNING: &str = "Tuning (see `faasnet tune show`)";

/// One flag per setting of the agent.
#[derive(Debug, Default, Args, Serialize)]
pub struct AgentSettings {
    /// How people call this node [default: the host's name]
    #[arg(long, env = "FAASNET_AGENT_NAME")]
    pub name: Option<String>,
    /// Where children connect to [default: 0.0.0.0:7410]
    #[arg(long, env = "FAASNET_AGENT_LISTEN", value_name = "ADDR", value_parser = parse_address)]
    pub listen: Option<SocketAddr>,
    /// The address that other nodes use for this one [default: as `--listen`, or the way to the controller]
    #[arg(long, env = "FAASNET_AGENT_ADVERTISE", value_name = "ADDR", value_parser = parse_address)]
    pub advertise: Option<SocketAddr>,
    /// Where the admin endpoint listens, loopback only [default: 127.0.0.1:7411]
    #[arg(long, env = "FAASNET_AGENT_ADMIN", value_name = "ADDR", value_parser = parse_address)]
    pub admin: Option<SocketAddr>,
    /// Where this host's container runtimes pull from: IP:port, unix:/path, or off [default: 127.0.0.1:7412]
    #[arg(long, env = "FAASNET_AGENT_MIRROR_LISTEN", value_name = "ADDR")]
    pub mirror_listen: Option<MirrorListen>,
    /// Let other hosts reach the mirror too: whoever can, reads every image of this node [default: false]
    #[arg(long, env = "FAASNET_AGENT_MIRROR_REMOTE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true")]
    pub mirror_remote: Option<bool>,
    /// What the mirror does about an image that no function has: send the runtime to the registry, or register it, which reads it once into this node's store [default: pass]
    #[arg(long, env = "FAASNET_AGENT_MIRROR_ON_MISS", value_name = "pass|register")]
    pub mirror_on_miss: Option<OnMiss>,
    /// How long a runtime waits while another node reads such an image before it is sent to the registry [default: 2000]
    #[arg(long, env = "FAASNET_AGENT_MIRROR_REGISTER_WAIT_MS", value_name = "MS")]
    pub mirror_register_wait_ms: Option<u64>,
    /// A registry (host or host:port) that speaks HTTP without TLS when an image is registered; repeat for more
    #[arg(long, env = "FAASNET_AGENT_MIRROR_PLAIN_HTTP", value_name = "HOST", value_delimiter = ',')]
    pub mirror_plain_http: Option<Vec<String>>,
    /// Where images are kept [default: /var/lib/faasnet]
    #[arg(long, env = "FAASNET_AGENT_STORE_DIR", value_name = "DIR")]
    pub store_dir: Option<PathBuf>,
    /// The most bytes that images may take [default: what the file system has]
    #[arg(long, env = "FAASNET_AGENT_STORE_QUOTA_BYTES", value_name = "BYTES", value_parser = parse_size::<u64>)]
    pub store_quota_bytes: Option<u64>,
    /// How received blocks are written: past the page cache while the disk keeps up, always, or never [default: auto]
    #[arg(long, env = "FAASNET_AGENT_STORE_WRITE", value_name = "auto|direct|buffered")]
    pub store_write: Option<WriteMode>,
    /// Release written blocks from the page cache beyond so many bytes [default: the kernel decides]
    #[arg(long, env = "FAASNET_AGENT_STORE_CACHE_BYTES", value_name = "BYTES", value_parser = parse_size::<u64>)]
    pub store_cache_bytes: Option<u64>,
    /// How blocks from other nodes are checked; xxh3 and off are for networks where every host is trusted [default: blake3]
    #[arg(long, env = "FAASNET_AGENT_VERIFY", value_name = "blake3|xxh3|off")]
    pub verify: Option<Verify>,
    /// How bytes are moved [default: auto]
    #[arg(long, env = "FAASNET_AGENT_ENGINE", value_enum)]
    pub engine: Option<Engine>,
    /// Memory that the controller may fill with functions [default: the host's]
    #[arg(long, env = "FAASNET_AGENT_MEMORY_MIB", value_name = "MIB")]
    pub memory_mib: Option<u64>,
    /// Leave a parent that sends nothing at all for this long [default: 250]
    #[arg(long, env = "FAASNET_AGENT_SILENCE_MS", value_name = "MS")]
    pub silence_ms: Option<u64>,
    /// Leave a parent that only waits for its own upstream after this long [default: 2000]
    #[arg(long, env = "FAASNET_AGENT_WAITING_MOVE_MS", value_name = "MS")]
    pub waiting_move_ms: Option<u64>,
    /// A child outside the plan keeps its place for this long [default: 5000]
    #[arg(long, env = "FAASNET_AGENT_GUEST_MS", value_name = "MS")]
    pub guest_ms: Option<u64>,
    /// A parent with nothing to send says so this often [default: 50]
    #[arg(long, env = "FAASNET_AGENT_WAITING_EVERY_MS", value_name = "MS")]
    pub waiting_every_ms: Option<u64>,
    /// A node that gets nothing for this long, and whose neighbours have all failed, asks for leave to read the origin [default: 3000]
    #[arg(long, env = "FAASNET_AGENT_STRANDED_MS", value_name = "MS")]
    pub stranded_ms: Option<u64>,
    /// Without an answer it reads the origin on its own, after between a quarter of this and all of it [default: 20000]
    #[arg(long, env = "FAASNET_AGENT_UNANSWERED_MS", value_name = "MS")]
    pub unanswered_ms: Option<u64>,
    /// Blocks that may be in memory at once, received and not yet on disk [default: 24]
    #[arg(long, env = "FAASNET_AGENT_BUFFERS", value_name = "N")]
    pub buffers: Option<usize>,
    /// Data threads, each with buffers and images of its own [default: 1]
    #[arg(long, env = "FAASNET_AGENT_WORKERS", value_name = "N", help_heading = TUNING)]
    pub workers: Option<usize>,
    /// Keep each data thread on a core of its own: the first ones, or those of a list such as 2,3 [default: not pinned]
    #[arg(long, env = "FAASNET_AGENT_PIN", value_name = "CORES", num_args = 0..=1, require_equals = true,
        default_missing_value = "auto", help_heading = TUNING)]
    pub pin: Option<String>,
    /// How much each child's pipe holds [default: 1048576]
    #[arg(long, env = "FAASNET_AGENT_PIPE_BYTES", value_name = "BYTES", value_parser = parse_size::<usize>, help_heading = TUNING)]
    pub pipe_bytes: Option<usize>,
    /// TCP congestion control of data connections [default: the host's]
    #[arg(long, env = "FAASNET_AGENT_CONGESTION", value_name = "NAME", help_heading = TUNING)]
    pub congestion: Option<String>,
    /// Receive buffer of data connections [default: the kernel tunes it, up to tcp_rmem]
    #[arg(long, env = "FAASNET_AGENT_RECEIVE_BUFFER_BYTES", value_name = "BYTES", value_parser = parse_size::<usize>, help_heading = TUNING)]
    pub receive_buffer_bytes: Option<usize>,
    /// Send buffer of data connections [default: the kernel tunes it, up to tcp_wmem]
    #[arg(long, env = "FAASNET_AGENT_SEND_BUFFER_BYTES", value_name = "BYTES", value_parser = parse_size::<usize>, help_heading = TUNING)]
    pub send_buffer_bytes: Option<usize>,
    /// Give a child's connection more bytes only while fewer than this are unsent; 0 = always [default: 262144]
    #[arg(long, env = "FAASNET_AGENT_NOTSENT_LOWAT_BYTES", value_name = "BYTES", value_parser = parse_size::<u32>, help_heading = TUNING)]
    pub notsent_lowat_bytes: Option<u32>,
    /// Give up a connection whose other side takes nothing for this long; 0 = when the kernel does [default: 10000]
    #[arg(long, env = "FAASNET_AGENT_USER_TIMEOUT_MS", value_name = "MS", help_heading = TUNING)]
    pub user_timeout_ms: Option<u64>,
    /// The most that all children together are sent [default: what the links carry]
    #[arg(long, env = "FAASNET_AGENT_RATE_LIMIT_MBIT", value_name = "MBIT/S", help_heading = TUNING)]
    pub rate_limit_mbit: Option<u64>,
    /// Have a kernel thread take each worker's submissions; it sleeps after so many idle milliseconds [default: none]
    #[arg(long, env = "FAASNET_AGENT_SQPOLL_IDLE_MS", value_name = "MS", help_heading = TUNING)]
    pub sqpoll_idle_ms: Option<u32>,
    /// Poll the network cards for this long before sleeping [default: do not]
    #[arg(long, env = "FAASNET_AGENT_BUSY_POLL_US", value_name = "US", help_heading = TUNING)]
    pub busy_poll_us: Option<u32>,
    /// Put the block buffers on huge pages, where the host has them [default: true]
    #[arg(long, env = "FAASNET_AGENT_HUGE_PAGES", value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", help_heading = TUNING)]
    pub huge_pages: Option<bool>,
    /// Set from the global option.
    #[arg(skip)]
    pub tls_ca: Option<PathBuf>,
    /// Set from the global option.
    #[arg(skip)]
    pub tls_cert: Option<PathBuf>,
    /// Set from the global option.
    #[arg(skip)]
    pub tls_key: Option<PathBuf>,
    /// Set from the global option.
    #[arg(skip)]
    pub controller: Option<String>,
    /// Set from the global option.
    #[arg(skip)]
    pub cluster_secret: Option<String>,
    /// Set from the global option.
    #[arg(skip)]
    pub cluster_secret_file: Option<PathBuf>,
}

/// `faasnet controller`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  faasnet controller --secret-file /etc/faasnet/secret --listen 0.0.0.0:7400
  faasnet controller --config /etc/faasnet/controller.toml --print-config

Prints one line when it is ready: `ready listen=ADDR http=ADDR`. http://ADDR/ is a live page, http://ADDR/v1 the API as JSON.
SIGTERM and SIGINT stop it cleanly.")]
pub struct ControllerArgs {
    /// File and printing.
    #[command(flatten)]
    pub common: Common,
    /// The settings.
    #[command(flatten)]
    pub settings: ControllerSettings,
}

/// One flag per setting of the controller.
#[derive(Debug, Default, Args, Serialize)]
pub struct ControllerSettings {
    /// Where agents and clients connect [default: 127.0.0.1:7400]
    #[arg(long, env = "FAASNET_CONTROLLER_LISTEN", value_name = "ADDR", value_parser = parse_address)]
    pub listen: Option<SocketAddr>,
    /// Where the JSON API, the live page and the metrics are [default: as `--listen`, the next port]
    #[arg(long, env = "FAASNET_CONTROLLER_HTTP", value_name = "ADDR", value_parser = parse_address)]
    pub http: Option<SocketAddr>,
    /// Where the state is kept [default: /var/lib/faasnet-controller]
    #[arg(long, env = "FAASNET_CONTROLLER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Let callers in that show a certificate of this authority; others need the secret off loopback [default: none]
    #[arg(long, env = "FAASNET_CONTROLLER_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Set from the global option.
    #[arg(skip)]
    pub tls_cert: Option<PathBuf>,
    /// Set from the global option.
    #[arg(skip)]
    pub tls_key: Option<PathBuf>,
    /// How often an agent says that it lives while something transfers [default: 500]
    #[arg(long, env = "FAASNET_CONTROLLER_HEARTBEAT_MS", value_name = "MS")]
    pub heartbeat_ms: Option<u32>,
    /// How often otherwise [default: 5000]
    #[arg(long, env = "FAASNET_CONTROLLER_IDLE_HEARTBEAT_MS", value_name = "MS")]
    pub idle_heartbeat_ms: Option<u32>,
    /// A node is suspect after this many missed heartbeats, dead after twice as many [default: 2]
    #[arg(long, env = "FAASNET_CONTROLLER_SUSPECT_AFTER_MISSED", value_name = "N")]
    pub suspect_after_missed: Option<u32>,
    /// How long a probe of a node may take to connect [default: 500]
    #[arg(long, env = "FAASNET_CONTROLLER_PROBE_TIMEOUT_MS", value_name = "MS")]
    pub probe_timeout_ms: Option<u64>,
    /// How long a node that still answers probes has to attach again before it counts as dead [default: 10000]
    #[arg(long, env = "FAASNET_CONTROLLER_REATTACH_MS", value_name = "MS")]
    pub reattach_ms: Option<u64>,
    /// How long agents have to come back after a start of the controller [default: 2000]
    #[arg(long, env = "FAASNET_CONTROLLER_RESTART_GRACE_MS", value_name = "MS")]
    pub restart_grace_ms: Option<u64>,
    /// How many functions a node holds at most [default: 20]
    #[arg(long, env = "FAASNET_CONTROLLER_FUNCTIONS_PER_NODE", value_name = "N")]
    pub functions_per_node: Option<u32>,
    /// How much of its memory functions may fill on a node, in percent [default: 90]
    #[arg(long, env = "FAASNET_CONTROLLER_MEMORY_PERCENT", value_name = "N")]
    pub memory_percent: Option<u32>,
    /// Take a function from a node where nobody used it for so long; 0: never [default: 15 minutes]
    #[arg(long, env = "FAASNET_CONTROLLER_IDLE_RECLAIM_MS", value_name = "MS")]
    pub idle_reclaim_ms: Option<u64>,
    /// How long a node that is drained or scaled down waits for its children to move [default: 60000]
    #[arg(long, env = "FAASNET_CONTROLLER_DRAIN_PATIENCE_MS", value_name = "MS")]
    pub drain_patience_ms: Option<u64>,
    /// A node below this share of the line rate, in percent, moves where it holds up few [default: 70]
    #[arg(long, env = "FAASNET_CONTROLLER_SLOW_PERCENT", value_name = "N")]
    pub slow_percent: Option<u32>,
    /// Below this share of the line rate, in percent, it feeds nobody [default: 50]
    #[arg(long, env = "FAASNET_CONTROLLER_RECEIVE_ONLY_PERCENT", value_name = "N")]
    pub receive_only_percent: Option<u32>,
    /// After this time a straggler gets another try [default: 10 minutes]
    #[arg(long, env = "FAASNET_CONTROLLER_STRAGGLER_RETRY_MS", value_name = "MS")]
    pub straggler_retry_ms: Option<u64>,
    /// How long a node that has lost all its upstreams may read the origin [default: 30000]
    #[arg(long, env = "FAASNET_CONTROLLER_ORIGIN_LEASE_MS", value_name = "MS")]
    pub origin_lease_ms: Option<u64>,
    /// Forget a dead node that no function wants after this time [default: one day]
    #[arg(long, env = "FAASNET_CONTROLLER_FORGET_DEAD_MS", value_name = "MS")]
    pub forget_dead_ms: Option<u64>,
    /// How often a client that provisions hears of changes [default: 200]
    #[arg(long, env = "FAASNET_CONTROLLER_PROGRESS_MS", value_name = "MS")]
    pub progress_ms: Option<u64>,
    /// Resolve a tag that runtimes ask for at its registry at most this often (mirrors with on-miss register) [default: 60000]
    #[arg(long, env = "FAASNET_CONTROLLER_TAG_TTL_MS", value_name = "MS")]
    pub tag_ttl_ms: Option<u64>,
    /// Commands that may wait for one agent before it is disconnected [default: 256]
    #[arg(long, env = "FAASNET_CONTROLLER_COMMANDS_PER_AGENT", value_name = "N")]
    pub commands_per_agent: Option<usize>,
    /// Set from the global option.
    #[arg(skip)]
    pub cluster_secret: Option<String>,
    /// Set from the global option.
    #[arg(skip)]
    pub cluster_secret_file: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Arg, Command};
    use serde::de::DeserializeOwned;

    /// The settings that a flag exists for: each flag is given a value, which the daemon's own type must take.
    fn settable<Flags: Args + clap::FromArgMatches + Serialize, Config: DeserializeOwned>() -> Vec<String> {
        let command = Flags::augment_args(Command::new("x"));
        let value = |argument: &Arg| match argument.get_id().as_str() {
            "listen" | "http" | "advertise" | "admin" => "127.0.0.1:1",
            "engine" => "copy",
            "mirror_listen" => "off",
            "mirror_on_miss" => "register",
            "huge_pages" | "mirror_remote" => "true",
            "store_write" => "direct",
            "verify" => "xxh3",
            _ => "7",
        };
        let flags: Vec<String> = command
            .get_arguments()
            .map(|argument| format!("--{}={}", argument.get_long().unwrap(), value(argument)))
            .collect();
        let matches = command.try_get_matches_from([vec!["x".to_owned()], flags].concat()).unwrap();
        let table = toml::Table::try_from(Flags::from_arg_matches(&matches).unwrap()).unwrap();
        Config::deserialize(table.clone()).map_err(|error| error.to_string()).map(drop).unwrap();
        table.keys().cloned().collect()
    }

    /// Catches a setting that can only be given in the file, and a flag for a setting that does not exist.
    #[test]
    fn every_setting_has_a_flag() {
        let secrets = ["cluster_secret", "cluster_secret_file", "controller", "tls_ca", "tls_cert", "tls_key"];
        let flags = settable::<AgentSettings, faasnet_agent::Config>();
        for name in toml::Table::try_from(faasnet_agent::Config::default()).unwrap().keys() {
            assert!(flags.contains(name) || secrets.contains(&name.as_str()), "agent: no flag for {name}");
        }
        let flags = settable::<ControllerSettings, faasnet_controller::Config>();
        for name in toml::Table::try_from(faasnet_controller::Config::default()).unwrap().keys() {
            assert!(flags.contains(name) || secrets.contains(&name.as_str()), "controller: no flag for {name}");
        }
    }

    /// Catches an environment variable that two settings share.
    #[test]
    fn environment_variables_are_distinct() {
        let commands =
            [AgentSettings::augment_args(Command::new("x")), ControllerSettings::augment_args(Command::new("x"))];
        let mut names: Vec<_> =
            commands.iter().flat_map(Command::get_arguments).map(|a| a.get_env().unwrap()).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
