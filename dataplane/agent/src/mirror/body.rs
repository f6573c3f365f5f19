//! A part of a blob on its way to a runtime: verified blocks from the store file to the socket, in order, as they arrive.
//!
//! A block that is marked present was verified when it came; it is hashed once more here, since the disk may have changed it meanwhile and a
//! runtime fails the whole pull over a wrong byte, where it would go on elsewhere after a cut.

use std::ops::Range;
use std::time::Duration;

use faasnet_api::BlockIndex;
use tokio::time::{Instant, sleep};

use super::catalogue::Found;
use super::socket::Socket;
use super::{Mirror, is_let_go, is_on_its_way};
use crate::control::Input;

/// How often a response that waits looks whether its block has come.
const LOOK: Duration = Duration::from_millis(10);
/// How often it says again for which blocks it waits.
const HURRY: Duration = Duration::from_millis(500);
/// For how many blocks.
const HURRIED_BLOCKS: usize = 4;
/// How much is verified, then sent, at a time.
const STEP_BLOCKS: u32 = 4;

/// A part of a blob.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) found: Found,
    pub(super) entry: usize,
    /// Within the blob.
    pub(super) bytes: Range<u64>,
}

/// Why a response ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("the client is gone: {0}")]
    Client(#[from] std::io::Error),
    #[error("no block of the image arrived for {0:?}")]
    Stalled(Duration),
    #[error("the image is not received any more")]
    Dropped,
    #[error("its image cannot be registered: {0}")]
    NotRegistered(String),
    #[error("{0}")]
    Damaged(String),
}

impl Part {
    /// The block with the byte at `offset` of the blob.
    fn block(&self, offset: u64) -> BlockIndex {
        let geometry = self.found.stored.geometry();
        BlockIndex(geometry.entry_blocks(self.entry).start + (offset / u64::from(geometry.block_bytes())) as u32)
    }

    /// Whether its first byte is here.
    pub(super) fn has_begun(&self) -> bool {
        self.bytes.is_empty() || self.found.stored.present().contains(self.block(self.bytes.start))
    }

    /// Waits for its first byte, as long as the image is this node's.
    pub(super) async fn begin(&self, socket: &Socket, mirror: &Mirror) -> Result<(), Cut> {
        if self.has_begun() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = is_let_go(&mirror.catalogue, &self.found) => Err(Cut::Dropped),
            waited = self.wait_for(self.block(self.bytes.start), socket, mirror) => waited,
        }
    }

    /// Sends it whole, waiting for what has not arrived; as long as the image is this node's.
    pub(super) async fn send(&self, socket: &Socket, mirror: &Mirror) -> Result<(), Cut> {
        tokio::select! {
            biased;
            () = is_let_go(&mirror.catalogue, &self.found) => Err(Cut::Dropped),
            sent = self.send_as_it_comes(socket, mirror) => sent,
        }
    }

    async fn send_as_it_comes(&self, socket: &Socket, mirror: &Mirror) -> Result<(), Cut> {
        let stored = &self.found.stored;
        let block_bytes = u64::from(stored.geometry().block_bytes());
        let file_start = stored.geometry().entry_range(self.entry).start;
        let mut offset = self.bytes.start;
        while offset < self.bytes.end {
            let first = self.block(offset);
            self.wait_for(first, socket, mirror).await?;
            let last = self.block(self.bytes.end - 1);
            let ready = (first.0..=last.0).take(STEP_BLOCKS as usize);
            let ready = ready.take_while(|block| stored.present().contains(BlockIndex(*block))).count() as u64;
            if ready == 0 {
                // Another response has found it damaged since.
                continue;
            }
            self.verify(first, ready as u32, mirror).await?;
            let end = ((offset / block_bytes + ready) * block_bytes).min(self.bytes.end);
            socket.send_file(stored.file(), file_start + offset, end - offset).await?;
            mirror.counters.sent(end - offset);
            (first.0..first.0 + ready as u32).for_each(|block| stored.went_through_cache(BlockIndex(block)));
            offset = end;
        }
        Ok(())
    }

    /// Hashes blocks as they lie on the disk, which also brings them into memory for sending.
    async fn verify(&self, first: BlockIndex, count: u32, mirror: &Mirror) -> Result<(), Cut> {
        let stored = self.found.stored.clone();
        let check = move || {
            let mut buffer = Vec::new();
            (first.0..first.0 + count).map(BlockIndex).find_map(|block| {
                let reason = match stored.is_intact(block, &mut buffer) {
                    Ok(true) => return None,
                    Ok(false) => "it is not what was verified when it came".into(),
                    Err(error) => error.to_string(),
                };
                // Ignored: the image fails anyway, and a mark that stays on the disk is met by this check again.
                let _ = stored.clear(block);
                Some(format!(
                    "block {} of the store's file is damaged: {reason}; check the disk under the store",
                    block.0
                ))
            })
        };
        let damage = tokio::task::spawn_blocking(check).await.unwrap_or_else(|error| Some(error.to_string()));
        let Some(reason) = damage else { return Ok(()) };
        mirror.counters.damaged();
        let (function, image) = (self.found.function, self.found.stored.descriptor().id());
        // Ignored: the agent stops.
        let _ = mirror.catalogue.inputs.send(Input::Damaged { function, image, reason: reason.clone() }).await;
        Err(Cut::Damaged(reason))
    }

    async fn wait_for(&self, block: BlockIndex, socket: &Socket, mirror: &Mirror) -> Result<(), Cut> {
        let present = self.found.stored.present();
        let (mut moved, mut count, mut hurried) = (Instant::now(), present.count(), None);
        // As `moved`, but nobody's word extends it.
        let mut came = moved;
        while !present.contains(block) {
            let now = Instant::now();
            let waits = is_on_its_way(&mirror.catalogue, &self.found).ok_or(Cut::Dropped)?;
            if present.count() != count {
                (came, moved, count) = (now, now, present.count());
            } else if waits {
                moved = now;
            }
            for (since, limit) in [(moved, mirror.limits.stalled), (came, mirror.limits.held_up)] {
                if now.duration_since(since) >= limit {
                    mirror.stalled.note(self.found.stored.descriptor().id(), count);
                    return Err(Cut::Stalled(limit));
                }
            }
            if !socket.is_open() {
                return Err(Cut::Client(std::io::ErrorKind::ConnectionAborted.into()));
            }
            if hurried.is_none_or(|at: Instant| now.duration_since(at) >= HURRY) {
                hurried = Some(now);
                self.hurry(block, mirror);
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Asks for the next blocks before others.
    fn hurry(&self, block: BlockIndex, mirror: &Mirror) {
        let (stored, last) = (&self.found.stored, self.block(self.bytes.end - 1));
        let missing = (block.0..=last.0).map(BlockIndex).filter(|block| !stored.present().contains(*block));
        let blocks = missing.take(HURRIED_BLOCKS).collect();
        let (function, image) = (self.found.function, stored.descriptor().id());
        // Ignored: where the control side is busy the blocks come in their turn.
        let _ = mirror.catalogue.inputs.try_send(Input::Hurry { function, image, blocks });
    }
}
