//! The mirror over real sockets and a real store, with a view and a control side of the tests' own.

use std::io;
use std::os::unix::fs::FileExt;

use faasnet_api::{BLOCK_BYTES, BlockIndex, Descriptor, FunctionId, Origin};
use faasnet_store::{Store, StoredImage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;

mod choice;
mod early;
mod limits;

use super::*;
use crate::arriving::Arrivals;
use crate::table::{Phase, Row, Version};
use crate::test_support::{DEADLINE, block_of, image, report};

const BLOCK: usize = BLOCK_BYTES as usize;
/// An entry of several chunks, an empty one, one of a part of a block.
const LENGTHS: [usize; 3] = [40 * BLOCK + 17, 0, 1000];

const PATIENCE: Duration = Duration::from_millis(400);
/// Instead of [`LIMITS`].
const SMALL: Limits = Limits { connections: 6, head: DEADLINE, stalled: PATIENCE, held_up: DEADLINE };

struct World {
    blobs: Vec<Vec<u8>>,
    stored: Arc<StoredImage>,
    view: watch::Sender<Arc<View>>,
    inputs: mpsc::Receiver<Input>,
    counters: Arc<Counters>,
    arrivals: Arrivals,
    address: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<()>,
    /// Dropped last.
    folder: tempfile::TempDir,
}

fn function() -> FunctionId {
    FunctionId::new("t", "f")
}

fn row(stored: &Arc<StoredImage>, state: ReportState) -> Row {
    let image = stored.descriptor().id();
    Row {
        tenant: "t".into(),
        name: "f".into(),
        image,
        version: Version { term: 1, epoch: 1 },
        phase: Phase::Running,
        stored: Some(stored.clone()),
        report: Some(report(function(), image, 1, state)),
        moved: false,
        uses: Arc::default(),
        arrival: None,
    }
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_on(folder, &loopback(), SMALL).await
    }

    async fn start_with(limits: Limits) -> Self {
        Self::start_on(tempfile::tempdir().unwrap(), &loopback(), limits).await
    }

    async fn start_on(folder: tempfile::TempDir, listen: &MirrorListen, limits: Limits) -> Self {
        let (blobs, descriptor) = image(&LENGTHS, registry());
        let descriptor = renamed(&descriptor, "r.example/app:1");
        let store = Store::open(&folder.path().join("store"), None).unwrap();
        let stored = store.open_image("t", Arc::new(descriptor)).unwrap();
        let (view, view_reader) = watch::channel(Arc::new(View::default()));
        let (sender, inputs) = mpsc::channel(16);
        let (counters, stop) = (Arc::<Counters>::default(), CancellationToken::new());
        let door = Door::bind(listen).await.unwrap();
        let address = door.address().unwrap().unwrap_or(([0; 4], 0).into());
        let arrivals = Arrivals::default();
        let misses = Misses { arrivals: arrivals.clone(), ..Misses::default() };
        let catalogue = Catalogue { view: view_reader, inputs: sender, misses };
        let mirror = Mirror { catalogue, stalled: Arc::default(), counters: counters.clone(), limits };
        let running = tokio::spawn(door.serve(mirror, stop.clone()));
        let world = Self { blobs, stored, view, inputs, counters, arrivals, address, stop, running, folder };
        world.show(ReportState::Fetching);
        world
    }

    /// What the control side shows while the image arrives.
    fn show_waiting(&self, upstream_waits: bool) {
        let mut row = row(&self.stored, ReportState::Fetching);
        row.report.as_mut().unwrap().upstream_waits = upstream_waits;
        self.show_row(row);
    }

    /// What the control side shows of the image.
    fn show(&self, state: ReportState) {
        self.show_row(row(&self.stored, state));
    }

    fn show_row(&self, row: Row) {
        self.view.send_replace(Arc::new(View { rows: [(function(), row)].into(), ..View::default() }));
    }

    /// A block arrives, as the worker has it arrive.
    fn arrive(&self, block: u32) {
        arrive(&self.stored, &self.blobs, block);
    }

    fn arrive_all(&self) {
        (0..self.stored.geometry().blocks()).for_each(|block| self.arrive(block));
        self.show(ReportState::Complete);
    }

    fn blob(&self, entry: usize) -> String {
        format!("/v2/app/blobs/{}?ns=r.example", self.stored.descriptor().entries()[entry].digest)
    }

    async fn client(&self) -> Client<TcpStream> {
        Client { stream: TcpStream::connect(self.address).await.unwrap() }
    }

    /// One answer on a connection of its own.
    async fn get(&self, path: &str, headers: &str) -> Answer {
        self.client().await.get(path, headers).await
    }
}

fn loopback() -> MirrorListen {
    MirrorListen::Tcp("127.0.0.1:0".parse().unwrap())
}

fn registry() -> Origin {
    Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true }
}

fn arrive(stored: &StoredImage, blobs: &[Vec<u8>], block: u32) {
    let place = stored.geometry().place(BlockIndex(block)).unwrap();
    let bytes = block_of(blobs, stored.geometry(), BlockIndex(block));
    stored.file().write_all_at(bytes, place.file_offset).unwrap();
    stored.mark(BlockIndex(block)).unwrap();
}

/// The same image under another reference.
fn renamed(descriptor: &Descriptor, reference: &str) -> Descriptor {
    let blocks = (0..descriptor.geometry().blocks()).map(|block| *descriptor.block_digest(BlockIndex(block)).unwrap());
    Descriptor::new(faasnet_api::descriptor::DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: reference.into(),
        origin: descriptor.origin().clone(),
        manifest_media_type: descriptor.manifest_media_type().into(),
        manifest_digest: descriptor.manifest_digest().into(),
        manifest: descriptor.manifest().to_vec(),
        entries: descriptor.entries().to_vec(),
        blocks: blocks.collect(),
    })
    .unwrap()
}

struct Client<S> {
    stream: S,
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")))?;
        line.split_once(": ").map(|(_, value)| value)
    }
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Client<S> {
    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn head(&mut self) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = tokio::time::timeout(DEADLINE, self.stream.read_u8()).await.expect("no answer");
            head.push(byte.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&head))));
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head, body: Vec::new() }
    }

    async fn answer(&mut self) -> Answer {
        let mut answer = self.head().await;
        answer.body = vec![0; answer.header("content-length").unwrap().parse().unwrap()];
        tokio::time::timeout(DEADLINE, self.stream.read_exact(&mut answer.body)).await.unwrap().unwrap();
        answer
    }

    async fn get(&mut self, path: &str, headers: &str) -> Answer {
        self.say(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n")).await;
        self.answer().await
    }

    async fn ended(&mut self) -> io::Result<usize> {
        tokio::time::timeout(DEADLINE, self.stream.read(&mut [0; 64])).await.expect("the connection stays open")
    }
}

/// Catches a wrong byte, length or header in any form of asking for a blob or a manifest, and a connection that ends for no reason.
#[tokio::test]
async fn everything_is_answered_on_one_connection() {
    let world = World::start().await;
    world.arrive_all();
    let mut client = world.client().await;
    assert_eq!(client.get("/v2/", "").await.body, b"{}");
    let descriptor = world.stored.descriptor().clone();
    let digest = descriptor.manifest_digest();
    let manifests = [
        "/v2/app/manifests/1?ns=r.example".to_owned(),
        "/v2/r.example/app/manifests/1".to_owned(),
        format!("/v2/app/manifests/{digest}?ns=r.example"),
    ];
    for path in &manifests {
        let answer = client.get(path, "").await;
        assert_eq!((answer.status, &answer.body[..]), (200, descriptor.manifest()));
        assert_eq!(answer.header("content-type"), Some(descriptor.manifest_media_type()));
        assert_eq!(answer.header("docker-content-digest"), Some(digest));
    }
    for (entry, blob) in world.blobs.iter().enumerate() {
        let (path, tag) = (world.blob(entry), format!("\"{}\"", descriptor.entries()[entry].digest));
        let answer = client.get(&path, "").await;
        assert!(answer.status == 200 && answer.body == *blob);
        assert_eq!((answer.header("etag"), answer.header("accept-ranges")), (Some(&*tag), Some("bytes")));
    }
    let (path, blob) = (world.blob(0), &world.blobs[0]);
    let len = blob.len();
    for (range, wanted) in [
        ("bytes=0-0", 0..1),
        ("bytes=1-", 1..len),
        ("bytes=-17", len - 17..len),
        ("bytes=262143-262144", 262_143..262_145),
        ("bytes=5000000-9999999999", 5_000_000..len),
    ] {
        let answer = client.get(&path, &format!("Range: {range}\r\n")).await;
        assert!(answer.status == 206 && answer.body == blob[wanted.clone()], "{range}");
        let shown = format!("bytes {}-{}/{len}", wanted.start, wanted.end - 1);
        assert_eq!(answer.header("content-range"), Some(&*shown));
    }
    assert_eq!(client.get(&path, &format!("Range: bytes={len}-\r\n")).await.status, 416);
    let tag = descriptor.entries()[0].digest.clone();
    let fresh = client.get(&path, &format!("Range: bytes=0-9\r\nIf-Range: \"{tag}\"\r\n")).await;
    assert_eq!((fresh.status, fresh.body.len()), (206, 10));
    let stale = client.get(&path, "Range: bytes=0-9\r\nIf-Range: \"sha256:0\"\r\n").await;
    assert_eq!((stale.status, stale.body.len()), (200, len));
    for path in [&path, &manifests[0]] {
        client.say(&format!("HEAD {path} HTTP/1.1\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.status == 200 && head.header("content-length") != Some("0"), "{}", head.head);
    }
    // Two at once, answered in order.
    client.say("GET /v2/ HTTP/1.1\r\n\r\nGET /v2/x HTTP/1.1\r\nConnection: close\r\n\r\n").await;
    assert_eq!((client.answer().await.status, client.answer().await.status), (200, 404));
    assert_eq!(client.ended().await.unwrap(), 0);
}

/// Catches bytes that leave before their block is marked, a response that ends before the last block has come, and a wait about which
/// nobody upstream hears.
#[tokio::test]
async fn a_blob_is_served_while_it_arrives() {
    let mut world = World::start().await;
    let blob = world.blobs[0].clone();
    world.arrive(0);
    world.arrive(2);
    let mut client = world.client().await;
    client.say(&format!("GET {} HTTP/1.1\r\n\r\n", world.blob(0))).await;
    assert_eq!(client.head().await.header("content-length"), Some(&*blob.len().to_string()));
    let mut bytes = vec![0; BLOCK];
    client.stream.read_exact(&mut bytes).await.unwrap();
    assert!(bytes == blob[..BLOCK]);
    let Some(Input::Hurry { blocks, .. }) = world.inputs.recv().await else { panic!("nobody was told") };
    assert_eq!(blocks, [1, 3, 4, 5].map(BlockIndex), "the next ones that are missing");
    let early = tokio::time::timeout(Duration::from_millis(100), client.stream.read_u8()).await;
    assert!(early.is_err(), "block 1 is not here, and what comes after it is not its turn");
    (0..41).rev().for_each(|block| world.arrive(block));
    let mut rest = vec![0; blob.len() - BLOCK];
    tokio::time::timeout(DEADLINE, client.stream.read_exact(&mut rest)).await.unwrap().unwrap();
    assert!(rest == blob[BLOCK..]);
    assert_eq!(world.counters.bytes.load(Ordering::Relaxed), blob.len() as u64);
}

/// Catches a response that hangs when nothing comes any more, one that is cut while an upstream says that it waits, and a runtime that is
/// kept waiting again when it resumes.
#[tokio::test]
async fn a_response_is_cut_only_when_nobody_waits() {
    let world = World::start().await;
    world.arrive(0);
    world.show_waiting(true);
    let mut client = world.client().await;
    client.say(&format!("GET {} HTTP/1.1\r\n\r\n", world.blob(0))).await;
    client.head().await;
    client.stream.read_exact(&mut vec![0; BLOCK]).await.unwrap();
    let waited = tokio::time::timeout(PATIENCE * 2, client.stream.read(&mut [0])).await;
    assert!(waited.is_err(), "cut though an upstream waits");
    world.show_waiting(false);
    let begun = tokio::time::Instant::now();
    let end = tokio::time::timeout(DEADLINE, client.stream.read(&mut [0])).await;
    assert_eq!(end.expect("it hangs").unwrap(), 0);
    assert!(begun.elapsed() >= PATIENCE / 2, "cut after {:?}", begun.elapsed());
    let resumed = format!("Range: bytes={BLOCK}-\r\n");
    assert_eq!(world.get(&world.blob(0), &resumed).await.status, 404);
    assert_eq!(world.counters.cut.load(Ordering::Relaxed), 1);
    // What is here is served; and when something has come it is worth waiting again.
    assert_eq!(world.get(&world.blob(0), "Range: bytes=0-9\r\n").await.status, 206);
    world.arrive(5);
    let mut again = world.client().await;
    again.say(&format!("GET {} HTTP/1.1\r\n{resumed}\r\n", world.blob(0))).await;
    let early = tokio::time::timeout(PATIENCE / 2, again.stream.read_u8()).await;
    assert!(early.is_err(), "nothing is promised before its first byte is here");
    // The function is taken away, or its image fails: nothing will come, and the runtime can still go to the registry.
    world.show(ReportState::Failed("disk full".into()));
    assert_eq!(again.answer().await.status, 404);
    assert_eq!(world.get(&world.blob(0), &resumed).await.status, 404);
}

/// Catches a byte that the disk has changed and that leaves all the same, and damage about which nobody hears.
#[tokio::test]
async fn damage_on_the_disk_is_not_passed_on() {
    let mut world = World::start().await;
    world.arrive_all();
    let place = world.stored.geometry().place(BlockIndex(7)).unwrap();
    world.stored.file().write_all_at(b"damaged", place.file_offset + 1000).unwrap();
    let blob = world.blobs[0].clone();
    let mut client = world.client().await;
    client.say(&format!("GET {} HTTP/1.1\r\n\r\n", world.blob(0))).await;
    client.head().await;
    let mut got = Vec::new();
    tokio::time::timeout(DEADLINE, client.stream.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got.len() < 8 * BLOCK && blob.starts_with(&got), "{} bytes", got.len());
    let Some(Input::Damaged { reason, .. }) = world.inputs.recv().await else { panic!("nobody was told") };
    assert!(reason.contains("block 7 "), "{reason}");
    assert!(!world.stored.present().contains(BlockIndex(7)));
    // The runtime resumes: what is gone will not come from here.
    assert_eq!(world.get(&world.blob(0), &format!("Range: bytes={}-\r\n", 7 * BLOCK)).await.status, 404);
    assert_eq!(world.get(&world.blob(2), "").await.body, world.blobs[2]);
}

/// Catches an image of one registry or repository that is given out under the name of another, and a controller that is not asked, or whose
/// answer does not count.
#[tokio::test]
async fn unknown_images_are_asked_for() {
    let mut world = World::start().await;
    world.arrive_all();
    let digest = world.stored.descriptor().entries()[2].digest.clone();
    for name in ["/v2/app/blobs/D?ns=other.example", "/v2/app2/blobs/D?ns=r.example", "/v2/app/blobs/D"] {
        assert_eq!(world.get(&name.replace('D', &digest), "").await.status, 404, "{name}");
    }
    let mut client = world.client().await;
    client.say("GET /v2/app/manifests/2?ns=r.example HTTP/1.1\r\n\r\n").await;
    let Some(Input::Image { wish, answer }) = world.inputs.recv().await else { panic!("nobody was asked") };
    assert_eq!((&*wish.reference, wish.register), ("r.example/app:2", false));
    answer.send(Err("no function has this image".into())).unwrap();
    let refused = client.answer().await;
    assert_eq!(refused.status, 404);
    assert!(String::from_utf8_lossy(&refused.body).contains("MANIFEST_UNKNOWN"));
    // The controller is away: who would answer drops the question.
    client.say("GET /v2/app/manifests/2?ns=r.example HTTP/1.1\r\n\r\n").await;
    drop(world.inputs.recv().await);
    assert_eq!(client.answer().await.status, 404);
    // A join: the manifest is answered as soon as the descriptor is here, the blobs may come later.
    world.view.send_replace(Arc::default());
    client.say("GET /v2/app/manifests/1?ns=r.example HTTP/1.1\r\n\r\n").await;
    let Some(Input::Image { answer, .. }) = world.inputs.recv().await else { panic!("nobody was asked") };
    answer.send(Ok(function())).unwrap();
    world.show_row(Row { stored: None, ..row(&world.stored, ReportState::Waiting) });
    world.show(ReportState::Fetching);
    assert_eq!(client.answer().await.status, 200);
    let uses = world.view.borrow().rows[&function()].uses.load(Ordering::Relaxed);
    assert!(uses > 0, "a read by the runtime is a use");
}

/// Catches rubbish that stops the mirror or that is not told what is wrong, and a panic.
#[tokio::test]
async fn hostile_clients_are_answered_and_left() {
    let world = World::start().await;
    world.arrive_all();
    for rubbish in [
        "\u{16}\u{3}\u{1}\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello".into(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(20_000)),
        "GET\r\n\r\n".into(),
    ] {
        let mut client = world.client().await;
        // Ignored: it may be cut off in the middle of what it says.
        let _ = client.stream.write_all(rubbish.as_bytes()).await;
        let mut said = Vec::new();
        let _ = tokio::time::timeout(DEADLINE, client.stream.read_to_end(&mut said)).await.expect("it hangs");
        assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&said));
    }
    for path in ["/v2/../../etc/passwd", "/v2/a/%2e%2e/blobs/sha256:x", "/etc/passwd", "/v2/app/manifests/%00?ns=%00"] {
        assert_eq!(world.get(path, "").await.status, 404, "{path}");
    }
    let mut client = world.client().await;
    client.say("DELETE /v2/app/manifests/1?ns=r.example HTTP/1.1\r\n\r\n").await;
    let refused = client.answer().await;
    assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(client.get("/v2/", "").await.status, 200, "the connection goes on");
    world.stop.cancel();
    tokio::time::timeout(DEADLINE, world.running).await.expect("the mirror does not stop").unwrap();
}

/// Catches a unix socket that others may use, that is left behind, or that the next start does not replace.
#[tokio::test]
async fn a_unix_socket_serves_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/mirror.sock");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    // Of an agent that was killed.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let world = World::start_on(folder, &MirrorListen::Unix(path.clone()), SMALL).await;
    world.arrive_all();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let mut client = Client { stream: UnixStream::connect(&path).await.unwrap() };
    assert!(client.get(&world.blob(0), "").await.body == world.blobs[0]);
    let second = Door::bind(&MirrorListen::Unix(path.clone())).await;
    assert!(second.is_err(), "it belongs to somebody who lives");
    world.stop.cancel();
    tokio::time::timeout(DEADLINE, world.running).await.unwrap().unwrap();
    assert!(!path.exists());
    drop(world.folder);
}
