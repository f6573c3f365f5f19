//! Picks real files of this machine for the demo's image: a deterministic walk, regular files that this user can read.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where files are looked for, in this order; all of them exist on common Linux systems.
const ROOTS: [&str; 6] = ["/usr/lib", "/usr/bin", "/usr/share", "/usr/libexec", "/usr/local", "/opt"];
/// A single file may take at most this share of a layer: a layer of one file would say little.
const LARGEST_SHARE: u64 = 2;

/// Files for one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Absolute paths in the order of the walk.
    pub files: Vec<PathBuf>,
    /// Sum of their lengths.
    pub bytes: u64,
}

/// Files of about `bytes` in total, cut into `layers` parts of about the same size. Less when the machine has less.
pub fn pick(bytes: u64, layers: u64) -> Vec<Layer> {
    pick_below(&ROOTS.map(Path::new), bytes, layers)
}

fn pick_below(roots: &[&Path], bytes: u64, layers: u64) -> Vec<Layer> {
    let goal = (bytes / layers.max(1)).max(1);
    let mut picked = Vec::new();
    let mut layer = Layer { files: Vec::new(), bytes: 0 };
    for (path, len) in roots.iter().flat_map(|root| Walk::new(root)) {
        if len > goal / LARGEST_SHARE || layer.bytes + len > goal + goal / 16 {
            continue;
        }
        layer.files.push(path);
        layer.bytes += len;
        if layer.bytes >= goal - goal / 16 {
            picked.push(std::mem::replace(&mut layer, Layer { files: Vec::new(), bytes: 0 }));
        }
        if picked.len() as u64 == layers {
            return picked;
        }
    }
    if !layer.files.is_empty() {
        picked.push(layer);
    }
    picked
}

/// Depth first, names sorted, symbolic links not followed, one file system.
struct Walk {
    device: u64,
    open: Vec<PathBuf>,
}

impl Walk {
    fn new(root: &Path) -> Self {
        let device = fs::symlink_metadata(root).map_or(0, |metadata| metadata.dev());
        Self { device, open: vec![root.to_owned()] }
    }

    fn enter(&mut self, folder: &Path) {
        // A folder that cannot be read is as good as empty.
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut entries: Vec<_> = entries.map(|entry| entry.path()).collect();
        entries.sort_unstable_by(|a, b| b.cmp(a));
        self.open.extend(entries);
    }
}

impl Iterator for Walk {
    type Item = (PathBuf, u64);

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(path) = self.open.pop() {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() && metadata.dev() == self.device {
                self.enter(&path);
            } else if metadata.is_file() && File::open(&path).is_ok() {
                return Some((path, metadata.len()));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a pick that changes from run to run, follows links, or misses the size when there is enough to choose from.
    #[test]
    fn the_pick_is_deterministic_and_near_the_size() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..100 {
            let folder = dir.path().join(format!("d{}", number % 7));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("f{number}")), vec![0; 1_000 + number]).unwrap();
        }
        std::os::unix::fs::symlink("/", dir.path().join("d0/link")).unwrap();
        let layers = pick_below(&[dir.path()], 64_000, 4);
        assert_eq!(layers, pick_below(&[dir.path()], 64_000, 4));
        assert_eq!(layers.len(), 4);
        assert!(layers.iter().all(|layer| layer.bytes.abs_diff(16_000) <= 1_000), "{layers:?}");
        assert!(layers.iter().flat_map(|layer| &layer.files).all(|file| file.starts_with(dir.path())));
    }

    /// Catches a demo that fails on a small machine instead of taking what is there.
    #[test]
    fn a_small_machine_gives_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("only"), "x").unwrap();
        let layers = pick_below(&[dir.path(), Path::new("/no/such/folder")], 1_000, 4);
        assert_eq!(layers.iter().map(|layer| layer.bytes).sum::<u64>(), 1);
    }
}
