//! Which rows there are: relays, and what each can do with the bytes that pass.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// A way to relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// The agent's worker, as it runs by default: the mover goes by the fragments that arrive.
    Auto,
    /// The agent's worker: peek, verify, splice and tee.
    Splice,
    /// The agent's worker: receive into leased buffers and send from them, through io_uring.
    Registered,
    /// The agent's worker: read, verify, write.
    Copy,
    /// The agent's worker on the tokio-uring runtime.
    TokioUring,
    /// Read 256 KiB, write it twice.
    #[serde(rename = "copy-256k")]
    Copy256K,
    /// Read 1 MiB, write it twice.
    #[serde(rename = "copy-1m")]
    Copy1M,
    /// The same with tokio, 256 KiB.
    Tokio,
    /// nginx with proxy_cache and proxy_cache_lock, two cold clients.
    NginxCache,
    /// No relay: one child on the relay's core reads from the origin. The ceiling.
    Direct,
}

/// What is done with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Passed on.
    #[serde(rename = "forward")]
    Forward,
    /// Passed on and written to a file.
    #[serde(rename = "keep")]
    Keep,
    /// And hashed with XXH3-128.
    #[serde(rename = "keep+xxh3")]
    KeepXxh3,
    /// And hashed with BLAKE3.
    #[serde(rename = "keep+blake3")]
    KeepBlake3,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Combination {
    pub(crate) engine: Engine,
    pub(crate) mode: Mode,
}

impl Engine {
    /// In the order of the table.
    pub const ALL: [Self; 10] = [
        Self::Auto,
        Self::Splice,
        Self::Registered,
        Self::Copy,
        Self::TokioUring,
        Self::Copy256K,
        Self::Copy1M,
        Self::Tokio,
        Self::NginxCache,
        Self::Direct,
    ];

    /// The name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Splice => "splice",
            Self::Registered => "registered",
            Self::Copy => "copy",
            Self::TokioUring => "tokio-uring",
            Self::Copy256K => "copy-256k",
            Self::Copy1M => "copy-1m",
            Self::Tokio => "tokio",
            Self::NginxCache => "nginx-cache",
            Self::Direct => "direct",
        }
    }

    /// Whether it is the agent's worker.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Auto | Self::Splice | Self::Registered | Self::Copy | Self::TokioUring)
    }

    /// Whether it can do this; else why not.
    fn does(self, mode: Mode) -> Result<(), &'static str> {
        match (self, mode) {
            (Self::Tokio | Self::Direct, mode) if mode != Mode::Forward => Err("it only forwards"),
            (Self::NginxCache, mode) if mode != Mode::Keep => Err("it keeps and does not verify"),
            _ => Ok(()),
        }
    }
}

impl Mode {
    /// In the order of the table.
    pub const ALL: [Self; 4] = [Self::Forward, Self::Keep, Self::KeepXxh3, Self::KeepBlake3];

    /// The name on the command line and in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Keep => "keep",
            Self::KeepXxh3 => "keep+xxh3",
            Self::KeepBlake3 => "keep+blake3",
        }
    }
}

/// The rows for what was asked, by mode and then engine, and notes on what is left out.
pub(crate) fn choose(engines: &[Engine], modes: &[Mode]) -> Result<(Vec<Combination>, Vec<String>)> {
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for mode in Mode::ALL.into_iter().filter(|mode| modes.is_empty() || modes.contains(mode)) {
        for engine in Engine::ALL.into_iter().filter(|engine| engines.is_empty() || engines.contains(engine)) {
            match engine.does(mode) {
                Ok(()) if engine == Engine::NginxCache && !super::nginx::is_installed() => {
                    if engines.contains(&engine) {
                        bail!(
                            "nginx is not installed; install it (Debian: apt install nginx-light) or leave nginx-cache out"
                        );
                    }
                    notes.push("nginx-cache: not measured, nginx is not installed".to_owned());
                }
                Ok(()) => rows.push(Combination { engine, mode }),
                Err(reason) if !(engines.is_empty() || modes.is_empty()) => {
                    notes.push(format!("{engine} {mode}: no such row, {reason}"));
                }
                Err(_) => {}
            }
        }
    }
    if rows.is_empty() {
        bail!("nothing to measure: {}", notes.join("; "));
    }
    Ok((rows, notes))
}

impl FromStr for Engine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|engine| engine.name() == text).ok_or_else(|| format!("not one of {}", names()))
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| format!("not one of {}", names()))
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches names in the report that cannot be typed, or differ from those of the command line.
    #[test]
    fn names_are_the_same_everywhere() {
        for engine in Engine::ALL {
            assert_eq!(engine.name().parse(), Ok(engine));
            assert_eq!(serde_json::to_value(engine).unwrap(), engine.name());
        }
        for mode in Mode::ALL {
            assert_eq!(mode.name().parse(), Ok(mode));
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
    }

    /// Catches a row that claims what its engine does not do.
    #[test]
    fn rows_do_what_they_say() {
        let (rows, notes) = choose(&[Engine::Splice, Engine::Tokio], &[]).unwrap();
        let row = |engine, mode| Combination { engine, mode };
        let splice = |mode| row(Engine::Splice, mode);
        let mut expected = Mode::ALL.map(splice).to_vec();
        expected.insert(1, row(Engine::Tokio, Mode::Forward));
        assert_eq!(rows, expected);
        assert!(notes.is_empty(), "{notes:?}");
        assert!(choose(&[Engine::Direct], &[Mode::Keep]).is_err());
    }
}
