//! Images that agents read for the controller: one order at a time to one agent, and what it says of it.
//!
//! An order lives as long as its agent gets on with it: bytes come, or parts of the descriptor. What an agent brings up is believed only as far as it can be checked: the manifest
//! is the one that the controller resolved itself, the blobs are that manifest's. The block digests are the agent's word.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faasnet_api::Descriptor;
use faasnet_api::descriptor::MAX_DESCRIPTOR_BYTES;
use faasnet_api::v1::event::Event;
use faasnet_api::v1::{self, Command, ImageRead};
use faasnet_origin::register::check_claim;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::state::{SessionId, tame};

/// How patient the controller is with an agent that has an order.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Until its first word.
    begin: Duration,
    /// Without a byte more, or a part of the descriptor more.
    still: Duration,
}

/// An agent says every second how far it is; but a registry that stalls is tried again and again, and syncing a large image to a slow disk
/// takes its time.
const PATIENCE: Patience = Patience { begin: Duration::from_secs(10), still: Duration::from_secs(30) };
/// Bytes of unfinished descriptors, of all orders together.
const MAX_UNFINISHED: usize = 2 * MAX_DESCRIPTOR_BYTES;
/// Messages of one order that may wait; more make the agent's stream wait.
const QUEUE: usize = 16;

/// The owner's way to one agent, as long as the owner has it.
pub(crate) type WeakCommands = mpsc::WeakSender<Result<Command, Status>>;

/// Why an agent brings no descriptor.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotRead {
    /// Nobody could: the image is not what it should be, or is not to be had.
    Image(String),
    /// This agent cannot, or is gone.
    Here(String),
    /// This agent could not reach the origin; others would hardly fare better just now.
    Origin(String),
}

/// The open orders, by number. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Readings {
    open: Arc<Mutex<HashMap<u64, Order>>>,
    unfinished: Arc<AtomicUsize>,
    patience: Patience,
}

impl Default for Readings {
    fn default() -> Self {
        Self { open: Arc::default(), unfinished: Arc::default(), patience: PATIENCE }
    }
}

struct Order {
    session: SessionId,
    said: mpsc::Sender<ImageRead>,
}

/// Takes the order back when nobody waits for it any more.
struct Open<'a> {
    readings: &'a Readings,
    request: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.readings.lock().remove(&self.request);
    }
}

/// What came of a descriptor; counted among those of all orders.
struct Unfinished<'a> {
    bytes: Vec<u8>,
    all: &'a AtomicUsize,
}

impl<'a> Unfinished<'a> {
    fn new(all: &'a AtomicUsize) -> Self {
        Self { bytes: Vec::new(), all }
    }

    fn take(&mut self, part: &[u8]) -> Result<(), String> {
        if self.bytes.len() + part.len() > MAX_DESCRIPTOR_BYTES {
            return Err("its agent sends a descriptor larger than any can be".into());
        }
        let before = self.all.fetch_add(part.len(), Ordering::Relaxed);
        // Counted from here on, also if it is refused.
        self.bytes.extend_from_slice(part);
        match before + part.len() > MAX_UNFINISHED {
            true => Err("too many descriptors are on their way to the controller; ask again later".into()),
            false => Ok(()),
        }
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.len(), Ordering::Relaxed);
    }
}

impl Readings {
    /// Has an agent read an image; the descriptor that it comes back with says what `order` says.
    pub(crate) async fn order(
        &self,
        session: SessionId,
        commands: &WeakCommands,
        order: v1::ReadImage,
    ) -> Result<Descriptor, NotRead> {
        let (said, mut heard) = mpsc::channel(QUEUE);
        let (request, asked) = (order.request, v1::ReadImage { login: None, ..order.clone() });
        self.lock().insert(request, Order { session, said });
        let _open = Open { readings: self, request };
        let gone = || NotRead::Here("its agent is gone".into());
        let command = Command { command: Some(v1::command::Command::ReadImage(order)) };
        let strong = commands.upgrade().ok_or_else(gone)?;
        let mut until = Instant::now() + self.patience.begin;
        let sent = timeout_at(until, strong.send(Ok(command))).await;
        sent.map_err(|_| NotRead::Here("its agent takes no commands".into()))?.map_err(|_| gone())?;
        // Held any longer it would keep the stream of an agent that is to be cut off.
        drop(strong);
        let (mut unfinished, mut bytes_read) = (Unfinished::new(&self.unfinished), 0);
        let mut heard_of_it = false;
        loop {
            let read = match timeout_at(until, heard.recv()).await {
                Ok(Some(read)) => read,
                Ok(None) => return Err(gone()),
                Err(_) => return Err(NotRead::Here("its agent does not get on with it".into())),
            };
            match (read.failure.is_empty(), read.here_only, read.of_origin) {
                (true, ..) => {}
                (false, true, false) => return Err(NotRead::Here(read.failure)),
                (false, true, true) => return Err(NotRead::Origin(read.failure)),
                (false, false, _) => return Err(NotRead::Image(read.failure)),
            }
            let moves = read.bytes_read > bytes_read || !read.descriptor_part.is_empty();
            if moves || !std::mem::replace(&mut heard_of_it, true) {
                until = Instant::now() + self.patience.still;
            }
            bytes_read = bytes_read.max(read.bytes_read);
            unfinished.take(&read.descriptor_part).map_err(NotRead::Here)?;
            if read.done {
                return check(&unfinished.bytes, &asked).map_err(NotRead::Here);
            }
        }
    }

    /// What an agent says; of another agent's order, or of one that is over, nothing is heard.
    pub(crate) async fn heard(&self, session: SessionId, read: ImageRead) {
        let mut event = Event::ImageRead(read);
        // What it says goes into the log, and to other agents.
        tame(&mut event);
        let Event::ImageRead(read) = event else { return };
        let said =
            self.lock().get(&read.request).filter(|order| order.session == session).map(|order| order.said.clone());
        if let Some(said) = said {
            // Ignored: the order is over.
            let _ = said.send(read).await;
        }
    }

    /// An agent is gone, and what it was at.
    pub(crate) fn ended(&self, session: SessionId) {
        self.lock().retain(|_, order| order.session != session);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Order>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check(bytes: &[u8], asked: &v1::ReadImage) -> Result<Descriptor, String> {
    let descriptor = Descriptor::parse(bytes).map_err(|error| error.to_string())?;
    check_claim(&descriptor, &asked.reference, asked.plain_http, &asked.manifest_digest)
        .map_err(|why| format!("its agent's descriptor is refused: {why}"))?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: SessionId = SessionId(1);

    const SHORT: Patience = Patience { begin: Duration::from_secs(20), still: Duration::from_millis(300) };

    fn says(bytes_read: u64) -> ImageRead {
        ImageRead { request: 7, bytes_read, ..Default::default() }
    }

    /// Catches an agent that holds an order for ever by saying that it is at it, and a slow one that is given up though bytes come.
    #[tokio::test]
    async fn only_who_gets_on_keeps_its_order() {
        let readings = Readings { patience: SHORT, ..Readings::default() };
        let (commands, mut stream) = mpsc::channel(1);
        let (ordering, weak) = (readings.clone(), commands.downgrade());
        let order = v1::ReadImage { request: 7, ..Default::default() };
        let ended = tokio::spawn(async move { ordering.order(AGENT, &weak, order).await.unwrap_err() });
        stream.recv().await.unwrap().unwrap();
        let (begun, mut read) = (Instant::now(), 0);
        while begun.elapsed() < SHORT.still * 2 {
            read += 1;
            readings.heard(AGENT, says(read)).await;
            tokio::time::sleep(SHORT.still / 30).await;
        }
        assert!(!ended.is_finished());
        let stopped = Instant::now();
        while !ended.is_finished() {
            assert!(stopped.elapsed() < SHORT.begin, "it says the same for ever");
            readings.heard(AGENT, says(read)).await;
            tokio::time::sleep(SHORT.still / 30).await;
        }
        assert!(matches!(ended.await.unwrap(), NotRead::Here(_)));
    }

    /// Catches a wish that waits for ever because its agent takes no commands.
    #[tokio::test]
    async fn an_agent_that_takes_no_commands_is_given_up() {
        let patience = Patience { begin: Duration::from_millis(50), ..SHORT };
        let readings = Readings { patience, ..Readings::default() };
        let (commands, stream) = mpsc::channel(1);
        commands.send(Ok(Command::default())).await.unwrap();
        let weak = commands.downgrade();
        let order = readings.order(AGENT, &weak, v1::ReadImage::default());
        let ended = timeout_at(Instant::now() + SHORT.begin, order).await.expect("it waits for ever");
        assert!(matches!(ended, Err(NotRead::Here(_))) && readings.lock().is_empty());
        drop(stream);
    }

    /// Catches descriptors that fill the controller's memory, and room that is not given back.
    #[test]
    fn unfinished_descriptors_are_capped_together() {
        let all = AtomicUsize::new(MAX_UNFINISHED - 10);
        let (mut first, mut second) = (Unfinished::new(&all), Unfinished::new(&all));
        first.take(&[0; 6]).unwrap();
        assert!(second.take(&[0; 6]).is_err());
        drop(second);
        first.take(&[0; 4]).unwrap();
        assert!(first.take(&[0]).is_err());
        drop(first);
        assert_eq!(all.into_inner(), MAX_UNFINISHED - 10);
    }
}
