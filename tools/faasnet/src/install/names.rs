//! The two names that an installation is about: the agent's mirror and a registry. Parsed once; what parsed is safe in paths and files.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Where the agent's registry mirror answers: `http://host:port` or `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mirror(String);

impl Mirror {
    /// As a URL without a path.
    pub fn url(&self) -> &str {
        &self.0
    }

    /// `host:port`.
    pub fn authority(&self) -> &str {
        self.0.split_once("://").map_or(&self.0, |(_, authority)| authority)
    }

    /// Whether it is spoken to without TLS.
    pub fn is_plain(&self) -> bool {
        self.0.starts_with("http://")
    }
}

impl FromStr for Mirror {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let url = text.trim_end_matches('/');
        let authority = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        ensure!(authority.is_some_and(is_authority), "{text:?} is not of the form http://host:port");
        Ok(Self(url.to_owned()))
    }
}

/// A registry as references name it: `docker.io`, `registry.example:5000`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Registry {
    /// Host, and port if references have one.
    pub host: String,
    /// It was given with `http://`: it speaks no TLS.
    pub plain: bool,
}

impl Registry {
    /// Docker Hub.
    pub fn docker_hub() -> Self {
        Self { host: "docker.io".into(), plain: false }
    }

    /// Where the registry itself is, if that has to be said: runtimes know Docker Hub, and treat registries of this host in their own way.
    pub fn server(&self) -> Option<String> {
        let name = self.host.rsplit_once(':').map_or(self.host.as_str(), |(name, _)| name);
        let local = name == "localhost" || name == "[::1]" || name.starts_with("127.");
        match (self.plain, self.host.as_str()) {
            (true, host) => Some(format!("http://{host}")),
            (false, "docker.io") => Some("https://registry-1.docker.io".into()),
            (false, _) if local => None,
            (false, host) => Some(format!("https://{host}")),
        }
    }
}

impl FromStr for Registry {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (host, plain) = match text.strip_prefix("http://") {
            Some(host) => (host, true),
            None => (text.strip_prefix("https://").unwrap_or(text), false),
        };
        let host = host.trim_end_matches('/').to_lowercase();
        ensure!(
            is_authority(&host),
            "{text:?} is not a registry's host, such as docker.io or registry.example:5000 (no path, no image)"
        );
        Ok(Self { host, plain })
    }
}

impl fmt::Display for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)
    }
}

/// Host and perhaps port, of characters that mean nothing in a path, in TOML or in JSON.
fn is_authority(text: &str) -> bool {
    let clean = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c));
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && (!host.contains(':') || host.ends_with(']')) => {
            (host, Some(port))
        }
        _ => (text, None),
    };
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => clean(host) && host.starts_with(|c: char| c.is_ascii_alphanumeric()),
    };
    host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches names that would write outside of their folder or break the file that they are put into.
    #[test]
    fn only_hosts_are_taken() {
        for wrong in
            ["", "a/b", "..", "../x", "_default", "a b", "a\"b", "a:", "a:0", "a:x", "a:b:1", "[::1", "-x", "a\n"]
        {
            assert!(wrong.parse::<Registry>().is_err(), "{wrong:?}");
            assert!(format!("http://{wrong}").parse::<Mirror>().is_err() || wrong.is_empty(), "{wrong:?}");
        }
        assert!("127.0.0.1:7412".parse::<Mirror>().is_err());
        assert!("http://127.0.0.1:7412/v2".parse::<Mirror>().is_err());
        assert_eq!("http://127.0.0.1:7412/".parse::<Mirror>().unwrap().url(), "http://127.0.0.1:7412");
        assert_eq!("https://[::1]:7412".parse::<Mirror>().unwrap().authority(), "[::1]:7412");
    }

    /// Catches a registry that containerd can no longer reach because its own address was written down wrongly.
    #[test]
    fn a_registry_keeps_its_own_address() {
        let server = |text: &str| text.parse::<Registry>().unwrap().server();
        assert_eq!(server("docker.io").unwrap(), "https://registry-1.docker.io");
        assert_eq!(server("Registry.Example:5000").unwrap(), "https://registry.example:5000");
        assert_eq!(server("http://registry.example:5000").unwrap(), "http://registry.example:5000");
        assert_eq!(server("localhost:5000"), None);
        assert_eq!(server("127.0.0.1:5000"), None);
    }
}
