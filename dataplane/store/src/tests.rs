//! The store as its callers see it, on real files.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{BlockDigest, BlockIndex, Descriptor, Entry, Origin, Verify};

use crate::map::{Belief, BootId};
use crate::{Store, StoreError, StoreOptions, StoredImage};

/// Small blocks, so that images of many blocks are small.
const BLOCK_BYTES: u32 = 4096;
const BOOT: BootId = [1; 16];
const LATER: BootId = [2; 16];

/// A blob of `len` bytes that are told by `seed`.
pub(crate) fn blob(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n % 251) as u8 ^ (n / 4096) as u8 ^ seed.wrapping_mul(37)).collect()
}

/// A descriptor of the blobs, each named by its seed.
pub(crate) fn descriptor(blobs: &[(u8, usize)]) -> Arc<Descriptor> {
    let blocks = blobs.iter().flat_map(|&(seed, len)| {
        let bytes = blob(seed, len);
        bytes.chunks(BLOCK_BYTES as usize).map(BlockDigest::of).collect::<Vec<_>>()
    });
    let entries = blobs.iter().map(|&(seed, len)| Entry {
        digest: format!("sha256:{:064x}", u64::from(seed) << 32 | len as u64),
        media_type: "application/octet-stream".into(),
        len: len as u64,
    });
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: "example/app:1".into(),
        origin: Origin::Layout { path: "/layout".into() },
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: format!("sha256:{}", "0".repeat(64)),
        manifest: b"{}".to_vec(),
        entries: entries.collect(),
        blocks: blocks.collect(),
    };
    Arc::new(Descriptor::new(parts).unwrap())
}

/// Writes and marks the blocks of `stored`, whose blobs are `blobs`, for which `wanted` holds.
fn fill(stored: &StoredImage, blobs: &[(u8, usize)], wanted: impl Fn(u32) -> bool) {
    for block in (0..stored.geometry().blocks()).filter(|&block| wanted(block)).map(BlockIndex) {
        let place = stored.geometry().place(block).unwrap();
        let (seed, len) = blobs[place.entry];
        let start = place.entry_offset as usize;
        stored.file().write_all_at(&blob(seed, len)[start..start + place.len as usize], place.file_offset).unwrap();
        stored.mark(block).unwrap();
    }
}

fn flip(stored: &StoredImage, block: u32) {
    let place = stored.geometry().place(BlockIndex(block)).unwrap();
    let mut byte = [0];
    stored.file().read_exact_at(&mut byte, place.file_offset).unwrap();
    stored.file().write_all_at(&[byte[0] ^ 1], place.file_offset).unwrap();
}

fn present(stored: &StoredImage) -> Vec<u32> {
    stored.present().blocks().map(|block| block.0).collect()
}

fn open_in(dir: &Path, boot: BootId) -> Store {
    Store::open_in_boot(dir, StoreOptions::default(), boot).unwrap()
}

fn with_quota(dir: &Path, quota_bytes: u64) -> Store {
    let options = StoreOptions { quota_bytes: Some(quota_bytes), ..StoreOptions::default() };
    Store::open_in_boot(dir, options, BOOT).unwrap()
}

fn open(dir: &Path) -> Store {
    open_in(dir, BOOT)
}

const APP: &[(u8, usize)] = &[(1, 100), (2, 5 * 4096 + 1), (3, 3 * 4096)];

/// Catches an identity that changes, an incarnation that does not rise, and a folder that two agents use.
#[test]
fn one_agent_one_identity() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (node, incarnation) = (store.node_id(), store.incarnation());
    let refused = Store::open(dir.path(), None).unwrap_err();
    assert!(matches!(refused, StoreError::InUse(_)), "{refused}");
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.node_id(), node);
    assert!(store.incarnation() > incarnation);
    assert_ne!(open(tempfile::tempdir().unwrap().path()).node_id(), node);
    drop(store);
    fs::write(dir.path().join("node"), "nonsense").unwrap();
    assert!(matches!(Store::open(dir.path(), None), Err(StoreError::NodeFile(_))));
}

/// Catches a folder that cannot be used and an error that does not name it.
#[test]
fn an_unusable_folder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("store"), None).unwrap_err();
    assert!(matches!(error, StoreError::Folder { .. }) && error.to_string().contains("file/store"), "{error}");
}

/// Catches a mark that is lost, counted twice or taken for a block that does not exist, and reads of what is not there.
#[test]
fn blocks_appear_when_marked() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let stored = store.open_image("acme", descriptor(APP)).unwrap();
    assert_eq!((stored.geometry().blocks(), stored.bytes_present(), stored.is_complete()), (10, 0, false));
    fill(&stored, APP, |block| block == 2);
    assert!(!stored.mark(BlockIndex(2)).unwrap() && !stored.mark(BlockIndex(10)).unwrap());
    assert_eq!((present(&stored), stored.bytes_present()), (vec![2], 4096));
    assert_eq!(stored.read_block(BlockIndex(2)).unwrap(), blob(2, 20_481)[4096..8192]);
    assert!(stored.read_block(BlockIndex(3)).is_err() && stored.read_block(BlockIndex(99)).is_err());
    fill(&stored, APP, |_| true);
    assert!(stored.is_complete());
    assert_eq!(stored.bytes_present(), stored.geometry().image_bytes());
}

/// Catches a read across blocks that returns absent bytes, another entry's bytes, or stops too early.
#[test]
fn reads_end_where_presence_or_the_entry_ends() {
    let dir = tempfile::tempdir().unwrap();
    let stored = open(dir.path()).open_image("acme", descriptor(APP)).unwrap();
    // Entry 1 has blocks 1 to 6 (the last of one byte); its third is missing.
    fill(&stored, APP, |block| block != 3);
    let (whole, mut buffer) = (blob(2, 20_481), vec![0; 30_000]);
    assert_eq!(stored.read_at(1, 100, &mut buffer).unwrap(), 2 * 4096 - 100);
    assert_eq!(buffer[..8092], whole[100..8192]);
    for offset in [8192, 3 * 4096 - 1] {
        assert_eq!(stored.read_at(1, offset, &mut buffer).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    }
    assert_eq!(stored.read_at(1, 3 * 4096, &mut buffer).unwrap(), 20_481 - 3 * 4096);
    assert_eq!(buffer[..8193], whole[3 * 4096..]);
    assert_eq!(stored.read_at(1, 20_480, &mut buffer[..1]).unwrap(), 1);
    for offset in [20_481, 1 << 40, u64::MAX] {
        assert_eq!(stored.read_at(1, offset, &mut buffer).unwrap(), 0);
    }
    assert_eq!(stored.read_at(0, 0, &mut []).unwrap(), 0);
    assert!(stored.read_at(3, 0, &mut buffer).is_err());
}

/// Catches work that is thrown away when an agent is killed: the page cache survives it.
#[test]
fn a_killed_agent_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let stored = open(dir.path()).open_image("acme", descriptor(APP)).unwrap();
    fill(&stored, APP, |block| block % 2 == 0);
    drop(stored);
    let store = open(dir.path());
    let held = &store.held()[0];
    assert_eq!((held.tenant.as_str(), held.complete, held.bytes_present), ("acme", false, 100 + 3 * 4096 + 1));
    let stored = store.open_held(held.image).unwrap().unwrap();
    assert_eq!((present(&stored), stored.bytes_present()), (vec![0, 2, 4, 6, 8], 100 + 4096 * 3 + 1));
}

/// Catches a block that a crash of the host damaged and that is served all the same, and good ones that are fetched again.
#[test]
fn another_boot_verifies_what_was_not_synced() {
    let dir = tempfile::tempdir().unwrap();
    let stored = open(dir.path()).open_image("acme", descriptor(APP)).unwrap();
    fill(&stored, APP, |_| true);
    flip(&stored, 4);
    let id = stored.descriptor().id();
    drop(stored);
    let store = open_in(dir.path(), LATER);
    assert!(!store.held()[0].complete, "not before it is verified");
    let stored = store.open_held(id).unwrap().unwrap();
    assert_eq!(present(&stored), [0, 1, 2, 3, 5, 6, 7, 8, 9]);
    assert_eq!(stored.bytes_present(), stored.geometry().image_bytes() - 4096);
    drop((stored, store));
    let store = open_in(dir.path(), LATER);
    assert_eq!(store.open_held(id).unwrap().unwrap().present().count(), 9, "the cleared mark is on the disk");
}

/// Catches a node that trusts its network and therefore its disk: what a crash damaged is found in every mode.
#[test]
fn a_disk_is_verified_in_every_mode() {
    for verify in Verify::ALL {
        let dir = tempfile::tempdir().unwrap();
        let stored = open(dir.path()).open_image("acme", descriptor(APP)).unwrap();
        fill(&stored, APP, |_| true);
        flip(&stored, 4);
        let id = stored.descriptor().id();
        drop(stored);
        let options = StoreOptions { verify, ..StoreOptions::default() };
        let store = Store::open_in_boot(dir.path(), options, LATER).unwrap();
        let stored = store.open_held(id).unwrap().unwrap();
        assert_eq!(present(&stored), [0, 1, 2, 3, 5, 6, 7, 8, 9], "{verify}");
    }
}

/// Catches an image that is hashed again although it was synced, and a mark after the sync that is trusted with it.
#[test]
fn a_finished_image_is_trusted_in_another_boot() {
    let dir = tempfile::tempdir().unwrap();
    let stored = open(dir.path()).open_image("acme", descriptor(APP)).unwrap();
    let id = stored.descriptor().id();
    fill(&stored, APP, |block| block < 9);
    stored.finish().unwrap();
    // A trick to see whether anybody hashes: damage that only verification would notice.
    flip(&stored, 1);
    drop(stored);
    let store = open_in(dir.path(), LATER);
    let stored = store.open_held(id).unwrap().unwrap();
    assert_eq!(stored.present().count(), 9, "trusted");
    fill(&stored, APP, |block| block == 9);
    drop((stored, store));
    let store = open_in(dir.path(), [3; 16]);
    let stored = store.open_held(id).unwrap().unwrap();
    assert!(!stored.present().contains(BlockIndex(1)) && stored.present().count() == 9, "verified");
}

/// Catches rot that `verify_all` overlooks or reports without clearing.
#[test]
fn verification_clears_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let stored = open(dir.path()).open_image("acme", descriptor(APP)).unwrap();
    fill(&stored, APP, |_| true);
    assert_eq!(stored.verify_all().unwrap().failed, []);
    flip(&stored, 0);
    flip(&stored, 6);
    let verified = stored.verify_all().unwrap();
    assert_eq!(verified.failed, [BlockIndex(0), BlockIndex(6)]);
    assert_eq!(verified.good_bytes, stored.bytes_present());
    assert!(!stored.is_complete());
}

/// Catches a panic, or bytes that are believed, when files of an image are damaged, cut or gone.
#[test]
fn damaged_files_start_from_nothing() {
    for (name, damage) in [
        ("map", &|path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap()),
        ("map", &|path: &Path| fs::write(path, vec![0xff; 4096 + 8]).unwrap()),
        ("map", &|path: &Path| fs::remove_file(path).unwrap()),
        ("data", &|path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(8192).unwrap()),
        ("data", &|path: &Path| fs::remove_file(path).unwrap()),
        ("descriptor", &|path: &Path| fs::write(path, b"nonsense").unwrap()),
        ("descriptor", &|path: &Path| fs::remove_file(path).unwrap()),
        ("tenant", &|path: &Path| fs::write(path, [0xff]).unwrap()),
    ] as [(&str, &dyn Fn(&Path)); 8]
    {
        let dir = tempfile::tempdir().unwrap();
        let stored = open(dir.path()).open_image("acme", descriptor(APP)).unwrap();
        fill(&stored, APP, |_| true);
        let id = stored.descriptor().id();
        drop(stored);
        damage(&dir.path().join("images").join(id.to_string()).join(name));
        let store = open(dir.path());
        assert!(store.held().iter().all(|held| !held.complete), "{name}");
        let stored = store.open_image("acme", descriptor(APP)).unwrap();
        assert_eq!(stored.bytes_present(), 0, "{name}");
        fill(&stored, APP, |_| true);
        assert!(stored.is_complete() && stored.verify_all().unwrap().failed.is_empty());
    }
}

/// Catches half-made images that are found after a kill, and files that nobody removes.
#[test]
fn leftovers_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let images = dir.path().join("images");
    for name in [".new-1", ".gone-2"] {
        fs::create_dir(images.join(name)).unwrap();
        fs::write(images.join(name).join("data"), "x").unwrap();
    }
    assert!(open(dir.path()).held().is_empty());
    assert_eq!(fs::read_dir(images).unwrap().count(), 0);
}

/// Catches two values for one image, whose marks would not know of each other.
#[test]
fn an_open_image_is_one_value() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let one = store.open_image("acme", descriptor(APP)).unwrap();
    let two = store.clone().open_image("acme", descriptor(APP)).unwrap();
    assert!(Arc::ptr_eq(&one, &two));
    assert!(Arc::ptr_eq(&one, &store.open_held(one.descriptor().id()).unwrap().unwrap()));
    assert!(matches!(store.open_image("other", descriptor(APP)), Err(StoreError::OtherTenant(_))));
    fill(&one, APP, |_| true);
    drop((one, two));
    let other = store.open_image("other", descriptor(APP)).unwrap();
    assert_eq!(other.bytes_present(), 0, "another tenant's copy spares nobody the fetch");
}

/// Catches an update that moves layers that the node has, or that takes them from another tenant.
#[test]
fn a_shared_layer_is_taken_from_the_own_disk() {
    let update: &[(u8, usize)] = &[(9, 100), (3, 3 * 4096), (2, 5 * 4096 + 1), (8, 4096)];
    for (open_donor, other_boot) in [(true, false), (false, false), (false, true)] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut donor = Some(store.open_image("acme", descriptor(APP)).unwrap());
        // Block 4 (in blob 2) is missing, block 7 (the first of blob 3) is rotten.
        fill(donor.as_ref().unwrap(), APP, |block| block != 4);
        flip(donor.as_ref().unwrap(), 7);
        if !open_donor {
            donor = None;
        }
        if other_boot {
            drop(store);
            store = open_in(dir.path(), LATER);
        }
        let foreign = store.open_image("other", descriptor(update)).unwrap();
        assert_eq!((foreign.bytes_present(), foreign.bytes_reused()), (0, 0), "tenants share nothing");
        let id = foreign.descriptor().id();
        drop(foreign);
        store.remove(id).unwrap();
        let stored = store.open_image("acme", descriptor(update)).unwrap();
        assert_eq!(present(&stored), [2, 3, 4, 5, 6, 8, 9]);
        assert_eq!(stored.bytes_reused(), 6 * 4096 + 1);
        assert_eq!(stored.bytes_present(), stored.bytes_reused());
        assert!(stored.verify_all().unwrap().failed.is_empty());
        fill(&stored, update, |_| true);
        assert!(stored.is_complete());
        drop(donor);
    }
}

/// Catches a quota that is exceeded, an image in use that is evicted, or the wrong one that goes.
#[test]
fn the_quota_evicts_the_longest_unused() {
    let dir = tempfile::tempdir().unwrap();
    let store = with_quota(dir.path(), 10 * 4096);
    let image = |seed: u8| descriptor(&[(seed, 3 * 4096)]);
    let held = || store.held().into_iter().map(|held| held.image).collect::<Vec<_>>();
    let one = store.open_image("acme", image(1)).unwrap();
    drop(store.open_image("acme", image(2)).unwrap());
    drop(store.open_image("acme", image(3)).unwrap());
    drop(store.open_image("acme", image(2)).unwrap());
    let four = store.open_image("acme", image(4)).unwrap();
    assert!(!held().contains(&image(3).id()) && held().len() == 3, "image 3 was unused longest");
    let too_large = store.open_image("acme", descriptor(&[(5, 5 * 4096)])).unwrap_err();
    assert!(matches!(too_large, StoreError::Quota { used_bytes: 24_576, .. }), "{too_large}");
    assert_eq!(held().len(), 3, "nothing is evicted in vain");
    let five = store.open_image("acme", descriptor(&[(5, 4 * 4096)])).unwrap();
    assert_eq!(held().len(), 3);
    assert!(matches!(store.open_image("acme", image(6)), Err(StoreError::Quota { .. })));
    assert_eq!(fs::read_dir(dir.path().join("images")).unwrap().count(), 3);
    drop((one, four, five));
    // The last use survives a restart.
    let (first, last) = (image(1).id(), descriptor(&[(5, 4 * 4096)]).id());
    drop(store);
    let store = with_quota(dir.path(), 10 * 4096);
    drop(store.open_image("acme", image(7)).unwrap());
    let held: Vec<_> = store.held().into_iter().map(|held| held.image).collect();
    assert!(held.contains(&last) && !held.contains(&first), "{held:?}");
}

/// Catches a removal that breaks who still reads, or an image that comes back from the dead.
#[test]
fn removing_an_image_in_use_waits_for_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let stored = store.open_image("acme", descriptor(APP)).unwrap();
    let id = stored.descriptor().id();
    fill(&stored, APP, |block| block < 5);
    store.remove(id).unwrap();
    store.remove(id).unwrap();
    assert!(store.held().is_empty() && store.open_held(id).unwrap().is_none());
    fill(&stored, APP, |_| true);
    assert_eq!(stored.read_block(BlockIndex(0)).unwrap(), blob(1, 100));
    let fresh = store.open_image("acme", descriptor(APP)).unwrap();
    assert_eq!(fresh.bytes_present(), 0);
    stored.finish().unwrap();
    drop(stored);
    assert_eq!(store.held().len(), 1);
}

/// Catches empty images and entries that never complete, divide by zero or cannot be read.
#[test]
fn empty_entries_are_complete() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let nothing = store.open_image("acme", descriptor(&[(1, 0)])).unwrap();
    assert!(nothing.is_complete() && nothing.present().is_empty());
    nothing.finish().unwrap();
    assert_eq!(nothing.read_at(0, 0, &mut [0; 8]).unwrap(), 0);
    assert!(store.held()[0].complete);
    let blobs = [(1, 0), (2, 10), (3, 0)];
    let stored = store.open_image("acme", descriptor(&blobs)).unwrap();
    fill(&stored, &blobs, |_| true);
    assert!(stored.is_complete());
    assert_eq!(stored.read_at(2, 0, &mut [0; 8]).unwrap(), 0);
    drop((nothing, stored));
    drop(store);
    assert_eq!(open(dir.path()).held().iter().filter(|held| held.complete).count(), 2);
}

/// Catches marks of another boot that are declared good before their blocks were hashed: an agent that is killed meanwhile would serve
/// damaged blocks after its next start. Watches the map file while the image is opened, as that next start would find it.
#[test]
fn a_kill_while_verifying_leaves_the_map_doubtful() {
    // Large enough that verifying takes much longer than a look at the map.
    const LEN: usize = 64 << 20;
    let dir = tempfile::tempdir().unwrap();
    let blobs = [(1, LEN)];
    let image = descriptor(&blobs);
    let blocks = image.geometry().blocks();
    let stored = open(dir.path()).open_image("acme", Arc::clone(&image)).unwrap();
    let bytes = blob(1, LEN);
    stored.file().write_all_at(&bytes, 0).unwrap();
    assert!((0..blocks).all(|block| stored.mark(BlockIndex(block)).unwrap()));
    let damaged = blocks - 1;
    flip(&stored, damaged);
    drop(stored);
    let store = open_in(dir.path(), LATER);
    let map = fs::File::open(dir.path().join("images").join(image.id().to_string()).join("map")).unwrap();
    let look = || {
        let found = crate::map::MapFile::read(&map, image.id(), blocks, LATER).unwrap();
        (found.belief == Belief::Trusted, found.words[damaged as usize / 64] >> (damaged % 64) & 1 == 1)
    };
    let opened = std::thread::scope(|scope| {
        let opening = scope.spawn(|| store.open_image("acme", Arc::clone(&image)).unwrap());
        while !opening.is_finished() {
            let (trusted, marked) = look();
            assert!(!(trusted && marked), "a damaged block is trusted while it is not verified");
        }
        opening.join().unwrap()
    });
    assert_eq!(look(), (true, false));
    assert_eq!(opened.present().count(), blocks - 1);
}

/// Catches a folder of an image that the store does not know of and that keeps this image out until a restart.
#[test]
fn a_leftover_folder_does_not_block_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let image = descriptor(APP);
    for name in [image.id().to_string(), format!(".gone-{}", image.id())] {
        let folder = dir.path().join("images").join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("data"), "left over").unwrap();
    }
    let stored = store.open_image("acme", Arc::clone(&image)).unwrap();
    fill(&stored, APP, |_| true);
    assert!(stored.is_complete());
    drop(stored);
    store.remove(image.id()).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("images")).unwrap().count(), 0);
}
