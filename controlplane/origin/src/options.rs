//! How a source reads: TLS authorities, credentials, timeouts and patience.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::{Credentials, RetryPolicy, credentials};

/// Settings of a source. The defaults suit a daemon: what the environment names, 5 s to connect, 10 s without a byte.
#[derive(Debug, Clone)]
pub struct SourceOptions {
    /// Speak HTTP without TLS to the registry; hosts on this machine always do.
    pub plain_http: bool,
    /// A PEM file with certificate authorities to trust beside the system's. Default: `$FAASNET_CA_FILE`.
    pub ca_file: Option<PathBuf>,
    /// Docker's `config.json`. Default: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
    pub credentials_file: Option<PathBuf>,
    /// Used where that file says nothing about the registry; never sent over plain HTTP but to this machine.
    pub login: Option<Credentials>,
    /// Where the credential helpers that it names are searched. Default: `$PATH`.
    pub helper_path: Option<OsString>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the next byte, of an answer's head or body.
    pub stall_timeout: Duration,
    /// How failed blob reads are repeated.
    pub retry: RetryPolicy,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            ca_file: std::env::var_os("FAASNET_CA_FILE").filter(|path| !path.is_empty()).map(PathBuf::from),
            credentials_file: credentials::default_path(),
            login: None,
            helper_path: None,
            connect_timeout: Duration::from_secs(5),
            stall_timeout: Duration::from_secs(10),
            retry: RetryPolicy::default(),
        }
    }
}
