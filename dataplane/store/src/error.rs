//! Why the store refuses or fails; every message names the next step.

use std::io;
use std::path::PathBuf;

use faasnet_api::ImageId;

/// See the variants.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another agent has the folder open.
    #[error("the store {0} is used by another agent; stop it or give this one a folder of its own")]
    InUse(PathBuf),
    /// The folder cannot be made, read or written.
    #[error("the store {path} cannot be used: {source}; create the folder and let the agent's user write to it")]
    Folder {
        /// The store's folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file with the node's id cannot be understood.
    #[error("{0} is damaged; remove it to give this node a new id")]
    NodeFile(PathBuf),
    /// The image is too large for the quota, even after evicting what is not in use.
    #[error(
        "image {image} needs {needed_bytes} bytes, but images in use hold {used_bytes} of the quota of {quota_bytes}; raise the quota or release functions on this node"
    )]
    Quota {
        /// The image that was to be opened: its id, or what is known of one that is being registered.
        image: String,
        /// Bytes of its file.
        needed_bytes: u64,
        /// Bytes of files that cannot be evicted.
        used_bytes: u64,
        /// The limit.
        quota_bytes: u64,
    },
    /// The file system has no room for the image.
    #[error("image {image} cannot be stored: {source}")]
    Full {
        /// As in [`StoreError::Quota`].
        image: String,
        /// How much was asked for, and what to do.
        source: io::Error,
    },
    /// The same image is in use for another tenant; tenants share nothing on a node.
    #[error("image {0} is in use by another tenant on this node; release that tenant's functions first")]
    OtherTenant(ImageId),
    /// The bytes of an image that is being registered cannot be written.
    #[error("{path}: {source}; check the store's disk")]
    Staged {
        /// Which file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file of an image cannot be read or written.
    #[error("image {image}: {path}: {source}; check the store's disk, or remove the image's folder to fetch it anew")]
    Image {
        /// Which image.
        image: ImageId,
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}
