//! While a disk is behind: what goes on from the buffers, who is blamed, how a worker ends. Driven by hand, so that a write stays under
//! way until the test takes its completion.

use std::os::unix::net::UnixStream;

use faasnet_ring::{Arena, Lease, Waker};
use tokio::sync::mpsc;

use super::super::child::Child;
use super::super::io::{ConnId, DiskOp, Io, Purpose, SLOW_TICKS, TICK};
use super::super::mover::choose;
use super::super::run::{Seat, Worker};
use super::*;

const BUFFERS: usize = 8;
/// More than receiving leaves to others.
const MANY: usize = 6;

/// The node's disk and memory, without sockets.
fn io(store: &Store, write: WriteMode) -> Io {
    let config = config_of(store, &StoreOptions { write, ..StoreOptions::default() });
    let arena = Arena::new(BUFFERS, BLOCK_BYTES as usize + wire::HEADER_BYTES).unwrap();
    let (driver, movers) = choose(Engine::Auto, None, &arena, &config.tuning.driver).unwrap();
    Io::new(driver, arena, movers, &config, config.feed, [None, None], mpsc::channel(8).0)
}

/// Begins to write a block of zeros.
fn keep(io: &mut Io, image: &Image, stored: &Arc<StoredImage>, block: u32) {
    let lease = io.arena.take().unwrap().freeze();
    let purpose = Purpose::Keep { lease, len: BLOCK_BYTES as usize, direct: false, ticks: 0 };
    let (function, image, block) = (image.function, Arc::clone(stored), BlockIndex(block));
    io.keep(DiskOp { function, image, stripe: Stripe(0), block, purpose }, false);
}

fn node() -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), None).unwrap();
    (dir, store)
}

fn open(store: &Store, image: &Image) -> Arc<StoredImage> {
    store.open_image("t", Arc::clone(&image.descriptor)).unwrap()
}

/// Catches bytes of a function's former image that are sent to a child as those of its present one: both have blocks of the same number.
#[test]
fn what_is_being_written_is_of_the_same_image() {
    let (_dir, store) = node();
    let images = [Image::new(&[2 << 20]), Image::new(&[3 << 20])];
    let [old, new] = images.each_ref().map(|image| open(&store, image));
    let mut io = io(&store, WriteMode::Auto);
    keep(&mut io, &images[0], &old, 1);
    keep(&mut io, &images[1], &new, 4);
    keep(&mut io, &images[1], &new, 3);
    let found = |image, stripe| io.being_written(image, Stripe(stripe), |_| true).map(|(block, _): (_, Lease)| block);
    assert_eq!((found(&old, 0), found(&new, 0)), (Some(BlockIndex(1)), Some(BlockIndex(3))));
    assert_eq!(found(&new, 1), None, "another stripe");
    assert!(io.being_written(&new, Stripe(0), |block| block.0 == 1).is_none(), "a block of the other image");
}

/// Whether a child for which the stream waits whenever it is asked is still attached two seconds later.
fn stays_attached(io: &Io) -> bool {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut child = Child::new(ConnId(1), NodeId([9; 16]), ours.into(), Default::default(), false);
    child.attached = true;
    (0..100).all(|tick| child.holds_stream(io, false, BLOCK_BYTES as usize, TICK * tick)) && child.attached
}

/// Catches a child that is detached because the disk, and not it, has the buffers; and one that is never detached.
#[test]
fn a_slow_disk_is_not_charged_to_a_child() {
    let (_dir, store) = node();
    let image = Image::new(&[4 << 20]);
    let (stored, mut io) = (open(&store, &image), io(&store, WriteMode::Auto));
    let held: Vec<_> = (0..BUFFERS).map(|_| io.arena.take().unwrap()).collect();
    assert!(!stays_attached(&io), "somebody else has the buffers");
    drop(held);
    (0..BUFFERS as u32).for_each(|block| keep(&mut io, &image, &stored, block));
    assert!(stays_attached(&io), "the disk has them");
}

/// Catches `auto` that waits for a slow disk while the page cache has room, or that goes there because the disk has all buffers; and a
/// mode that was asked for and is not kept to.
#[test]
fn what_the_disk_has_no_time_for_goes_through_the_page_cache() {
    let image = Image::new(&[4 << 20]);
    for write in WriteMode::ALL {
        let (_dir, store) = node();
        let (stored, mut io) = (open(&store, &image), io(&store, write));
        if write != WriteMode::Buffered && stored.direct_file(0, 4096).is_none() {
            eprintln!("SKIPPED: the file system of {:?} has no direct writes", std::env::temp_dir());
            continue;
        }
        (0..MANY as u32).for_each(|block| keep(&mut io, &image, &stored, block));
        // Nothing that completes is taken meanwhile.
        (0..SLOW_TICKS).for_each(|_| io.judge_disk());
        (MANY as u32..BUFFERS as u32).for_each(|block| keep(&mut io, &image, &stored, block));
        let expected = match write {
            WriteMode::Auto => MANY,
            WriteMode::Direct => BUFFERS,
            WriteMode::Buffered => 0,
        };
        assert_eq!(io.direct_writes(), expected, "{write}");
    }
}

/// Catches a worker that goes on receiving while it waits for its last writes: its end would never come, or cut a block off.
#[test]
fn a_stopping_worker_receives_nothing_more() {
    let (_dir, store) = node();
    let image = Image::new(&[3 * BLOCK_BYTES as usize]);
    let stored = open(&store, &image);
    let mut config = config_of(&store, &StoreOptions::default());
    config.buffers = 1;
    let (events, _events) = mpsc::channel(64);
    let seat = Seat {
        index: 0,
        queue: channel::bounded(1).1,
        waker: Waker::new().unwrap(),
        core: None,
        siblings: Vec::new(),
        bound: None,
        pacing: None,
        leased: Default::default(),
    };
    let (mut worker, _) = Worker::new(&config, seat, events).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let parent = Target::Node(NodeId([0xaa; 16]), listener.local_addr().unwrap());
    worker.assign(Assignment {
        function: image.function,
        image: image.id(),
        term: 1,
        epoch: 1,
        ticket: ticket_for(store.node_id(), image.function, image.id()),
        stripes: vec![StripePlan { upstream: parent, fallbacks: Vec::new(), children: Vec::new() }],
        stored: Some(Arc::clone(&stored)),
    });
    let frames: Vec<_> = (0..3).map(|block| image.frame(BlockIndex(block))).collect();
    let (say, said) = channel::unbounded();
    let parent = std::thread::spawn(move || {
        let (mut parent, _) = Stranger::accept(&listener);
        parent.write(&wire::encode_path(Kind::Welcome, &[NodeId([0xaa; 16])]));
        while parent.read().0.kind != Kind::Want {}
        say.send(()).unwrap();
        frames.iter().for_each(|frame| parent.write(frame));
        say.send(()).unwrap();
        parent
    });
    let deadline = Instant::now() + DEADLINE;
    while said.try_recv().is_err() {
        assert!(Instant::now() < deadline);
        worker.wait(TICK).unwrap();
    }
    // All three lie in the socket, if it takes as much; else more of them come when the first has been taken.
    let _ = said.recv_timeout(Duration::from_secs(1));
    while !worker.io.disk_is_busy() {
        assert!(Instant::now() < deadline);
        worker.wait(TICK).unwrap();
    }
    let before = stored.present().count();
    worker.close();
    assert_eq!(stored.present().count(), before + 1, "the block that was being written");
    drop(parent.join().unwrap());
}
