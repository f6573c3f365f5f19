//! Real workers on loopback with stores of their own; the test plays the control side.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel;
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{
    BLOCK_BYTES, BlockDigest, BlockIndex, CHUNK_BYTES, Claims, Descriptor, Entry, FunctionId, Geometry, ImageId,
    Origin, Stripe, TenantId,
};
use faasnet_relay::blocks::BlockSet;
use faasnet_relay::plan::{StripePlan, Target};
use faasnet_relay::wire::{self, Challenge, Frame, Hello, Kind, Refusal, UNSIGNED};
use faasnet_store::{Store, StoreOptions, StoredImage};
use tempfile::TempDir;

use super::mailbox::{Assignment, FunctionReport, ReportState, WorkerCommand, WorkerEvent};
use super::*;
use crate::link::WorkerLink;
use crate::test_support::{claims, controller_key, node_key, ticket_for, trust};

mod differential;
mod hurry;
mod keeping;
mod slow_disk;

const DEADLINE: Duration = Duration::from_secs(30);

/// An image of pseudo-random bytes with entries of these lengths.
struct Image {
    descriptor: Arc<Descriptor>,
    payloads: Vec<Vec<u8>>,
    function: FunctionId,
}

impl Image {
    fn new(lengths: &[usize]) -> Self {
        Self::with_blocks(lengths, BLOCK_BYTES)
    }

    fn with_blocks(lengths: &[usize], block_bytes: u32) -> Self {
        Self::digested(lengths, block_bytes, |_, block| BlockDigest::of(block))
    }

    /// With digests that need not be right.
    fn digested(lengths: &[usize], block_bytes: u32, digest_of: impl Fn(BlockIndex, &[u8]) -> BlockDigest) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let payloads: Vec<Vec<u8>> = lengths.iter().map(|len| (0..*len).map(|_| next()).collect()).collect();
        let digest = |n: usize| format!("sha256:{n:064x}");
        let entries = payloads.iter().enumerate().map(|(n, payload)| Entry {
            digest: digest(n),
            media_type: "application/octet-stream".into(),
            len: payload.len() as u64,
        });
        let blocks = payloads.iter().flat_map(|payload| payload.chunks(block_bytes as usize));
        let descriptor = Descriptor::new(DescriptorParts {
            block_bytes,
            reference: "test".into(),
            origin: Origin::Layout { path: "/nowhere".into() },
            manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
            manifest_digest: digest(999),
            manifest: b"{}".to_vec(),
            entries: entries.collect(),
            blocks: (0..).zip(blocks).map(|(index, block)| digest_of(BlockIndex(index), block)).collect(),
        })
        .unwrap();
        Self { descriptor: Arc::new(descriptor), payloads, function: FunctionId::new("t", "f") }
    }

    fn id(&self) -> ImageId {
        self.descriptor.id()
    }

    fn geometry(&self) -> &Geometry {
        self.descriptor.geometry()
    }

    fn block(&self, block: BlockIndex) -> &[u8] {
        let place = self.geometry().place(block).unwrap();
        &self.payloads[place.entry][place.entry_offset as usize..][..place.len as usize]
    }

    fn frame(&self, block: BlockIndex) -> Vec<u8> {
        let place = self.geometry().place(block).unwrap();
        Frame::new(Kind::Block, place.len, place.chunk.0, place.in_chunk).with_payload(self.block(block))
    }
}

struct Node {
    worker: WorkerHandle,
    store: Store,
    events: Vec<WorkerEvent>,
    stored: Option<Arc<StoredImage>>,
    _dir: TempDir,
}

impl Node {
    async fn start(engine: Engine) -> Self {
        Self::tuned(engine, Tuning::default()).await
    }

    async fn tuned(engine: Engine, tuning: Tuning) -> Self {
        Self::keeping(TempDir::new().unwrap(), StoreOptions::default(), |config| {
            config.engine = engine;
            config.tuning = tuning;
        })
        .await
    }

    async fn keeping(dir: TempDir, options: StoreOptions, adjust: impl FnOnce(&mut WorkerConfig)) -> Self {
        let store = Store::open_with(dir.path(), options.clone()).unwrap();
        let mut config = config_of(&store, &options);
        adjust(&mut config);
        let worker = start(config).await.unwrap();
        Self { worker, store, events: Vec::new(), stored: None, _dir: dir }
    }

    fn id(&self) -> NodeId {
        self.store.node_id()
    }

    fn target(&self) -> Target {
        Target::Node(self.id(), self.worker.data_address())
    }

    /// Puts `blocks` of the image into the store, as if they had been received.
    fn fill(&mut self, image: &Image, blocks: impl Iterator<Item = u32>) {
        use std::os::unix::fs::FileExt;
        let stored = self.store.open_image("t", Arc::clone(&image.descriptor)).unwrap();
        for block in blocks.map(BlockIndex) {
            let offset = image.geometry().place(block).unwrap().file_offset;
            stored.file().write_all_at(image.block(block), offset).unwrap();
            stored.mark(block).unwrap();
        }
        self.stored = Some(stored);
    }

    fn assign(&self, image: &Image, epoch: u64, stripes: &[(Target, &[Target], &[NodeId])]) {
        let plan = |(upstream, fallbacks, children): &(Target, &[Target], &[NodeId])| StripePlan {
            upstream: *upstream,
            fallbacks: fallbacks.to_vec(),
            children: children.to_vec(),
        };
        let assignment = Assignment {
            function: image.function,
            image: image.id(),
            term: 1,
            epoch,
            ticket: ticket_for(self.id(), image.function, image.id()),
            stripes: stripes.iter().map(plan).collect(),
            stored: self.stored.clone(),
        };
        self.worker.send(WorkerCommand::Assign(Box::new(assignment))).unwrap();
    }

    /// Plays the control side until `done` says so of a report.
    async fn until(&mut self, what: &str, done: impl Fn(&FunctionReport) -> bool) -> FunctionReport {
        let deadline = Instant::now() + DEADLINE;
        let mut last = None;
        loop {
            assert!(
                Instant::now() < deadline,
                "{what}: not within {DEADLINE:?}; events {:?}; last {last:?}",
                self.events
            );
            self.worker.send(WorkerCommand::Report).unwrap();
            match tokio::time::timeout(DEADLINE, self.worker.next_event()).await.expect(what).expect(what) {
                WorkerEvent::Reported(reports) => {
                    match reports.iter().find(|report| done(report)) {
                        Some(report) => return report.clone(),
                        None => last = reports.into_iter().next(),
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                WorkerEvent::DescriptorArrived { function, image, bytes } => {
                    let descriptor = Arc::new(Descriptor::decode(&bytes, image).unwrap());
                    let stored = self.store.open_image("t", descriptor).unwrap();
                    self.stored = Some(Arc::clone(&stored));
                    self.worker.send(WorkerCommand::OpenImage { function, stored }).unwrap();
                }
                event => self.events.push(event),
            }
        }
    }

    async fn complete(&mut self, image: &Image) -> FunctionReport {
        let report = self.until("complete", |report| report.state == ReportState::Complete).await;
        let stored = self.stored.as_ref().unwrap();
        for block in (0..image.geometry().blocks()).map(BlockIndex) {
            assert!(stored.read_block(block).unwrap() == image.block(block), "block {} differs", block.0);
        }
        report
    }
}

/// What a worker of the node with this store needs.
fn config_of(store: &Store, options: &StoreOptions) -> WorkerConfig {
    WorkerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        node: store.node_id(),
        trust: trust(),
        feed: "127.0.0.1:1".parse().unwrap(),
        engine: Engine::Auto,
        // A busy machine must not look like a silent parent.
        patience: Patience { silence: Duration::from_secs(1), ..Patience::default() },
        buffers: 16,
        socket_options: SocketOptions::default(),
        tuning: Tuning::default(),
        verify: options.verify,
        store_write: options.write,
        forward_only: false,
    }
}

/// A parent or child that speaks the wire by hand.
struct Stranger {
    stream: TcpStream,
}

impl Stranger {
    /// As node `aa…`, the parent of most tests.
    fn accept(listener: &TcpListener) -> (Self, Hello) {
        Self::accept_as(NodeId([0xaa; 16]), listener)
    }

    fn accept_as(node: NodeId, listener: &TcpListener) -> (Self, Hello) {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut stranger = Self { stream };
        stranger.write(&Challenge { node, nonce: [7; 32] }.encode());
        let (frame, payload) = stranger.read();
        assert_eq!(frame.kind, Kind::Hello);
        (stranger, Hello::parse(&payload).unwrap())
    }

    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { stream }
    }

    /// What the parent says first.
    fn challenge(&mut self) -> Challenge {
        let (frame, payload) = self.read();
        assert_eq!(frame.kind, Kind::Challenge);
        Challenge::parse(&payload).unwrap()
    }

    /// Answers the parent's challenge with the frame that `alter` makes of a signed `Hello`.
    fn answer(&mut self, hello: &Hello, alter: impl FnOnce(&mut Vec<u8>)) {
        let challenge = self.challenge();
        let mut bytes = trust().sign(*hello, &challenge).encode();
        alter(&mut bytes);
        self.write(&bytes);
    }

    fn greet(&mut self, hello: &Hello) {
        self.answer(hello, |_| {});
    }

    fn read(&mut self) -> (Frame, Vec<u8>) {
        let mut header = [0; wire::HEADER_BYTES];
        self.stream.read_exact(&mut header).unwrap();
        let frame = Frame::parse(&header).unwrap();
        let mut payload = vec![0; frame.len as usize];
        self.stream.read_exact(&mut payload).unwrap();
        (frame, payload)
    }

    /// The next frame that is not `Waiting`.
    fn read_news(&mut self) -> (Frame, Vec<u8>) {
        loop {
            let (frame, payload) = self.read();
            if frame.kind != Kind::Waiting {
                return (frame, payload);
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        // Ignored: tests of hostile bytes expect to be cut off.
        let _ = self.stream.write_all(bytes);
    }

    /// Whether the other side ends the connection within a second, `Waiting` or not.
    fn is_cut_off(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(1);
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut bytes = [0; 4096];
        while Instant::now() < deadline {
            match self.stream.read(&mut bytes) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
        false
    }
}

/// A `Hello` with a good ticket.
fn hello_of(image: &Image, node: NodeId) -> Hello {
    Hello {
        function: image.function,
        image: image.id(),
        node,
        term: 1,
        epoch: 1,
        ticket: ticket_for(node, image.function, image.id()),
        address: "127.0.0.1:9".parse().unwrap(),
        stripe: Stripe(0),
        stripes: 1,
        wants_descriptor: false,
        proof: UNSIGNED,
    }
}

fn nobody() -> Target {
    // Port 1 of loopback refuses at once.
    Target::Node(NodeId([0xee; 16]), "127.0.0.1:1".parse().unwrap())
}

async fn tree_of_four(engine: Engine) {
    let image = Image::new(&[1, 9 << 20, 0, (4 << 20) + 1, CHUNK_BYTES as usize, BLOCK_BYTES as usize + 1]);
    let (mut root, mut inner) = (Node::start(engine).await, Node::start(engine).await);
    let (mut left, mut right) = (Node::start(engine).await, Node::start(engine).await);
    root.fill(&image, 0..image.geometry().blocks());
    // Commands reach the nodes from the leaves upwards: parents that do not know the function yet hold their children.
    for leaf in [&left, &right] {
        leaf.assign(&image, 1, &[(inner.target(), &[], &[])]);
    }
    inner.assign(&image, 1, &[(root.target(), &[], &[left.id(), right.id()])]);
    root.assign(&image, 1, &[(nobody(), &[], &[inner.id()])]);
    root.complete(&image).await;
    let passed = inner.complete(&image).await;
    for leaf in [&mut left, &mut right] {
        let report = leaf.complete(&image).await;
        assert_eq!(report.bytes_received, image.geometry().image_bytes());
        assert_eq!((report.bytes_refetched, report.edges_failed, report.blocks_refused), (0, 0, 0));
        // A parent that is complete before its child asks begins a path of its own.
        assert!(report.levels == [2] || report.levels == [1], "{:?}", report.levels);
        assert_eq!(report.upstreams, [(Stripe(0), inner.target(), image.geometry().image_bytes())]);
    }
    let sent = root.until("sent", |report| report.bytes_from_store == report.bytes_total).await;
    let passed =
        inner.until("sent", |report| report.bytes_live + report.bytes_from_store == 2 * passed.bytes_total).await;
    match engine {
        // On a busy machine a frame now and then cannot be peeked whole, or its pipe is full: that one goes through its buffer.
        Engine::Splice => {
            assert_eq!(passed.mover, "splice");
            let few = passed.bytes_total / 10;
            assert!(passed.bytes_copied <= few && sent.bytes_copied <= few, "{passed:?}, root: {sent:?}");
        }
        _ => assert_eq!(passed.bytes_copied, 2 * passed.bytes_total),
    }
}

/// Catches bytes that are lost, changed or repeated between a root, an inner node and two leaves, and a copy on the way in `splice`.
#[tokio::test]
async fn a_tree_of_four_receives_the_image_by_splice() {
    tree_of_four(Engine::Splice).await;
}

/// Catches the same in the mover that needs no io_uring.
#[tokio::test]
async fn a_tree_of_four_receives_the_image_by_copy() {
    tree_of_four(Engine::Copy).await;
}

/// Catches the same in the movers that leave receiving and sending to the driver.
#[tokio::test]
async fn a_tree_of_four_receives_the_image_by_the_driver() {
    tree_of_four(Engine::Registered).await;
    tree_of_four(Engine::TokioUring).await;
}

/// Catches twin stripes that wait for each other, or a node that takes blocks of the wrong stripe.
#[tokio::test]
async fn twin_stripes_come_from_two_parents() {
    let image = Image::new(&[30 << 20]);
    let (mut red, mut blue) = (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    let stripe = |s: u8| image.geometry().stripe_blocks(Stripe(s), 2).map(|block| block.0).collect::<Vec<_>>();
    red.fill(&image, stripe(0).into_iter());
    blue.fill(&image, stripe(1).into_iter());
    let mut leaf = Node::start(Engine::Auto).await;
    let ids = [red.id(), blue.id(), leaf.id()];
    leaf.assign(&image, 1, &[(red.target(), &[], &[]), (blue.target(), &[], &[])]);
    red.assign(&image, 1, &[(nobody(), &[], &ids[1..]), (blue.target(), &[], &[])]);
    blue.assign(&image, 1, &[(red.target(), &[], &[]), (nobody(), &[], &[ids[0], ids[2]])]);
    for node in [&mut red, &mut blue, &mut leaf] {
        let report = node.complete(&image).await;
        assert_eq!(report.bytes_refetched, 0);
    }
}

/// Catches a wrong block that is forwarded, marked or borne: it must be refused, reported, and fetched elsewhere.
#[tokio::test]
async fn a_flipped_bit_is_refused_before_it_is_forwarded() {
    let image = Image::new(&[3 << 20]);
    let (mut good, mut node, mut child) =
        (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    good.fill(&image, 0..image.geometry().blocks());
    good.assign(&image, 1, &[(nobody(), &[], &[])]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let liar = Target::Node(NodeId([0xaa; 16]), listener.local_addr().unwrap());
    node.assign(&image, 1, &[(liar, &[good.target()], &[child.id()])]);
    child.assign(&image, 1, &[(node.target(), &[], &[])]);
    let lie = std::thread::spawn({
        let (encoded, good_frame, mut bad_frame) =
            (image.descriptor.encode(), image.frame(BlockIndex(0)), image.frame(BlockIndex(1)));
        bad_frame[5000] ^= 1;
        move || {
            let (mut parent, hello) = Stranger::accept(&listener);
            assert!(hello.wants_descriptor);
            parent.write(&wire::encode_path(Kind::Welcome, &[NodeId([0xaa; 16])]));
            parent.write(&wire::encode_descriptor(&encoded));
            while parent.read().0.kind != Kind::Want {}
            parent.write(&good_frame);
            parent.write(&bad_frame);
            parent.is_cut_off()
        }
    });
    let report = node.complete(&image).await;
    assert_eq!((report.blocks_refused, report.edges_failed), (1, 1));
    let blamed = |event: &WorkerEvent| matches!(event, WorkerEvent::EdgeFailed { upstream, wrong_bytes: true, .. } if *upstream == liar);
    assert!(node.events.iter().any(blamed), "{:?}", node.events);
    let report = child.complete(&image).await;
    assert_eq!((report.blocks_refused, report.edges_failed), (0, 0));
    lie.join().unwrap();
}

/// Catches a parent that hangs, dies or serves when it is told nonsense: absurd lengths, other versions, strangers' tickets.
#[tokio::test]
async fn nonsense_from_a_child_is_cut_off_and_a_bad_ticket_is_refused() {
    let image = Image::new(&[1 << 20]);
    let mut node = Node::start(Engine::Auto).await;
    node.fill(&image, 0..image.geometry().blocks());
    node.assign(&image, 1, &[(nobody(), &[], &[])]);
    let address = node.worker.data_address();
    let me = NodeId([7; 16]);
    let good = hello_of(&image, me);
    let claims = Claims { node: me, ..claims(image.id()) };
    // Not by `..good`: rustc 1.95 fails on that inside a closure when an array's length is a constant of another crate.
    let with = |claims: Claims| {
        let mut hello = good;
        hello.ticket = controller_key().issue(claims);
        hello
    };
    let bad = [
        (with(Claims { node: NodeId([8; 16]), ..claims }), "another node"),
        (with(Claims { function: FunctionId::new("t", "other"), ..claims }), "another function"),
        (with(Claims { image: ImageId([8; 32]), ..claims }), "another image"),
        (with(Claims { tenant: TenantId::new("other"), ..claims }), "another tenant"),
        (with(Claims { expires: 1_000, ..claims }), "expired"),
        (with(Claims { node_key: controller_key().public(), ..claims }), "does not hold the key"),
        (Hello { ticket: node_key().issue(claims), ..good }, "unknown here"),
    ];
    let checks = tokio::task::spawn_blocking({
        move || {
            for (hello, says) in bad {
                let mut child = Stranger::connect(address);
                child.greet(&hello);
                let (frame, text) = child.read_news();
                assert_eq!((frame.kind, Refusal::from_frame(&frame)), (Kind::Refused, Refusal::Ticket), "{says}");
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(text.contains(says), "{text}");
                assert!(child.is_cut_off());
            }
            type Damage = fn(&mut Vec<u8>);
            let damages: [(Damage, &str); 3] = [
                (
                    |hello| hello[wire::HEADER_BYTES + 4..wire::HEADER_BYTES + 8].copy_from_slice(&[9, 0, 9, 0]),
                    "protocol versions 9 to 9",
                ),
                (|hello| hello[4..8].copy_from_slice(&u32::MAX.to_le_bytes()), "cannot have"),
                (|hello| hello.fill(0xff), "unknown frame kind"),
            ];
            for (damage, says) in damages {
                let mut child = Stranger::connect(address);
                child.answer(&good, damage);
                let (frame, text) = child.read_news();
                assert_eq!((frame.kind, Refusal::from_frame(&frame)), (Kind::Refused, Refusal::Protocol));
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(text.contains(says), "{text}");
            }
            // After a good Hello: parts of Want out of order, then a block from a child.
            for bad in [Frame::new(Kind::Want, 0, 64, 1).header(), Frame::new(Kind::Block, 1, 0, 0).header()] {
                let mut child = Stranger::connect(address);
                child.greet(&good);
                assert_eq!(child.read_news().0.kind, Kind::Welcome);
                child.write(&bad);
                assert!(child.is_cut_off());
            }
            // And the node still serves who behaves: exactly the blocks that are wanted.
            let mut child = Stranger::connect(address);
            child.greet(&good);
            assert_eq!(child.read_news().0.kind, Kind::Welcome);
            let mut want = BlockSet::new(4);
            want.insert(BlockIndex(2));
            child.write(&wire::encode_want(&want.to_bitmap()));
            let (frame, payload) = child.read_news();
            assert_eq!((frame.kind, frame.chunk, frame.block), (Kind::Block, 0, 2));
            payload
        }
    });
    assert!(checks.await.unwrap() == image.block(BlockIndex(2)));
    node.until("alive", |report| report.state == ReportState::Complete).await;
}

/// Catches a node that asks again for blocks that it has when its parent dies in the middle of a frame.
#[tokio::test]
async fn after_a_cut_only_missing_blocks_are_asked_for() {
    let image = Image::new(&[3 << 20]);
    let (mut good, mut node) = (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    good.fill(&image, 0..image.geometry().blocks());
    good.assign(&image, 1, &[(nobody(), &[], &[])]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dying = Target::Node(NodeId([0xaa; 16]), listener.local_addr().unwrap());
    node.assign(&image, 1, &[(dying, &[good.target()], &[])]);
    let frames: Vec<Vec<u8>> = (0..4).map(|n| image.frame(BlockIndex(n))).collect();
    let encoded = image.descriptor.encode();
    let death = std::thread::spawn(move || {
        let (mut parent, _) = Stranger::accept(&listener);
        parent.write(&wire::encode_path(Kind::Welcome, &[NodeId([0xaa; 16])]));
        parent.write(&wire::encode_descriptor(&encoded));
        while parent.read().0.kind != Kind::Want {}
        frames[..3].iter().for_each(|frame| parent.write(frame));
        parent.write(&frames[3][..100_000]);
    });
    let report = node.complete(&image).await;
    death.join().unwrap();
    assert_eq!(report.bytes_refetched, 0);
    assert_eq!(report.bytes_received, image.geometry().image_bytes());
    assert_eq!(
        report.upstreams.iter().map(|(_, target, bytes)| (*target, *bytes)).collect::<Vec<_>>(),
        [(dying, 3 * u64::from(BLOCK_BYTES)), (good.target(), 9 * u64::from(BLOCK_BYTES)),]
    );
}

/// Catches a parent that is served although it says nothing: a stopped process keeps its connections.
#[tokio::test]
async fn a_silent_parent_is_left_for_a_fallback() {
    let image = Image::new(&[2 << 20]);
    let (mut good, mut node) = (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    good.fill(&image, 0..image.geometry().blocks());
    good.assign(&image, 1, &[(nobody(), &[], &[])]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute = Target::Node(NodeId([0xaa; 16]), listener.local_addr().unwrap());
    node.assign(&image, 1, &[(mute, &[good.target()], &[])]);
    let report = node.complete(&image).await;
    assert_eq!(report.edges_failed, 1);
    assert!(report.elapsed < Duration::from_secs(5), "{:?}", report.elapsed);
}

/// Catches a planned change of parents that loses or repeats blocks.
#[tokio::test]
async fn a_change_of_parents_in_mid_transfer_refetches_nothing() {
    let image = Image::new(&[64 << 20]);
    let (mut first, mut second, mut node) =
        (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    for parent in [&mut first, &mut second] {
        parent.fill(&image, 0..image.geometry().blocks());
        parent.assign(&image, 1, &[(nobody(), &[], &[])]);
    }
    node.assign(&image, 1, &[(first.target(), &[], &[])]);
    node.until("flowing", |report| report.bytes_present > 1 << 20).await;
    node.assign(&image, 2, &[(second.target(), &[], &[])]);
    let report = node.complete(&image).await;
    assert_eq!((report.bytes_refetched, report.edges_failed), (0, 0));
    assert_eq!(report.bytes_received, image.geometry().image_bytes());
}

/// Catches a command that arrives late and undoes a newer one.
#[tokio::test]
async fn an_older_plan_is_ignored_and_a_drop_ends_the_edges() {
    let image = Image::new(&[1 << 20]);
    let (mut root, mut node) = (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    root.fill(&image, 0..image.geometry().blocks());
    root.assign(&image, 5, &[(nobody(), &[], &[node.id()])]);
    root.assign(&image, 4, &[(node.target(), &[], &[])]);
    assert_eq!(root.until("report", |_| true).await.epoch, 5);
    node.assign(&image, 1, &[(root.target(), &[], &[])]);
    node.complete(&image).await;
    root.worker.send(WorkerCommand::Drop { function: image.function, term: 1, epoch: 4 }).unwrap();
    for _ in 0..3 {
        assert_eq!(root.until("report", |_| true).await.epoch, 5);
    }
    root.worker.send(WorkerCommand::Drop { function: image.function, term: 1, epoch: 6 }).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !root.events.iter().any(|event| matches!(event, WorkerEvent::Dropped { .. })) {
        assert!(Instant::now() < deadline);
        let event = tokio::time::timeout(DEADLINE, root.worker.next_event()).await.unwrap().unwrap();
        root.events.push(event);
    }
}

/// Plays a parent by hand that serves `image` in parts of `part_bytes`, each sent by itself, so that fragments are as small as on a real card.
fn serve_in_parts(image: &Image, listener: TcpListener, part_bytes: usize) -> std::thread::JoinHandle<()> {
    let frames: Vec<Vec<u8>> = (0..image.geometry().blocks()).map(|n| image.frame(BlockIndex(n))).collect();
    let encoded = image.descriptor.encode();
    std::thread::spawn(move || {
        let (mut parent, _) = Stranger::accept(&listener);
        parent.stream.set_nodelay(true).unwrap();
        parent.write(&wire::encode_path(Kind::Welcome, &[NodeId([0xaa; 16])]));
        parent.write(&wire::encode_descriptor(&encoded));
        while parent.read().0.kind != Kind::Want {}
        // Foreign bytes between the parts keep the kernel from joining them into one page.
        let mut other = TcpStream::connect(sink()).unwrap();
        for part in frames.iter().flat_map(|frame| frame.chunks(part_bytes)) {
            parent.write(part);
            // Ignored: only the bytes' passing through the allocator matters.
            let _ = other.write_all(&part[..part.len().min(600)]);
        }
    })
}

/// A listener that reads and forgets.
fn sink() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.read(&mut [0; 65536]).is_ok_and(|bytes| bytes > 0) {}
    });
    address
}

/// Serves two children of which one never reads, and returns how long the other one took.
async fn beside_a_stopped_child(engine: Engine, part_bytes: usize) -> Duration {
    let image = Image::new(&[32 << 20]);
    let (mut node, mut good) = (Node::start(engine).await, Node::start(engine).await);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let parent = Target::Node(NodeId([0xaa; 16]), listener.local_addr().unwrap());
    let stopped = NodeId([9; 16]);
    let mut child = Stranger::connect(node.worker.data_address());
    child.greet(&hello_of(&image, stopped));
    child.write(&wire::encode_want(&vec![0xff; image.geometry().blocks().div_ceil(8) as usize]));
    node.assign(&image, 1, &[(parent, &[], &[good.id(), stopped])]);
    good.assign(&image, 1, &[(node.target(), &[], &[])]);
    let feeder = serve_in_parts(&image, listener, part_bytes);
    node.complete(&image).await;
    let report = good.complete(&image).await;
    feeder.join().unwrap();
    assert!(node.events.iter().all(|event| !matches!(event, WorkerEvent::EdgeFailed { .. })), "{:?}", node.events);
    report.elapsed
}

/// Catches a stopped child that takes buffers until the whole worker stands still: its pipe's slots are full of small fragments long before
/// its bytes are. The bound is far below the 10 s after which the kernel cuts a child that takes nothing.
#[tokio::test]
async fn a_stopped_child_delays_nobody() {
    for (engine, part_bytes) in [(Engine::Splice, 1400), (Engine::Splice, 1 << 20), (Engine::Copy, 1 << 20)] {
        let took = beside_a_stopped_child(engine, part_bytes).await;
        assert!(took < Duration::from_secs(8), "{engine:?} in parts of {part_bytes}: {took:?}");
    }
}

/// Catches links that hold a buffer for as long as their upstream takes to send a block: sixteen that dribble would starve the rest.
#[tokio::test]
async fn upstreams_that_dribble_hold_no_buffer() {
    let (mut node, mut good) = (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    let image = Image::new(&[4 << 20]);
    good.fill(&image, 0..image.geometry().blocks());
    good.assign(&image, 1, &[(nobody(), &[], &[])]);
    let (stop, stopped) = channel::bounded::<()>(0);
    let mut dribblers = Vec::new();
    for n in 0..20u8 {
        let other =
            Image { function: FunctionId::new("t", &format!("slow{n}")), ..Image::new(&[(1 << 20) + usize::from(n)]) };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let parent = Target::Node(NodeId([0x40 + n; 16]), listener.local_addr().unwrap());
        node.stored = Some(node.store.open_image("t", Arc::clone(&other.descriptor)).unwrap());
        node.assign(&other, 1, &[(parent, &[], &[])]);
        let (frame, stopped) = (other.frame(BlockIndex(0)), stopped.clone());
        dribblers.push(std::thread::spawn(move || {
            let (mut parent, _) = Stranger::accept_as(NodeId([0x40 + n; 16]), &listener);
            parent.write(&wire::encode_path(Kind::Welcome, &[NodeId([0x40 + n; 16])]));
            while parent.read().0.kind != Kind::Want {}
            let mut parts = frame.chunks(20);
            while stopped.recv_timeout(Duration::from_millis(50)) == Err(channel::RecvTimeoutError::Timeout) {
                parent.write(parts.next().unwrap_or_default());
            }
        }));
    }
    node.until("dribbling", |report| report.function != image.function && report.state == ReportState::Fetching).await;
    node.stored = None;
    node.assign(&image, 1, &[(good.target(), &[], &[])]);
    let done = |report: &FunctionReport| report.function == image.function && report.state == ReportState::Complete;
    node.until("complete beside dribblers", done).await;
    drop(stop);
    dribblers.into_iter().for_each(|dribbler| dribbler.join().unwrap());
}

/// Catches strangers that lock children out by connecting and saying nothing.
#[tokio::test]
async fn silent_strangers_make_room_for_children() {
    let image = Image::new(&[1 << 20]);
    let (mut root, mut node) = (Node::start(Engine::Auto).await, Node::start(Engine::Auto).await);
    root.fill(&image, 0..image.geometry().blocks());
    root.assign(&image, 1, &[(nobody(), &[], &[])]);
    let strangers: Vec<Stranger> = (0..300).map(|_| Stranger::connect(root.worker.data_address())).collect();
    node.assign(&image, 1, &[(root.target(), &[], &[])]);
    assert_eq!(node.complete(&image).await.edges_failed, 0);
    drop(strangers);
}
