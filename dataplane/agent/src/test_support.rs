//! What the tests of several modules need: images in layout folders, tickets, waiting for a condition.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::{
    BLOCK_BYTES, BlockDigest, BlockIndex, CHUNK_BYTES, Claims, ClusterSecret, Descriptor, Entry, FunctionId, Geometry,
    ImageId, KeySet, NodeId, Origin, SigningKey, Stripe, TenantId, Ticket, TicketKey,
};
use faasnet_relay::wire::{Hello, UNSIGNED};
use tokio::sync::watch;

use crate::trust::Trust;
use crate::worker::mailbox::{FunctionReport, ReportState};

/// The longest that any test waits for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) const NODE: NodeId = NodeId([7; 16]);

pub(crate) fn secret() -> ClusterSecret {
    ClusterSecret::new(b"0123456789abcdef")
}

/// What signs tickets in these tests.
pub(crate) fn controller_key() -> SigningKey {
    SigningKey::from_seed([1; 32])
}

/// The key of every node in these tests.
pub(crate) fn node_key() -> SigningKey {
    SigningKey::from_seed([2; 32])
}

/// Of a node that knows the controller's key.
pub(crate) fn trust() -> Trust {
    let keys = KeySet::new([TicketKey { public: controller_key().public(), valid_until: u64::MAX }]);
    Trust::new(Arc::new(node_key()), watch::channel(keys).1)
}

/// A ticket of tenant "t" for `node`, an hour before its end.
pub(crate) fn ticket_for(node: NodeId, function: FunctionId, image: ImageId) -> Ticket {
    controller_key().issue(Claims { node, function, ..claims(image) })
}

/// What the ticket of [`NODE`] for `image` says.
pub(crate) fn claims(image: ImageId) -> Claims {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    Claims {
        expires: now + 3_600,
        key: controller_key().public().id(),
        node: NODE,
        node_key: node_key().public(),
        tenant: TenantId::new("t"),
        function: FunctionId::new("t", "f"),
        image,
    }
}

/// What [`NODE`] says to a parent, not signed yet.
pub(crate) fn hello(image: ImageId) -> Hello {
    Hello {
        function: FunctionId::new("t", "f"),
        image,
        node: NODE,
        term: 1,
        epoch: 1,
        ticket: controller_key().issue(claims(image)),
        address: "127.0.0.1:9".parse().unwrap(),
        stripe: Stripe(0),
        stripes: 1,
        wants_descriptor: false,
        proof: UNSIGNED,
    }
}

pub(crate) fn ticket(node: NodeId, function: FunctionId, descriptor: &Descriptor) -> Ticket {
    ticket_for(node, function, descriptor.id())
}

/// Bytes that differ everywhere and between seeds.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Blobs of the given lengths, and the descriptor of the image that they make.
pub(crate) fn image(lengths: &[usize], origin: Origin) -> (Vec<Vec<u8>>, Arc<Descriptor>) {
    let blobs: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(seed, &len)| noise(seed as u64, len)).collect();
    let geometry = Geometry::new(CHUNK_BYTES, BLOCK_BYTES, lengths.iter().map(|&len| len as u64)).unwrap();
    let blocks = (0..geometry.blocks()).map(|block| BlockDigest::of(block_of(&blobs, &geometry, BlockIndex(block))));
    // Nothing here checks sha256; a digest only has to look like one and name its blob.
    let entries =
        blobs.iter().map(|blob| Entry { digest: digest(blob), media_type: "m".into(), len: blob.len() as u64 });
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: "example/app:1".into(),
        origin,
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: format!("sha256:{}", "0".repeat(64)),
        manifest: b"{}".to_vec(),
        entries: entries.collect(),
        blocks: blocks.collect(),
    };
    (blobs, Arc::new(Descriptor::new(parts).unwrap()))
}

pub(crate) fn block_of<'a>(blobs: &'a [Vec<u8>], geometry: &Geometry, block: BlockIndex) -> &'a [u8] {
    let place = geometry.place(block).unwrap();
    &blobs[place.entry][place.entry_offset as usize..][..place.len as usize]
}

pub(crate) fn digest(blob: &[u8]) -> String {
    format!("sha256:{}", blake3::hash(blob))
}

/// An image whose blobs lie in a layout folder at `path`.
pub(crate) fn layout(path: &Path, lengths: &[usize]) -> (Vec<Vec<u8>>, Arc<Descriptor>) {
    let (blobs, descriptor) = image(lengths, Origin::Layout { path: path.to_str().unwrap().into() });
    let folder = path.join("blobs/sha256");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    for blob in &blobs {
        std::fs::write(folder.join(&digest(blob)["sha256:".len()..]), blob).unwrap();
    }
    (blobs, descriptor)
}

/// Waits until `holds` answers something; fails the test after [`DEADLINE`].
pub(crate) async fn eventually<T>(what: &str, mut holds: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(found) = holds() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What a worker might report: 11 bytes received and written directly, the rest zero.
pub(crate) fn report(function: FunctionId, image: ImageId, epoch: u64, state: ReportState) -> FunctionReport {
    FunctionReport {
        function,
        image,
        term: 1,
        epoch,
        state,
        bytes_present: 0,
        bytes_total: 0,
        bytes_received: 11,
        bytes_refetched: 0,
        bytes_live: 0,
        bytes_from_store: 0,
        bytes_copied: 0,
        bytes_direct: 11,
        bytes_by_mover: vec![("copy", 11)],
        mover: "copy",
        mover_reason: "a \"test\"".into(),
        stale_completions: 3,
        elapsed: Duration::from_millis(5),
        upstreams: Vec::new(),
        downstreams: Vec::new(),
        levels: vec![0],
        upstream_waits: false,
        edges_failed: 0,
        blocks_refused: 0,
        journal: Default::default(),
    }
}
