//! Everything that can go wrong at an origin, and whether trying again can help.
//!
//! Texts name the cause and the next step; they never hold credentials, tokens or the query part of a URL (signed blob
//! locations carry secrets there).

use std::path::PathBuf;
use std::time::Duration;

/// Why an origin could not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The text is not an image reference.
    #[error(
        "{text:?} is not an image reference: {reason}; write registry/repository:tag, or the path of an OCI layout folder"
    )]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection: refused, no route, unknown name, or no answer in time.
    #[error(
        "cannot connect to {url}: {cause}; check the address, and that the registry runs and is reachable from here"
    )]
    Unreachable {
        /// Where to.
        url: String,
        /// The system's word.
        cause: String,
    },
    /// TLS failed: unknown authority, wrong name, or the other side does not speak TLS.
    #[error(
        "TLS with {url} failed: {cause}; name the registry's certificate authority with FAASNET_CA_FILE or SSL_CERT_FILE, or ask for plain HTTP if it speaks no TLS"
    )]
    Tls {
        /// Where to.
        url: String,
        /// What the TLS library says.
        cause: String,
    },
    /// No byte came for too long.
    #[error("{url} sent nothing for {seconds} s")]
    Stalled {
        /// What was read.
        url: String,
        /// The limit.
        seconds: u64,
    },
    /// The connection ended in the middle of a message.
    #[error("the connection to {url} was cut after {received} bytes of the body: {cause}")]
    Cut {
        /// What was read.
        url: String,
        /// Body bytes of this response that came.
        received: u64,
        /// What the HTTP library says.
        cause: String,
    },
    /// 429.
    #[error("{url} answered 429 (too many requests); wait, or log in for a higher limit")]
    TooManyRequests {
        /// What was asked for.
        url: String,
        /// How long the registry wants us to wait.
        retry_after: Option<Duration>,
    },
    /// 5xx and 408.
    #[error("{url} answered {status}: the registry has a problem; look at its log")]
    ServerFailed {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// How long the registry wants us to wait.
        retry_after: Option<Duration>,
    },
    /// 401 or 403 after every way to authenticate was tried.
    #[error("{url} refuses access ({status}): {hint}")]
    Denied {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// 404, or no such file in a layout.
    #[error("{what} does not exist at {origin}; check the name, and that the image was pushed completely")]
    NotFound {
        /// Manifest or blob.
        what: String,
        /// Which registry and repository, or folder.
        origin: String,
    },
    /// Another HTTP status that the protocol does not allow here.
    #[error("{url} answered {status} where the registry protocol allows no such answer; is it an OCI registry?")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// An answer that contradicts itself or the request.
    #[error("{url} broke the registry protocol: {what}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// In which way.
        what: String,
    },
    /// A `Range` request was answered with the whole blob.
    #[error("{url} ignores byte ranges; register the image again so that it is read in order by one node")]
    NoRanges {
        /// The blob.
        url: String,
    },
    /// Bytes that hash to something else than was asked for.
    #[error(
        "{what} has the digest {got}, expected {expected}: the origin holds or sends damaged data; push the image again"
    )]
    FalseDigest {
        /// Manifest or blob.
        what: String,
        /// What was asked for.
        expected: String,
        /// What came.
        got: String,
    },
    /// A digest that is malformed or of an algorithm that we do not use.
    #[error("{0:?} is not a sha256 digest; faasnet reads images with sha256 digests only")]
    Digest(String),
    /// A manifest or index beyond [`crate::MAX_MANIFEST_BYTES`].
    #[error("{what} is larger than {max} bytes", max = crate::MAX_MANIFEST_BYTES)]
    TooLarge {
        /// Which.
        what: String,
    },
    /// A file of a layout cannot be read.
    #[error("cannot read {path}: {cause}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        cause: String,
    },
    /// The folder is not an OCI layout, or a broken one.
    #[error("{path} is not a usable OCI image layout: {reason}", path = path.display())]
    Layout {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// A setting that cannot be used, for example an unreadable certificate authority file.
    #[error("{0}")]
    Setting(String),
}

impl Error {
    /// Whether the same request can succeed a little later: refused connections, cuts, stalls, 429 and 5xx.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Stalled { .. }
                | Self::Cut { .. }
                | Self::TooManyRequests { .. }
                | Self::ServerFailed { .. }
        )
    }

    /// How long the origin asked us to wait before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. } | Self::ServerFailed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}
