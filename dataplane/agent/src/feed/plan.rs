//! Which parts of which blobs a feed still has to read for one stripe, merged into few range requests.
//!
//! Pure: knows blocks and offsets, no origin and no connection. Owned by one edge's reader.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use faasnet_api::{BlockIndex, CHUNK_BYTES, Geometry, Stripe};
use faasnet_relay::blocks::BlockSet;

/// With one stripe adjacent chunks are adjacent in the blob, and a request may span them up to here.
const MAX_SPAN_BYTES: u64 = 64 << 20;
/// Requests for a block out of turn that are remembered; more are dropped, since the block comes in its turn anyway.
const MAX_URGENT: usize = 64;

/// Blocks of one blob that are read by one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// The blob, as an index into the descriptor's entries.
    pub(super) entry: usize,
    /// The wanted blocks, ascending; adjacent unless the origin knows no ranges.
    pub(super) blocks: Vec<BlockIndex>,
    /// From the first block's first byte to the last one's last, within the blob.
    pub(super) bytes: Range<u64>,
}

/// What one request may read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// Adjacent blocks of at most so many bytes.
    Adjacent(u64),
    /// All that is wanted of a blob: without ranges every request begins at the blob's start, so there must be only one.
    Blob,
}

/// What is wanted and not yet handed out as a span.
#[derive(Debug)]
pub(super) struct ReadPlan {
    geometry: Arc<Geometry>,
    pending: BlockSet,
    cursor: BlockIndex,
    urgent: VecDeque<BlockIndex>,
    reach: Reach,
}

impl ReadPlan {
    /// The blocks of `stripe` that are in `wanted`, a set over the whole image. `ranges`: parts of a blob can be read.
    pub(super) fn new(geometry: Arc<Geometry>, wanted: &BlockSet, stripe: Stripe, stripes: u8, ranges: bool) -> Self {
        let mut pending = BlockSet::new(geometry.blocks());
        for block in geometry.stripe_blocks(stripe, stripes).filter(|block| wanted.contains(*block)) {
            pending.insert(block);
        }
        let reach = match (ranges, stripes) {
            (false, _) => Reach::Blob,
            (true, 1) => Reach::Adjacent(MAX_SPAN_BYTES),
            (true, _) => Reach::Adjacent(CHUNK_BYTES.into()),
        };
        Self { geometry, pending, cursor: BlockIndex(0), urgent: VecDeque::new(), reach }
    }

    /// Somebody waits for `block`: it goes into the next span, if it is still to come.
    pub(super) fn hurry(&mut self, block: BlockIndex) {
        if self.pending.contains(block) && self.urgent.len() < MAX_URGENT {
            self.urgent.push_back(block);
        }
    }

    /// The next request, whose blocks are no longer pending; `None` when everything was handed out.
    pub(super) fn next_span(&mut self) -> Option<Span> {
        while let Some(block) = self.urgent.pop_front() {
            if self.pending.contains(block) {
                // Out of turn only a chunk's worth, so that one request does not turn the order over for long.
                let reach = if self.reach == Reach::Blob { Reach::Blob } else { Reach::Adjacent(CHUNK_BYTES.into()) };
                return Some(self.take_from(block, reach));
            }
        }
        let block = self.pending.next_in_both(&self.pending, self.cursor)?;
        let span = self.take_from(block, self.reach);
        self.cursor = BlockIndex(span.blocks.last().map_or(0, |last| last.0 + 1));
        Some(span)
    }

    fn take_from(&mut self, first: BlockIndex, reach: Reach) -> Span {
        let place = self.geometry.place(first).unwrap_or_else(|| unreachable!("pending blocks exist in the image"));
        let blob = self.geometry.entry_blocks(place.entry);
        let candidates = if reach == Reach::Blob { blob } else { first.0..blob.end };
        let mut span = Span { entry: place.entry, blocks: Vec::new(), bytes: place.entry_offset..place.entry_offset };
        for block in candidates.map(BlockIndex) {
            let Some(place) = self.geometry.place(block) else { break };
            let end = place.entry_offset + u64::from(place.len);
            let start = if span.blocks.is_empty() { place.entry_offset } else { span.bytes.start };
            match (reach, self.pending.contains(block)) {
                (Reach::Adjacent(limit), true) if end - start > limit => break,
                (Reach::Adjacent(_), false) => break,
                (Reach::Blob, false) => continue,
                (_, true) => {}
            }
            span.blocks.push(block);
            span.bytes = start..end;
            self.pending.remove(block);
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_api::BLOCK_BYTES;

    const CHUNK: u64 = CHUNK_BYTES as u64;

    fn geometry(lengths: &[u64]) -> Arc<Geometry> {
        Arc::new(Geometry::new(CHUNK_BYTES, BLOCK_BYTES, lengths.iter().copied()).unwrap())
    }

    fn all(geometry: &Geometry) -> BlockSet {
        let mut set = BlockSet::new(geometry.blocks());
        (0..geometry.blocks()).for_each(|block| {
            set.insert(BlockIndex(block));
        });
        set
    }

    fn spans(plan: &mut ReadPlan) -> Vec<Span> {
        std::iter::from_fn(|| plan.next_span()).collect()
    }

    /// Catches a wanted block that is read twice or never, a span across blobs, and one that is too long.
    #[test]
    fn spans_cover_the_stripe_once_in_order() {
        let geometry = geometry(&[5, 0, 3 * CHUNK + 1, 70 << 20, BLOCK_BYTES.into()]);
        for stripes in [1, 2] {
            let mut seen = Vec::new();
            for stripe in 0..stripes {
                let mut plan = ReadPlan::new(geometry.clone(), &all(&geometry), Stripe(stripe), stripes, true);
                let spans = spans(&mut plan);
                let blocks: Vec<u32> = spans.iter().flat_map(|span| &span.blocks).map(|block| block.0).collect();
                let stripe_blocks = geometry.stripe_blocks(Stripe(stripe), stripes).map(|block| block.0);
                assert_eq!(blocks, stripe_blocks.collect::<Vec<_>>());
                for span in &spans {
                    let lens = span.blocks.iter().map(|block| geometry.place(*block).unwrap());
                    assert!(lens.clone().all(|place| place.entry == span.entry));
                    assert_eq!(lens.map(|p| u64::from(p.len)).sum::<u64>(), span.bytes.end - span.bytes.start);
                    let limit = if stripes == 1 { MAX_SPAN_BYTES } else { CHUNK };
                    assert!(span.bytes.end - span.bytes.start <= limit);
                }
                seen.extend(blocks);
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..geometry.blocks()).collect::<Vec<_>>());
        }
    }

    /// Catches one request per chunk where one request for the blob would do.
    #[test]
    fn one_stripe_reads_a_blob_in_one_request() {
        let geometry = geometry(&[20 << 20]);
        let mut plan = ReadPlan::new(geometry.clone(), &all(&geometry), Stripe(0), 1, true);
        let blocks = (0..80).map(BlockIndex).collect();
        assert_eq!(spans(&mut plan), [Span { entry: 0, blocks, bytes: 0..20 << 20 }]);
    }

    /// Catches an origin without ranges that is read from the start once per chunk: the square of the image in bytes.
    #[test]
    fn without_ranges_every_blob_is_read_once() {
        let geometry = geometry(&[20 << 20, 0, 6 << 20]);
        let mut plan = ReadPlan::new(geometry.clone(), &all(&geometry), Stripe(1), 2, false);
        plan.hurry(BlockIndex(50));
        let spans = spans(&mut plan);
        assert_eq!(spans.iter().map(|span| span.entry).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(spans[0].bytes, CHUNK..4 * CHUNK);
        let blocks: Vec<_> = spans.into_iter().flat_map(|span| span.blocks).collect();
        assert_eq!(blocks, geometry.stripe_blocks(Stripe(1), 2).collect::<Vec<_>>());
    }

    /// Catches blocks that nobody wanted, and a request for a block that is ignored or honoured twice.
    #[test]
    fn only_wanted_blocks_and_the_urgent_ones_first() {
        let geometry = geometry(&[8 << 20]);
        let mut wanted = BlockSet::new(geometry.blocks());
        [1, 2, 5, 20, 31].into_iter().for_each(|block| {
            wanted.insert(BlockIndex(block));
        });
        let mut plan = ReadPlan::new(geometry.clone(), &wanted, Stripe(0), 1, true);
        plan.hurry(BlockIndex(20));
        plan.hurry(BlockIndex(20));
        plan.hurry(BlockIndex(3));
        plan.hurry(BlockIndex(999));
        let spans = spans(&mut plan);
        let blocks: Vec<Vec<u32>> =
            spans.iter().map(|span| span.blocks.iter().map(|block| block.0).collect()).collect();
        assert_eq!(blocks, [vec![20], vec![1, 2], vec![5], vec![31]]);
    }
}
