//! Why an image could not be registered or inspected.

use faasnet_api::DescriptorError;

/// The text names the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The registry or layout failed: unreachable, refused, a false digest, a missing manifest or blob.
    #[error(transparent)]
    Origin(#[from] crate::Error),
    /// What the reference names is no container image.
    #[error("{reference} is not a container image: {reason}")]
    NotAnImage {
        /// The reference as given.
        reference: String,
        /// What it is instead.
        reason: String,
    },
    /// The image does not exist for the platform.
    #[error("{reference} has no image for {wanted}; there is {available}; name one of these as the platform")]
    UnknownPlatform {
        /// The reference as given.
        reference: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// The platform's text is malformed.
    #[error("{0:?} is not a platform; write os/architecture or os/architecture/variant, for example linux/amd64")]
    Platform(String),
    /// A blob has another length than the manifest says.
    #[error("blob {digest} has more bytes than its manifest says ({expected}); push the image again")]
    Length {
        /// Which blob.
        digest: String,
        /// The manifest's word.
        expected: u64,
    },
    /// The image breaks a limit of ours.
    #[error("{reference} cannot be described: {cause}")]
    Descriptor {
        /// The reference as given.
        reference: String,
        /// Which limit.
        cause: DescriptorError,
    },
    /// Whoever was to keep the bytes could not.
    #[error("the image cannot be kept: {0}")]
    Keeping(String),
    /// A thread of ours ended early.
    #[error("hashing the image ended early: {0}")]
    Hashing(String),
}
