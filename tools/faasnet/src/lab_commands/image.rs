//! The lab's image: bytes that do not compress, of an exact size, the same in every run; or the user's layout.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use faasnet_image::{BuildOptions, ImageSummary, InspectRequest, build_opaque, inspect};
use faasnet_lab::rivals::BLOB;

use super::plan::Plan;
use super::random::Random;

/// Layers of the made image.
const LAYERS: u64 = 4;

/// The layout that `plan` asks for; a made one goes to `dir`.
pub fn layout(plan: &Plan, dir: &Path) -> Result<PathBuf> {
    if let Some(layout) = &plan.image {
        ensure!(
            layout.join("index.json").is_file(),
            "{} is no OCI layout; name a folder with an index.json",
            layout.display()
        );
        return std::path::absolute(layout).with_context(|| format!("cannot find {}", layout.display()));
    }
    let out = dir.join("image");
    let sizes = (0..LAYERS).map(|layer| plan.size * (layer + 1) / LAYERS - plan.size * layer / LAYERS);
    let mut noise: Vec<_> =
        sizes.filter(|size| *size > 0).zip(1..).map(|(size, seed)| Noise::new(seed).take(size)).collect();
    let mut layers: Vec<&mut dyn Read> = noise.iter_mut().map(|layer| layer as &mut dyn Read).collect();
    build_opaque(&mut layers, &out, &BuildOptions::default())?;
    Ok(out)
}

/// The tag of a layout's first image, as a registry over it calls it.
pub fn tag(layout: &Path) -> Result<String> {
    let index = std::fs::read(layout.join("index.json"));
    let index = index.with_context(|| format!("{} has no index.json", layout.display()))?;
    let index: serde_json::Value = serde_json::from_slice(&index).context("the layout's index.json is not JSON")?;
    let name = &index["manifests"][0]["annotations"][faasnet_origin::manifest::REF_NAME];
    Ok(name.as_str().unwrap_or("latest").rsplit(':').next().unwrap_or("latest").to_owned())
}

/// What a layout's first image is made of.
pub async fn summary(layout: &Path) -> Result<ImageSummary> {
    let path = std::path::absolute(layout).with_context(|| format!("cannot find {}", layout.display()))?;
    let reference = format!("oci:{}:{}", path.display(), tag(&path)?);
    Ok(inspect(&InspectRequest { reference, ..InspectRequest::default() }).await?)
}

/// A single file of the same kind of bytes, alone in a new folder.
pub fn blob(size: u64, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(BLOB);
    let write = || io::copy(&mut Noise::new(0).take(size), &mut std::fs::File::create(&path)?);
    std::fs::create_dir(folder).and_then(|()| write()).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// An endless stream from a seed.
struct Noise {
    random: Random,
    rest: Vec<u8>,
}

impl Noise {
    fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), rest: Vec::new() }
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.len() < buffer.len() {
            let word = self.random.word();
            self.rest.extend_from_slice(&word.to_le_bytes());
        }
        buffer.copy_from_slice(&self.rest[..buffer.len()]);
        self.rest.drain(..buffer.len());
        Ok(buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an image whose size is not the one that figures are computed with.
    #[tokio::test]
    async fn the_made_image_has_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { size: 1_000_003, ..Plan::default() };
        let layout = layout(&plan, dir.path()).unwrap();
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
        let bytes: u64 = blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum();
        assert!((1_000_003..1_010_000).contains(&bytes), "{bytes}");
        // The same size for whoever names it with --image: half a disk and the length of a chaos run follow from it.
        let named = Plan { image: Some(layout), size: 7, ..Plan::default() }.with_image_size().await.unwrap();
        assert!((1_000_003..=bytes).contains(&named.size), "{}", named.size);
    }
}
