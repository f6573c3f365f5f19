//! How the bytes of a block are checked: the digests of one block, and which of them a node compares.
//!
//! Both digests stand in the descriptor, which `ImageId` covers, so neither can be exchanged on the way.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// What a node compares before it passes a block on or marks it as present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// BLAKE3: nobody can make other bytes that pass.
    #[default]
    Blake3,
    /// XXH3-128: finds what goes wrong by accident, at a tenth of the cost; a neighbour that wants to deceive can.
    Xxh3,
    /// Nothing: for experiments on networks where every host is trusted.
    Off,
}

/// The digests of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockDigest {
    /// BLAKE3.
    pub blake3: [u8; 32],
    /// XXH3-128 without a seed, in its canonical (big-endian) form.
    pub xxh3: [u8; 16],
}

/// Hashes the bytes of one block as they stream by.
#[derive(Default)]
pub struct BlockHasher {
    blake3: blake3::Hasher,
    xxh3: Xxh3,
}

impl Verify {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Blake3, Self::Xxh3, Self::Off];

    /// The name in settings, flags and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Xxh3 => "xxh3",
            Self::Off => "off",
        }
    }

    /// What checks bytes that were read from this node's own disk. A trusted network says nothing about a disk after a crash, and
    /// XXH3 is faster than any disk.
    pub fn on_disk(self) -> Self {
        if self == Self::Off { Self::Xxh3 } else { self }
    }

    /// What people have to be told about a mode that is weaker than the default.
    pub fn warning(self) -> Option<&'static str> {
        match self {
            Self::Blake3 => None,
            Self::Xxh3 => Some(
                "verify = xxh3: accidents are found, deceit is not: a neighbour can pass off other bytes as the image's; for trusted networks",
            ),
            Self::Off => Some(
                "verify = off: this node keeps and passes on whatever its parents send, also what broke on the way; for experiments",
            ),
        }
    }
}

impl BlockDigest {
    /// Of the bytes of a whole block.
    pub fn of(payload: &[u8]) -> Self {
        Self { blake3: *blake3::hash(payload).as_bytes(), xxh3: xxh3(payload) }
    }

    /// Whether `payload` is the block of these digests, as far as `mode` tells.
    pub fn matches(&self, payload: &[u8], mode: Verify) -> bool {
        match mode {
            Verify::Blake3 => *blake3::hash(payload).as_bytes() == self.blake3,
            Verify::Xxh3 => xxh3(payload) == self.xxh3,
            Verify::Off => true,
        }
    }
}

impl BlockHasher {
    /// Takes the next bytes.
    pub fn update(&mut self, part: &[u8]) {
        self.blake3.update(part);
        self.xxh3.update(part);
    }

    /// The digests of what was taken; the next block begins.
    pub fn finish(&mut self) -> BlockDigest {
        let digest =
            BlockDigest { blake3: *self.blake3.finalize().as_bytes(), xxh3: self.xxh3.digest128().to_be_bytes() };
        self.blake3.reset();
        self.xxh3.reset();
        digest
    }
}

fn xxh3(payload: &[u8]) -> [u8; 16] {
    xxh3_128(payload).to_be_bytes()
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Verify {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|mode| mode.name() == text);
        known.ok_or_else(|| format!("not one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a streaming hash that differs from that of the whole, or is carried into the next block.
    #[test]
    fn streamed_and_whole_digests_agree() {
        let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let mut hasher = BlockHasher::default();
        for len in [0, 1, 4096, 300_000] {
            bytes[..len].chunks(1000).for_each(|part| hasher.update(part));
            assert_eq!(hasher.finish(), BlockDigest::of(&bytes[..len]));
        }
    }

    /// Catches a mode that compares nothing, or the wrong digest.
    #[test]
    fn every_mode_compares_its_digest() {
        let right = BlockDigest::of(b"block");
        let wrong = BlockDigest { blake3: right.blake3, xxh3: [0; 16] };
        assert!(Verify::ALL.iter().all(|mode| right.matches(b"block", *mode)));
        assert!(!right.matches(b"blocc", Verify::Blake3) && !right.matches(b"blocc", Verify::Xxh3));
        assert!(wrong.matches(b"block", Verify::Blake3) && !wrong.matches(b"block", Verify::Xxh3));
        assert!(Verify::ALL.iter().all(|mode| !right.matches(b"blocc", mode.on_disk())));
        // The canonical form of the reference implementation's XXH3_128bits of the empty input.
        assert_eq!(u128::from_be_bytes(BlockDigest::of(b"").xxh3), 0x99aa06d3014798d86001c324468d497f);
    }

    /// Catches a mode that can be printed and not read.
    #[test]
    fn names_are_read_back() {
        for mode in Verify::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("sha256".parse::<Verify>().unwrap_err().contains("xxh3"));
    }
}
