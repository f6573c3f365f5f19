//! A store on a file system that is full. In a process of its own: a child that is being started (`mount`) holds copies of all
//! descriptors for a moment, and with them the locks of other tests' stores.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{BLOCK_BYTES, BlockIndex, Descriptor, Entry, Origin};
use faasnet_store::{Store, StoreError};

fn zeros(len: usize) -> Arc<Descriptor> {
    let bytes = vec![0; len];
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: "example/app:1".into(),
        origin: Origin::Layout { path: "/layout".into() },
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: format!("sha256:{}", "0".repeat(64)),
        manifest: b"{}".to_vec(),
        entries: vec![Entry { digest: format!("sha256:{len:064x}"), media_type: "x".into(), len: len as u64 }],
        blocks: bytes.chunks(BLOCK_BYTES as usize).map(|block| *blake3::hash(block).as_bytes()).collect(),
    };
    Arc::new(Descriptor::new(parts).unwrap())
}

/// Catches a full disk that leaves half an image behind, hides its cause, or hurts the image that fits.
#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "faasnet-test"]).arg(dir.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: mounting a small tmpfs needs root");
        return;
    }
    let result = std::panic::catch_unwind(|| fill_it(dir.path()));
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

fn fill_it(dir: &Path) {
    let store = Store::open(dir, None).unwrap();
    let small = store.open_image("acme", zeros(100_000)).unwrap();
    let error = store.open_image("acme", zeros(4 << 20)).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }) && error.to_string().contains("no room"), "{error}");
    assert_eq!(store.held().len(), 1);
    assert_eq!(fs::read_dir(dir.join("images")).unwrap().count(), 1);
    small.file().write_all_at(&[0; 100_000], 0).unwrap();
    assert!(small.mark(BlockIndex(0)).unwrap() && small.is_complete());
    small.finish().unwrap();
}
