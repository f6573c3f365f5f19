//! sha256 digests as OCI writes them: `sha256:` and 64 lower-case hexadecimal digits.

use sha2::{Digest as _, Sha256};

use crate::Error;

/// A running sha256 that ends in OCI's spelling.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything added.
    pub fn finish(self) -> String {
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in self.0.finalize() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        text
    }
}

/// The digest of `bytes`.
pub fn of(bytes: &[u8]) -> String {
    let mut hasher = Hasher::default();
    hasher.update(bytes);
    hasher.finish()
}

/// The 64 hexadecimal digits of a well-formed sha256 digest. What this accepts is safe as a file name and in a URL.
pub fn hex(digest: &str) -> Result<&str, Error> {
    digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
        .ok_or_else(|| Error::Digest(digest.chars().take(200).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a wrong spelling (the well-known digest of nothing) and a digest that could leave a folder.
    #[test]
    fn digests_are_spelled_and_checked() {
        assert_eq!(of(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hex(&of(b"")).unwrap().len(), 64);
        let long = "a".repeat(65);
        for bad in ["sha256:../../etc/passwd", "sha512:00", "", "sha256:", &format!("sha256:{long}"), &"A".repeat(64)] {
            assert!(hex(bad).is_err(), "{bad}");
        }
    }
}
