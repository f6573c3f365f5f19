//! Where the demo's image comes from: built from this machine's files, the user's layout, or a registry of somebody else's.
//!
//! The first two are served by a registry inside this process, whose own log is what the report counts.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use faasnet_image::{BuildOptions, Mtime};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::files::{self, Layer};
use super::report::{BlobRead, OriginLog};
use crate::cli::DemoArgs;
use crate::registry::{RegistryOptions, RegistryServer};

/// Layers of the built image.
const LAYERS: u64 = 5;
/// How much of the files is compressed to learn how much they shrink.
const SAMPLE_BYTES: u64 = 8 << 20;
/// The tag of the built image.
const TAG: &str = "demo";

/// The demo's image and, unless it is somebody else's, the registry that serves it.
pub struct Source {
    reference: String,
    plain_http: bool,
    registry: Option<RegistryServer>,
}

impl Source {
    /// Makes what `args` ask for; files go to `dir`.
    pub async fn make(args: &DemoArgs, dir: &Path) -> Result<Self> {
        let layout = match &args.image {
            Some(image) if is_layout(Path::new(image)) => PathBuf::from(image),
            Some(image) => {
                return Ok(Self { reference: image.clone(), plain_http: args.plain_http, registry: None });
            }
            None => build(args.size, dir.to_owned()).await?,
        };
        let options = RegistryOptions { rate: args.rate, keep_reads: true, ..RegistryOptions::default() };
        let registry = RegistryServer::start(&layout, (Ipv4Addr::LOCALHOST, 0).into(), options).await?;
        let reference = registry.reference().with_context(|| format!("{} holds no image", layout.display()))?;
        Ok(Self { reference, plain_http: true, registry: Some(registry) })
    }

    /// What to register.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Whether its registry speaks HTTP without TLS.
    pub fn plain_http(&self) -> bool {
        self.plain_http
    }

    /// What the registry has sent so far; `None` when it is not ours.
    pub fn log(&self) -> Option<OriginLog> {
        let registry = self.registry.as_ref()?;
        let reads = registry.reads().into_iter();
        let reads = reads.map(|read| BlobRead { digest: read.digest, start: read.range.start, bytes: read.bytes_sent });
        Some(OriginLog { requests: registry.stats().blob_requests, reads: reads.collect() })
    }
}

/// Builds on a thread of its own; dropping the future stops it.
async fn build(size: u64, dir: PathBuf) -> Result<PathBuf> {
    let cancel = Arc::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(cancel.clone());
    let work = tokio::task::spawn_blocking(move || build_blocking(size, &dir, cancel));
    work.await.context("building the image broke off")?
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn build_blocking(size: u64, dir: &Path, cancel: Arc<AtomicBool>) -> Result<PathBuf> {
    let (layout, staging) = (dir.join("layout"), dir.join("files"));
    let share = compressed_share(&files::pick(size, LAYERS));
    let layers = files::pick((size as f64 / share) as u64, LAYERS);
    ensure!(
        !layers.is_empty(),
        "this user can read no files under /usr or /opt; give an image with --image REF|LAYOUT"
    );
    let mut folders = Vec::new();
    for (layer, number) in layers.iter().zip(0..) {
        let folder = staging.join(format!("layer{number}"));
        stage(layer, &folder, &cancel)?;
        folders.push(folder);
    }
    let options = BuildOptions {
        tag: TAG.into(),
        mtime: Mtime::Fixed(0),
        skip_unreadable: true,
        cancel: Some(cancel),
        ..BuildOptions::default()
    };
    faasnet_image::build(&folders, &layout, &options)?;
    fs::remove_dir_all(&staging).with_context(|| format!("cannot remove {}", staging.display()))?;
    Ok(layout)
}

/// Copies the files below `folder` under the paths that they have on this machine. (A file that vanishes meanwhile is left out.)
fn stage(layer: &Layer, folder: &Path, cancel: &AtomicBool) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for file in &layer.files {
        ensure!(!cancel.load(Ordering::Relaxed), "building the image was stopped");
        let to = folder.join(file.strip_prefix("/").unwrap_or(file));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        match fs::copy(file, &to) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && !file.exists() => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot copy {} to {}", file.display(), to.display()));
            }
        }
    }
    Ok(())
}

/// What remains of a byte after compression, from a sample of every layer.
fn compressed_share(layers: &[Layer]) -> f64 {
    let files: Vec<_> = layers.iter().flat_map(|layer| &layer.files).collect();
    let bytes: u64 = layers.iter().map(|layer| layer.bytes).sum();
    // Every n-th file, so that the sample has as much of every kind as the whole.
    let step = (bytes / SAMPLE_BYTES).max(1) as usize;
    let mut read = 0;
    let mut encoder = GzEncoder::new(Counter(0), Compression::fast());
    for file in files.into_iter().step_by(step) {
        // Ignored: what cannot be read or compressed says nothing about the rest.
        let _ =
            fs::File::open(file).and_then(|file| io::copy(&mut file.take(1 << 20), &mut encoder)).map(|n| read += n);
    }
    let compressed = encoder.finish().map_or(0, |counter| counter.0);
    if read == 0 { 1.0 } else { (compressed as f64 / read as f64).clamp(0.05, 1.0) }
}

struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_layout(path: &Path) -> bool {
    path.join("index.json").is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an estimate that is far off for what does not shrink and for what does.
    #[test]
    fn the_sample_tells_how_much_files_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            [Layer { files: vec![path], bytes: bytes.len() as u64 }]
        };
        assert!(compressed_share(&layer("zeros", &[0; 100_000])) < 0.1);
        let mut seed = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 56) as u8
        })
        .take(100_000)
        .collect();
        assert!(compressed_share(&layer("noise", &noise)) > 0.95);
        assert_eq!(compressed_share(&[]), 1.0);
    }
}
