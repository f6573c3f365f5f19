//! The names of the tree policies, as people and stored state spell them.

use std::fmt;
use std::str::FromStr;

/// How the members of a function are arranged. Fixed when the function is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Policy {
    /// One tree, an array heap: minimum height; at most 3 nodes change their parent when a node leaves (5 when the root leaves).
    Complete,
    /// One tree, height-balanced by rotations: the paper's. At most 3 + 4·log₂ n nodes change their parent when a node leaves.
    Avl,
    /// Two interior-disjoint trees, one per stripe: every uplink is used; at most 1 node besides the new one changes a parent when a
    /// node joins, at most 7 when one leaves (9 when a root leaves).
    Twin,
}

impl Policy {
    /// How many stripes, and so trees, a function of this policy has.
    pub fn stripes(self) -> u8 {
        match self {
            Self::Complete | Self::Avl => 1,
            Self::Twin => 2,
        }
    }
}

/// A text that names no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tree policy; use \"twin\", \"complete\" or \"avl\"")]
pub struct UnknownPolicy(pub String);

impl FromStr for Policy {
    type Err = UnknownPolicy;
    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text {
            "complete" => Ok(Self::Complete),
            "twin" => Ok(Self::Twin),
            "avl" => Ok(Self::Avl),
            other => Err(UnknownPolicy(other.into())),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Twin => "twin",
            Self::Avl => "avl",
        })
    }
}
