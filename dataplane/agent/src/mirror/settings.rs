//! Settings of the mirror: where it listens (`IP:port`, `unix:/path`, or `off`), and what it does about unknown images.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where the mirror listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorListen {
    /// There is no mirror.
    Off,
    /// TCP.
    Tcp(SocketAddr),
    /// A unix socket; made anew at start.
    Unix(PathBuf),
}

impl FromStr for MirrorListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("unix:")) {
            ("off", _) => Ok(Self::Off),
            (_, Some(path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            _ => {
                text.parse().map(Self::Tcp).map_err(|_| format!("{text:?} is neither IP:port, nor unix:/path, nor off"))
            }
        }
    }
}

impl fmt::Display for MirrorListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for MirrorListen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MirrorListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What the mirror does about an image that no function has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMiss {
    /// 404: the runtime goes to the registry.
    #[default]
    Pass,
    /// This node registers it, or whoever was asked for it before; waits a little for that one.
    Register,
}

impl FromStr for OnMiss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pass" => Ok(Self::Pass),
            "register" => Ok(Self::Register),
            _ => Err(format!("{text:?} is neither pass nor register")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a form that is printed otherwise than it is read, and a typing error that is taken for a path.
    #[test]
    fn every_form_is_read_as_it_is_printed() {
        for text in ["off", "127.0.0.1:7412", "[::1]:0", "unix:/run/faasnet/mirror.sock"] {
            assert_eq!(text.parse::<MirrorListen>().unwrap().to_string(), text);
        }
        for text in ["", "on", "unix:", "unix:relative", "localhost:7412", "127.0.0.1"] {
            assert!(text.parse::<MirrorListen>().is_err(), "{text}");
        }
    }
}
