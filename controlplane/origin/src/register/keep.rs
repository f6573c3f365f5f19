//! What becomes of an image's bytes while they are read for its registration.
//!
//! Called on the thread that hashes, so it may block; how fast it takes the bytes is how fast the origin is read.

use faasnet_api::{BlockDigest, Entry, Geometry};

/// What is known of an image before its bytes are.
#[derive(Debug, Clone)]
pub struct Outline {
    /// How it will be cut.
    pub geometry: Geometry,
    /// Config first, then the layers in order, each digest once.
    pub entries: Vec<Entry>,
    /// As the registry gave it; it has that digest.
    pub manifest: Vec<u8>,
    /// OCI's or Docker's.
    pub manifest_media_type: String,
    /// `sha256:…`.
    pub manifest_digest: String,
}

/// Takes the bytes of an image in order. They are not verified yet: sha256 tells at the end of a blob.
pub trait Keep: Send + 'static {
    /// Before the first byte. `Err`: why it cannot be kept.
    fn begin(&mut self, outline: Outline) -> Result<(), String>;

    /// Bytes of an entry, which begin at `offset` of it.
    fn keep(&mut self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), String>;

    /// All bytes of the next entry were kept and had its digest; `blocks` are its blocks'.
    fn right(&mut self, blocks: &[BlockDigest]);
}

/// Keeps nothing: the descriptor is all that is wanted.
impl Keep for () {
    fn begin(&mut self, _: Outline) -> Result<(), String> {
        Ok(())
    }

    fn keep(&mut self, _: usize, _: u64, _: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn right(&mut self, _: &[BlockDigest]) {}
}
