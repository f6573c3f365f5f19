//! Builds an OCI image from folders of files: one gzip layer per folder, configuration, manifest, index.
//!
//! Blocking and streaming: no layer is held in memory. The same folders give the same image.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use faasnet_origin::digest;
use faasnet_origin::is_tag;
use faasnet_origin::manifest::{self, Link, OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST};
use flate2::{Compression, GzBuilder};
use serde::Serialize;

use crate::Platform;
use crate::layer::{LayerContent, write_tar};
use crate::layout_writer::{LayoutWriteError, LayoutWriter, to_json};

/// Why no image was built. Nothing of it remains in the output folder.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No folder was given.
    #[error("an image needs at least one folder; name one with --from")]
    NoFolder,
    /// The tag is none, so that no reference could name the image.
    #[error(
        "{0:?} is not a tag; a tag is a word of letters, digits and . _ -, for example v1 (the image's name is the layout's folder)"
    )]
    Tag(String),
    /// An input is missing or no folder.
    #[error("{path} cannot become a layer: {reason}", path = path.display())]
    Folder {
        /// The input.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The output lies within an input.
    #[error("the output {out} lies within {folder}, which goes into the image; choose an output elsewhere", out = out.display(), folder = folder.display())]
    Overlap {
        /// The output.
        out: PathBuf,
        /// The input.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}; run as a user who may, or leave it out", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// A file cannot be put into the layer: the disk is full, or its name is none for a tar.
    #[error("cannot add {path} to the layer: {cause}", path = path.display())]
    Append {
        /// Which file.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// The output cannot be written, or is neither empty nor a layout.
    #[error("{0}")]
    Output(String),
    /// [`BuildOptions::cancel`] was set.
    #[error("stopped on request; nothing was written")]
    Cancelled,
}

impl From<LayoutWriteError> for BuildError {
    fn from(error: LayoutWriteError) -> Self {
        Self::Output(error.to_string())
    }
}

/// The modification times in the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtime {
    /// As the files have them, in seconds.
    Keep,
    /// The same for all, in seconds since the Unix epoch.
    Fixed(u64),
}

/// How to build. The default is tagged `latest`, for linux on this machine's processor.
#[derive(Clone)]
pub struct BuildOptions {
    /// The image's tag in the layout.
    pub tag: String,
    /// What the image says it runs on.
    pub platform: Platform,
    /// 0 (store) to 9 (smallest). 1 by default: building is read-bound then, and 6 saves a tenth of the bytes for four times the time.
    pub compression: u32,
    /// Modification times.
    pub mtime: Mtime,
    /// Leave out what may not be read, with a note, in place of failing.
    pub skip_unreadable: bool,
    /// Set it to stop the build.
    pub cancel: Option<Arc<AtomicBool>>,
    /// Called with the bytes of each file that was packed, from several threads.
    pub progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            tag: "latest".into(),
            platform: Platform::here(),
            compression: 1,
            mtime: Mtime::Keep,
            skip_unreadable: false,
            cancel: None,
            progress: None,
        }
    }
}

impl fmt::Debug for BuildOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildOptions").field("tag", &self.tag).finish_non_exhaustive()
    }
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuiltImage {
    /// The layout folder.
    pub layout: PathBuf,
    /// The image's tag in it.
    pub tag: String,
    /// The manifest's digest.
    pub digest: String,
    /// The layers, lowest first.
    pub layers: Vec<BuiltLayer>,
    /// Bytes of configuration and layers, each digest once.
    pub bytes: u64,
    /// Sockets, devices, pipes, and unreadable files if they may be left out.
    pub skipped: Vec<PathBuf>,
}

/// One layer of a built image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuiltLayer {
    /// The folder that it was made from; empty for opaque layers.
    pub from: PathBuf,
    /// The blob's digest.
    pub digest: String,
    /// The blob's bytes.
    pub bytes: u64,
    /// Digest of the uncompressed layer.
    pub diff_id: String,
    /// Files and links in it.
    pub files: u64,
}

/// Builds an image of the folders `from`, lowest layer first, into the layout folder `out`.
pub fn build(from: &[PathBuf], out: &Path, options: &BuildOptions) -> Result<BuiltImage, BuildError> {
    check_inputs(from, out)?;
    if !is_tag(&options.tag) {
        return Err(BuildError::Tag(options.tag.clone()));
    }
    let writer = LayoutWriter::prepare(out)?;
    let layers = pack_all(from, &writer, options)?;
    let mut skipped = Vec::new();
    let layers = layers.into_iter().map(|(layer, left_out)| {
        skipped.extend(left_out);
        layer
    });
    let layers = layers.collect();
    finish(writer, out, layers, skipped, OCI_LAYER_GZIP, options)
}

/// Builds an image whose layers are the given bytes, whatever they are: for tests and experiments that need exact sizes.
pub fn build_opaque(
    layers: &mut [&mut dyn Read],
    out: &Path,
    options: &BuildOptions,
) -> Result<BuiltImage, BuildError> {
    let writer = LayoutWriter::prepare(out)?;
    let mut built = Vec::new();
    for layer in layers {
        let mut blob = writer.blob()?;
        let path = blob.path().to_owned();
        io::copy(layer, &mut blob).map_err(|cause| BuildError::Append { path, cause })?;
        let (digest, bytes) = blob.keep()?;
        built.push(BuiltLayer { from: PathBuf::new(), diff_id: digest.clone(), digest, bytes, files: 0 });
    }
    finish(writer, out, built, Vec::new(), "application/vnd.oci.image.layer.v1.tar", options)
}

fn check_inputs(from: &[PathBuf], out: &Path) -> Result<(), BuildError> {
    if from.is_empty() {
        return Err(BuildError::NoFolder);
    }
    // The output need not exist yet: its nearest existing ancestor says where it will be.
    let place = std::path::absolute(out).unwrap_or_else(|_| out.into());
    let place = place.ancestors().find_map(|path| path.canonicalize().ok()).unwrap_or(place);
    for folder in from {
        let refuse = |reason: String| BuildError::Folder { path: folder.clone(), reason };
        let canonical = folder.canonicalize().map_err(|error| refuse(error.to_string()))?;
        if !canonical.is_dir() {
            return Err(refuse("it is not a folder".into()));
        }
        if place.starts_with(&canonical) {
            return Err(BuildError::Overlap { out: out.into(), folder: folder.clone() });
        }
    }
    Ok(())
}

type Packed = (BuiltLayer, Vec<PathBuf>);

/// Packs the folders on as many threads as there are processors; results in the folders' order.
fn pack_all(from: &[PathBuf], writer: &LayoutWriter, options: &BuildOptions) -> Result<Vec<Packed>, BuildError> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(from.len());
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<Packed, BuildError>>>> = from.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((folder, result)) = {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    from.get(number).zip(results.get(number))
                } {
                    let packed = pack(folder, writer, options);
                    if packed.is_err() {
                        // The others need not begin what will be thrown away.
                        next.store(from.len(), Ordering::Relaxed);
                    }
                    *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(packed);
                }
            });
        }
    });
    let results = results.into_iter().filter_map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner));
    let packed = results.collect::<Result<Vec<_>, _>>()?;
    // Fewer results than folders without an error cannot be: a thread takes the next number only to fill its place.
    assert_eq!(packed.len(), from.len(), "a layer was lost");
    Ok(packed)
}

fn pack(folder: &Path, writer: &LayoutWriter, options: &BuildOptions) -> Result<Packed, BuildError> {
    let blob = writer.blob()?;
    let path = blob.path().to_owned();
    let gzip = GzBuilder::new().write(blob, Compression::new(options.compression.min(9)));
    let tar = HashingWriter { inner: gzip, hasher: digest::Hasher::default() };
    let cancelled = |error| match &options.cancel {
        Some(cancel) if cancel.load(Ordering::Relaxed) => BuildError::Cancelled,
        _ => error,
    };
    let (tar, LayerContent { files, skipped }) = write_tar(folder, tar, options).map_err(cancelled)?;
    let diff_id = tar.hasher.finish();
    let blob = tar.inner.finish().map_err(|cause| BuildError::Append { path, cause })?;
    let (digest, bytes) = blob.keep()?;
    Ok((BuiltLayer { from: folder.into(), digest, bytes, diff_id, files }, skipped))
}

#[derive(Serialize)]
struct Config<'a> {
    created: &'a str,
    architecture: &'a str,
    os: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'a str>,
    config: Process<'a>,
    rootfs: RootFs<'a>,
}

#[derive(Serialize)]
struct Process<'a> {
    #[serde(rename = "Env")]
    env: [&'a str; 1],
}

#[derive(Serialize)]
struct RootFs<'a> {
    r#type: &'a str,
    diff_ids: Vec<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ManifestJson<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: Link,
    layers: Vec<Link>,
}

fn finish(
    writer: LayoutWriter,
    out: &Path,
    layers: Vec<BuiltLayer>,
    skipped: Vec<PathBuf>,
    layer_type: &str,
    options: &BuildOptions,
) -> Result<BuiltImage, BuildError> {
    let config = to_json(&Config {
        created: "1970-01-01T00:00:00Z",
        architecture: &options.platform.architecture,
        os: &options.platform.os,
        variant: options.platform.variant.as_deref(),
        config: Process { env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
        rootfs: RootFs { r#type: "layers", diff_ids: layers.iter().map(|layer| &*layer.diff_id).collect() },
    });
    let config = link(OCI_CONFIG, writer.put(&config)?, config.len() as u64);
    let links: Vec<Link> = layers.iter().map(|layer| link(layer_type, layer.digest.clone(), layer.bytes)).collect();
    let mut distinct: Vec<_> = links.iter().chain([&config]).map(|link| (&link.digest, link.size)).collect();
    distinct.sort();
    distinct.dedup();
    let bytes = distinct.iter().map(|(_, size)| size).sum();
    let manifest = to_json(&ManifestJson {
        schema_version: 2,
        media_type: OCI_MANIFEST,
        config: config.clone(),
        layers: links.clone(),
    });
    let digest = writer.put(&manifest)?;
    let mut image = link(OCI_MANIFEST, digest.clone(), manifest.len() as u64);
    image.platform = Some(manifest::Platform {
        architecture: options.platform.architecture.clone(),
        os: options.platform.os.clone(),
        variant: options.platform.variant.clone(),
    });
    writer.commit(image, &options.tag)?;
    Ok(BuiltImage { layout: out.into(), tag: options.tag.clone(), digest, layers, bytes, skipped })
}

fn link(media_type: &str, digest: String, size: u64) -> Link {
    Link { media_type: media_type.into(), digest, size, platform: None, annotations: Default::default() }
}

/// Hashes what passes, for the digest of the uncompressed layer.
struct HashingWriter<W> {
    inner: W,
    hasher: digest::Hasher,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
