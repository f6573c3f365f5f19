//! The controller's settings.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use faasnet_api::ClusterSecret;
use faasnet_api::tls::ServerFiles;
use serde::{Deserialize, Serialize};

use crate::state::Settings;

/// Shorter secrets are guessed.
const SECRET_BYTES_MIN: usize = 16;

/// The settings of the controller daemon, with their defaults. Times are in milliseconds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where agents and clients connect (gRPC).
    pub listen: SocketAddr,
    /// Where the JSON API, the live page and the metrics are served; as `listen` with the next port when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<SocketAddr>,
    /// Where the state is kept.
    pub state_dir: PathBuf,
    /// The secret that controller and agents share; at least 16 bytes. Never printed.
    #[serde(skip_serializing)]
    pub cluster_secret: Option<String>,
    /// A file with the secret, instead of `cluster_secret`; white space around it does not count.
    pub cluster_secret_file: Option<PathBuf>,
    /// The controller's certificate (PEM); with it gRPC is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Clients that show a certificate of this authority (PEM) need no secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_client_ca: Option<PathBuf>,
    /// How often an agent says that it lives while something transfers.
    pub heartbeat_ms: u32,
    /// How often otherwise.
    pub idle_heartbeat_ms: u32,
    /// After so many missed heartbeats a node is suspect, after twice as many dead.
    pub suspect_after_missed: u32,
    /// How long a probe may take to connect.
    pub probe_timeout_ms: u64,
    /// How long a node whose stream ended, but whose data address still answers, has to attach again before it counts as dead.
    pub reattach_ms: u64,
    /// How long agents have to come back after a start of the controller before their nodes are probed.
    pub restart_grace_ms: u64,
    /// How many functions a node holds at most.
    pub functions_per_node: u32,
    /// How much of its memory functions may fill on a node, in percent.
    pub memory_percent: u32,
    /// A function is taken from a node where nobody used it for so long; 0: never.
    pub idle_reclaim_ms: u64,
    /// How long a node that is drained or scaled down waits for its children to move before it lets a function go.
    pub drain_patience_ms: u64,
    /// A node below this share of the line rate, in percent, moves where it holds up few.
    pub slow_percent: u32,
    /// Below this share it feeds nobody.
    pub receive_only_percent: u32,
    /// After this time a straggler gets another try.
    pub straggler_retry_ms: u64,
    /// How long a node that has lost all its upstreams may read the origin.
    pub origin_lease_ms: u64,
    /// After this time a dead node that no function wants is forgotten.
    pub forget_dead_ms: u64,
    /// How often a client that provisions hears of changes.
    pub progress_ms: u64,
    /// A tag that runtimes ask for is resolved at its registry at most this often, where mirrors register what they do not know.
    pub tag_ttl_ms: u64,
    /// Commands that may wait for one agent; one that takes them more slowly is disconnected and gets the present state when it is back.
    pub commands_per_agent: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 7400).into(),
            http: None,
            state_dir: "/var/lib/faasnet-controller".into(),
            cluster_secret: None,
            cluster_secret_file: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            heartbeat_ms: 500,
            idle_heartbeat_ms: 5_000,
            suspect_after_missed: 2,
            probe_timeout_ms: 500,
            reattach_ms: 10_000,
            restart_grace_ms: 2_000,
            functions_per_node: 20,
            memory_percent: 90,
            idle_reclaim_ms: 15 * 60 * 1000,
            drain_patience_ms: 60_000,
            slow_percent: 70,
            receive_only_percent: 50,
            straggler_retry_ms: 10 * 60 * 1000,
            origin_lease_ms: 30_000,
            forget_dead_ms: 24 * 3600 * 1000,
            progress_ms: 200,
            tag_ttl_ms: 60_000,
            commands_per_agent: 256,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .field("http", &self.http)
            .field("state_dir", &self.state_dir)
            .field("cluster_secret", &self.cluster_secret.as_ref().map(|_| "(hidden)"))
            .field("cluster_secret_file", &self.cluster_secret_file)
            .field("tls", &self.tls())
            .field("heartbeat_ms", &self.heartbeat_ms)
            .field("idle_heartbeat_ms", &self.idle_heartbeat_ms)
            .field("suspect_after_missed", &self.suspect_after_missed)
            .field("probe_timeout_ms", &self.probe_timeout_ms)
            .field("reattach_ms", &self.reattach_ms)
            .field("restart_grace_ms", &self.restart_grace_ms)
            .field("functions_per_node", &self.functions_per_node)
            .field("memory_percent", &self.memory_percent)
            .field("idle_reclaim_ms", &self.idle_reclaim_ms)
            .field("drain_patience_ms", &self.drain_patience_ms)
            .field("slow_percent", &self.slow_percent)
            .field("receive_only_percent", &self.receive_only_percent)
            .field("straggler_retry_ms", &self.straggler_retry_ms)
            .field("origin_lease_ms", &self.origin_lease_ms)
            .field("forget_dead_ms", &self.forget_dead_ms)
            .field("progress_ms", &self.progress_ms)
            .field("tag_ttl_ms", &self.tag_ttl_ms)
            .field("commands_per_agent", &self.commands_per_agent)
            .finish()
    }
}

impl Config {
    /// The secret, from the setting or its file.
    pub fn secret(&self) -> anyhow::Result<ClusterSecret> {
        let text = match (&self.cluster_secret, &self.cluster_secret_file) {
            (Some(_), Some(_)) => {
                bail!("cluster_secret and cluster_secret_file are both set (--secret, --secret-file); keep one")
            }
            (Some(secret), None) => secret.clone(),
            (None, Some(path)) => {
                if faasnet_api::is_read_by_others(path) {
                    tracing::warn!(file = %path.display(), "every user of this host can read the cluster's secret; chmod o= it");
                }
                std::fs::read_to_string(path)
                    .with_context(|| format!("cluster_secret_file {} cannot be read", path.display()))?
            }
            (None, None) => bail!(
                "no cluster secret is configured; put at least {SECRET_BYTES_MIN} random bytes into a file, for example with \
                 `openssl rand -hex 32`, and give it as --secret-file FILE (in the settings: cluster_secret_file) to the controller and every agent"
            ),
        };
        let secret = text.trim();
        ensure!(
            secret.len() >= SECRET_BYTES_MIN,
            "the cluster secret has {} bytes; use at least {SECRET_BYTES_MIN} random ones",
            secret.len()
        );
        Ok(ClusterSecret::new(secret.as_bytes()))
    }

    /// Where HTTP is served. Port 0 is followed by port 0.
    pub fn http_address(&self) -> SocketAddr {
        let port = if self.listen.port() == 0 { 0 } else { self.listen.port().wrapping_add(1) };
        self.http.unwrap_or(SocketAddr::new(self.listen.ip(), port))
    }

    /// The certificates of gRPC.
    pub fn tls(&self) -> ServerFiles {
        ServerFiles { cert: self.tls_cert.clone(), key: self.tls_key.clone(), client_ca: self.tls_client_ca.clone() }
    }

    /// What the state machine needs of the settings.
    pub(crate) fn settings(&self, ticket_seed: [u8; 32]) -> anyhow::Result<Settings> {
        let positive = [
            ("heartbeat_ms", u64::from(self.heartbeat_ms)),
            ("idle_heartbeat_ms", self.idle_heartbeat_ms.into()),
            ("suspect_after_missed", self.suspect_after_missed.into()),
            ("probe_timeout_ms", self.probe_timeout_ms),
            ("functions_per_node", self.functions_per_node.into()),
            ("memory_percent", self.memory_percent.into()),
            ("progress_ms", self.progress_ms),
            ("commands_per_agent", self.commands_per_agent as u64),
        ];
        for (name, value) in positive {
            ensure!(value > 0, "{name} must be at least 1");
        }
        Ok(Settings {
            ticket_seed,
            heartbeat_ms: self.heartbeat_ms,
            idle_heartbeat_ms: self.idle_heartbeat_ms,
            suspect_after_missed: self.suspect_after_missed,
            reattach_ms: self.reattach_ms,
            restart_grace_ms: self.restart_grace_ms,
            functions_per_node: self.functions_per_node,
            memory_percent: self.memory_percent,
            idle_reclaim_ms: self.idle_reclaim_ms,
            drain_patience_ms: self.drain_patience_ms,
            slow_percent: self.slow_percent,
            receive_only_percent: self.receive_only_percent,
            straggler_retry_ms: self.straggler_retry_ms,
            origin_lease_ms: self.origin_lease_ms,
            forget_dead_ms: self.forget_dead_ms,
            progress_ms: self.progress_ms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a secret in a log or a printed configuration, and a misspelt setting that is taken for a default.
    #[test]
    fn secrets_are_not_printed_and_typos_are_refused() {
        let secret = "0123456789abcdef-secret";
        let config = Config { cluster_secret: Some(secret.into()), ..Config::default() };
        assert!(!format!("{config:?}").contains(secret));
        assert!(!toml::to_string(&config).unwrap().contains(secret));
        let read: Config = toml::from_str("listen = '[::1]:1'\ncluster_secret = 'x'").unwrap();
        assert_eq!((read.listen.port(), read.heartbeat_ms), (1, 500));
        assert!(toml::from_str::<Config>("heartbeat = 3").is_err());
    }

    /// Catches a controller that starts without a secret or with one that can be guessed.
    #[test]
    fn a_secret_is_required() {
        let missing = Config::default().secret().unwrap_err().to_string();
        assert!(missing.contains("cluster_secret_file"), "{missing}");
        let short = Config { cluster_secret: Some("short".into()), ..Config::default() };
        assert!(short.secret().unwrap_err().to_string().contains("16"));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let from_file = Config { cluster_secret_file: Some(file.path().into()), ..Config::default() };
        let plain = Config { cluster_secret: Some("0123456789abcdef".into()), ..Config::default() };
        assert_eq!(from_file.secret().unwrap().rpc_token(), plain.secret().unwrap().rpc_token());
        let both = Config { cluster_secret: plain.cluster_secret.clone(), ..from_file };
        assert!(both.secret().is_err());
    }
}
