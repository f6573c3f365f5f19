//! Workers for tests that need a process of their own: stores, images and the control side's part, as a test plays it.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use faasnet_agent::tuning::Tuning;
use faasnet_agent::worker::mailbox::{
    Assignment, FunctionReport, ReportState, StripePlan, Target, WorkerCommand, WorkerEvent,
};
use faasnet_agent::worker::{self, WorkerConfig, WorkerHandle};
use faasnet_agent::{Engine, WorkerLink};
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{
    BLOCK_BYTES, BlockDigest, BlockIndex, ClusterSecret, Descriptor, Entry, FunctionId, NodeId, Origin, Ticket,
};
use faasnet_store::Store;
use tempfile::TempDir;

pub const DEADLINE: Duration = Duration::from_secs(30);
const SECRET: &[u8] = b"a secret of the tests";

/// One function with an image of its own bytes.
pub struct Image {
    pub function: FunctionId,
    pub descriptor: Arc<Descriptor>,
    bytes: Vec<u8>,
}

impl Image {
    /// `len` bytes that differ everywhere and between `seed`s.
    pub fn new(seed: usize, len: usize) -> Self {
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
}

/// Workers with a store.
pub struct Node {
    pub worker: WorkerHandle,
    pub store: Store,
    _folder: TempDir,
}

impl Node {
    pub async fn start(engine: Engine, buffers: usize, tuning: Tuning) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Store::open(folder.path(), None).unwrap();
        let config = WorkerConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            node: store.node_id(),
            secret: ClusterSecret::new(SECRET),
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

    pub fn target(&self) -> Target {
        Target::Node(self.store.node_id(), self.worker.data_address())
    }

    /// Assigns the function; `whole`: its image is in the store already.
    pub fn assign(&self, image: &Image, upstream: Target, children: &[NodeId], whole: bool) {
        let stored = self.store.open_image("t", Arc::clone(&image.descriptor)).unwrap();
        for block in (0..image.descriptor.geometry().blocks()).map(BlockIndex).filter(|_| whole) {
            let place = image.descriptor.geometry().place(block).unwrap();
            let bytes = &image.bytes[place.entry_offset as usize..][..place.len as usize];
            stored.file().write_all_at(bytes, place.file_offset).unwrap();
            stored.mark(block).unwrap();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let (node, id) = (self.store.node_id(), image.descriptor.id());
        let assignment = Assignment {
            function: image.function,
            image: id,
            term: 1,
            epoch: 1,
            ticket: Ticket::issue(&ClusterSecret::new(SECRET), node, image.function, id, now),
            stripes: vec![StripePlan { upstream, fallbacks: Vec::new(), children: children.to_vec() }],
            stored: Some(stored),
        };
        self.worker.send(WorkerCommand::Assign(Box::new(assignment))).unwrap();
    }

    /// Reports until `done` says so.
    pub async fn until(&mut self, what: &str, done: impl Fn(&[FunctionReport]) -> bool) -> Vec<FunctionReport> {
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
    pub async fn complete(&mut self, images: &[Image]) -> Vec<FunctionReport> {
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

/// An upstream that refuses at once.
pub fn nobody() -> Target {
    Target::Node(NodeId([0xee; 16]), "127.0.0.1:1".parse().unwrap())
}

/// This process's own memory without files, in bytes.
#[allow(dead_code)]
pub fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() << 10
}
