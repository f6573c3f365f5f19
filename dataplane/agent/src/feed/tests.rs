//! The feed against layout folders and a registry of our own, driven by a child that speaks the wire protocol.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use faasnet_api::{BlockIndex, Descriptor, FunctionId, Origin, Stripe};
use faasnet_relay::blocks::BlockSet;
use faasnet_relay::wire::{Challenge, Frame, HEADER_BYTES, Hello, Kind, Refusal, UNSIGNED, WaitingFor, encode_want};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::test_support::{DEADLINE, NODE, block_of, digest, image, layout, node_key, ticket, trust};

const MIB: usize = 1 << 20;

/// A running feed that knows some descriptors.
struct Harness {
    address: SocketAddr,
    descriptors: watch::Sender<Descriptors>,
    counters: Arc<Counters>,
    reports: mpsc::Receiver<Input>,
    _running: JoinSet<()>,
}

impl Harness {
    async fn new(descriptor: Option<&Arc<Descriptor>>) -> Self {
        let known = descriptor.map(|descriptor| (function(), descriptor.clone())).into_iter().collect();
        let (descriptors, descriptors_reader) = watch::channel(known);
        let (reports_sender, reports) = mpsc::channel(16);
        let counters = Arc::new(Counters::default());
        let feed = Feed::bind(Shared {
            node: NODE,
            trust: trust(),
            descriptors: descriptors_reader,
            waiting_every: Duration::from_millis(10),
            counters: counters.clone(),
            sources: Arc::default(),
            reports: reports_sender,
        });
        let feed = feed.await.unwrap();
        let address = feed.address().unwrap();
        let mut running = JoinSet::new();
        running.spawn(feed.run());
        Self { address, descriptors, counters, reports, _running: running }
    }

    async fn child(&self, hello: &Hello) -> Child {
        let mut child = Child(TcpStream::connect(self.address).await.unwrap());
        let (frame, payload) = child.next().await.unwrap();
        assert_eq!(frame.kind, Kind::Challenge);
        let hello = trust().sign(*hello, &Challenge::parse(&payload).unwrap());
        child.0.write_all(&hello.encode()).await.unwrap();
        child
    }

    /// A child that was welcomed and said which blocks it lacks.
    async fn wanting(&self, hello: &Hello, wanted: &BlockSet) -> Child {
        let mut child = self.child(hello).await;
        let (frame, payload) = child.next().await.unwrap();
        assert_eq!((frame.kind, payload.len()), (Kind::Welcome, 0), "a root's path is empty");
        child.0.write_all(&encode_want(&wanted.to_bitmap())).await.unwrap();
        child
    }
}

struct Child(TcpStream);

impl Child {
    /// The next frame; `None` at the end of the connection.
    async fn next(&mut self) -> Option<(Frame, Vec<u8>)> {
        let read = async {
            let mut header = [0; HEADER_BYTES];
            self.0.read_exact(&mut header).await.ok()?;
            let frame = Frame::parse(&header).unwrap();
            let mut payload = vec![0; frame.len as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            Some((frame, payload))
        };
        timeout(DEADLINE, read).await.expect("the feed fell silent")
    }

    /// The next frame that is not `Waiting`.
    async fn next_word(&mut self) -> Option<(Frame, Vec<u8>)> {
        loop {
            match self.next().await {
                Some((frame, _)) if frame.kind == Kind::Waiting => {}
                other => return other,
            }
        }
    }

    /// The next `count` blocks, in the order in which they came.
    async fn blocks(&mut self, descriptor: &Descriptor, count: usize) -> Vec<(BlockIndex, Vec<u8>)> {
        let mut blocks = Vec::new();
        while blocks.len() < count {
            let (frame, payload) = self.next_word().await.expect("the feed ended early");
            assert_eq!(frame.kind, Kind::Block, "{}", String::from_utf8_lossy(&payload));
            let block = descriptor.geometry().block_at(faasnet_api::ChunkIndex(frame.chunk), frame.block).unwrap();
            blocks.push((block, payload));
        }
        blocks
    }

    /// The refusal that ends the connection.
    async fn refusal(&mut self) -> (Refusal, String) {
        let (frame, payload) = self.next_word().await.expect("the feed closed without a word");
        assert_eq!(frame.kind, Kind::Refused);
        assert!(self.next().await.is_none(), "a refusal is the last word");
        (Refusal::from_frame(&frame), String::from_utf8(payload).unwrap())
    }
}

fn function() -> FunctionId {
    FunctionId::new("acme", "resize")
}

fn hello(descriptor: &Descriptor, stripe: u8, stripes: u8) -> Hello {
    Hello {
        function: function(),
        image: descriptor.id(),
        node: NODE,
        term: 1,
        epoch: 1,
        ticket: ticket(NODE, function(), descriptor),
        address: "127.0.0.1:1".parse().unwrap(),
        stripe: Stripe(stripe),
        stripes,
        wants_descriptor: false,
        proof: UNSIGNED,
    }
}

fn everything(descriptor: &Descriptor) -> BlockSet {
    some(descriptor, 0..descriptor.geometry().blocks())
}

fn some(descriptor: &Descriptor, blocks: impl IntoIterator<Item = u32>) -> BlockSet {
    let mut set = BlockSet::new(descriptor.geometry().blocks());
    blocks.into_iter().for_each(|block| assert!(set.insert(BlockIndex(block))));
    set
}

fn check(blobs: &[Vec<u8>], descriptor: &Descriptor, blocks: &[(BlockIndex, Vec<u8>)]) {
    for (block, payload) in blocks {
        assert!(payload == block_of(blobs, descriptor.geometry(), *block), "block {} has other bytes", block.0);
    }
}

/// An HTTP server that holds blobs, knows ranges if `ranges`, and does with each answer what `fault` says of its number.
struct Registry {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

/// What is done to one answer.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Status(&'static str),
    /// The body is cut after so many bytes.
    Cut(usize),
    /// The first byte is another.
    Garbled,
}

impl Registry {
    /// Binds, so that the descriptor can name the address; serves from [`Registry::serve`] on.
    fn bind() -> (std::net::TcpListener, Origin) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        (listener, Origin::Registry { base_url, repository: "example/app".into(), ranges: true })
    }

    fn serve(listener: std::net::TcpListener, blobs: &[Vec<u8>], ranges: bool, fault: fn(usize) -> Fault) -> Self {
        let blobs: Arc<BTreeMap<String, Vec<u8>>> =
            Arc::new(blobs.iter().map(|blob| (digest(blob), blob.clone())).collect());
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = requests.clone();
        // Ends with the test's process; a thread per connection keeps the server simple.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (blobs, counted) = (blobs.clone(), counted.clone());
                std::thread::spawn(move || {
                    answer(stream, &blobs, ranges, || fault(counted.fetch_add(1, Ordering::SeqCst)))
                });
            }
        });
        Self { address, requests }
    }
}

/// Answers one request and closes.
fn answer(
    mut stream: std::net::TcpStream,
    blobs: &BTreeMap<String, Vec<u8>>,
    ranges: bool,
    fault: impl FnOnce() -> Fault,
) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => request.push(byte[0]),
            _ => return,
        }
    }
    let request = String::from_utf8(request).unwrap();
    let Some(blob) =
        blobs.iter().find(|(digest, _)| request.contains(&format!("/blobs/{digest} "))).map(|(_, blob)| blob)
    else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        return;
    };
    let lower = request.to_lowercase();
    let range = lower.split("range: bytes=").nth(1).filter(|_| ranges).map(|rest| {
        let (start, end) = rest.split("\r\n").next().unwrap().split_once('-').unwrap();
        start.parse::<usize>().unwrap()..end.parse::<usize>().unwrap() + 1
    });
    let (status, extra) = match &range {
        Some(range) => (
            "206 Partial Content",
            format!("content-range: bytes {}-{}/{}\r\n", range.start, range.end - 1, blob.len()),
        ),
        None => ("200 OK", String::new()),
    };
    let mut body = blob[range.unwrap_or(0..blob.len())].to_vec();
    let (mut status, length) = (status, body.len());
    match fault() {
        Fault::None => {}
        Fault::Status(other) => (status, body) = (other, Vec::new()),
        Fault::Cut(after) => body.truncate(after),
        Fault::Garbled => body[0] ^= 1,
    }
    let length = if body.is_empty() { 0 } else { length };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{extra}connection: close\r\n\r\n");
    // Ignored, here and above: a reader that left needs no answer.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// Catches bytes that are lost, doubled, out of order or wrong on the way from a layout to the child, and a missing descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn one_stripe_brings_the_whole_image() {
    let folder = tempfile::tempdir().unwrap();
    let (blobs, descriptor) = layout(folder.path(), &[1000, 0, 9 * MIB + 1, 4 * MIB]);
    let harness = Harness::new(Some(&descriptor)).await;
    let mut child = harness.child(&Hello { wants_descriptor: true, ..hello(&descriptor, 0, 1) }).await;
    assert_eq!(child.next().await.unwrap().0.kind, Kind::Welcome);
    let mut encoded = Vec::new();
    while encoded.len() < descriptor.encode().len() {
        let (frame, payload) = child.next_word().await.unwrap();
        assert_eq!((frame.kind, frame.chunk as usize), (Kind::Descriptor, encoded.len()));
        encoded.extend_from_slice(&payload);
    }
    assert_eq!(encoded, descriptor.encode());
    child.0.write_all(&encode_want(&everything(&descriptor).to_bitmap())).await.unwrap();
    let blocks = child.blocks(&descriptor, descriptor.geometry().blocks() as usize).await;
    check(&blobs, &descriptor, &blocks);
    assert!(blocks.iter().map(|(block, _)| block.0).eq(0..descriptor.geometry().blocks()), "not in stream order");
    assert_eq!(child.next().await.unwrap().0.kind, Kind::Waiting, "an idle feed says that it lives");
    assert_eq!(harness.counters.requests.load(Ordering::Relaxed), 3, "one request per blob that is not empty");
    assert_eq!(harness.counters.bytes.load(Ordering::Relaxed), descriptor.geometry().image_bytes());
}

/// Catches twin stripes that overlap or leave a gap, and more than one request per chunk.
#[tokio::test(flavor = "multi_thread")]
async fn twin_stripes_share_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let (blobs, descriptor) = layout(folder.path(), &[77, 13 * MIB]);
    let harness = Harness::new(Some(&descriptor)).await;
    let mut all = Vec::new();
    for stripe in 0..2 {
        let expected: Vec<_> = descriptor.geometry().stripe_blocks(Stripe(stripe), 2).collect();
        let mut child = harness.wanting(&hello(&descriptor, stripe, 2), &everything(&descriptor)).await;
        let blocks = child.blocks(&descriptor, expected.len()).await;
        check(&blobs, &descriptor, &blocks);
        assert_eq!(blocks.iter().map(|(block, _)| *block).collect::<Vec<_>>(), expected);
        assert_eq!(child.next().await.unwrap().0.kind, Kind::Waiting, "nothing of the other stripe");
        all.extend(expected);
    }
    assert_eq!(all.len(), descriptor.geometry().blocks() as usize);
    let requests = harness.counters.requests.load(Ordering::Relaxed);
    assert_eq!(requests, u64::from(descriptor.geometry().chunks()));
}

/// Catches a resumed root that gets, or costs the origin, what it already has.
#[tokio::test(flavor = "multi_thread")]
async fn only_wanted_blocks_are_read_and_sent() {
    let folder = tempfile::tempdir().unwrap();
    let (blobs, descriptor) = layout(folder.path(), &[20 * MIB]);
    let harness = Harness::new(Some(&descriptor)).await;
    let wanted = [3, 4, 5, 40, 79];
    let mut child = harness.wanting(&hello(&descriptor, 0, 1), &some(&descriptor, wanted)).await;
    let blocks = child.blocks(&descriptor, wanted.len()).await;
    check(&blobs, &descriptor, &blocks);
    assert!(blocks.iter().map(|(block, _)| block.0).eq(wanted));
    assert_eq!(child.next().await.unwrap().0.kind, Kind::Waiting);
    assert_eq!(harness.counters.bytes.load(Ordering::Relaxed), 5 * 256 * 1024);
}

/// Catches a feed that goes on sending, or cuts a frame, after `Stop`.
#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_at_a_frame_boundary() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(folder.path(), &[64 * MIB]);
    let harness = Harness::new(Some(&descriptor)).await;
    let mut child = harness.wanting(&hello(&descriptor, 0, 1), &everything(&descriptor)).await;
    child.blocks(&descriptor, 1).await;
    child.0.write_all(&Frame::new(Kind::Stop, 0, 0, 0).header()).await.unwrap();
    let mut more = 0;
    loop {
        let mut header = [0; HEADER_BYTES];
        // The end must come between frames; within one, reading the rest fails.
        match timeout(DEADLINE, child.0.read(&mut header[..1])).await.unwrap().unwrap_or(0) {
            0 => break,
            _ => child.0.read_exact(&mut header[1..]).await.unwrap(),
        };
        let mut payload = vec![0; Frame::parse(&header).unwrap().len as usize];
        child.0.read_exact(&mut payload).await.unwrap();
        more += 1;
    }
    assert!(more < 255, "everything was sent in spite of Stop");
}

/// Catches a stranger, another node of the cluster, or an old ticket that is served.
#[tokio::test(flavor = "multi_thread")]
async fn only_this_node_with_a_valid_ticket_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(folder.path(), &[1000]);
    let harness = Harness::new(Some(&descriptor)).await;
    let good = hello(&descriptor, 0, 1);
    let other = NodeId([8; 16]);
    let forged = node_key().issue(good.ticket.claims());
    let bad = [
        Hello { ticket: forged, ..good },
        Hello { node: other, ticket: ticket(other, function(), &descriptor), ..good },
        Hello { function: FunctionId::new("acme", "other"), ..good },
    ];
    for hello in bad {
        assert_eq!(harness.child(&hello).await.refusal().await.0, Refusal::Ticket);
    }
}

/// Catches a feed that hangs on, crashes at or answers with image bytes to what is not the protocol.
#[tokio::test(flavor = "multi_thread")]
async fn garbage_and_truncated_hellos_end_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(folder.path(), &[1000]);
    let harness = Harness::new(Some(&descriptor)).await;
    let good = hello(&descriptor, 0, 1).encode();
    let mut wrong_magic = good.clone();
    wrong_magic[HEADER_BYTES] ^= 1;
    let block = Frame::new(Kind::Block, 1, 0, 0).with_payload(&[0]);
    let cases =
        [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), good[..good.len() - 1].to_vec(), wrong_magic, block, vec![]];
    for bytes in cases {
        let mut stream = TcpStream::connect(harness.address).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // Ignored: a reset is an end as well.
        let _ = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("the feed keeps the connection");
        let answer = &rest[Challenge { node: NODE, nonce: [0; 32] }.encode().len()..];
        assert!(answer.is_empty() || answer[0] == Kind::Refused as u8);
    }
    let mut child = harness.wanting(&hello(&descriptor, 0, 1), &everything(&descriptor)).await;
    child.blocks(&descriptor, 1).await;
    child.0.write_all(&encode_want(&[1])).await.unwrap();
    assert_eq!(child.refusal().await.0, Refusal::Protocol, "a second Want");
}

/// Catches a root that is left alone while its descriptor is on its way, and one that waits for ever after it came.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_descriptor_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(folder.path(), &[1000]);
    let harness = Harness::new(None).await;
    let mut child = harness.wanting(&hello(&descriptor, 0, 1), &everything(&descriptor)).await;
    for _ in 0..3 {
        assert_eq!(child.next().await.unwrap().0.kind, Kind::Waiting);
    }
    harness.descriptors.send_modify(|all| drop(all.insert(function(), descriptor.clone())));
    child.blocks(&descriptor, 1).await;
}

/// Catches a dead origin that makes the root look dead, or that is never tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_origin_is_waited_for() {
    let (listener, origin) = Registry::bind();
    let (blobs, descriptor) = image(&[3 * MIB], origin);
    let address = listener.local_addr().unwrap();
    drop(listener);
    let harness = Harness::new(Some(&descriptor)).await;
    let mut child = harness.wanting(&hello(&descriptor, 0, 1), &everything(&descriptor)).await;
    for _ in 0..10 {
        let (frame, _) = child.next().await.unwrap();
        assert_eq!((frame.kind, WaitingFor::from_frame(&frame)), (Kind::Waiting, WaitingFor::Origin));
    }
    let registry = Registry::serve(std::net::TcpListener::bind(address).unwrap(), &blobs, true, |_| Fault::None);
    let blocks = child.blocks(&descriptor, 12).await;
    check(&blobs, &descriptor, &blocks);
    assert_eq!(registry.address, address);
}

/// Catches a cut, a 503 or a passing wrong byte that ends the transfer, reaches the child, or fetches again what had arrived.
#[tokio::test(flavor = "multi_thread")]
async fn passing_faults_are_waited_out() {
    let (listener, origin) = Registry::bind();
    let (blobs, descriptor) = image(&[3 * MIB], origin);
    let registry = Registry::serve(listener, &blobs, true, |number| match number {
        0 => Fault::Status("503 Service Unavailable"),
        1 => Fault::Cut(MIB + 1),
        2 => Fault::Garbled,
        _ => Fault::None,
    });
    let harness = Harness::new(Some(&descriptor)).await;
    let mut child = harness.wanting(&hello(&descriptor, 0, 1), &everything(&descriptor)).await;
    let blocks = child.blocks(&descriptor, 12).await;
    check(&blobs, &descriptor, &blocks);
    assert_eq!(registry.requests.load(Ordering::SeqCst), 4);
    assert_eq!(harness.counters.retries.load(Ordering::Relaxed), 3);
    assert_eq!(harness.counters.wrong_blocks.load(Ordering::Relaxed), 1);
}

/// Catches wrong bytes that are forwarded, tried for ever, or kept from the controller.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_lies_is_accused() {
    let (listener, origin) = Registry::bind();
    let (blobs, descriptor) = image(&[MIB], origin);
    let registry = Registry::serve(listener, &blobs, true, |_| Fault::Garbled);
    let mut harness = Harness::new(Some(&descriptor)).await;
    let mut child = harness.wanting(&hello(&descriptor, 0, 1), &everything(&descriptor)).await;
    let (refusal, reason) = child.refusal().await;
    assert_eq!(refusal, Refusal::Other);
    assert!(reason.contains("wrong bytes"), "{reason}");
    assert_eq!(registry.requests.load(Ordering::SeqCst), 2, "once more, then never again");
    let report = timeout(DEADLINE, harness.reports.recv()).await.unwrap().unwrap();
    assert!(matches!(report, Input::OriginLied { stripe: Stripe(0), .. }), "{report:?}");
}

/// Catches a blob that does not exist being asked for again and again instead of being said.
#[tokio::test(flavor = "multi_thread")]
async fn what_will_not_pass_is_refused_with_its_reason() {
    let (listener, origin) = Registry::bind();
    let (_, descriptor) = image(&[MIB], origin);
    let _registry = Registry::serve(listener, &[], true, |_| Fault::None);
    let harness = Harness::new(Some(&descriptor)).await;
    let mut child = harness.wanting(&hello(&descriptor, 0, 1), &everything(&descriptor)).await;
    let (refusal, reason) = child.refusal().await;
    assert_eq!(refusal, Refusal::Other);
    assert!(reason.contains("does not exist"), "{reason}");
}

/// Catches an origin without ranges that is read once per chunk, or whose skipped bytes end up in a block.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_ranges_is_read_once() {
    let (listener, origin) = Registry::bind();
    let Origin::Registry { base_url, repository, .. } = origin else { unreachable!() };
    let (blobs, descriptor) = image(&[13 * MIB, 1], Origin::Registry { base_url, repository, ranges: false });
    let registry = Registry::serve(listener, &blobs, false, |_| Fault::None);
    let harness = Harness::new(Some(&descriptor)).await;
    let expected: Vec<_> = descriptor.geometry().stripe_blocks(Stripe(1), 2).collect();
    let mut child = harness.wanting(&hello(&descriptor, 1, 2), &everything(&descriptor)).await;
    let blocks = child.blocks(&descriptor, expected.len()).await;
    check(&blobs, &descriptor, &blocks);
    assert_eq!(registry.requests.load(Ordering::SeqCst), 1);
}
