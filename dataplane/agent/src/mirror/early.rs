//! A part of a blob of an image that is being registered here: given out when all of the blob has had its sha256.
//!
//! Until then the response waits without a head, so that the runtime goes to the registry when nothing comes of it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::Mirror;
use super::body::Cut;
use super::socket::Socket;
use crate::arriving::{Arriving, ArrivingImage};

/// How often a response that waits looks whether its blob has come.
const LOOK: Duration = Duration::from_millis(10);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct EarlyPart {
    pub(super) arriving: Arc<Arriving>,
    pub(super) entry: usize,
    /// Within the blob.
    pub(super) bytes: Range<u64>,
}

impl EarlyPart {
    /// Waits until all of the blob is right, as long as something of its image comes.
    pub(super) async fn begin(&self, socket: &Socket, mirror: &Mirror) -> Result<(), Cut> {
        let (mut came, mut moved) = (self.arriving.bytes(), Instant::now());
        loop {
            if self.image()?.is_right(self.entry) {
                return Ok(());
            }
            if let Some(reason) = self.arriving.failure() {
                return Err(Cut::NotRegistered(reason.into()));
            }
            let bytes = self.arriving.bytes();
            if bytes != came {
                (came, moved) = (bytes, Instant::now());
            } else if moved.elapsed() >= mirror.limits.stalled {
                return Err(Cut::Stalled(mirror.limits.stalled));
            }
            if !socket.is_open() {
                return Err(Cut::Client(std::io::ErrorKind::ConnectionAborted.into()));
            }
            sleep(LOOK).await;
        }
    }

    /// Sends it, block by block as it was read and hashed.
    pub(super) async fn send(&self, socket: &Socket, mirror: &Mirror) -> Result<(), Cut> {
        let block_bytes = u64::from(self.image()?.outline.geometry.block_bytes());
        let mut offset = self.bytes.start;
        while offset < self.bytes.end {
            let (arriving, entry, index) = (self.arriving.clone(), self.entry, offset / block_bytes);
            let read = move || arriving.known().ok_or("it is not known yet")?.block(entry, index as u32);
            let block = spawn_blocking(read).await.unwrap_or_else(|error| Err(error.to_string()));
            let block = block.map_err(|reason: String| {
                mirror.counters.damaged();
                Cut::Damaged(reason)
            })?;
            let within = (offset % block_bytes) as usize;
            let bytes = &block[within..block.len().min(within + (self.bytes.end - offset) as usize)];
            socket.send_all(bytes).await?;
            mirror.counters.sent(bytes.len() as u64);
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    fn image(&self) -> Result<&ArrivingImage, Cut> {
        self.arriving.known().ok_or(Cut::Dropped)
    }
}
