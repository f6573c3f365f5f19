//! Names of what the lab makes. Everything of one lab begins with `fnlab-<id>-`: that is how leftovers are found after a crash.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::LabError;

/// What every name of every lab begins with.
pub const PREFIX: &str = "fnlab-";
/// Interface names have at most 15 characters and namespaces are typed by people: short ids.
const MOST_CHARACTERS: usize = 8;

/// The name of one lab: 1 to 8 lower-case letters or digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LabId(String);

impl LabId {
    /// An id that no other lab of this moment is likely to have.
    pub fn fresh() -> Self {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        let mixed = (nanos ^ u64::from(std::process::id()) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(format!("{:06x}", mixed >> 40))
    }

    /// `fnlab-<id>-`.
    pub fn prefix(&self) -> String {
        format!("{PREFIX}{}-", self.0)
    }

    /// The namespace of a host.
    pub fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix())
    }

    /// The id in a namespace's or a folder's name, if a lab made it.
    pub fn of(name: &str) -> Option<Self> {
        let (id, rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
        if rest.is_empty() { None } else { id.parse().ok() }
    }
}

impl FromStr for LabId {
    type Err = LabError;

    fn from_str(text: &str) -> Result<Self, LabError> {
        let fits = (1..=MOST_CHARACTERS).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        match fits {
            true => Ok(Self(text.to_owned())),
            false => Err(LabError::Invalid(format!(
                "{text:?} is no name for a lab; use 1 to {MOST_CHARACTERS} lower-case letters or digits"
            ))),
        }
    }
}

impl fmt::Display for LabId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a namespace of somebody else that is taken for a lab's, and one of ours that is not recognised.
    #[test]
    fn only_our_names_are_ours() {
        let id: LabId = "a1".parse().unwrap();
        assert_eq!(LabId::of(&id.namespace("n3")), Some(id));
        for other in ["fnlab", "fnlab-", "fnlab-a1", "fnlab-a1-", "fnlab-A-x", "xfnlab-a-b", "cni-1-2", "fnlab--x"] {
            assert_eq!(LabId::of(other), None, "{other}");
        }
        assert!(
            "".parse::<LabId>().is_err() && "../x".parse::<LabId>().is_err() && "123456789".parse::<LabId>().is_err()
        );
        assert!(LabId::fresh().to_string().parse::<LabId>().is_ok());
    }
}
