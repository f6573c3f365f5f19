//! The lab's image: bytes that do not compress, of an exact size, the same in every run; or the user's layout.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use faasnet_image::{BuildOptions, build_opaque};
use faasnet_lab::rivals::BLOB;

use super::plan::Plan;

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

/// A single file of the same kind of bytes, alone in a new folder.
pub fn blob(size: u64, folder: &Path) -> Result<PathBuf> {
    let path = folder.join(BLOB);
    let write = || io::copy(&mut Noise::new(0).take(size), &mut std::fs::File::create(&path)?);
    std::fs::create_dir(folder).and_then(|()| write()).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// An endless stream from a seed (splitmix64).
struct Noise {
    state: u64,
    rest: Vec<u8>,
}

impl Noise {
    fn new(seed: u64) -> Self {
        Self { state: seed, rest: Vec::new() }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.len() < buffer.len() {
            let word = self.next();
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
    #[test]
    fn the_made_image_has_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan { size: 1_000_003, ..Plan::default() };
        let layout = layout(&plan, dir.path()).unwrap();
        let blobs = std::fs::read_dir(layout.join("blobs/sha256")).unwrap();
        let bytes: u64 = blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum();
        assert!((1_000_003..1_010_000).contains(&bytes), "{bytes}");
    }
}
