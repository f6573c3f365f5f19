//! How a store keeps images: its settings, as the agent's configuration gives them.

use std::fmt;
use std::str::FromStr;

use faasnet_api::Verify;
use serde::{Deserialize, Serialize};

/// Settings of a store.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// Images together take at most this; `None`: what the file system has.
    pub quota_bytes: Option<u64>,
    /// How received blocks are written.
    pub write: WriteMode,
    /// Written blocks may take so much of the page cache; what was written before that is brought to the disk and released. `None`:
    /// the kernel decides.
    pub cache_bytes: Option<u64>,
    /// What tells whether a block is right that a crash of the host left in doubt, or that comes from another image.
    pub verify: Verify,
}

/// How received blocks are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WriteMode {
    /// Directly while the disk keeps up and nobody is about to read the block back, else through the page cache.
    #[default]
    Auto,
    /// Past the page cache (O_DIRECT), all that is long enough for it.
    Direct,
    /// Through the page cache.
    Buffered,
}

impl WriteMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Direct, Self::Buffered];

    /// The name in settings and flags.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Buffered => "buffered",
        }
    }
}

impl fmt::Display for WriteMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WriteMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|mode| mode.name() == text);
        known.ok_or_else(|| format!("not one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}
