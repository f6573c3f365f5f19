//! Bytes as a neighbour may send them: a stream of frames. Nothing may panic, and what parses must be what was written.

#![no_main]

use faasnet_api::{BLOCK_BYTES, BlockIndex, CHUNK_BYTES, Geometry, NodeId, Stripe};
use faasnet_relay::blocks::BlockSet;
use faasnet_relay::downstream::ChildId;
use faasnet_relay::plan::{Patience, StripePlan, Target};
use faasnet_relay::stripe::StripeRelay;
use faasnet_relay::wire::{self, Challenge, Frame, HEADER_BYTES, Hello, Kind};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut relay = relay();
    let mut rest = data;
    while let Some((header, after)) = rest.split_first_chunk::<HEADER_BYTES>() {
        let Ok(frame) = Frame::parse(header) else { return };
        assert_eq!(&frame.header(), header, "a parsed header is written as it was read");
        let Some(payload) = after.get(..frame.len as usize) else { return };
        take(&mut relay, &frame, payload);
        rest = &after[payload.len()..];
    }
});

/// Does with a frame what a worker does.
fn take(relay: &mut StripeRelay, frame: &Frame, payload: &[u8]) {
    let child = ChildId(1);
    match frame.kind {
        Kind::Hello => {
            if let Ok(hello) = Hello::parse(payload) {
                assert_eq!(Hello::parse(&hello.encode()[HEADER_BYTES..]), Ok(hello));
                assert!(hello.ticket.claims().to_bytes() == hello.ticket.signed_part().0);
                relay.greet(Default::default(), child, &hello);
            }
        }
        Kind::Challenge => {
            if let Ok(challenge) = Challenge::parse(payload) {
                assert_eq!(Challenge::parse(&challenge.encode()[HEADER_BYTES..]), Ok(challenge));
            }
        }
        Kind::Welcome | Kind::Path => {
            if let Ok(path) = wire::parse_path(frame.kind, payload) {
                assert_eq!(wire::encode_path(frame.kind, &path)[HEADER_BYTES..], *payload);
            }
        }
        Kind::Busy => {
            let _ = wire::parse_busy(payload);
        }
        Kind::Want => {
            relay.wanted(child, payload);
            while relay.next_from_store(child).is_some() {}
        }
        Kind::Request => {
            let _ = relay.demanded(child, frame);
        }
        Kind::Block => {
            if let Ok(block) = relay.expect(frame) {
                assert_eq!(relay.frame_of(block).as_ref(), Some(frame));
                relay.received(block);
                relay.stored(block);
            }
        }
        Kind::Refused | Kind::Descriptor | Kind::Waiting | Kind::Stop => {}
    }
}

fn relay() -> StripeRelay {
    let plan = StripePlan { upstream: Target::Origin, fallbacks: Vec::new(), children: Vec::new() };
    let mut relay = StripeRelay::new(NodeId([9; 16]), Stripe(0), 2, plan, Patience::default());
    if let Ok(geometry) = Geometry::new(CHUNK_BYTES, BLOCK_BYTES, [0, 1, 9 << 20]) {
        let held: BlockSet = BlockSet::from_words(geometry.blocks(), [1 << BlockIndex(3).0]);
        relay.set_image(geometry.into(), &held);
    }
    relay
}
