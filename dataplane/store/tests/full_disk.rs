//! A store on a file system that is full. In a process of its own: a child that is being started (`mount`) holds copies of all
//! descriptors for a moment, and with them the locks of other tests' stores.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{BLOCK_BYTES, BlockDigest, BlockIndex, Descriptor, Entry, Origin};
use faasnet_store::{Store, StoreError};

/// An image of layers of zeros, one of each length.
fn zeros(layers: &[usize]) -> Arc<Descriptor> {
    let entry = |&len: &usize| Entry { digest: format!("sha256:{len:064x}"), media_type: "x".into(), len: len as u64 };
    let blocks = layers.iter().flat_map(|&len| {
        let bytes = vec![0; len];
        bytes.chunks(BLOCK_BYTES as usize).map(BlockDigest::of).collect::<Vec<_>>()
    });
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: "example/app:1".into(),
        origin: Origin::Layout { path: "/layout".into() },
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: format!("sha256:{}", "0".repeat(64)),
        manifest: b"{}".to_vec(),
        entries: layers.iter().map(entry).collect(),
        blocks: blocks.collect(),
    };
    Arc::new(Descriptor::new(parts).unwrap())
}

/// Runs `work` in a folder that is a file system of 1 MiB.
fn on_a_small_disk(work: impl FnOnce(&Path) + std::panic::UnwindSafe) {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "faasnet-test"]).arg(dir.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: mounting a small tmpfs needs root");
        return;
    }
    let result = std::panic::catch_unwind(|| work(dir.path()));
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Catches a full disk that leaves half an image behind, hides its cause, or hurts the image that fits; and one that keeps an image
/// out until a restart, or refuses the mark of a block that is there, because the room ended between an image's files.
#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    on_a_small_disk(fill_it);
    on_a_small_disk(fill_it_page_by_page);
}

fn fill_it(dir: &Path) {
    let store = Store::open(dir, None).unwrap();
    let small = store.open_image("acme", zeros(&[100_000])).unwrap();
    let error = store.open_image("acme", zeros(&[4 << 20])).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }) && error.to_string().contains("no room"), "{error}");
    assert_eq!(store.held().len(), 1);
    assert_eq!(fs::read_dir(dir.join("images")).unwrap().count(), 1);
    small.file().write_all_at(&[0; 100_000], 0).unwrap();
    assert!(small.mark(BlockIndex(0)).unwrap() && small.is_complete());
    small.finish().unwrap();
}

/// Opens an image with a layer to reuse and one to fetch while the disk has room for its data and `spare` pages more.
fn fill_it_page_by_page(dir: &Path) {
    const PAGE: u64 = 4096;
    let store = Store::open(dir, None).unwrap();
    let donor = store.open_image("acme", zeros(&[8192])).unwrap();
    donor.file().write_all_at(&[0; 8192], 0).unwrap();
    assert!(donor.mark(BlockIndex(0)).unwrap());
    let update = zeros(&[8192, 4096]);
    let filler = fs::File::create(dir.join("filler")).unwrap();
    let mut outcomes = Vec::new();
    for spare in 0..=16 {
        filler.set_len(0).unwrap();
        let free = rustix::fs::statvfs(dir).unwrap().f_bavail * PAGE;
        faasnet_ring::file::preallocate(&filler, free - update.geometry().file_bytes() - spare * PAGE).unwrap();
        match store.open_image("acme", Arc::clone(&update)) {
            Ok(stored) => {
                assert_eq!(stored.bytes_reused(), 8192, "{spare} spare pages");
                assert!(stored.mark(BlockIndex(1)).unwrap() && stored.is_complete(), "{spare} spare pages");
                outcomes.push(true);
            }
            Err(error) => {
                assert!(matches!(error, StoreError::Full { .. }), "{spare} spare pages: {error}");
                outcomes.push(false);
            }
        }
        store.remove(update.id()).unwrap();
        assert_eq!(fs::read_dir(dir.join("images")).unwrap().count(), 1, "{spare} spare pages");
    }
    assert!(!outcomes[0] && outcomes[16] && outcomes.is_sorted(), "{outcomes:?}");
}
