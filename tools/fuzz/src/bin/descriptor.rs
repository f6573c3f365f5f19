//! Bytes as a neighbour may send them for a descriptor: parsing must not panic, and what parses must encode to the same image.

#![no_main]

use faasnet_api::{BlockIndex, Descriptor, Stripe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(descriptor) = Descriptor::parse(data) else { return };
    let geometry = descriptor.geometry();
    let again = descriptor.encode();
    // A varint may be written longer than needed; what we write ourselves is canonical.
    let canonical = Descriptor::parse(&again).expect("our own encoding parses");
    assert_eq!(canonical.encode(), again);
    let mut bytes = 0;
    for block in (0..geometry.blocks()).map(BlockIndex) {
        let place = geometry.place(block).expect("a block below the count has a place");
        assert_eq!(geometry.block_at(place.chunk, place.in_chunk), Some(block));
        assert!(place.file_offset + u64::from(place.len) <= geometry.file_bytes());
        bytes += u64::from(place.len);
    }
    assert_eq!(bytes, geometry.image_bytes());
    let striped: usize = (0..2).map(|stripe| geometry.stripe_blocks(Stripe(stripe), 2).count()).sum();
    assert_eq!(striped, geometry.blocks() as usize);
});
