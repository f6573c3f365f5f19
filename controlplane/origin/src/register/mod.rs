//! Registration: one streaming read of an image turns it into its descriptor.
//!
//! Called by the controller, which keeps no blob, and by an agent that registers what its runtime asked for and keeps the bytes as they come.
//! What is kept is the caller's matter ([`Keep`]); nothing of it may be given out before this has ended well.

mod error;
mod hash;
mod keep;
mod platform;
mod resolve;

use std::collections::HashMap;

use bytes::Bytes;
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{BLOCK_BYTES, CHUNK_BYTES, Descriptor, DescriptorError, Entry, Geometry, Origin};
use tokio::sync::mpsc;

pub use error::RegisterError;
use hash::hash_entries;
pub use keep::{Keep, Outline};
pub use platform::{Platform, show as show_platform};
pub use resolve::{ResolvedImage, patiently, resolve};

use crate::manifest::{self, Document, ImageManifest};
use crate::{Credentials, MAX_MANIFEST_BYTES, RegistryReference, Source, digest};

/// Parts between reader and hasher: at most a few MiB, so that neither waits for the other's hiccups.
const PARTS_IN_FLIGHT: usize = 16;

/// Progress is told after so many bytes.
const PROGRESS_BYTES: u64 = 1 << 20;

/// What to register.
#[derive(Debug, Clone)]
pub struct RegisterRequest {
    /// A registry reference, or `oci:PATH[:tag]` or the path of an OCI layout folder.
    pub reference: String,
    /// `os/arch[/variant]`; `None`: linux and this machine's architecture.
    pub platform: Option<String>,
    /// Speak HTTP without TLS to the registry.
    pub plain_http: bool,
    /// Bytes of a block; a power of two, see `faasnet_api::BLOCK_BYTES`.
    pub block_bytes: u32,
    /// Who asks, where the Docker configuration of this host knows nothing of the registry.
    pub login: Option<Credentials>,
    /// The digest of the image's manifest, when it is known already what the reference stands for.
    pub manifest: Option<String>,
}

impl RegisterRequest {
    /// Of that image, for this machine, with the usual blocks.
    pub fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            platform: None,
            plain_http: false,
            block_bytes: BLOCK_BYTES,
            login: None,
            manifest: None,
        }
    }

    async fn resolve(&self) -> Result<(ResolvedImage, Option<Platform>), RegisterError> {
        let platform = self.platform.as_deref().map(str::parse::<Platform>).transpose()?;
        Ok((resolve::resolve_as(self, platform.as_ref()).await?, platform))
    }
}

/// Reads the image once, checks every digest and returns its descriptor. `progress` gets (bytes read, bytes in all).
pub async fn register(
    request: RegisterRequest,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<Descriptor, RegisterError> {
    Ok(register_keeping(request, (), progress).await?.0)
}

/// The same, with every byte handed to `keep` on its way; it comes back when all of them had the digests that the manifest gives.
pub async fn register_keeping<K: Keep>(
    request: RegisterRequest,
    mut keep: K,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<(Descriptor, K), RegisterError> {
    let (resolved, platform) = request.resolve().await?;
    let entries = entries(&request.reference, &resolved.image)?;
    let describe = |cause: DescriptorError| RegisterError::Descriptor { reference: request.reference.clone(), cause };
    // Before the long read: an image that breaks a limit is refused at once.
    let lengths = entries.iter().map(|entry| entry.len);
    let geometry = Geometry::new(CHUNK_BYTES, request.block_bytes, lengths).map_err(|cause| describe(cause.into()))?;
    let image_bytes = geometry.image_bytes();
    progress(0, image_bytes);
    let ranges = probe(&resolved.source, &entries).await?;
    let (parts, mut received) = mpsc::channel(PARTS_IN_FLIGHT);
    let (hashed, block_bytes) = (entries.clone(), request.block_bytes);
    let outline = Outline {
        geometry,
        entries: entries.clone(),
        manifest: resolved.manifest.bytes.to_vec(),
        manifest_media_type: media_type(&resolved),
        manifest_digest: resolved.manifest.digest.clone(),
    };
    let hashing = tokio::task::spawn_blocking(move || {
        keep.begin(outline).map_err(RegisterError::Keeping)?;
        let blocks = hash_entries(&hashed, block_bytes, &mut received, &mut keep)?;
        Ok::<_, RegisterError>((blocks, keep))
    });
    let feed = Feed { source: &resolved.source, parts, read: 0, total: image_bytes, told: 0 };
    let check = |config: &[u8]| check_platform(&request.reference, platform.as_ref(), &resolved, config);
    // A false digest or a full disk ends the hashing, which ends the feed without an error; the hasher then says what is wrong.
    feed.run(&entries, check, progress).await?;
    let (blocks, keep) = hashing.await.map_err(|error| RegisterError::Hashing(error.to_string()))??;
    let descriptor = Descriptor::new(DescriptorParts {
        block_bytes: request.block_bytes,
        reference: request.reference.clone(),
        origin: resolved.source.to_origin(ranges),
        manifest_media_type: media_type(&resolved),
        manifest_digest: resolved.manifest.digest.clone(),
        manifest: resolved.manifest.bytes.to_vec(),
        entries,
        blocks,
    });
    Ok((descriptor.map_err(describe)?, keep))
}

/// The digest of the manifest that `register` would read now; reads documents only.
pub async fn resolve_digest(request: &RegisterRequest) -> Result<String, RegisterError> {
    Ok(request.resolve().await?.0.manifest.digest)
}

/// Whether a descriptor that somebody else made says of an image what its manifest says: all of it but the block digests, which only the
/// image's bytes could tell. `Err` with what does not fit.
pub fn check_claim(descriptor: &Descriptor, reference: &str, plain_http: bool, manifest: &str) -> Result<(), String> {
    if descriptor.reference() != reference {
        return Err(format!("it is of {:?}", descriptor.reference()));
    }
    // Elsewhere than at the image's own registry roots would show somebody else their credentials.
    let at_home = RegistryReference::parse(reference).is_ok_and(|reference| match descriptor.origin() {
        Origin::Registry { base_url, repository, .. } => {
            *base_url == reference.base_url(plain_http) && *repository == reference.repository
        }
        Origin::Layout { .. } => false,
    });
    if !at_home {
        return Err(format!("it says that roots read {:?}", descriptor.origin()));
    }
    if descriptor.manifest_digest() != manifest || digest::of(descriptor.manifest()) != manifest {
        return Err(format!("its manifest is not {manifest}"));
    }
    let Ok(Document::Image(image)) = Document::parse(descriptor.manifest()) else {
        return Err("its manifest is not an image's".into());
    };
    let (claimed, said) = (descriptor.manifest_media_type(), known_media_type(descriptor.manifest()));
    if said
        .as_deref()
        .map_or(![manifest::OCI_MANIFEST, manifest::DOCKER_MANIFEST].contains(&claimed), |said| said != claimed)
    {
        return Err(format!("its manifest is not of the type {claimed:?}"));
    }
    if descriptor.geometry().block_bytes() != BLOCK_BYTES {
        return Err(format!("its blocks have {} bytes instead of {BLOCK_BYTES}", descriptor.geometry().block_bytes()));
    }
    match entries(reference, &image) {
        Ok(entries) if entries == descriptor.entries() => Ok(()),
        _ => Err("its blobs are not those of its manifest".into()),
    }
}

/// Config first, then the layers in order, each digest once.
fn entries(reference: &str, image: &ImageManifest) -> Result<Vec<Entry>, RegisterError> {
    let mut lengths: HashMap<&str, u64> = HashMap::new();
    let mut entries = Vec::new();
    for link in std::iter::once(&image.config).chain(&image.layers) {
        digest::hex(&link.digest)?;
        match lengths.insert(&link.digest, link.size) {
            None => {
                entries.push(Entry { digest: link.digest.clone(), media_type: link.media_type.clone(), len: link.size })
            }
            Some(before) if before == link.size => {}
            Some(before) => {
                let reason = format!("its manifest gives blob {} both {before} and {} bytes", link.digest, link.size);
                return Err(RegisterError::NotAnImage { reference: reference.into(), reason });
            }
        }
    }
    Ok(entries)
}

/// Asked of the largest blob: registries may redirect large blobs to another server than small ones.
async fn probe(source: &Source, entries: &[Entry]) -> Result<bool, RegisterError> {
    let Some(entry) = entries.iter().max_by_key(|entry| entry.len) else { return Ok(true) };
    Ok(patiently(source, || source.probe_ranges(&entry.digest, entry.len)).await?)
}

/// What the manifest says of itself; else what the origin says of it.
fn media_type(resolved: &ResolvedImage) -> String {
    known_media_type(&resolved.manifest.bytes).unwrap_or_else(|| match &*resolved.manifest.media_type {
        known @ (manifest::OCI_MANIFEST | manifest::DOCKER_MANIFEST) => known.into(),
        _ => manifest::OCI_MANIFEST.into(),
    })
}

/// The media type that an image's manifest says of itself, if it is one that there is.
fn known_media_type(manifest: &[u8]) -> Option<String> {
    manifest::own_media_type(manifest)
        .filter(|own| matches!(&**own, manifest::OCI_MANIFEST | manifest::DOCKER_MANIFEST))
}

/// The reading side: the entries' bytes, in order, into the hasher's queue.
struct Feed<'a> {
    source: &'a Source,
    parts: mpsc::Sender<Bytes>,
    read: u64,
    total: u64,
    told: u64,
}

impl Feed<'_> {
    /// `check_config` sees the first entry's bytes before anything else is read. Ends without an error when the hasher did.
    async fn run(
        mut self,
        entries: &[Entry],
        check_config: impl Fn(&[u8]) -> Result<(), RegisterError>,
        progress: impl Fn(u64, u64) + Send + Sync,
    ) -> Result<(), RegisterError> {
        for (number, entry) in entries.iter().enumerate() {
            let mut config = (number == 0 && entry.len <= MAX_MANIFEST_BYTES).then(Vec::new);
            if entry.len == 0 {
                self.check_empty(entry).await?;
            }
            let mut reader = self.source.read_blob_range(&entry.digest, 0..entry.len);
            while let Some(part) = reader.next_bytes().await? {
                self.read += part.len() as u64;
                if let Some(config) = &mut config {
                    config.extend_from_slice(&part);
                }
                if self.parts.send(part).await.is_err() {
                    return Ok(());
                }
                if self.read - self.told >= PROGRESS_BYTES || self.read == self.total {
                    self.told = self.read;
                    progress(self.read, self.total);
                }
            }
            if let Some(config) = config {
                check_config(&config)?;
            }
        }
        Ok(())
    }

    /// A blob of 0 bytes has no bytes to ask for, but must be there and be empty.
    async fn check_empty(&self, entry: &Entry) -> Result<(), RegisterError> {
        let first =
            patiently(self.source, || async { self.source.open_blob(&entry.digest, None).await?.next_bytes().await });
        match first.await? {
            None => Ok(()),
            Some(_) => Err(RegisterError::Length { digest: entry.digest.clone(), expected: 0 }),
        }
    }
}

/// An image that was not chosen from an index names its platform in its configuration only.
fn check_platform(
    reference: &str,
    wanted: Option<&Platform>,
    resolved: &ResolvedImage,
    config: &[u8],
) -> Result<(), RegisterError> {
    let Ok(got) = serde_json::from_slice::<manifest::Platform>(config) else { return Ok(()) };
    if got.os.is_empty() || got.architecture.is_empty() || !resolved.platforms.is_empty() {
        return Ok(());
    }
    match wanted {
        Some(wanted) if !wanted.fits(&got) => Err(RegisterError::UnknownPlatform {
            reference: reference.into(),
            wanted: wanted.to_string(),
            available: platform::show(&got),
        }),
        None if !Platform::here().fits(&got) => {
            tracing::warn!(
                reference,
                platform = platform::show(&got),
                "the image is for another platform than this machine"
            );
            Ok(())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_api::BlockDigest;

    /// A manifest that says of itself what `media_type` says.
    fn manifest_of(media_type: &str) -> String {
        let said = if media_type.is_empty() { String::new() } else { format!(r#""mediaType": "{media_type}", "#) };
        let (config, digest) = (manifest::OCI_CONFIG, format!("sha256:{}", "a".repeat(64)));
        format!(
            r#"{{"schemaVersion": 2, {said}"config": {{"mediaType": "{config}", "size": 10, "digest": "{digest}"}}, "layers": []}}"#
        )
    }

    fn claim(manifest: &str, claimed: &str, block_bytes: u32) -> Result<(), String> {
        let descriptor = Descriptor::new(DescriptorParts {
            block_bytes,
            reference: "r.example/app:1".into(),
            origin: Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true },
            manifest_media_type: claimed.into(),
            manifest_digest: digest::of(manifest.as_bytes()),
            manifest: manifest.into(),
            entries: vec![Entry {
                digest: format!("sha256:{}", "a".repeat(64)),
                media_type: manifest::OCI_CONFIG.into(),
                len: 10,
            }],
            blocks: vec![BlockDigest::of(b"0123456789")],
        })
        .unwrap();
        check_claim(&descriptor, "r.example/app:1", false, &digest::of(manifest.as_bytes()))
    }

    /// Catches an agent that chooses how an image is cut, or as what runtimes get its manifest.
    #[test]
    fn what_the_manifest_does_not_leave_open_is_not_claimed() {
        let (oci, docker) = (manifest::OCI_MANIFEST, manifest::DOCKER_MANIFEST);
        for (said, claimed, holds) in [
            (oci, oci, true),
            (docker, docker, true),
            (oci, docker, false),
            (docker, oci, false),
            ("", oci, true),
            ("", docker, true),
            ("", manifest::OCI_INDEX, false),
            ("", "text/html", false),
        ] {
            assert_eq!(claim(&manifest_of(said), claimed, BLOCK_BYTES).is_ok(), holds, "{said:?} {claimed}");
        }
        assert!(claim(&manifest_of(oci), oci, BLOCK_BYTES / 2).unwrap_err().contains("blocks"));
    }
}
