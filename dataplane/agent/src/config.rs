//! The agent's settings: one typed value, read from TOML, adjusted by the program's flags, checked once at start.
//!
//! Nothing else reads files or the environment for settings. Secrets never appear in `Debug` or when a configuration is printed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use faasnet_api::tls::ClientFiles;
use faasnet_api::{ClusterSecret, NODE_NAME_RULE, Verify, is_node_name};
use faasnet_relay::plan::Patience;
use faasnet_ring::{DriverOptions, SocketOptions};
use faasnet_store::{StoreOptions, WriteMode};
use serde::{Deserialize, Serialize, Serializer};

use crate::mirror::settings::{MirrorListen, OnMiss};
use crate::tuning::{PIPE_BYTES, Pin, Tuning};

/// More threads than any host has use for.
const MOST_WORKERS: usize = 64;
/// The fewest bytes that pass for a secret.
pub const MIN_SECRET_BYTES: usize = 16;

/// Settings of one agent. `Config::default()` is what an empty file gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How people call this node; by default the host's name.
    pub name: String,
    /// The controller's gRPC address, `http://host:port` or `https://host:port`.
    pub controller: String,
    /// Where children connect to.
    pub listen: SocketAddr,
    /// The address that other nodes use for this one. By default `listen`; if that is unspecified (`0.0.0.0`), the local address of the
    /// route to the controller. Port 0 stands for the port of `listen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Where the admin endpoint listens; loopback only.
    pub admin: SocketAddr,
    /// Where this host's container runtimes pull from: `IP:port`, `unix:/path`, or `off`.
    pub mirror_listen: MirrorListen,
    /// Let other hosts reach the mirror too: whoever can, reads every image of this node.
    pub mirror_remote: bool,
    /// What the mirror does about an image that no function has: `pass` or `register`.
    pub mirror_on_miss: OnMiss,
    /// How long a runtime waits for that before it is sent to the registry.
    pub mirror_register_wait_ms: u64,
    /// Registries (host or host:port) that speak HTTP without TLS, when an image is registered.
    pub mirror_plain_http: Vec<String>,
    /// Where images and the node's id are kept.
    pub store_dir: PathBuf,
    /// The most bytes that images may take in the store; by default what the file system has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_quota_bytes: Option<u64>,
    /// How received blocks are written to the store.
    pub store_write: WriteMode,
    /// Blocks that were written may take this much of the page cache; by default the kernel decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_cache_bytes: Option<u64>,
    /// The secret that controller and agents share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_secret: Option<Secret>,
    /// A file that holds the secret; white space around it does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_secret_file: Option<PathBuf>,
    /// The authority of the controller's certificate (PEM), for a controller at `https://`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<PathBuf>,
    /// This agent's own certificate (PEM), for a controller that asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// How bytes are moved.
    pub engine: Engine,
    /// How a block is checked before it is passed on and kept. What the origin sends is always checked by BLAKE3.
    pub verify: Verify,
    /// Blocks are passed on without being looked at or kept: an experiment, to see what forwarding alone costs. No flag sets it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub experiment_forward_only: bool,
    /// Memory that the controller may fill with functions; by default all of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// A parent that sends nothing at all for this long (or four usual gaps) is left.
    pub silence_ms: u64,
    /// A parent that only says that it waits for its own upstream is left after this long.
    pub waiting_move_ms: u64,
    /// A child outside the plan keeps its place for this long.
    pub guest_ms: u64,
    /// A parent with nothing to send says so this often.
    pub waiting_every_ms: u64,
    /// A node that got nothing for this long, and whose neighbours have all failed, asks the controller for leave to read the origin.
    pub stranded_ms: u64,
    /// Without an answer it reads the origin on its own, after a random time between a quarter of this and all of it.
    pub unanswered_ms: u64,
    /// Blocks that may be in memory at once, received and not yet on disk.
    pub buffers: usize,
    /// Data threads, each with its own ring, buffers and images.
    pub workers: usize,
    /// The core of each worker: `auto`, or a list such as `2,3`; by default they are not pinned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// How much each child's pipe holds.
    pub pipe_bytes: usize,
    /// TCP congestion control of data connections; by default the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub congestion: Option<String>,
    /// Receive buffer of data connections; by default the kernel's own tuning, up to tcp_rmem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receive_buffer_bytes: Option<usize>,
    /// Send buffer of data connections; by default the kernel's own tuning, up to tcp_wmem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_buffer_bytes: Option<usize>,
    /// A child's connection takes more bytes only while fewer than this are unsent; 0 = no such limit.
    pub notsent_lowat_bytes: u32,
    /// A connection whose other side acknowledges or reads nothing for this long fails; 0 = the kernel's patience.
    pub user_timeout_ms: u64,
    /// The most that all children together are sent, in Mbit/s; by default what the links carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_mbit: Option<u64>,
    /// A kernel thread takes each worker's submissions, and sleeps after so many idle milliseconds; by default there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqpoll_idle_ms: Option<u32>,
    /// Poll the network cards for this long before sleeping; by default not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub busy_poll_us: Option<u32>,
    /// Put the block buffers on huge pages, where the host has them.
    pub huge_pages: bool,
}

/// How a worker moves bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// By what the kernel has and, link by link, by the size of the fragments in which bytes arrive: `Splice` or `Registered`, without
    /// io_uring `Copy`.
    Auto,
    /// Zero-copy forwarding by splice and tee.
    Splice,
    /// Receive into leased buffers and send from them, through io_uring.
    Registered,
    /// Read, verify, write; no io_uring.
    Copy,
    /// As `Registered`, on the tokio-uring runtime: to compare with.
    TokioUring,
}

/// A text that is neither logged nor printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown setting, or a value of the wrong type.
    #[error("the configuration cannot be read: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A value that cannot work.
    #[error("{setting}: {problem}")]
    Invalid {
        /// The setting's name.
        setting: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
}

impl Default for Config {
    fn default() -> Self {
        let (patience, socket) = (Patience::default(), SocketOptions::default());
        Self {
            name: host_name(),
            controller: "http://127.0.0.1:7400".into(),
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 7410),
            advertise: None,
            admin: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7411),
            mirror_listen: MirrorListen::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7412)),
            mirror_remote: false,
            mirror_on_miss: OnMiss::Pass,
            mirror_register_wait_ms: 2000,
            mirror_plain_http: Vec::new(),
            store_dir: "/var/lib/faasnet".into(),
            store_quota_bytes: None,
            store_write: WriteMode::default(),
            store_cache_bytes: None,
            cluster_secret: None,
            cluster_secret_file: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            engine: Engine::Auto,
            verify: Verify::default(),
            experiment_forward_only: false,
            memory_mib: None,
            silence_ms: millis(patience.silence),
            waiting_move_ms: millis(patience.waiting),
            guest_ms: millis(patience.guest),
            waiting_every_ms: millis(patience.waiting_every),
            stranded_ms: millis(patience.stranded),
            unanswered_ms: millis(patience.unanswered),
            buffers: 24,
            workers: 1,
            pin: None,
            pipe_bytes: PIPE_BYTES,
            congestion: None,
            receive_buffer_bytes: None,
            send_buffer_bytes: None,
            notsent_lowat_bytes: socket.notsent_lowat_bytes,
            user_timeout_ms: millis(socket.user_timeout),
            rate_limit_mbit: None,
            sqpoll_idle_ms: None,
            busy_poll_us: None,
            huge_pages: true,
        }
    }
}

impl Config {
    /// Reads TOML; [`Config::validate`] is still to be called, since flags may change values.
    pub fn parse(toml: &str) -> Result<Self, ConfigError> {
        Ok(toml::from_str(toml)?)
    }

    /// Checks everything that can be checked without touching the network or the store; reads the files that hold secrets and certificates.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_names()?;
        self.validate_addresses()?;
        self.validate_limits()?;
        self.validate_tuning()?;
        let invalid = |problem: String| ConfigError::Invalid { setting: "tls_ca, tls_cert, tls_key", problem };
        self.tls().load(&self.controller).map_err(|error| invalid(error.to_string()))?;
        self.secret().map(|_| ())
    }

    /// The shared secret, from the setting or its file.
    pub fn secret(&self) -> Result<ClusterSecret, ConfigError> {
        let invalid = |problem: String| ConfigError::Invalid { setting: "cluster_secret", problem };
        let text = match (&self.cluster_secret, &self.cluster_secret_file) {
            (Some(_), Some(_)) => {
                return Err(invalid(
                    "both cluster_secret and cluster_secret_file are set (--secret, --secret-file); keep one of them"
                        .into(),
                ));
            }
            (None, None) => {
                return Err(invalid(
                    "no secret; give --secret-file FILE (in the settings: cluster_secret_file) with the one that the controller uses".into(),
                ));
            }
            (Some(secret), None) => secret.0.clone(),
            (None, Some(path)) => {
                if faasnet_api::is_read_by_others(path) {
                    tracing::warn!(file = %path.display(), "every user of this host can read the cluster's secret; chmod o= it");
                }
                std::fs::read_to_string(path)
                    .map_err(|error| invalid(format!("{} cannot be read: {error}", path.display())))?
            }
        };
        let text = text.trim();
        if text.len() < MIN_SECRET_BYTES {
            return Err(invalid(format!(
                "{} bytes are too few; use at least {MIN_SECRET_BYTES}, e.g. from `openssl rand -hex 32`",
                text.len()
            )));
        }
        Ok(ClusterSecret::new(text.as_bytes()))
    }

    /// The certificates of the session with the controller.
    pub fn tls(&self) -> ClientFiles {
        ClientFiles { ca: self.tls_ca.clone(), cert: self.tls_cert.clone(), key: self.tls_key.clone() }
    }

    /// The time-outs of an edge.
    pub fn patience(&self) -> Patience {
        Patience {
            silence: Duration::from_millis(self.silence_ms),
            waiting: Duration::from_millis(self.waiting_move_ms),
            guest: Duration::from_millis(self.guest_ms),
            waiting_every: Duration::from_millis(self.waiting_every_ms),
            stranded: Duration::from_millis(self.stranded_ms),
            unanswered: Duration::from_millis(self.unanswered_ms),
            ..Patience::default()
        }
    }

    /// The settings of the store.
    pub fn store(&self) -> StoreOptions {
        StoreOptions {
            quota_bytes: self.store_quota_bytes,
            write: self.store_write,
            cache_bytes: self.store_cache_bytes,
            verify: self.verify,
        }
    }

    /// How data connections are set up.
    pub fn socket_options(&self) -> SocketOptions {
        SocketOptions {
            receive_bytes: self.receive_buffer_bytes,
            send_bytes: self.send_buffer_bytes,
            notsent_lowat_bytes: self.notsent_lowat_bytes,
            user_timeout: Duration::from_millis(self.user_timeout_ms),
            congestion: self.congestion.clone(),
            busy_poll_us: self.busy_poll_us,
            // Listeners only; the workers see to it.
            pacing_bytes_per_second: None,
        }
    }

    /// How the workers use the host.
    pub fn tuning(&self) -> Tuning {
        Tuning {
            workers: self.workers,
            pin: self.pin.clone(),
            driver: DriverOptions { sqpoll_idle_ms: self.sqpoll_idle_ms, busy_poll_us: self.busy_poll_us },
            driver_kind: None,
            huge_pages: self.huge_pages,
            pipe_bytes: self.pipe_bytes,
            limit_bytes_per_second: self.rate_limit_mbit.map(|mbit| mbit * 1_000_000 / 8),
        }
    }

    /// What the controller may fill: the setting, or the host's memory (0 when it cannot be told).
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib.or_else(host_memory_mib).unwrap_or(0)
    }

    fn validate_names(&self) -> Result<(), ConfigError> {
        ensure(is_node_name(&self.name), "name", || format!("{:?} is not {NODE_NAME_RULE}", self.name))?;
        ensure(!self.store_dir.as_os_str().is_empty(), "store_dir", || "is empty; name a folder".into())
    }

    fn validate_addresses(&self) -> Result<(), ConfigError> {
        ensure(self.controller_authority().is_some(), "controller", || {
            format!("{:?} is not of the form http://host:port or https://host:port", self.controller)
        })?;
        ensure(self.admin.ip().is_loopback(), "admin", || {
            format!(
                "{} is not a loopback address; the admin endpoint has no access control, so it stays on this host",
                self.admin
            )
        })?;
        let is_local = match &self.mirror_listen {
            MirrorListen::Tcp(address) => address.ip().is_loopback(),
            MirrorListen::Off | MirrorListen::Unix(_) => true,
        };
        ensure(is_local || self.mirror_remote, "mirror_listen", || {
            format!(
                "{} is not a loopback address; the mirror has no access control, so it stays on this host unless --mirror-remote (mirror_remote = true) says otherwise",
                self.mirror_listen
            )
        })?;
        ensure(self.admin != self.listen || self.admin.port() == 0, "admin", || {
            format!("{} is also the data address; give --admin or --listen another port", self.admin)
        })?;
        ensure(self.advertise.is_none_or(|address| !address.ip().is_unspecified()), "advertise", || {
            "other nodes cannot connect to an unspecified address; name one of this host's addresses".into()
        })
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        ensure(self.waiting_every_ms >= 1, "waiting_every_ms", || "must be at least 1".into())?;
        ensure(self.silence_ms >= 2 * self.waiting_every_ms, "silence_ms", || {
            format!("must be at least twice waiting_every_ms ({}), or healthy parents are left", self.waiting_every_ms)
        })?;
        ensure(self.waiting_move_ms >= self.silence_ms, "waiting_move_ms", || {
            format!("must not be less than silence_ms ({})", self.silence_ms)
        })?;
        let longest = self.silence_ms.max(self.waiting_move_ms).max(self.guest_ms);
        ensure(longest <= 3_600_000, "silence_ms, waiting_move_ms, guest_ms", || "an hour is the most".into())?;
        ensure(self.mirror_register_wait_ms <= 600_000, "mirror_register_wait_ms", || {
            "ten minutes are the most".into()
        })?;
        ensure((8..=4096).contains(&self.buffers), "buffers", || {
            format!("{} is not between 8 and 4096 (each holds a block of 256 KiB)", self.buffers)
        })?;
        ensure(self.store_quota_bytes.is_none_or(|quota| quota >= 1 << 20), "store_quota_bytes", || {
            "less than 1 MiB holds no image; leave --store-quota-bytes out for no limit".into()
        })
    }

    fn validate_tuning(&self) -> Result<(), ConfigError> {
        ensure((1..=MOST_WORKERS).contains(&self.workers), "workers", || {
            format!("{} is not between 1 and {MOST_WORKERS}", self.workers)
        })?;
        if let Some(Pin::Cores(cores)) = &self.pin {
            ensure(cores.len() >= self.workers, "pin", || {
                format!("{} cores for {} workers; each needs one of its own", cores.len(), self.workers)
            })?;
        }
        ensure((64 << 10..=64 << 20).contains(&self.pipe_bytes), "pipe_bytes", || {
            format!("{} is not between 65536 and 67108864", self.pipe_bytes)
        })?;
        let buffers =
            [("receive_buffer_bytes", self.receive_buffer_bytes), ("send_buffer_bytes", self.send_buffer_bytes)];
        for (setting, bytes) in buffers {
            ensure(bytes.is_none_or(|bytes| (64 << 10..=1 << 30).contains(&bytes)), setting, || {
                "is not between 65536 and 1073741824; leave it out for the kernel's own tuning".into()
            })?;
        }
        ensure(self.congestion.as_ref().is_none_or(|name| !name.is_empty()), "congestion", || {
            "is empty; leave it out for the host's".into()
        })?;
        ensure(self.user_timeout_ms <= 3_600_000, "user_timeout_ms", || "an hour is the most".into())?;
        ensure(self.rate_limit_mbit.is_none_or(|mbit| (1..=1_000_000).contains(&mbit)), "rate_limit_mbit", || {
            "is not between 1 and 1000000; leave it out for no limit".into()
        })?;
        ensure(self.sqpoll_idle_ms.is_none_or(|ms| (1..=60_000).contains(&ms)), "sqpoll_idle_ms", || {
            "is not between 1 and 60000; leave it out for no polling thread".into()
        })?;
        ensure(self.busy_poll_us.is_none_or(|us| (1..=10_000).contains(&us)), "busy_poll_us", || {
            "is not between 1 and 10000; leave it out for no polling".into()
        })
    }

    /// `host:port` of the controller; `None` when the setting is not of that form.
    pub(crate) fn controller_authority(&self) -> Option<&str> {
        let controller = &self.controller;
        let authority = controller.strip_prefix("http://").or_else(|| controller.strip_prefix("https://"))?;
        let authority = authority.trim_end_matches('/');
        let (host, port) = authority.rsplit_once(':')?;
        let clean = !host.is_empty() && !authority.contains(['/', '@', '?', '#', ' ']);
        (clean && port.parse::<u16>().is_ok_and(|port| port != 0)).then_some(authority)
    }
}

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

fn ensure(holds: bool, setting: &'static str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Invalid { setting, problem: problem() }) }
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |char: char| if char.is_ascii_alphanumeric() || "._-".contains(char) { char } else { '-' };
    let name: String = name.trim().chars().map(plain).collect();
    if name.is_empty() { "agent".into() } else { name }
}

fn host_memory_mib() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid() -> Config {
        Config { cluster_secret: Some(Secret::new("0123456789abcdef")), name: "n1".into(), ..Config::default() }
    }

    fn problem(config: Config) -> String {
        config.validate().unwrap_err().to_string()
    }

    /// Catches defaults that are themselves refused, or that changed by accident.
    #[test]
    fn an_empty_file_gives_the_documented_defaults() {
        let config = Config::parse("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(config.listen.to_string(), "0.0.0.0:7410");
        assert_eq!(config.admin.to_string(), "127.0.0.1:7411");
        assert_eq!(config.mirror_listen.to_string(), "127.0.0.1:7412");
        let times = (config.silence_ms, config.waiting_move_ms, config.guest_ms, config.waiting_every_ms);
        assert_eq!(times, (250, 2000, 5000, 50));
        valid().validate().unwrap();
        assert!(config.memory_mib() > 0);
    }

    /// Catches a misspelt setting that is silently ignored.
    #[test]
    fn unknown_settings_are_refused_by_name() {
        let error = Config::parse("store_dri = \"/x\"").unwrap_err().to_string();
        assert!(error.contains("store_dri"), "{error}");
        assert!(Config::parse("engine = \"warp\"").is_err());
        assert!(Config::parse("listen = \"nowhere\"").is_err());
    }

    /// Catches the secret in a log line or in the printed configuration.
    #[test]
    fn the_secret_is_never_shown() {
        let config = valid();
        assert!(!format!("{config:?}").contains("0123456789abcdef"));
        assert!(!toml::to_string(&config).unwrap().contains("0123456789abcdef"));
    }

    /// Catches a missing, doubled, short or unreadable secret that passes.
    #[test]
    fn secrets_are_checked() {
        assert!(problem(Config { cluster_secret: None, ..valid() }).contains("no secret"));
        assert!(problem(Config { cluster_secret_file: Some("/x".into()), ..valid() }).contains("both"));
        assert!(problem(Config { cluster_secret: Some(Secret::new("  short  ")), ..valid() }).contains("too few"));
        let missing = Config { cluster_secret: None, cluster_secret_file: Some("/no/such/file".into()), ..valid() };
        assert!(problem(missing).contains("/no/such/file"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let from_file = Config { cluster_secret: None, cluster_secret_file: Some(file.path().into()), ..valid() };
        assert_eq!(from_file.secret().unwrap().rpc_token(), valid().secret().unwrap().rpc_token());
    }

    /// Catches addresses and limits that could only fail later, with a worse message.
    #[test]
    fn impossible_values_are_refused() {
        let any: SocketAddr = "0.0.0.0:7411".parse().unwrap();
        assert!(problem(Config { admin: any, ..valid() }).contains("loopback"));
        let mirror_listen = MirrorListen::Tcp(any);
        assert!(problem(Config { mirror_listen: mirror_listen.clone(), ..valid() }).contains("mirror_remote"));
        Config { mirror_listen, mirror_remote: true, ..valid() }.validate().unwrap();
        let listen = valid().admin;
        assert!(problem(Config { listen, ..valid() }).contains("another port"));
        assert!(problem(Config { advertise: Some(any), ..valid() }).contains("unspecified"));
        assert!(problem(Config { controller: "https://c:1".into(), ..valid() }).contains("tls_ca"));
        assert!(problem(Config { tls_cert: Some("/x".into()), ..valid() }).contains("tls_key"));
        for controller in ["c:7400", "http://", "http://c", "http://c:x", "http://c:0", "http://u@c:1", "http://c:1/x"]
        {
            assert!(problem(Config { controller: controller.into(), ..valid() }).contains("host:port"), "{controller}");
        }
        assert!(problem(Config { silence_ms: 60, ..valid() }).contains("silence_ms"));
        assert!(problem(Config { waiting_move_ms: 100, ..valid() }).contains("waiting_move_ms"));
        assert!(problem(Config { buffers: 0, ..valid() }).contains("buffers"));
        assert!(problem(Config { workers: 0, ..valid() }).contains("workers"));
        let one_core = Config { workers: 2, pin: Some("3".parse().unwrap()), ..valid() };
        assert!(problem(one_core).contains("1 cores for 2 workers"));
        assert!(Config::parse("pin = \"x\"").unwrap_err().to_string().contains("pin"));
        assert!(problem(Config { pipe_bytes: 4096, ..valid() }).contains("pipe_bytes"));
        assert!(problem(Config { receive_buffer_bytes: Some(1), ..valid() }).contains("receive_buffer_bytes"));
        assert!(problem(Config { rate_limit_mbit: Some(0), ..valid() }).contains("rate_limit_mbit"));
        assert!(problem(Config { sqpoll_idle_ms: Some(0), ..valid() }).contains("sqpoll_idle_ms"));
        assert!(problem(Config { busy_poll_us: Some(0), ..valid() }).contains("busy_poll_us"));
        for name in ["a b", "a/b", "0123456789abcdef0123456789abcdef"] {
            assert!(problem(Config { name: name.into(), ..valid() }).contains("name"));
        }
        assert!(problem(Config { store_quota_bytes: Some(1), ..valid() }).contains("store_quota_bytes"));
    }
}
