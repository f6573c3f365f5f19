//! Images that this node is registering, asked for while their bytes come.

use faasnet_origin::register::Outline;

use super::*;
use crate::arriving::{Arrival, Arriving};

/// One that is coming, as its reading tells of it.
struct Coming {
    arrival: Arrival,
    arriving: Arc<Arriving>,
    descriptor: Arc<Descriptor>,
    blobs: Vec<Vec<u8>>,
    data: fs::File,
}

fn coming(world: &World, name: &str) -> Coming {
    let (blobs, descriptor) = image(&[BLOCK + 5, 700, 3 * BLOCK], registry());
    let arrival = world.arrivals.enter(name).unwrap();
    assert!(world.arrivals.enter(name).is_none(), "it is read once");
    let arriving = arrival.arriving();
    let data = tempfile::tempfile().unwrap();
    let outline = Outline {
        geometry: (**descriptor.geometry()).clone(),
        entries: descriptor.entries().to_vec(),
        manifest: descriptor.manifest().to_vec(),
        manifest_media_type: descriptor.manifest_media_type().into(),
        manifest_digest: descriptor.manifest_digest().into(),
    };
    world.arrivals.outline(&arriving, outline, data.try_clone().unwrap());
    Coming { arrival, arriving, descriptor, blobs, data }
}

impl Coming {
    fn write(&self, entry: usize) {
        let at = self.descriptor.geometry().entry_range(entry).start;
        self.data.write_all_at(&self.blobs[entry], at).unwrap();
        self.arriving.came(self.blobs[entry].len() as u64);
    }

    /// All of the next entry had its sha256.
    fn right(&self, entry: usize) {
        let blocks = self.descriptor.geometry().entry_blocks(entry);
        let digests: Vec<_> = blocks.map(|block| *self.descriptor.block_digest(BlockIndex(block)).unwrap()).collect();
        self.arriving.right(&digests);
    }

    fn path(&self, entry: usize) -> String {
        format!("/v2/app/blobs/{}?ns=r.example", self.descriptor.entries()[entry].digest)
    }
}

/// Catches a runtime that waits for a whole image, a byte that leaves before its blob had its sha256, wrong bytes of a range, and a blob that
/// is promised and then does not come.
#[tokio::test]
async fn blobs_are_given_out_one_by_one() {
    let world = World::start().await;
    let coming = coming(&world, "r.example/app:new");
    let manifest = coming.descriptor.manifest_digest();
    for name in ["new", manifest] {
        let answer = world.get(&format!("/v2/app/manifests/{name}?ns=r.example"), "").await;
        assert_eq!((answer.status, &answer.body[..]), (200, coming.descriptor.manifest()), "{name}");
    }
    coming.write(0);
    let mut early = world.client().await;
    early.say(&format!("GET {} HTTP/1.1\r\n\r\n", coming.path(0))).await;
    let nothing = tokio::time::timeout(PATIENCE / 4, early.stream.read_u8()).await;
    assert!(nothing.is_err(), "its bytes are here, but nobody has said that they are right");
    coming.right(0);
    assert!(early.answer().await.body == coming.blobs[0]);
    let part = world.get(&coming.path(0), &format!("Range: bytes=9-{BLOCK}\r\n")).await;
    assert!(part.status == 206 && part.body == coming.blobs[0][9..=BLOCK]);
    coming.write(1);
    coming.right(1);
    assert!(world.get(&coming.path(1), "").await.body == coming.blobs[1]);
    // It comes, and turns out to be another's.
    let mut late = world.client().await;
    late.say(&format!("GET {} HTTP/1.1\r\n\r\n", coming.path(2))).await;
    coming.write(2);
    coming.arriving.fail("it has another sha256");
    assert_eq!(late.answer().await.status, 404);
    drop(coming.arrival);
    let path = format!("/v2/app/blobs/{}?ns=r.example", coming.descriptor.entries()[1].digest);
    assert_eq!(world.get(&path, "").await.status, 404, "what is not registered is forgotten");
}

/// Catches a response that waits for ever, and damage on the disk that is passed on.
#[tokio::test]
async fn what_does_not_come_or_is_damaged_is_not_given_out() {
    let world = World::start().await;
    let coming = coming(&world, "r.example/app:new");
    assert_eq!(world.get(&coming.path(0), "").await.status, 404, "nothing came of it for as long as is borne");
    coming.write(0);
    coming.right(0);
    coming.data.write_all_at(&[coming.blobs[0][7] ^ 1], coming.descriptor.geometry().entry_range(0).start + 7).unwrap();
    let mut client = world.client().await;
    client.say(&format!("GET {} HTTP/1.1\r\n\r\n", coming.path(0))).await;
    assert_eq!(client.head().await.status, 200);
    assert_eq!(client.ended().await.unwrap(), 0);
    assert_eq!(world.counters.damaged.load(Ordering::Relaxed), 1);
}
