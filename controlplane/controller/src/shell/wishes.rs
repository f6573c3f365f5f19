//! Images that runtimes ask for and that no function has: registered on the first wish, looked up again when their tag may have moved.
//!
//! Whatever the number of nodes that ask, an image is read once, and a tag is resolved once per `tag_ttl`; what goes wrong is
//! remembered as long. Digests are never resolved again. Functions that somebody made by name keep the image that they were given.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use faasnet_api::v1::ImageWanted;
use faasnet_tree::Policy;
use tonic::Status;

use super::clients::unexpected;
use super::owner::Handle;
use crate::registrar::{Registrar, Registration};
use crate::state::{Answer, Ask, KnownImage, NewFunction, NewImage, SessionId};

/// Images that are remembered. Beyond that those are forgotten whose time is over, then all that nobody is busy with.
const MAX_IMAGES: usize = 4096;
/// The longest part of a function's name that is taken from its image.
const NAME_BYTES: usize = 80;

/// When an image was looked at last. Locked by who looks; others wait.
type Looked = Arc<tokio::sync::Mutex<Option<Instant>>>;

/// See the module's documentation. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Wishes {
    owner: Handle,
    registrar: Arc<dyn Registrar>,
    tag_ttl: Duration,
    /// By tenant and reference.
    images: Arc<Mutex<HashMap<(String, String), Looked>>>,
}

impl Wishes {
    pub(crate) fn new(owner: Handle, registrar: Arc<dyn Registrar>, tag_ttl: Duration) -> Self {
        Self { owner, registrar, tag_ttl, images: Arc::default() }
    }

    /// Sees to it that a function has the image, if that can be. Afterwards the state machine can answer the wish.
    pub(crate) async fn fulfil(&self, session: SessionId, wanted: &ImageWanted) {
        if let Err(error) = self.look(session, wanted).await {
            tracing::warn!(image = wanted.reference, reason = error.message(), "a runtime's image is not registered");
        }
    }

    async fn look(&self, session: SessionId, wanted: &ImageWanted) -> Result<(), Status> {
        let known = self.known(session, wanted).await?;
        let is_digest = wanted.reference.contains('@');
        if is_digest && known.function.is_some() {
            return Ok(());
        }
        let looked = self.entry((known.tenant.clone(), wanted.reference.clone()));
        let mut looked = looked.lock().await;
        if looked.is_some_and(|at| at.elapsed() < self.tag_ttl) {
            return Ok(());
        }
        // Whoever looked before may have registered it.
        let known = self.known(session, wanted).await?;
        let done = match known.function {
            None => self.register(&known, wanted).await,
            Some(_) if is_digest => Ok(()),
            Some(name) if name != name_of(&wanted.reference) => Ok(()),
            Some(_) => self.renew(&known, wanted).await,
        };
        *looked = Some(Instant::now());
        done
    }

    async fn known(&self, session: SessionId, wanted: &ImageWanted) -> Result<KnownImage, Status> {
        match self.owner.ask(Ask::FindImage { session, reference: wanted.reference.clone() }).await? {
            Answer::Image(known) => Ok(known),
            other => Err(unexpected(&other)),
        }
    }

    async fn register(&self, known: &KnownImage, wanted: &ImageWanted) -> Result<(), Status> {
        let descriptor = self.registrar.register(registration(wanted), &|_, _| ()).await;
        let descriptor = descriptor.map_err(Status::failed_precondition)?;
        tracing::info!(image = wanted.reference, "registered for a runtime that asked for it");
        let (tenant, name) = (known.tenant.clone(), name_of(&wanted.reference));
        let new = NewFunction { tenant, name, policy: Policy::Twin, memory_mib: 0, descriptor };
        self.owner.ask(Ask::Create(Box::new(new))).await.map(drop)
    }

    /// The tag of a function that was made here may have moved.
    async fn renew(&self, known: &KnownImage, wanted: &ImageWanted) -> Result<(), Status> {
        let digest = self.registrar.resolve(registration(wanted)).await.map_err(Status::failed_precondition)?;
        if known.manifest.as_ref() == Some(&digest) {
            return Ok(());
        }
        let descriptor = self.registrar.register(registration(wanted), &|_, _| ()).await;
        let descriptor = descriptor.map_err(Status::failed_precondition)?;
        tracing::info!(image = wanted.reference, digest, "the tag has moved: its function gets the new image");
        let (tenant, name) = (known.tenant.clone(), name_of(&wanted.reference));
        self.owner.ask(Ask::Update(Box::new(NewImage { tenant, name, descriptor, at_once: true }))).await.map(drop)
    }

    fn entry(&self, key: (String, String)) -> Looked {
        let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        if images.len() >= MAX_IMAGES && !images.contains_key(&key) {
            images.retain(|_, looked| match looked.try_lock() {
                Ok(at) => at.is_some_and(|at| at.elapsed() < self.tag_ttl),
                Err(_) => true,
            });
            if images.len() >= MAX_IMAGES {
                images.retain(|_, looked| looked.try_lock().is_err());
            }
        }
        images.entry(key).or_default().clone()
    }
}

fn registration(wanted: &ImageWanted) -> Registration {
    Registration { reference: wanted.reference.clone(), platform: None, plain_http: wanted.plain_http }
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
