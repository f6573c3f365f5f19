//! Writes valid inputs for the fuzz targets into `DIR/frames` and `DIR/descriptor`, so that fuzzing starts behind the first checks.

use std::path::Path;
use std::{env, fs, io};

use faasnet_api::Ticket;
use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::ticket::TICKET_BYTES;
use faasnet_api::{
    BLOCK_BYTES, BlockDigest, BlockIndex, Descriptor, Entry, FunctionId, ImageId, NodeId, Origin, Stripe,
};
use faasnet_relay::wire::{self, Challenge, Frame, Hello, Kind, NONCE_BYTES, Refusal, WaitingFor};

fn main() -> io::Result<()> {
    let dir = env::args().nth(1).ok_or_else(|| io::Error::other("usage: seeds DIR"))?;
    write(&Path::new(&dir).join("descriptor"), &[descriptor()])?;
    write(&Path::new(&dir).join("frames"), &frames())
}

fn write(dir: &Path, seeds: &[Vec<u8>]) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    seeds.iter().enumerate().try_for_each(|(n, seed)| fs::write(dir.join(format!("seed-{n}")), seed))
}

fn descriptor() -> Vec<u8> {
    let entry = |n: u8, len| Entry { digest: format!("sha256:{n:064x}"), media_type: "application/x".into(), len };
    let entries = vec![entry(1, 10), entry(2, 0), entry(3, u64::from(BLOCK_BYTES) + 1)];
    let parts = DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: "example/app:1".into(),
        origin: Origin::Registry { base_url: "http://127.0.0.1:5000".into(), repository: "app".into(), ranges: true },
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: format!("sha256:{:064x}", 9),
        manifest: b"{}".to_vec(),
        entries,
        blocks: vec![BlockDigest::of(b"block"); 3],
    };
    Descriptor::new(parts).map(|descriptor| descriptor.encode()).unwrap_or_default()
}

fn frames() -> Vec<Vec<u8>> {
    let hello = Hello {
        function: FunctionId([1; 16]),
        image: ImageId([2; 32]),
        node: NodeId([3; 16]),
        term: 1,
        epoch: 2,
        ticket: Ticket::from_bytes([4; TICKET_BYTES]),
        address: ([127, 0, 0, 1], 7410).into(),
        stripe: Stripe(0),
        stripes: 2,
        wants_descriptor: true,
        proof: [6; 64],
    };
    let mut session = hello.encode();
    session.extend(wire::encode_want(&[0xff; 5]));
    session.extend(Frame::new(Kind::Request, 0, 0, u32::from(BlockIndex(0).0 == 1)).header());
    session.extend(Frame::new(Kind::Block, 1, 0, 0).with_payload(&[1]));
    let path = wire::encode_path(Kind::Welcome, &[NodeId([5; 16])]);
    let busy = wire::encode_busy([([127, 0, 0, 1], 1).into()]);
    let waiting = wire::encode_waiting(WaitingFor::Origin).to_vec();
    let challenge = Challenge { node: NodeId([5; 16]), nonce: [7; NONCE_BYTES] }.encode();
    vec![session, challenge, path, busy, waiting, Refusal::Cycle.encode("no"), wire::encode_descriptor(&descriptor())]
}
