//! What an image runs on, in Go's words: `linux/amd64`, `linux/arm64/v8`.

use std::fmt;
use std::str::FromStr;

use crate::manifest;

use super::RegisterError;

/// Operating system, architecture and, for some architectures, a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// For example `linux`.
    pub os: String,
    /// For example `amd64`.
    pub architecture: String,
    /// For example `v8`; `None` fits any.
    pub variant: Option<String>,
}

impl Platform {
    /// Linux on this machine's processor.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether an image for `other` runs on this platform.
    pub fn fits(&self, other: &manifest::Platform) -> bool {
        let variant = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let same_variant = match (variant(&self.variant), variant(&other.variant)) {
            (Some(wanted), Some(got)) => wanted == got,
            // 64-bit ARM has had one variant, and indexes write it or not.
            (Some(wanted), None) => self.architecture == "arm64" && wanted == "v8",
            (None, _) => true,
        };
        self.os == other.os && self.architecture == other.architecture && same_variant
    }
}

impl FromStr for Platform {
    type Err = RegisterError;

    fn from_str(text: &str) -> Result<Self, RegisterError> {
        let parts: Vec<&str> = text.split('/').collect();
        let clean = |part: &&str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        match parts[..] {
            [os, architecture, ..] if parts.len() <= 3 && parts.iter().all(clean) => Ok(Self {
                os: os.into(),
                architecture: architecture.into(),
                variant: parts.get(2).map(|&variant| variant.into()),
            }),
            _ => Err(RegisterError::Platform(text.into())),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A foreign platform for people.
pub fn show(platform: &manifest::Platform) -> String {
    let (os, architecture, variant) = (platform.os.clone(), platform.architecture.clone(), platform.variant.clone());
    Platform { os, architecture, variant: variant.filter(|text| !text.is_empty()) }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an image of another machine that is taken for ours, and a spelling of ours that is not.
    #[test]
    fn platforms_fit_or_not() {
        let other = |os: &str, architecture: &str, variant: Option<&str>| manifest::Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        };
        let fits = |text: &str, other| text.parse::<Platform>().unwrap().fits(&other);
        assert!(fits("linux/amd64", other("linux", "amd64", None)));
        assert!(fits("linux/arm64", other("linux", "arm64", Some("v8"))));
        assert!(fits("linux/arm64/v8", other("linux", "arm64", None)));
        assert!(fits("linux/arm/v7", other("linux", "arm", Some("v7"))));
        assert!(!fits("linux/arm/v7", other("linux", "arm", Some("v6"))));
        assert!(!fits("linux/amd64", other("windows", "amd64", None)));
        assert!(!fits("linux/amd64", other("unknown", "unknown", None)));
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}
