//! What flows: frames of one block each, all with the same payload, so that neither origin nor children cost much.
//!
//! Every row gets the same bytes in the same portions; baselines do not look into them.

use std::sync::Arc;

use anyhow::{Context, Result};
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{BLOCK_BYTES, BlockDigest, BlockIndex, Descriptor, Entry, Origin};
use faasnet_relay::wire::{Frame, HEADER_BYTES, Kind};

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) payload: Arc<Vec<u8>>,
}

/// Bytes of a GiB.
pub(crate) const GIB: f64 = (1u64 << 30) as f64;
/// Bytes of the largest frame.
pub(crate) const FRAME_BYTES: usize = HEADER_BYTES + BLOCK_BYTES as usize;

impl Stream {
    /// About `gib` GiB of payload, in whole blocks of `block_bytes` (`None`: as images have by default).
    pub(crate) fn new(gib: f64, block_bytes: Option<u32>) -> Result<Self> {
        let block_bytes = block_bytes.unwrap_or(BLOCK_BYTES);
        let blocks = ((gib * GIB / f64::from(block_bytes)).round() as usize).max(1);
        // xorshift64: bytes that nothing on the way could compress.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let payload: Vec<u8> = (0..block_bytes / 8).flat_map(|_| next().to_le_bytes()).collect();
        let digest = |n: u8| format!("sha256:{n:064x}");
        let entry = Entry {
            digest: digest(1),
            media_type: "application/octet-stream".into(),
            len: blocks as u64 * u64::from(block_bytes),
        };
        let descriptor = Descriptor::new(DescriptorParts {
            block_bytes,
            reference: "bench".into(),
            origin: Origin::Layout { path: "/".into() },
            manifest_media_type: String::new(),
            manifest_digest: digest(2),
            manifest: Vec::new(),
            entries: vec![entry],
            blocks: vec![BlockDigest::of(&payload); blocks],
        })
        .context("the bench's own image is not sound")?;
        Ok(Self { descriptor: Arc::new(descriptor), payload: Arc::new(payload) })
    }

    /// How many frames.
    pub(crate) fn frames(&self) -> u32 {
        self.descriptor.geometry().blocks()
    }

    /// Payload in all, in GiB.
    pub(crate) fn gib(&self) -> f64 {
        self.descriptor.geometry().image_bytes() as f64 / GIB
    }

    /// Headers and payload in all.
    pub(crate) fn wire_bytes(&self) -> u64 {
        u64::from(self.frames()) * self.frame_bytes() as u64
    }

    /// Bytes of one frame.
    pub(crate) fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.payload.len()
    }

    /// The header of the frame number `index`.
    pub(crate) fn header(&self, index: u32) -> [u8; HEADER_BYTES] {
        // Indexes come from 0..frames().
        let place = self.descriptor.geometry().place(BlockIndex(index));
        place.map_or([0; HEADER_BYTES], |place| {
            Frame::new(Kind::Block, place.len, place.chunk.0, place.in_chunk).header()
        })
    }
}
