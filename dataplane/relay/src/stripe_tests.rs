//! A stripe as a whole: what it accepts, whom it serves.

use std::net::SocketAddr;
use std::time::Duration;

use faasnet_api::{BLOCK_BYTES, CHUNK_BYTES, FunctionId, ImageId, Ticket};

use super::*;
use crate::downstream::MAX_CHILDREN;
use crate::plan::Target;
use crate::wire::{Kind, UNSIGNED};

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, n], 1))
}

fn relay(me: u8, children: &[u8]) -> StripeRelay {
    let plan = StripePlan {
        upstream: Target::Node(id(1), address(1)),
        fallbacks: vec![],
        children: children.iter().map(|n| id(*n)).collect(),
    };
    let mut relay = StripeRelay::new(id(me), Stripe(0), 2, plan, Patience::default());
    let geometry = Geometry::new(CHUNK_BYTES, BLOCK_BYTES, [10 << 20]).unwrap();
    relay.set_image(Arc::new(geometry.clone()), &BlockSet::new(geometry.blocks()));
    relay
}

fn hello(node: u8) -> Hello {
    Hello {
        function: FunctionId([0; 16]),
        image: ImageId([0; 32]),
        node: id(node),
        term: 1,
        epoch: 1,
        ticket: Ticket::from_bytes([0; faasnet_api::ticket::TICKET_BYTES]),
        address: address(node),
        stripe: Stripe(0),
        stripes: 2,
        wants_descriptor: false,
        proof: UNSIGNED,
    }
}

/// Catches a frame that names a block which the image or the stripe does not have, or another length.
#[test]
fn only_blocks_of_this_stripe_are_expected() {
    let relay = relay(5, &[]);
    assert_eq!(relay.expect(&Frame::new(Kind::Block, BLOCK_BYTES, 0, 3)), Ok(BlockIndex(3)));
    for (len, chunk, block) in [
        (BLOCK_BYTES, 1, 0),
        (BLOCK_BYTES - 1, 0, 0),
        (BLOCK_BYTES, 0, 16),
        (BLOCK_BYTES, u32::MAX, 0),
        (BLOCK_BYTES, 2, u32::MAX),
    ] {
        assert!(relay.expect(&Frame::new(Kind::Block, len, chunk, block)).is_err());
    }
}

/// Catches more guests than there is room for, a planned child without room, and a guest that can never be replaced.
#[test]
fn two_guests_beside_the_plan() {
    let mut relay = relay(5, &[6, 7]);
    let at = Duration::from_secs;
    for (n, child) in [8, 9].into_iter().enumerate() {
        assert_eq!(relay.greet(at(0), ChildId(n as u32), &hello(child)), Greeting::Welcome { displaced: vec![] });
    }
    assert_eq!(relay.greet(at(1), ChildId(10), &hello(10)), Greeting::Busy(vec![address(8), address(9)]));
    for child in [6, 7] {
        assert_eq!(relay.greet(at(2), ChildId(child), &hello(child as u8)), Greeting::Welcome { displaced: vec![] });
    }
    assert_eq!(relay.greet(at(3), ChildId(20), &hello(6)), Greeting::Welcome { displaced: vec![ChildId(6)] });
    assert_eq!(relay.greet(at(6), ChildId(11), &hello(10)), Greeting::Welcome { displaced: vec![ChildId(0)] });
    assert_eq!(relay.downstream.len(), 4);
}

/// Catches a node that serves more children than its memory is counted for, while its plan changes or riders hang on it, and one whose
/// planned children find no room because of others.
#[test]
fn never_more_children_than_are_counted() {
    let mut relay = relay(5, &[20, 21]);
    let welcome = |displaced: &[u32]| Greeting::Welcome { displaced: displaced.iter().copied().map(ChildId).collect() };
    let now = Duration::from_secs(1);
    for child in 20..24 {
        assert_eq!(relay.greet(now, ChildId(child), &hello(child as u8)), welcome(&[]));
    }
    let plan = |children: &[u8]| StripePlan {
        upstream: Target::Node(id(1), address(1)),
        fallbacks: vec![],
        children: children.iter().map(|n| id(*n)).collect(),
    };
    relay.set_plan(plan(&[30, 31, 32]));
    for (child, displaced) in [(30, &[][..]), (31, &[]), (32, &[20])] {
        assert_eq!(relay.greet(now, ChildId(child), &hello(child as u8)), welcome(displaced));
        assert!(relay.downstream.len() <= MAX_CHILDREN);
    }
    assert!(
        matches!(relay.greet(now, ChildId(40), &hello(40)), Greeting::Busy(children) if children.len() == MAX_CHILDREN)
    );
    relay.set_plan(plan(&[21, 22, 23, 30, 31, 32, 33]));
    assert!(matches!(relay.greet(now, ChildId(33), &hello(33)), Greeting::Busy(_)), "riders beyond what is counted");
    assert_eq!(relay.greet(now, ChildId(50), &hello(31)), welcome(&[31]), "the same child again");
    assert_eq!(relay.downstream.len(), MAX_CHILDREN);
}

/// Catches a child that stands above its parent, itself included.
#[test]
fn a_node_in_the_path_is_refused() {
    let mut relay = relay(5, &[]);
    let now = Duration::from_secs(1);
    let crate::upstream::UpstreamAction::Connect(link, _) = relay.upstreams.poll(now, true).remove(0) else { panic!() };
    relay.upstreams.connected(link, now);
    relay.upstreams.welcomed(link, now, vec![id(3), id(1)]);
    relay.upstreams.poll(now, true);
    for above in [3, 1, 5] {
        assert!(matches!(relay.greet(now, ChildId(1), &hello(above)), Greeting::Refused(Refusal::Cycle, _)));
    }
    assert_eq!(relay.changed_path(), Some(vec![id(3), id(1), id(5)]));
    assert_eq!(relay.changed_path(), None);
}

/// Catches both, or neither, of two nodes that attach to each other being refused.
#[test]
fn of_a_crossing_attachment_exactly_one_side_is_refused() {
    let now = Duration::from_secs(1);
    let refused = [(5u8, 1u8), (0, 1)].map(|(me, other)| {
        let mut relay = relay(me, &[]);
        relay.upstreams.poll(now, true);
        matches!(relay.greet(now, ChildId(1), &hello(other)), Greeting::Refused(Refusal::Cycle, _))
    });
    assert_eq!(refused, [false, true]);
}

/// Catches a block that is sent twice to a child, or never: live, from the store, and on demand.
#[test]
fn every_wanted_block_is_handed_out_exactly_once() {
    let mut relay = relay(5, &[6]);
    let child = ChildId(1);
    relay.greet(Duration::ZERO, child, &hello(6));
    assert!(relay.wanted(child, &[0xff; 5]));
    let blocks: Vec<BlockIndex> = relay.image.as_ref().unwrap().ours.iter().collect();
    let (mut sent, mut live) = (Vec::new(), Vec::new());
    for (n, block) in blocks.iter().enumerate() {
        assert!(relay.received(*block));
        assert!(!relay.received(*block));
        live.clear();
        relay.downstream.forward(*block, |_| n % 3 == 0, &mut live);
        sent.extend(live.iter().map(|_| *block));
        relay.stored(*block);
    }
    assert!(!relay.is_needed());
    let last = *blocks.last().unwrap();
    let (chunk, in_chunk) = relay.frame_of(last).map(|frame| (frame.chunk, frame.block)).unwrap();
    relay.demanded(child, &Frame::new(Kind::Request, 0, chunk, in_chunk));
    let first = relay.next_from_store(child);
    assert_eq!(first, Some(last));
    sent.extend(first);
    sent.extend(std::iter::from_fn(|| relay.next_from_store(child)));
    sent.sort_unstable();
    assert_eq!(sent, blocks);
}

/// Catches a demanded block that goes live and is then sent again from the store.
#[test]
fn a_demanded_block_that_went_live_is_not_sent_again() {
    let mut relay = relay(5, &[6]);
    let child = ChildId(1);
    relay.greet(Duration::ZERO, child, &hello(6));
    assert!(relay.wanted(child, &[0xff; 5]));
    relay.demanded(child, &Frame::new(Kind::Request, 0, 0, 5));
    relay.received(BlockIndex(5));
    let mut live = Vec::new();
    relay.downstream.forward(BlockIndex(5), |_| true, &mut live);
    relay.stored(BlockIndex(5));
    assert_eq!((live, relay.next_from_store(child)), (vec![child], None));
}

/// Catches a request that is passed on for a block that is here or was asked for, one that is forgotten when the upstream changes, and a
/// child that makes its parent keep a list without end.
#[test]
fn who_waits_is_passed_on_once() {
    let mut relay = relay(5, &[6]);
    let mut hello = hello(6);
    hello.wants_descriptor = false;
    relay.greet(Duration::from_secs(0), ChildId(1), &hello);
    let all = BlockSet::from_words(40, [u64::MAX]).to_bitmap();
    assert!(relay.wanted(ChildId(1), &all));
    let request = |block| Frame::new(Kind::Request, 0, 0, block);
    assert_eq!(relay.demanded(ChildId(1), &request(3)), Some(request(3)));
    assert_eq!(relay.demanded(ChildId(1), &request(3)), None);
    assert_eq!(relay.hurry(BlockIndex(3)), None);
    // Chunk 1 is the other stripe's; chunk 9 is nobody's.
    assert_eq!(relay.demanded(ChildId(1), &Frame::new(Kind::Request, 0, 1, 0)), None);
    assert_eq!(relay.demanded(ChildId(1), &Frame::new(Kind::Request, 0, 9, 0)), None);
    assert_eq!(relay.hurry(BlockIndex(5)), Some(request(5)));
    assert_eq!(relay.hurried().collect::<Vec<_>>(), [request(3), request(5)]);
    assert!(relay.received(BlockIndex(3)));
    assert_eq!(relay.hurried().collect::<Vec<_>>(), [request(5)]);
    assert_eq!(relay.hurry(BlockIndex(3)), None, "it is here");
    // Block 3 is owed to the child still, and asked for out of turn.
    let present = BlockSet::from_words(40, [0b1111]);
    assert_eq!(relay.downstream.next_from_store(ChildId(1), &present), Some(BlockIndex(3)));
    let geometry = Geometry::new(CHUNK_BYTES, BLOCK_BYTES, [100 << 20]).unwrap();
    relay.set_image(Arc::new(geometry.clone()), &BlockSet::new(geometry.blocks()));
    let asked = (0..geometry.blocks()).filter(|block| relay.hurry(BlockIndex(*block)).is_some()).count();
    assert_eq!((asked + 1, relay.hurried().count()), (MAX_DEMANDS, MAX_DEMANDS), "block 5 was asked for before");
}
