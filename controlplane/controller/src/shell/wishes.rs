//! Images that runtimes ask for and that no function has: registered on the first wish, looked up again when their tag may have moved.
//!
//! The controller says what a name stands for; the agent that asked reads it, once, into its own store, and is the first to hold it. One agent
//! at a time has that order: while it is at it the others wait, and when it is gone the next of them gets it. Agents of earlier versions do not
//! read: for them the controller does. A tag is resolved once per `tag_ttl`; what is wrong with an image is remembered as long. Digests are
//! never resolved again. Functions that somebody made by name keep the image that they were given. For a node that may not have the image
//! (in quarantine, being drained, full) nothing is looked up, and it gets no order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use faasnet_api::Descriptor;
use faasnet_api::v1::event::Event;
use faasnet_api::v1::{Command, ImageAnswer, ImageWanted, Login, ReadImage, command};
use faasnet_origin::{Credentials, RegistryReference, may_carry_password};
use faasnet_tree::Policy;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::clients::unexpected;
use super::owner::{Handle, Message};
use super::reading::{NotRead, Readings, WeakCommands};
use crate::registrar::{Registrar, Registration};
use crate::state::{Answer, Ask, Input, KnownImage, NewFunction, NewImage, SessionId};

/// Images that are remembered. Beyond that those are forgotten whose time is over, then all that nobody is busy with.
const MAX_IMAGES: usize = 4096;
/// Whoever waits for an image that another node reads is answered after so long at the latest. Its runtime has gone on by then.
const WAITS: Duration = Duration::from_secs(60);
const WAITED: &str = "another node is still reading the image; ask again later";
/// The longest part of a function's name that is taken from its image.
const NAME_BYTES: usize = 80;

/// How long an image counts as not to be had after an agent did not get through to its registry.
const ORIGIN_PAUSE: Duration = Duration::from_secs(5);

/// When an image was looked at last. Locked by who looks; others wait.
type Looked = Arc<tokio::sync::Mutex<Option<Look>>>;

/// How long that counts, and what was wrong.
struct Look {
    until: Instant,
    failure: Option<Status>,
}

impl Look {
    fn counts(&self) -> bool {
        Instant::now() < self.until
    }
}

/// Who wishes: its stream, and the way back to it.
pub(crate) struct Wisher {
    pub(crate) session: SessionId,
    pub(crate) commands: WeakCommands,
    /// The stream has ended.
    pub(crate) ended: CancellationToken,
}

/// See the module's documentation. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wishes {
    owner: Handle,
    registrar: Arc<dyn Registrar>,
    tag_ttl: Duration,
    readings: Readings,
    /// By tenant and reference.
    images: Arc<Mutex<HashMap<(String, String), Looked>>>,
}

impl Wishes {
    pub(crate) fn new(owner: Handle, registrar: Arc<dyn Registrar>, tag_ttl: Duration) -> Self {
        Self { owner, registrar, tag_ttl, readings: Readings::default(), images: Arc::default() }
    }

    /// What agents say of the images that they read.
    pub(crate) fn readings(&self) -> &Readings {
        &self.readings
    }

    /// Sees to it that a function has the image, if that can be, and has the wish answered.
    pub(crate) async fn fulfil(&self, wisher: &Wisher, wanted: ImageWanted) {
        if let Err(error) = self.look(wisher, &wanted).await {
            let reason = error.message();
            tracing::warn!(image = wanted.reference, reason, "a runtime's image is not registered");
            if self.known(wisher, &wanted).await.is_ok_and(|known| known.function.is_none()) {
                let answer = ImageAnswer { request: wanted.request, function_id: Vec::new(), reason: reason.into() };
                let command = Command { command: Some(command::Command::ImageAnswer(answer)) };
                if let Some(commands) = wisher.commands.upgrade() {
                    // Ignored: an agent that is gone asks again when it is back.
                    let _ = commands.send(Ok(command)).await;
                }
                return;
            }
        }
        self.have_answered(wisher, wanted).await;
    }

    /// The state machine knows the image, or why there is none.
    pub(crate) async fn have_answered(&self, wisher: &Wisher, wanted: ImageWanted) {
        let event = Event::ImageWanted(wanted);
        // Ignored: without an owner nobody wants to know.
        let _ = self.owner.send(Message::Input(Input::Heard { session: wisher.session, event })).await;
    }

    async fn look(&self, wisher: &Wisher, wanted: &ImageWanted) -> Result<(), Status> {
        let known = self.known(wisher, wanted).await?;
        let is_digest = wanted.reference.contains('@');
        if is_digest && known.function.is_some() {
            return Ok(());
        }
        able(&known)?;
        let looked = self.entry((known.tenant.clone(), wanted.reference.clone()));
        let mut looked = tokio::select! {
            looked = looked.lock() => looked,
            () = wisher.ended.cancelled() => return Err(Status::unavailable("its agent is gone")),
            () = tokio::time::sleep(WAITS) => return Err(Status::unavailable(WAITED)),
        };
        if let Some(look) = looked.as_ref().filter(|look| look.counts()) {
            return look.failure.clone().map_or(Ok(()), Err);
        }
        if wisher.commands.upgrade().is_none() {
            return Err(Status::unavailable("its agent is gone"));
        }
        // Whoever looked before may have registered it.
        let known = self.known(wisher, wanted).await?;
        able(&known)?;
        let done = match &known.function {
            None => self.register(wisher, &known, wanted).await,
            Some(_) if is_digest => Ok(()),
            Some(name) if *name != name_of(&wanted.reference) => Ok(()),
            Some(_) => self.renew(wisher, &known, wanted).await,
        };
        let (lasts, failure) = match done {
            Ok(()) => (self.tag_ttl, None),
            Err(NotRead::Image(reason)) => (self.tag_ttl, Some(Status::failed_precondition(reason))),
            // Else all that wait would try, one after the other.
            Err(NotRead::Origin(reason)) => (ORIGIN_PAUSE.min(self.tag_ttl), Some(Status::unavailable(reason))),
            // The next agent that asks may have more luck.
            Err(NotRead::Here(reason)) => return Err(Status::unavailable(reason)),
        };
        *looked = Some(Look { until: Instant::now() + lasts, failure: failure.clone() });
        failure.map_or(Ok(()), Err)
    }

    async fn known(&self, wisher: &Wisher, wanted: &ImageWanted) -> Result<KnownImage, Status> {
        let reference = wanted.reference.clone();
        match self.owner.ask(Ask::FindImage { session: wisher.session, reference }).await? {
            Answer::Image(known) => Ok(known),
            other => Err(unexpected(&other)),
        }
    }

    async fn register(&self, wisher: &Wisher, known: &KnownImage, wanted: &ImageWanted) -> Result<(), NotRead> {
        let (descriptor, holder) = match wanted.reads {
            true => {
                let manifest = self.registrar.resolve(registration(known, wanted)).await.map_err(NotRead::Image)?;
                (self.read(wisher, known, wanted, manifest).await?, Some(wisher.session))
            }
            false => (self.read_here(known, wanted).await?, None),
        };
        let (node, read) = (&known.node, read_by(wanted));
        tracing::info!(image = wanted.reference, node, read, "registered for a runtime that asked for it");
        let (tenant, name) = (known.tenant.clone(), name_of(&wanted.reference));
        let new = NewFunction { tenant, name, policy: Policy::Twin, memory_mib: 0, descriptor, holder };
        self.tell(Ask::Create(Box::new(new))).await
    }

    /// The tag of a function that was made here may have moved.
    async fn renew(&self, wisher: &Wisher, known: &KnownImage, wanted: &ImageWanted) -> Result<(), NotRead> {
        let digest = self.registrar.resolve(registration(known, wanted)).await.map_err(NotRead::Image)?;
        if known.manifest.as_ref() == Some(&digest) {
            return Ok(());
        }
        let (descriptor, holder) = match wanted.reads {
            true => (self.read(wisher, known, wanted, digest.clone()).await?, Some(wisher.session)),
            false => (self.read_here(known, wanted).await?, None),
        };
        let (node, read) = (&known.node, read_by(wanted));
        tracing::info!(
            image = wanted.reference,
            digest,
            node,
            read,
            "the tag has moved: its function gets the new image"
        );
        let (tenant, name) = (known.tenant.clone(), name_of(&wanted.reference));
        self.tell(Ask::Update(Box::new(NewImage { tenant, name, descriptor, at_once: true, holder }))).await
    }

    /// Has the agent that asked read it, unless something came in between while the name was looked up.
    async fn read(
        &self,
        wisher: &Wisher,
        known: &KnownImage,
        wanted: &ImageWanted,
        manifest_digest: String,
    ) -> Result<Descriptor, NotRead> {
        let here = |status: Status| NotRead::Here(status.message().to_owned());
        let now = self.known(wisher, wanted).await.map_err(here)?;
        able(&now).map_err(here)?;
        if now.tenant != known.tenant {
            return Err(NotRead::Here(format!("node {} has become tenant {:?}'s meanwhile", now.node, now.tenant)));
        }
        let login = login(&now, wanted).map(|Credentials { username, password }| Login { username, password });
        let order = ReadImage {
            request: self.owner.number(),
            reference: wanted.reference.clone(),
            manifest_digest,
            plain_http: wanted.plain_http,
            tenant: now.tenant,
            login,
        };
        self.readings.order(wisher.session, &wisher.commands, order).await
    }

    async fn read_here(&self, known: &KnownImage, wanted: &ImageWanted) -> Result<Descriptor, NotRead> {
        self.registrar.register(registration(known, wanted), &|_, _| ()).await.map_err(NotRead::Image)
    }

    async fn tell(&self, ask: Ask) -> Result<(), NotRead> {
        self.owner.ask(ask).await.map(drop).map_err(|status| NotRead::Image(status.message().to_owned()))
    }

    fn entry(&self, key: (String, String)) -> Looked {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if images.len() >= MAX_IMAGES && !images.contains_key(&key) {
            images.retain(|_, looked| match looked.try_lock() {
                Ok(look) => look.as_ref().is_some_and(Look::counts),
                Err(_) => true,
            });
            if images.len() >= MAX_IMAGES {
                images.retain(|_, looked| looked.try_lock().is_err());
            }
        }
        images.entry(key).or_default().clone()
    }
}

/// What the agent is told of the registry.
fn login(known: &KnownImage, wanted: &ImageWanted) -> Option<Credentials> {
    let login = known.login.clone()?;
    let registry = RegistryReference::parse(&wanted.reference).ok()?.base_url(wanted.plain_http);
    if !may_carry_password(&registry) {
        let (image, node) = (&wanted.reference, &known.node);
        tracing::warn!(image, node, "the node is not told the password that is kept: it does not go over plain HTTP");
        return None;
    }
    Some(login)
}

/// Whether the node may have the image.
fn able(known: &KnownImage) -> Result<(), Status> {
    known.obstacle.clone().map_or(Ok(()), |obstacle| Err(Status::failed_precondition(obstacle)))
}

/// For the log: on whose word the image's block digests rest.
fn read_by(wanted: &ImageWanted) -> &'static str {
    if wanted.reads { "by that node" } else { "by the controller" }
}

fn registration(known: &KnownImage, wanted: &ImageWanted) -> Registration {
    let (reference, login) = (wanted.reference.clone(), known.login.clone());
    Registration { reference, platform: None, plain_http: wanted.plain_http, login }
}

/// The name of the function that is made for an image: the end of its name that fits into one, and what tells it from others.
fn name_of(reference: &str) -> String {
    let end = reference.rsplit('/').next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c) { c } else { '-' };
    let shown: String = end.to_ascii_lowercase().chars().map(plain).take(NAME_BYTES).collect();
    format!("image-{shown}-{}", &blake3::hash(reference.as_bytes()).to_hex()[..12])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a name that is refused as a function's, and two images that share one.
    #[test]
    fn names_are_valid_and_distinct() {
        let digest = format!("r.example/app@sha256:{}", "a".repeat(64));
        let references = ["r.example/a/app:1", "r.example/b/app:1", "r.example/b/app:V_1", &digest, &"x".repeat(500)];
        let names: std::collections::BTreeSet<_> = references.iter().map(|reference| name_of(reference)).collect();
        assert_eq!(names.len(), references.len());
        for name in &names {
            crate::state::function_name("", name).unwrap();
        }
        assert!(name_of(references[0]).starts_with("image-app-1-"));
    }
}
