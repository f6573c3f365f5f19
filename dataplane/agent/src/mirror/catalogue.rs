//! Which image a runtime means: those that this node holds, and those that the controller lets it join.
//!
//! Reads copies of the control side's state and asks it. An image is known as soon as its descriptor is, whatever of it has arrived.

use std::sync::Arc;
use std::time::Duration;

use faasnet_api::{BlockIndex, FunctionId, Origin};
use faasnet_origin::{RegistryReference, image_names};
use faasnet_store::StoredImage;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::questions::Wish;
use super::settings::OnMiss;
use crate::arriving::{Arrivals, Arriving};
use crate::control::Input;
use crate::table::{Phase, Row};
use crate::view::View;
use crate::worker::mailbox::ReportState;

/// How long the controller may take to say who has an image. One of an earlier version never answers.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the descriptor of an image that is being joined may take: the runtime goes to the registry then.
const DESCRIPTOR: Duration = Duration::from_secs(10);
/// How long the runtime bears that nothing comes of an image that is being registered here: as with one that is being received.
const ARRIVING: Duration = Duration::from_secs(10);
/// How long a blob's image may take to be known after a start of the agent, when the controller says again what is held.
const AFTER_START: Duration = Duration::from_secs(2);

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct Catalogue {
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) misses: Misses,
}

/// What to do about an image that no function has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Misses {
    pub(crate) on_miss: OnMiss,
    pub(crate) register_wait: Duration,
    pub(crate) plain_http: Arc<Vec<String>>,
    /// What this node registers itself.
    pub(crate) arrivals: Arrivals,
}

/// An image of a function on this node.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) function: FunctionId,
    pub(super) stored: Arc<StoredImage>,
}

/// What a name stands for.
#[derive(Debug)]
pub(super) enum Image {
    Held(Found),
    /// This node is registering it.
    Arriving(Arc<Arriving>),
}

/// A blob, and which of its image's entries it is.
#[derive(Debug)]
pub(super) enum Blob {
    Held(Found, usize),
    Arriving(Arc<Arriving>, usize),
}

impl Blob {
    /// Bytes of it.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Held(found, entry) => found.stored.descriptor().entries()[*entry].len,
            // Where a blob is known, what its image is made of is.
            Self::Arriving(arriving, entry) => arriving.known().map_or(0, |image| image.outline.entries[*entry].len),
        }
    }
}

impl Found {
    fn new(function: FunctionId, row: &Row) -> Option<Self> {
        let stored = row.stored.clone()?;
        row.note_use();
        Some(Self { function, stored })
    }
}

impl Catalogue {
    /// The image of that name; joins the function that has it, if there is one. Else why there is none.
    pub(super) async fn image(&self, reference: &RegistryReference) -> Result<Image, String> {
        let name = reference.to_string();
        let held = self.held(&name);
        let registers = self.misses.on_miss == OnMiss::Register;
        // Where tags are followed the controller says what a tag means now, as often as it looks.
        let may_have_moved = registers && reference.digest.is_none();
        match held {
            Some(found) if !may_have_moved => Ok(Image::Held(found)),
            Some(found) => Ok(self.ask(reference).await.unwrap_or(Image::Held(found))),
            None => match self.misses.arrivals.image(reference) {
                Some(arriving) => Ok(Image::Arriving(arriving)),
                None => self.ask(reference).await,
            },
        }
    }

    /// Asks the controller; where that makes this node read the image first, its manifest is known long before the answer.
    async fn ask(&self, reference: &RegistryReference) -> Result<Image, String> {
        tokio::select! {
            biased;
            found = self.join(reference) => found.map(Image::Held),
            arriving = self.misses.arrivals.wait_for(reference) => Ok(Image::Arriving(arriving)),
        }
    }

    async fn join(&self, reference: &RegistryReference) -> Result<Found, String> {
        let (name, misses) = (reference.to_string(), &self.misses);
        let (answer, answered) = oneshot::channel();
        let wish = Wish {
            reference: name.clone(),
            register: misses.on_miss == OnMiss::Register,
            plain_http: misses.plain_http.contains(&reference.registry),
        };
        let patience = if wish.register { misses.register_wait } else { ANSWER };
        self.inputs.send(Input::Image { wish, answer }).await.map_err(|_| "the agent is stopping".to_owned())?;
        let function = match self.wait_for(answered, &name, patience).await {
            Ok(Ok(answer)) => {
                answer.inspect_err(|reason| tracing::info!(image = name, reason, "the runtime is sent on"))?
            }
            Ok(Err(_)) => return Err(format!("this node does not hold {name}, and the controller is away")),
            Err(_) => return Err(format!("this node does not hold {name}, and the controller has not answered yet")),
        };
        let mut view = self.view.clone();
        let known = timeout(DESCRIPTOR, view.wait_for(|view| view.rows.get(&function).is_some_and(is_decided))).await;
        match known {
            // Of several with this name the one that the controller means, if it can be held.
            Ok(Ok(_)) => self
                .of(function, &name)
                .or_else(|| self.held(&name))
                .ok_or_else(|| format!("the image of {name} cannot be held on this node")),
            _ => Err(format!("what {name} is made of has not arrived yet")),
        }
    }

    /// The controller's answer, for which there is `patience`; and, where this node has to read the image first, as long as it comes.
    async fn wait_for<T>(
        &self,
        mut answered: oneshot::Receiver<T>,
        name: &str,
        patience: Duration,
    ) -> Result<Result<T, oneshot::error::RecvError>, Elapsed> {
        let (mut before, mut patience) = (None, patience);
        loop {
            let waited = timeout(patience, &mut answered).await;
            let bytes = self.misses.arrivals.bytes(name);
            if waited.is_ok() || bytes.is_none() || bytes == before {
                return waited;
            }
            (before, patience) = (bytes, ARRIVING);
        }
    }

    /// An image of that repository with that blob, and which of its entries it is.
    pub(super) async fn blob(&self, repository: &RegistryReference, digest: &str) -> Option<Blob> {
        let mut view = self.view.clone();
        let find = |view: &View| {
            let held = view.rows.iter().filter_map(|(function, row)| {
                let stored = row.stored.as_ref().filter(|stored| is_of(stored, repository))?;
                let entry = stored.descriptor().entries().iter().position(|entry| entry.digest == digest)?;
                let is_here =
                    stored.geometry().entry_blocks(entry).all(|block| stored.present().contains(BlockIndex(block)));
                let comes = !matches!(row.state(), ReportState::Failed(_));
                Some(((is_here, comes, stored.bytes_present()), *function, entry))
            });
            // Of several images with this layer one that has it whole, else the one that has the most of those that go on.
            held.max()
        };
        if find(&view.borrow()).is_none()
            && let Some((arriving, entry)) = self.misses.arrivals.blob(repository, digest)
        {
            return Some(Blob::Arriving(arriving, entry));
        }
        let settled = |view: &Arc<View>| find(view).is_some() || view.rows.values().all(is_decided);
        // Ignored: what is not known by then is unknown.
        let _ = timeout(AFTER_START, view.wait_for(settled)).await;
        let view = self.view.borrow().clone();
        let (_, function, entry) = find(&view)?;
        Some(Blob::Held(Found::new(function, view.rows.get(&function)?)?, entry))
    }

    fn held(&self, name: &str) -> Option<Found> {
        let view = self.view.borrow().clone();
        let (function, row) = view.rows.iter().find(|(_, row)| is_named(row, name))?;
        Found::new(*function, row)
    }

    /// The image of that function, if it has that name.
    fn of(&self, function: FunctionId, name: &str) -> Option<Found> {
        let view = self.view.borrow().clone();
        Found::new(function, view.rows.get(&function).filter(|row| is_named(row, name))?)
    }
}

fn is_named(row: &Row, name: &str) -> bool {
    let stored = row.stored.as_ref();
    stored.is_some_and(|stored| image_names(stored.descriptor()).iter().any(|other| other == name))
}

/// Whether it is known what the image is made of, or that it will not be.
fn is_decided(row: &Row) -> bool {
    row.stored.is_some() || matches!(row.phase, Phase::Failed(_))
}

/// Whether an image comes from that repository.
fn is_of(stored: &StoredImage, repository: &RegistryReference) -> bool {
    let Origin::Registry { repository: name, .. } = stored.descriptor().origin() else { return false };
    let reference = RegistryReference::parse(stored.descriptor().reference());
    *name == repository.repository && reference.is_ok_and(|reference| reference.registry == repository.registry)
}
