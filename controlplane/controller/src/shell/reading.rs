//! Images that agents read for the controller: one order at a time to one agent, and what it says of it.
//!
//! An order lives as long as its agent is heard of it. What an agent brings up is believed only as far as it can be checked: the manifest
//! is the one that the controller resolved itself, the blobs are that manifest's. The block digests are the agent's word.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use faasnet_api::Descriptor;
use faasnet_api::descriptor::MAX_DESCRIPTOR_BYTES;
use faasnet_api::v1::event::Event;
use faasnet_api::v1::{self, Command, ImageRead};
use faasnet_origin::register::check_claim;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Status;

use crate::state::{SessionId, tame};

/// An agent says every second that it is at it. After so long a silence somebody else is asked.
const SILENCE: Duration = Duration::from_secs(10);
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
}

/// The open orders, by number. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Readings {
    open: Arc<Mutex<HashMap<u64, Order>>>,
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
        strong.send(Ok(command)).await.map_err(|_| gone())?;
        // Held any longer it would keep the stream of an agent that is to be cut off.
        drop(strong);
        let mut bytes = Vec::new();
        loop {
            let read = match timeout(SILENCE, heard.recv()).await {
                Ok(Some(read)) => read,
                Ok(None) => return Err(gone()),
                Err(_) => return Err(NotRead::Here(format!("its agent said nothing for {SILENCE:?}"))),
            };
            match (read.failure.is_empty(), read.here_only) {
                (true, _) => {}
                (false, true) => return Err(NotRead::Here(read.failure)),
                (false, false) => return Err(NotRead::Image(read.failure)),
            }
            bytes.extend_from_slice(&read.descriptor_part);
            if bytes.len() > MAX_DESCRIPTOR_BYTES {
                return Err(NotRead::Here("its agent sends a descriptor larger than any can be".into()));
            }
            if read.done {
                return check(&bytes, &asked).map_err(NotRead::Here);
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
