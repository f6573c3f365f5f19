//! Takes blocks that other images of the same tenant hold, so that an update that changes one layer moves one layer.
//!
//! Works on files, not on the store's index. A donor's map is taken as a hint only: every block is hashed in its new place before it
//! is marked, so rot is not spread.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use faasnet_api::{BlockIndex, Descriptor};
use faasnet_ring::file::reflink_or_copy;

use crate::{PresentMap, StoredImage};

/// Every entry starts on a page and is padded to one, so a last short block may be shared with its padding.
const PAGE_BYTES: u64 = 4096;

/// An image that may hold blocks of another.
pub(crate) struct Donor {
    pub(crate) descriptor: Arc<Descriptor>,
    pub(crate) file: Arc<File>,
    pub(crate) present: PresentMap,
}

/// Whether the two images have a blob in common that can be shared block by block.
pub(crate) fn related(one: &Descriptor, other: &Descriptor) -> bool {
    one.geometry().block_bytes() == other.geometry().block_bytes() && {
        let digests: HashMap<&str, usize> = entries(other).collect();
        entries(one).any(|(digest, _)| digests.contains_key(digest))
    }
}

/// Brings what `image` lacks and `donor` has. An error of the donor's file ends only this donor; one of the image's own file is told.
pub(crate) fn take_from(image: &StoredImage, donor: &Donor) -> io::Result<()> {
    let (descriptor, geometry) = (image.descriptor(), image.geometry());
    if geometry.block_bytes() != donor.descriptor.geometry().block_bytes() {
        return Ok(());
    }
    let theirs: HashMap<&str, usize> = entries(&donor.descriptor).collect();
    let mut buffer = Vec::new();
    for (digest, entry) in entries(descriptor) {
        let Some(&donor_entry) = theirs.get(digest) else { continue };
        let ours = geometry.entry_blocks(entry);
        let shift = donor.descriptor.geometry().entry_blocks(donor_entry).start;
        let wanted = |block: u32| {
            let theirs = BlockIndex(block - ours.start + shift);
            !image.present().contains(BlockIndex(block))
                && donor.present.contains(theirs)
                // A length that differs under one digest would be a lie; equal block digests make it harmless.
                && descriptor.block_digest(BlockIndex(block)) == donor.descriptor.block_digest(theirs)
        };
        for run in runs(ours.clone(), wanted) {
            let donor_first = BlockIndex(run.start - ours.start + shift);
            take_run(image, donor, run, donor_first, &mut buffer)?;
        }
    }
    Ok(())
}

/// Brings one run of blocks, then marks those that arrived right.
fn take_run(
    image: &StoredImage,
    donor: &Donor,
    run: Range<u32>,
    donor_first: BlockIndex,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    let place = |block| image.geometry().place(BlockIndex(block));
    let (Some(first), Some(last)) = (place(run.start), place(run.end - 1)) else { return Ok(()) };
    let Some(source) = donor.descriptor.geometry().place(donor_first) else { return Ok(()) };
    let len = (last.file_offset + u64::from(last.len) - first.file_offset).next_multiple_of(PAGE_BYTES);
    let brought = reflink_or_copy(&donor.file, image.file(), source.file_offset, first.file_offset, len);
    if let Err(error) = brought {
        tracing::warn!(%error, image = %donor.descriptor.id(), "blocks cannot be taken from a stored image; they will be fetched");
        return Ok(());
    }
    for block in run {
        if !image.mark_if_right(BlockIndex(block), buffer)? {
            tracing::warn!(block, image = %donor.descriptor.id(), "a stored block is damaged and was not reused");
        }
    }
    Ok(())
}

fn entries(descriptor: &Descriptor) -> impl Iterator<Item = (&str, usize)> {
    descriptor.entries().iter().enumerate().map(|(index, entry)| (entry.digest.as_str(), index))
}

/// The longest runs of numbers in `range` for which `wanted` holds.
fn runs(range: Range<u32>, wanted: impl Fn(u32) -> bool) -> Vec<Range<u32>> {
    let mut runs: Vec<Range<u32>> = Vec::new();
    for block in range.filter(|&block| wanted(block)) {
        match runs.last_mut() {
            Some(run) if run.end == block => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    runs
}
