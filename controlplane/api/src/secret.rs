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

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a warning about a file that is as it should be, and none about one that everybody can read.
    #[test]
    fn only_what_everybody_can_read_is_worth_a_warning() {
        let path = std::env::temp_dir().join(format!("faasnet-secret-{}", std::process::id()));
        std::fs::write(&path, "secret").unwrap();
        let warns = [0o600, 0o640, 0o644].map(|mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            is_read_by_others(&path)
        });
        std::fs::remove_file(&path).unwrap();
        assert_eq!(warns, [false, false, true]);
        assert!(!is_read_by_others(&path), "there is none");
    }
}
