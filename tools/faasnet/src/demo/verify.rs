//! Hashes what a node has on its disk, without asking the node: the store's file is read at the places that the descriptor gives.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use faasnet_api::{Descriptor, ImageId};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// An image of a store whose every blob has the digest that the manifest asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many distinct blobs were hashed.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Hashes every blob that the manifest of `image` names, as it lies in the store folder of a node.
pub fn image(store: &Path, image: ImageId) -> Result<Verified> {
    let folder = folder(store, image);
    let path = folder.join("descriptor");
    let encoded = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let descriptor = Descriptor::decode(&encoded, image).with_context(|| format!("{} is damaged", path.display()))?;
    ensure!(
        digest_of(descriptor.manifest()) == descriptor.manifest_digest(),
        "the manifest in {} does not have its digest",
        path.display()
    );
    let path = folder.join("data");
    let data = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let wanted = blobs(descriptor.manifest())?;
    let mut bytes = 0;
    for (digest, size) in &wanted {
        let Some(entry) = descriptor.entries().iter().position(|entry| entry.digest == *digest) else {
            bail!("the descriptor lacks blob {digest} of its manifest");
        };
        let range = descriptor.geometry().entry_range(entry);
        ensure!(range.end - range.start == *size, "blob {digest} has {} bytes, not {size}", range.end - range.start);
        let got =
            hash_range(&data, range.start, *size).with_context(|| format!("{} at blob {digest}", path.display()))?;
        ensure!(got == *digest, "{}: the bytes of blob {digest} hash to {got}", path.display());
        bytes += size;
    }
    Ok(Verified { blobs: wanted.len(), bytes })
}

/// Where a store keeps an image.
pub fn folder(store: &Path, image: ImageId) -> PathBuf {
    store.join("images").join(image.to_string())
}

/// `sha256:…` of `bytes`.
pub fn digest_of(bytes: &[u8]) -> String {
    format_digest(Sha256::digest(bytes).as_slice())
}

/// Config and layers of a manifest with their sizes; a blob that is named twice is one blob.
fn blobs(manifest: &[u8]) -> Result<BTreeMap<String, u64>> {
    let manifest: Value = serde_json::from_slice(manifest).context("the manifest is not JSON")?;
    let layers = manifest["layers"].as_array().context("the manifest has no layers")?;
    std::iter::once(&manifest["config"])
        .chain(layers)
        .map(|blob| {
            let digest = blob["digest"].as_str().context("a blob of the manifest has no digest")?;
            Ok((digest.to_owned(), blob["size"].as_u64().context("a blob of the manifest has no size")?))
        })
        .collect()
}

fn hash_range(file: &File, start: u64, len: u64) -> Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    while done < len {
        let want = (len - done).min(READ_BYTES as u64) as usize;
        file.read_exact_at(&mut buffer[..want], start + done)
            .with_context(|| format!("{want} bytes at {}", start + done))?;
        hasher.update(&buffer[..want]);
        done += want as u64;
    }
    Ok(format_digest(hasher.finalize().as_slice()))
}

/// `sha256:…` of everything that `reader` gives.
pub fn digest_of_reader(mut reader: impl Read) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(format_digest(hasher.finalize().as_slice())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn format_digest(hash: &[u8]) -> String {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use faasnet_api::descriptor::DescriptorParts;
    use faasnet_api::{BLOCK_BYTES, BlockDigest, Entry, Origin};

    /// A store folder with one image of a 2-byte config and a 5,000-byte layer.
    fn store() -> (tempfile::TempDir, ImageId) {
        let blobs = [b"{}".to_vec(), vec![7; 5_000]];
        let entries: Vec<Entry> = blobs
            .iter()
            .map(|blob| Entry { digest: digest_of(blob), media_type: "m".into(), len: blob.len() as u64 })
            .collect();
        let blob = |entry: &Entry| serde_json::json!({ "digest": entry.digest, "size": entry.len });
        let layers = [blob(&entries[1]), blob(&entries[1])];
        let manifest = serde_json::json!({ "config": blob(&entries[0]), "layers": layers }).to_string().into_bytes();
        let descriptor = Descriptor::new(DescriptorParts {
            block_bytes: BLOCK_BYTES,
            reference: "r".into(),
            origin: Origin::Layout { path: "/".into() },
            manifest_media_type: "m".into(),
            manifest_digest: digest_of(&manifest),
            manifest,
            entries,
            blocks: vec![BlockDigest::of(b"block"); 2],
        })
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let folder = folder(dir.path(), descriptor.id());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("descriptor"), descriptor.encode()).unwrap();
        let data = File::create(folder.join("data")).unwrap();
        for (entry, blob) in blobs.iter().enumerate() {
            data.write_all_at(blob, descriptor.geometry().entry_range(entry).start).unwrap();
        }
        (dir, descriptor.id())
    }

    /// Catches a check that passes whatever is on the disk.
    #[test]
    fn one_wrong_bit_is_found() {
        let (dir, id) = store();
        assert_eq!(image(dir.path(), id).unwrap(), Verified { blobs: 2, bytes: 5_002 });
        let data = folder(dir.path(), id).join("data");
        let mut bytes = std::fs::read(&data).unwrap();
        bytes[4_096 + 4_999] ^= 1;
        std::fs::write(&data, &bytes).unwrap();
        assert!(image(dir.path(), id).unwrap_err().to_string().contains("hash to"));
        std::fs::write(&data, &bytes[..9_000]).unwrap();
        assert!(image(dir.path(), id).is_err());
    }

    /// Catches a store without the image that counts as verified.
    #[test]
    fn a_missing_image_is_not_verified() {
        let (dir, _) = store();
        assert!(image(dir.path(), ImageId([9; 32])).is_err());
    }
}
