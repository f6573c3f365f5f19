//! The secret that controller and agents share: what lets an agent join the cluster and a client call the controller.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The secret, stretched into the token that travels.
#[derive(Clone)]
pub struct ClusterSecret {
    token: String,
}

impl ClusterSecret {
    /// Derives the token. Use at least 16 random bytes.
    pub fn new(secret: &[u8]) -> Self {
        Self { token: blake3::Hash::from_bytes(blake3::derive_key("faasnet 2026 rpc token", secret)).to_string() }
    }

    /// The bearer token of gRPC calls.
    pub fn rpc_token(&self) -> &str {
        &self.token
    }

    /// Whether `token` is the bearer token; takes the same time for every wrong one.
    pub fn accepts_rpc_token(&self, token: &str) -> bool {
        // Comparing hashes leaks nothing about the position of the first difference.
        blake3::hash(token.as_bytes()) == blake3::hash(self.token.as_bytes())
    }
}

/// Whether a file with a secret can be read by every user of this host: worth a warning. A group may be the daemon's own. One that cannot be looked at cannot be read either.
pub fn is_read_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| data.permissions().mode() & 0o004 != 0)
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}
