//! What can go wrong in the lab. Every message names the cause and the next step.

use std::io;

/// Why the lab cannot do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A name, rate or number that cannot work.
    #[error("{0}")]
    Invalid(String),
    /// Not root.
    #[error("the lab makes network namespaces, which needs root; run it with sudo")]
    NotRoot,
    /// `ip`, `tc` or another program is missing.
    #[error("cannot run {program} ({cause}); install iproute2 and util-linux")]
    Missing {
        /// Which program.
        program: String,
        /// The system's word.
        cause: io::Error,
    },
    /// `ip` or `tc` refused.
    #[error("{command} failed: {output}")]
    Tool {
        /// What was run.
        command: String,
        /// What it said.
        output: String,
    },
    /// The system refused.
    #[error("{what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's word.
        cause: io::Error,
    },
    /// Somebody uses the id.
    #[error("the lab {0} exists already; take it down with `faasnet lab down {0}`, or choose another name with --id")]
    Exists(String),
    /// A wait ended without what was waited for.
    #[error("{0}")]
    Late(String),
}

impl LabError {
    /// An I/O error of `what`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }
}

/// A result of the lab.
pub type Result<T> = std::result::Result<T, LabError>;
