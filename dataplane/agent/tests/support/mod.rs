//! Workers for tests that need a process of their own: stores, images and the control side's part, as a test plays it.

// Each test uses a part.
#![allow(dead_code)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use faasnet_agent::tuning::Tuning;
use faasnet_agent::worker::mailbox::{
    Assignment, FunctionReport, ReportState, StripePlan, Target, WorkerCommand, WorkerEvent,
};
use faasnet_agent::worker::{self, WorkerConfig, WorkerHandle};
use faasnet_agent::{Engine, Trust, WorkerLink};
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{
    BLOCK_BYTES, BlockDigest, BlockIndex, Claims, Descriptor, Entry, FunctionId, ImageId, KeySet, NodeId, Origin,
    SigningKey, Stripe, TenantId, Ticket, TicketKey,
};
use faasnet_relay::wire::{self, Challenge, Frame, HEADER_BYTES, Hello, Kind, UNSIGNED};
use faasnet_store::Store;
use tempfile::TempDir;
use tokio::sync::watch;

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// One function with an image of its own bytes.
pub(crate) struct Image {
    pub(crate) function: FunctionId,
    pub(crate) descriptor: Arc<Descriptor>,
    bytes: Vec<u8>,
}

impl Image {
    /// `len` bytes that differ everywhere and between `seed`s.
    pub(crate) fn new(seed: usize, len: usize) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ (seed as u64 + 1) << 32;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let bytes: Vec<u8> = (0..len).map(|_| next()).collect();
        let digest = |n: usize| format!("sha256:{n:064x}");
        let descriptor = Descriptor::new(DescriptorParts {
            block_bytes: BLOCK_BYTES,
            reference: format!("test{seed}"),
            origin: Origin::Layout { path: "/nowhere".into() },
            manifest_media_type: "m".into(),
            manifest_digest: digest(999),
            manifest: b"{}".to_vec(),
            entries: vec![Entry { digest: digest(seed), media_type: "m".into(), len: len as u64 }],
            blocks: bytes.chunks(BLOCK_BYTES as usize).map(BlockDigest::of).collect(),
        });
        let function = FunctionId::new("t", &format!("f{seed}"));
        Self { function, descriptor: Arc::new(descriptor.unwrap()), bytes }
    }

    /// The same image as that of another function.
    pub(crate) fn of(self, function: FunctionId) -> Self {
        Self { function, ..self }
    }

    /// The bytes of one block.
    pub(crate) fn block(&self, block: usize) -> &[u8] {
        self.bytes.chunks(BLOCK_BYTES as usize).nth(block).unwrap()
    }
}

/// Workers with a store.
pub(crate) struct Node {
    pub(crate) worker: WorkerHandle,
    pub(crate) store: Store,
    _folder: TempDir,
}

impl Node {
    pub(crate) async fn start(engine: Engine, buffers: usize, tuning: Tuning) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), None).unwrap();
        let config = WorkerConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            node: store.node_id(),
            trust: trust(),
            feed: "127.0.0.1:1".parse().unwrap(),
            engine,
            // A busy machine must not look like a silent parent.
            patience: faasnet_relay::plan::Patience { silence: Duration::from_secs(2), ..Default::default() },
            buffers,
            socket_options: Default::default(),
            tuning,
            verify: Default::default(),
            store_write: Default::default(),
            forward_only: false,
        };
        Self { worker: worker::start(config).await.unwrap(), store, _folder: folder }
    }

    pub(crate) fn target(&self) -> Target {
        Target::Node(self.store.node_id(), self.worker.data_address())
    }

    /// Assigns the function; `whole`: its image is in the store already.
    pub(crate) fn assign(&self, image: &Image, upstream: Target, children: &[NodeId], whole: bool) {
        let stored = self.store.open_image("t", Arc::clone(&image.descriptor)).unwrap();
        for block in (0..image.descriptor.geometry().blocks()).map(BlockIndex).filter(|_| whole) {
            let place = image.descriptor.geometry().place(block).unwrap();
            let bytes = &image.bytes[place.entry_offset as usize..][..place.len as usize];
            stored.file().write_all_at(bytes, place.file_offset).unwrap();
            stored.mark(block).unwrap();
        }
        let (node, id) = (self.store.node_id(), image.descriptor.id());
        let assignment = Assignment {
            function: image.function,
            image: id,
            term: 1,
            epoch: 1,
            ticket: ticket(node, image.function, id),
            stripes: vec![StripePlan { upstream, fallbacks: Vec::new(), children: children.to_vec() }],
            stored: Some(stored),
        };
        self.worker.send(WorkerCommand::Assign(Box::new(assignment))).unwrap();
    }

    /// Reports until `done` says so.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&[FunctionReport]) -> bool) -> Vec<FunctionReport> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
            self.worker.send(WorkerCommand::Report).unwrap();
            let event = tokio::time::timeout(DEADLINE, self.worker.next_event()).await.expect(what).expect(what);
            if let WorkerEvent::Reported(reports) = event {
                if done(&reports) {
                    return reports;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    /// Waits until all of `images` are complete, and compares every byte.
    pub(crate) async fn complete(&mut self, images: &[Image]) -> Vec<FunctionReport> {
        let complete = |reports: &[FunctionReport]| {
            reports.len() == images.len() && reports.iter().all(|report| report.state == ReportState::Complete)
        };
        let reports = self.until("complete", complete).await;
        for image in images {
            let stored = self.store.open_image("t", Arc::clone(&image.descriptor)).unwrap();
            for block in (0..image.descriptor.geometry().blocks()).map(BlockIndex) {
                let place = image.descriptor.geometry().place(block).unwrap();
                let expected = &image.bytes[place.entry_offset as usize..][..place.len as usize];
                assert!(stored.read_block(block).unwrap() == expected, "block {} of {:?}", block.0, image.function);
            }
        }
        reports
    }
}

/// A child that speaks the wire by hand, and reads only when it is told to.
pub(crate) struct Stranger {
    pub(crate) stream: TcpStream,
}

impl Stranger {
    /// Connects and asks for every block of `image`.
    pub(crate) fn wanting_all(node: &Node, image: &Image, id: NodeId) -> Self {
        let stream = TcpStream::connect(node.worker.data_address()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut stranger = Self { stream };
        let (frame, payload) = stranger.read().unwrap();
        assert_eq!(frame.kind, Kind::Challenge);
        let mut hello = Hello {
            function: image.function,
            image: image.descriptor.id(),
            node: id,
            term: 1,
            epoch: 1,
            ticket: ticket(id, image.function, image.descriptor.id()),
            address: "127.0.0.1:9".parse().unwrap(),
            stripe: Stripe(0),
            stripes: 1,
            wants_descriptor: false,
            proof: UNSIGNED,
        };
        hello.proof = key().sign(&hello.message(&Challenge::parse(&payload).unwrap()));
        stranger.stream.write_all(&hello.encode()).unwrap();
        loop {
            match stranger.read().unwrap().0.kind {
                Kind::Waiting => {}
                Kind::Welcome => break,
                other => panic!("greeted with {other:?}"),
            }
        }
        let words = image.descriptor.geometry().blocks().div_ceil(64) as usize;
        stranger.stream.write_all(&wire::encode_want(&vec![0xff; 8 * words])).unwrap();
        stranger
    }

    /// The next frame.
    pub(crate) fn read(&mut self) -> std::io::Result<(Frame, Vec<u8>)> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header)?;
        let frame = Frame::parse(&header).unwrap();
        let mut payload = vec![0; frame.len as usize];
        self.stream.read_exact(&mut payload)?;
        Ok((frame, payload))
    }
}

/// Of the controller and of every node.
fn key() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

fn trust() -> Trust {
    let keys = KeySet::new([TicketKey { public: key().public(), valid_until: u64::MAX }]);
    Trust::new(Arc::new(key()), watch::channel(keys).1)
}

fn ticket(node: NodeId, function: FunctionId, image: ImageId) -> Ticket {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    key().issue(Claims {
        expires: now + 3_600,
        key: key().public().id(),
        node,
        node_key: key().public(),
        tenant: TenantId::new("t"),
        function,
        image,
    })
}

/// CPU time of this process so far; needs no descriptor.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// An upstream that refuses at once.
pub(crate) fn nobody() -> Target {
    Target::Node(NodeId([0xee; 16]), "127.0.0.1:1".parse().unwrap())
}

/// This process's own memory without files, in bytes.
pub(crate) fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() << 10
}
