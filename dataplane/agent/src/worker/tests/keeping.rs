//! Keeping and checking: every way of writing, every mode of verification, disks that are full or cannot be written directly.
//!
//! File systems of a test's own are mounted where it may (root); elsewhere that test says that it is skipped.

use std::future::Future;
use std::path::Path;
use std::process::Command;

use super::*;

/// Short entries, one that ends on a page and one that does not.
const LENGTHS: [usize; 4] = [1, (3 << 20) + 5, BLOCK_BYTES as usize, 4096];

/// A node that holds `image` and serves it.
async fn source_of(image: &Image) -> Node {
    let mut source = Node::start(Engine::Auto).await;
    source.fill(image, 0..image.geometry().blocks());
    source.assign(image, 1, &[(nobody(), &[], &[])]);
    source
}

async fn node_that_writes(dir: TempDir, write: WriteMode) -> Node {
    Node::keeping(dir, StoreOptions { write, ..StoreOptions::default() }, |_| {}).await
}

async fn node_that_verifies(verify: Verify) -> Node {
    let options = StoreOptions { verify, ..StoreOptions::default() };
    Node::keeping(TempDir::new().unwrap(), options, |config| config.verify = verify).await
}

/// Bytes of the blocks that are written directly where everything that can be is.
fn direct_bytes(stored: &StoredImage) -> u64 {
    let geometry = stored.geometry();
    let places = (0..geometry.blocks()).filter_map(|block| geometry.place(BlockIndex(block)));
    places
        .filter(|place| stored.direct_file(place.file_offset, place.len.into()).is_some())
        .map(|place| u64::from(place.len))
        .sum()
}

/// Catches a way of writing that loses, moves or changes bytes, or is not the one that was asked for.
#[tokio::test]
async fn every_way_of_writing_keeps_the_image() {
    let image = Image::new(&LENGTHS);
    let source = source_of(&image).await;
    for engine in [Engine::Auto, Engine::Copy] {
        for write in WriteMode::ALL {
            let options = StoreOptions { write, ..StoreOptions::default() };
            let mut node = Node::keeping(TempDir::new().unwrap(), options, |config| config.engine = engine).await;
            node.assign(&image, 1, &[(source.target(), &[], &[])]);
            let report = node.complete(&image).await;
            let possible = direct_bytes(node.stored.as_ref().unwrap());
            match write {
                WriteMode::Buffered => assert_eq!((report.bytes_direct, possible), (0, 0)),
                WriteMode::Direct => assert_eq!(report.bytes_direct, possible),
                WriteMode::Auto => assert!(report.bytes_direct <= possible),
            }
            if write == WriteMode::Direct && possible == 0 {
                eprintln!("NOT COVERED: the file system of {:?} has no direct writes", std::env::temp_dir());
            }
        }
    }
}

/// Catches a mark that is made before its write is complete, by looking at a store whose worker was taken away in the middle.
#[tokio::test]
async fn a_marked_block_is_readable_whenever_the_worker_ends() {
    let image = Image::new(&[24 << 20]);
    let source = source_of(&image).await;
    for write in WriteMode::ALL {
        let mut node = node_that_writes(TempDir::new().unwrap(), write).await;
        node.assign(&image, 1, &[(source.target(), &[], &[])]);
        node.until("a block", |report| report.bytes_present > 0).await;
        let Node { worker, store, stored, _dir: dir, .. } = node;
        drop((worker, stored, store));
        // The worker lets go of the image's files when its writes have ended; the lock on the folder was the store's.
        let deadline = Instant::now() + DEADLINE;
        let store = loop {
            match Store::open(dir.path(), None) {
                Ok(store) => break store,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        let stored = store.open_held(image.id()).unwrap().unwrap();
        assert!(stored.present().count() > 0, "{write}");
        for block in stored.present().blocks() {
            assert!(stored.read_block(block).unwrap() == image.block(block), "{write}: block {}", block.0);
        }
    }
}

/// Catches a node in `xxh3` that compares nothing or the other digest, or passes a block on before it has compared.
#[tokio::test]
async fn a_wrong_xxh3_digest_is_refused_before_it_is_forwarded() {
    let wrong = BlockIndex(2);
    let image = Image::digested(&[2 << 20], BLOCK_BYTES, |block, bytes| {
        let right = BlockDigest::of(bytes);
        if block == wrong { BlockDigest { xxh3: [7; 16], ..right } } else { right }
    });
    let source = source_of(&image).await;
    let (mut node, mut child) = (node_that_verifies(Verify::Xxh3).await, node_that_verifies(Verify::Off).await);
    child.assign(&image, 1, &[(node.target(), &[], &[])]);
    node.assign(&image, 1, &[(source.target(), &[], &[child.id()])]);
    node.until("a refusal", |report| report.blocks_refused > 0).await;
    let report = child.until("the blocks before it", |report| report.bytes_present > 0).await;
    assert!(report.bytes_received <= 2 * u64::from(BLOCK_BYTES), "{report:?}");
    for node in [&node, &child] {
        assert!(!node.stored.as_ref().unwrap().present().contains(wrong));
    }
    let mut other = node_that_verifies(Verify::Blake3).await;
    other.assign(&image, 1, &[(source.target(), &[], &[])]);
    other.complete(&image).await;
}

/// Catches `off` that still compares: an experiment that would measure something else.
#[tokio::test]
async fn nothing_is_compared_where_verification_is_off() {
    let image = Image::digested(&[1 << 20], BLOCK_BYTES, |_, _| BlockDigest { blake3: [1; 32], xxh3: [1; 16] });
    let source = source_of(&image).await;
    let mut node = node_that_verifies(Verify::Off).await;
    node.assign(&image, 1, &[(source.target(), &[], &[])]);
    node.complete(&image).await;
}

/// Catches a forward-only worker that keeps, loses or changes bytes, or the order of blocks.
#[tokio::test]
async fn what_is_only_forwarded_reaches_the_children_and_no_disk() {
    let image = Image::new(&[6 << 20, 4097]);
    let mut node = Node::keeping(TempDir::new().unwrap(), StoreOptions::default(), |config| {
        config.forward_only = true;
    })
    .await;
    node.stored = Some(node.store.open_image("t", Arc::clone(&image.descriptor)).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let parent = Target::Node(NodeId([0xaa; 16]), listener.local_addr().unwrap());
    let ids = [NodeId([0xb1; 16]), NodeId([0xb2; 16])];
    node.assign(&image, 1, &[(parent, &[], &ids)]);
    let frames: Vec<_> = (0..image.geometry().blocks()).map(|block| image.frame(BlockIndex(block))).collect();
    let (go, ready) = channel::bounded(1);
    let parent = std::thread::spawn(move || {
        let (mut parent, _) = Stranger::accept(&listener);
        parent.write(&wire::encode_path(Kind::Welcome, &[NodeId([0xaa; 16])]));
        while parent.read().0.kind != Kind::Want {}
        while ready.recv_timeout(Duration::from_millis(20)).is_err() {
            parent.write(&wire::encode_waiting(wire::WaitingFor::Origin));
        }
        frames.iter().for_each(|frame| parent.write(frame));
        parent
    });
    let mut children = ids.map(|id| {
        let mut child = Stranger::connect(node.worker.data_address());
        child.greet(&hello_of(&image, id));
        while child.read().0.kind != Kind::Welcome {}
        child.write(&wire::encode_want(&[0xff; 4]));
        // By then the worker has turned more than once since the bitmap came.
        (0..3).for_each(|_| while child.read().0.kind != Kind::Waiting {});
        child
    });
    go.send(()).unwrap();
    // In turns: the one holds the stream for the other.
    for block in (0..image.geometry().blocks()).map(BlockIndex) {
        for child in &mut children {
            let (frame, payload) = loop {
                let (frame, payload) = child.read();
                if frame.kind == Kind::Block {
                    break (frame, payload);
                }
            };
            let place = image.geometry().place(block).unwrap();
            assert_eq!((frame.chunk, frame.block), (place.chunk.0, place.in_chunk));
            assert!(payload == image.block(block), "block {} differs", block.0);
        }
    }
    let report = node.until("complete", |report| report.state == ReportState::Complete).await;
    assert_eq!((report.bytes_present, report.bytes_live), (0, 2 * report.bytes_received));
    drop(parent.join().unwrap());
}

/// Catches a forward-only worker that goes on splicing where a card hands up single packets.
#[tokio::test]
async fn small_fragments_change_the_mover_where_nothing_is_kept() {
    let image = Image::new(&[8 << 20]);
    let mut node = Node::keeping(TempDir::new().unwrap(), StoreOptions::default(), |config| {
        config.forward_only = true;
    })
    .await;
    node.stored = Some(node.store.open_image("t", Arc::clone(&image.descriptor)).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let parent = Target::Node(NodeId([0xaa; 16]), listener.local_addr().unwrap());
    let id = NodeId([0xb1; 16]);
    let mut child = Stranger::connect(node.worker.data_address());
    child.greet(&hello_of(&image, id));
    child.write(&wire::encode_want(&[0xff; 4]));
    node.assign(&image, 1, &[(parent, &[], &[id])]);
    // It is served before there is anything to pass on.
    while child.read().0.kind != Kind::Welcome {}
    while child.read().0.kind != Kind::Waiting {}
    let feeder = serve_in_parts(&image, listener, 1400);
    for block in (0..image.geometry().blocks()).map(BlockIndex) {
        let (_, payload) =
            std::iter::repeat_with(|| child.read()).find(|(frame, _)| frame.kind == Kind::Block).unwrap();
        assert!(payload == image.block(block), "block {} differs", block.0);
    }
    let report = node.until("complete", |report| report.state == ReportState::Complete).await;
    assert!(report.mover != "splice" && report.mover_reason.contains("fragments of"), "{report:?}");
    feeder.join().unwrap();
}

/// Runs `work` in a folder that is a file system of this type and options of its own.
async fn on<F: Future<Output = ()>>(kind: &str, options: &str, work: impl FnOnce(TempDir) -> F) {
    let mount = TempDir::new().unwrap();
    let mounted = Command::new("mount").args(["-t", kind, "-o", options, "faasnet-test"]).arg(mount.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must run as root");
        eprintln!("SKIPPED: mounting a {kind} needs root");
        return;
    }
    let _unmount = Unmount(mount.path());
    work(TempDir::new_in(mount.path()).unwrap()).await;
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        // Lazily: a worker that is stopping may still hold a file. Ignored: a panic is on its way if this fails.
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Catches a disk that runs full under a write and is not told as that: with direct writes, and through the page cache.
#[tokio::test]
async fn a_disk_that_runs_full_fails_the_image_with_the_reason() {
    let image = Image::new(&[4 << 20]);
    let source = source_of(&image).await;
    let (image, source) = (&image, &source);
    for write in [WriteMode::Direct, WriteMode::Buffered] {
        on("tmpfs", "size=8m", |dir: TempDir| async move {
            let filler = dir.path().join("filler");
            let mut node = node_that_writes(dir, write).await;
            let stored = node.store.open_image("t", Arc::clone(&image.descriptor)).unwrap();
            // Takes back what was reserved, and gives it to another file.
            let len = stored.file().metadata().unwrap().len();
            stored.file().set_len(0).unwrap();
            stored.file().set_len(len).unwrap();
            let mut filler = std::fs::File::create(filler).unwrap();
            while filler.write_all(&[1; 1 << 16]).is_ok() {}
            node.stored = Some(stored);
            node.assign(image, 1, &[(source.target(), &[], &[])]);
            let failed = |report: &FunctionReport| matches!(&report.state, ReportState::Failed(reason) if reason.contains("free space"));
            node.until("told that the disk is full", failed).await;
        })
        .await;
    }
}

/// Catches a file system without direct writes on which nothing can be kept.
#[tokio::test]
async fn without_direct_writes_blocks_go_through_the_page_cache() {
    let image = Image::new(&LENGTHS);
    let source = source_of(&image).await;
    let (image, source) = (&image, &source);
    on("ramfs", "mode=700", |dir: TempDir| async move {
        let mut node = node_that_writes(dir, WriteMode::Direct).await;
        node.assign(image, 1, &[(source.target(), &[], &[])]);
        let report = node.complete(image).await;
        assert_eq!((report.bytes_direct, direct_bytes(node.stored.as_ref().unwrap())), (0, 0));
    })
    .await;
}
