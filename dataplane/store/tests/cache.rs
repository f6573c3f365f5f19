//! What stored blocks take of the page cache, when a budget is set.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{BLOCK_BYTES, BlockDigest, BlockIndex, Descriptor, Entry, Origin};
use faasnet_ring::file::resident;
use faasnet_store::{Store, StoreOptions};

const BLOCKS: u64 = 16;
const BLOCK: u64 = BLOCK_BYTES as u64;
const TMPFS_MAGIC: i64 = 0x0102_1994;

fn zeros() -> Arc<Descriptor> {
    let digest = format!("sha256:{}", "0".repeat(64));
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: "example/app:1".into(),
        origin: Origin::Layout { path: "/layout".into() },
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: digest.clone(),
        manifest: b"{}".to_vec(),
        entries: vec![Entry { digest, media_type: "x".into(), len: BLOCKS * BLOCK }],
        blocks: vec![BlockDigest::of(&vec![0; BLOCK as usize]); BLOCKS as usize],
    };
    Arc::new(Descriptor::new(parts).unwrap())
}

/// Catches blocks that stay in the page cache beyond the budget, ones within it that are thrown out, and bytes that are lost on the way.
#[test]
fn beyond_its_budget_the_cache_is_released() {
    let dir = tempfile::tempdir().unwrap();
    if rustix::fs::statfs(dir.path()).unwrap().f_type as i64 == TMPFS_MAGIC {
        eprintln!("SKIPPED: {} is memory, which cannot be released; set TMPDIR to a disk", dir.path().display());
        return;
    }
    let options = StoreOptions { cache_bytes: Some(4 * BLOCK), ..StoreOptions::default() };
    let store = Store::open_with(dir.path(), options).unwrap();
    let stored = store.open_image("acme", zeros()).unwrap();
    for block in 0..BLOCKS as u32 {
        stored.file().write_all_at(&vec![0; BLOCK as usize], u64::from(block) * BLOCK).unwrap();
        stored.went_through_cache(BlockIndex(block));
        assert!(stored.mark(BlockIndex(block)).unwrap());
    }
    let is_resident = |block: u64| resident(stored.file(), block * BLOCK, BLOCK);
    if is_resident(0).is_none() {
        eprintln!("SKIPPED: this kernel does not tell what is in the page cache (Linux 6.5 does)");
        return;
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while (0..BLOCKS - 4).any(|block| is_resident(block) == Some(true)) {
        assert!(Instant::now() < deadline, "{:?}", (0..BLOCKS).map(is_resident).collect::<Vec<_>>());
        std::thread::yield_now();
    }
    assert_eq!(is_resident(BLOCKS - 1), Some(true));
    assert!(stored.read_block(BlockIndex(0)).unwrap().iter().all(|&byte| byte == 0));
    stored.finish().unwrap();
}
