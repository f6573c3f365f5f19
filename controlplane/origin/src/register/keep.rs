//! What becomes of an image's bytes while they are read for its registration.
//!
//! Called on the thread that hashes, so it may block; how fast it takes the bytes is how fast the origin is read.

use faasnet_api::Geometry;

/// Takes the bytes of an image in order. They are not verified yet: sha256 tells at the end of a blob.
pub trait Keep: Send + 'static {
    /// Before the first byte: how the image will be cut. `Err`: why it cannot be kept.
    fn begin(&mut self, geometry: &Geometry) -> Result<(), String>;

    /// Bytes of an entry, which begin at `offset` of it.
    fn keep(&mut self, entry: usize, offset: u64, bytes: &[u8]) -> Result<(), String>;
}

/// Keeps nothing: the descriptor is all that is wanted.
impl Keep for () {
    fn begin(&mut self, _: &Geometry) -> Result<(), String> {
        Ok(())
    }

    fn keep(&mut self, _: usize, _: u64, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}
