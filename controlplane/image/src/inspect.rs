//! What an image is made of, for people and scripts. Reads manifests only.

use std::collections::HashSet;

use faasnet_origin::Source;
use faasnet_origin::manifest::{self, Link};
use faasnet_origin::register::{ResolvedImage, patiently, resolve, show_platform};
use serde::Serialize;

use crate::{Platform, RegisterError};

/// Which image to look at.
#[derive(Debug, Clone, Default)]
pub struct InspectRequest {
    /// A registry reference, or `oci:PATH[:tag]` or the path of an OCI layout folder.
    pub reference: String,
    /// `os/arch[/variant]`; `None`: linux and this machine's architecture.
    pub platform: Option<String>,
    /// Speak HTTP without TLS to the registry.
    pub plain_http: bool,
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageSummary {
    /// The reference as given.
    pub reference: String,
    /// The digest of the chosen image's manifest.
    pub digest: String,
    /// The manifest's media type.
    pub media_type: String,
    /// What the image runs on, by its configuration.
    pub platform: Option<String>,
    /// Config first, then the layers in order, each digest once.
    pub blobs: Vec<BlobSummary>,
    /// Sum over `blobs`.
    pub total_bytes: u64,
    /// What the index offers; empty when the reference names a single image.
    pub platforms: Vec<String>,
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlobSummary {
    /// Its digest.
    pub digest: String,
    /// Its media type.
    pub media_type: String,
    /// Its bytes.
    pub bytes: u64,
    /// How often the manifest lists it.
    pub uses: u32,
}

/// Looks at an image without reading its layers.
pub async fn inspect(request: &InspectRequest) -> Result<ImageSummary, RegisterError> {
    let platform = request.platform.as_deref().map(str::parse::<Platform>).transpose()?;
    let resolved = resolve(&request.reference, platform.as_ref(), request.plain_http).await?;
    let platform = config_platform(&resolved).await?;
    let blobs = blobs(&resolved);
    Ok(ImageSummary {
        reference: request.reference.clone(),
        total_bytes: blobs.iter().map(|blob| blob.bytes).sum(),
        blobs,
        platform,
        digest: resolved.manifest.digest,
        media_type: resolved.manifest.media_type,
        platforms: resolved.platforms,
    })
}

fn blobs(resolved: &ResolvedImage) -> Vec<BlobSummary> {
    let links: Vec<&Link> = std::iter::once(&resolved.image.config).chain(&resolved.image.layers).collect();
    let mut seen = HashSet::new();
    let first_uses = links.iter().filter(|link| seen.insert(&link.digest));
    let summary = |link: &&Link| BlobSummary {
        digest: link.digest.clone(),
        media_type: link.media_type.clone(),
        bytes: link.size,
        uses: links.iter().filter(|other| other.digest == link.digest).count() as u32,
    };
    first_uses.map(summary).collect()
}

async fn config_platform(resolved: &ResolvedImage) -> Result<Option<String>, RegisterError> {
    let config = &resolved.image.config;
    if config.size > faasnet_origin::MAX_MANIFEST_BYTES {
        return Ok(None);
    }
    let bytes = patiently(&resolved.source, || read_blob(&resolved.source, config)).await?;
    let platform: Option<manifest::Platform> = serde_json::from_slice(&bytes).ok();
    Ok(platform.filter(|platform| !platform.os.is_empty()).map(|platform| show_platform(&platform)))
}

async fn read_blob(source: &Source, link: &Link) -> Result<Vec<u8>, faasnet_origin::Error> {
    let mut reader = source.read_blob_range(&link.digest, 0..link.size);
    let mut bytes = Vec::new();
    while let Some(part) = reader.next_bytes().await? {
        bytes.extend_from_slice(&part);
    }
    let got = faasnet_origin::digest::of(&bytes);
    if got != link.digest {
        let what = format!("blob {}", link.digest);
        return Err(faasnet_origin::Error::FalseDigest { what, expected: link.digest.clone(), got });
    }
    Ok(bytes)
}
