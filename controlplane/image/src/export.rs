//! Writes an image that a node holds as an OCI layout, checking every blob on the way (`faasnet pull`).
//!
//! The bytes come from whoever the caller names: the node's registry mirror, its store, an origin.

use std::future::Future;
use std::io::{self, Write};
use std::path::Path;
use std::pin::pin;

use bytes::Bytes;
use faasnet_api::{Descriptor, Entry};
use faasnet_origin::manifest::Link;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;

use crate::layout_writer::{LayoutWriteError, LayoutWriter};

/// Parts between the provider and the disk.
const PARTS_IN_FLIGHT: usize = 16;

/// Why no layout was written. Nothing of it remains.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The output cannot be written, or is neither empty nor a layout.
    #[error("{0}")]
    Output(String),
    /// The provider failed.
    #[error("cannot read blob {digest}: {cause}")]
    Provider {
        /// Which blob.
        digest: String,
        /// The provider's word.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The provider's bytes are not the blob's.
    #[error(
        "blob {digest} came as {bytes} bytes with the digest {got}, expected {expected_bytes} bytes; what provides it is damaged"
    )]
    WrongBytes {
        /// Which blob.
        digest: String,
        /// What the bytes hash to.
        got: String,
        /// How many came, at least.
        bytes: u64,
        /// How many there should be.
        expected_bytes: u64,
    },
}

impl From<LayoutWriteError> for ExportError {
    fn from(error: LayoutWriteError) -> Self {
        Self::Output(error.to_string())
    }
}

/// An image to write, taken from a descriptor or from a manifest.
#[derive(Debug, Clone)]
pub struct LayoutImage {
    /// The manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub manifest_media_type: String,
    /// Its digest.
    pub manifest_digest: String,
    /// The tag in the layout.
    pub tag: String,
    /// Config and layers, each digest once.
    pub entries: Vec<Entry>,
}

impl LayoutImage {
    /// The image of a descriptor; the tag is that of its reference.
    pub fn new(descriptor: &Descriptor) -> Self {
        let tag = match faasnet_origin::Reference::parse(descriptor.reference())
            .ok()
            .and_then(|reference| reference.target())
        {
            Some(faasnet_origin::Target::Tag(tag)) => tag,
            _ => "latest".into(),
        };
        Self {
            manifest: descriptor.manifest().to_vec(),
            manifest_media_type: descriptor.manifest_media_type().into(),
            manifest_digest: descriptor.manifest_digest().into(),
            tag,
            entries: descriptor.entries().to_vec(),
        }
    }
}

/// Writes the image of `descriptor` into the layout folder `out`. `provider` opens the bytes of an entry; `progress` gets
/// (bytes written, bytes in all).
pub async fn write_layout<P, F, S, E>(
    out: &Path,
    descriptor: &Descriptor,
    provider: P,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<(), ExportError>
where
    P: FnMut(&Entry) -> F,
    F: Future<Output = Result<S, E>>,
    S: Stream<Item = Result<Bytes, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    write_layout_image(out, LayoutImage::new(descriptor), provider, progress).await
}

/// Writes `image` into the layout folder `out`; see [`write_layout`].
pub async fn write_layout_image<P, F, S, E>(
    out: &Path,
    image: LayoutImage,
    mut provider: P,
    progress: impl Fn(u64, u64) + Send + Sync,
) -> Result<(), ExportError>
where
    P: FnMut(&Entry) -> F,
    F: Future<Output = Result<S, E>>,
    S: Stream<Item = Result<Bytes, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (parts, received) = mpsc::channel(PARTS_IN_FLIGHT);
    let (folder, written) = (out.to_owned(), image.clone());
    let writing = tokio::task::spawn_blocking(move || write_parts(&folder, &written, received));
    let total = image.entries.iter().map(|entry| entry.len).sum();
    let mut sent = 0;
    let mut failed = None;
    for entry in &image.entries {
        match feed(entry, provider(entry), &parts, &mut sent, |sent| progress(sent, total)).await {
            Ok(true) => {}
            // The writer ended; it knows why.
            Ok(false) => break,
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if failed.is_none() {
        // Ignored: when the writer has ended already, its own error is what counts.
        let _ = parts.send(Part::End).await;
    }
    drop(parts);
    let written = writing.await.map_err(|error| ExportError::Output(format!("writing ended early: {error}")))?;
    // What stopped us first is the cause; the writer then only says that parts are missing.
    match failed {
        Some(error) => Err(error),
        None => written,
    }
}

enum Part {
    Bytes(Bytes),
    EndOfEntry,
    /// Everything came; without it the writer takes nothing for complete.
    End,
}

/// Sends one entry's bytes to the writer; `false` when it has ended.
async fn feed<F, S, E>(
    entry: &Entry,
    opening: F,
    parts: &mpsc::Sender<Part>,
    sent: &mut u64,
    progress: impl Fn(u64),
) -> Result<bool, ExportError>
where
    F: Future<Output = Result<S, E>>,
    S: Stream<Item = Result<Bytes, E>>,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let failed = |error: E| ExportError::Provider { digest: entry.digest.clone(), cause: error.into() };
    let mut stream = pin!(opening.await.map_err(failed)?);
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(failed)?;
        *sent += bytes.len() as u64;
        if parts.send(Part::Bytes(bytes)).await.is_err() {
            return Ok(false);
        }
        progress(*sent);
    }
    Ok(parts.send(Part::EndOfEntry).await.is_ok())
}

fn write_parts(out: &Path, image: &LayoutImage, mut parts: mpsc::Receiver<Part>) -> Result<(), ExportError> {
    let writer = LayoutWriter::prepare(out)?;
    for entry in &image.entries {
        write_entry(&writer, entry, &mut parts)?;
    }
    let Some(Part::End) = parts.blocking_recv() else { return Err(incomplete()) };
    let digest = writer.put(&image.manifest)?;
    if digest != image.manifest_digest {
        let bytes = image.manifest.len() as u64;
        let expected = image.manifest_digest.clone();
        return Err(ExportError::WrongBytes { digest: expected, got: digest, bytes, expected_bytes: bytes });
    }
    let link = Link {
        media_type: image.manifest_media_type.clone(),
        digest,
        size: image.manifest.len() as u64,
        platform: None,
        annotations: Default::default(),
    };
    Ok(writer.commit(link, &image.tag)?)
}

fn write_entry(writer: &LayoutWriter, entry: &Entry, parts: &mut mpsc::Receiver<Part>) -> Result<(), ExportError> {
    let mut blob = writer.blob()?;
    let mut bytes = 0;
    loop {
        match parts.blocking_recv() {
            Some(Part::Bytes(part)) => {
                bytes += part.len() as u64;
                let written = if bytes > entry.len { Ok(()) } else { blob.write_all(&part) };
                written.map_err(|cause: io::Error| {
                    ExportError::Output(format!("cannot write {}: {cause}", blob.path().display()))
                })?;
            }
            Some(Part::EndOfEntry) => break,
            Some(Part::End) | None => return Err(incomplete()),
        }
        if bytes > entry.len {
            break;
        }
    }
    let got = blob.digest();
    if bytes != entry.len || got != entry.digest {
        return Err(ExportError::WrongBytes { digest: entry.digest.clone(), got, bytes, expected_bytes: entry.len });
    }
    blob.keep()?;
    Ok(())
}

fn incomplete() -> ExportError {
    ExportError::Output("stopped before everything was written".into())
}
