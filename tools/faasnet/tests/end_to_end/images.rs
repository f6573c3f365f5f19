//! Images of awkward shapes, and images that share blobs.

use faasnet::registry::RegistryOptions;

use crate::common::{Lab, MIB, noise};

const CHUNK: u64 = 4 * MIB;

/// Provisions one image per shape on three nodes and checks every byte on every disk.
async fn spread(shapes: &[(&str, Vec<Vec<u8>>)]) {
    let lab = Lab::start(3, shapes, RegistryOptions::default()).await;
    for (name, layers) in shapes {
        let function = lab.create(name, "twin").await.unwrap();
        let before = lab.origin_bytes();
        let nodes = lab.provision(name).await.unwrap();
        assert!(nodes.iter().all(|node| node.is_complete()), "{name}: {nodes:?}");
        lab.wait_verified(&function, 0..3).await;
        let mut distinct = layers.clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(function.blobs as usize, distinct.len() + 1, "{name}");
        let sent = lab.origin_bytes() - before;
        assert!(sent <= function.image_bytes, "{name}: the origin sent {sent} of {}", function.image_bytes);
    }
}

/// Catches arithmetic that fails at the edges of blocks and chunks.
#[tokio::test(flavor = "multi_thread")]
async fn edges_of_blocks_and_chunks() {
    spread(&[
        ("empty", vec![vec![]]),
        ("one-byte", vec![vec![7]]),
        ("chunk", vec![noise(1, CHUNK)]),
        ("chunk-less-one", vec![noise(2, CHUNK - 1)]),
        ("chunk-and-one", vec![noise(3, CHUNK + 1)]),
        ("last-block-of-one", vec![noise(4, (1 << 18) + 1)]),
        ("empty-between", vec![noise(5, 300_000), vec![], noise(6, 5)]),
    ])
    .await;
}

/// Catches limits on the number of layers, and blobs that are named twice and counted twice.
#[tokio::test(flavor = "multi_thread")]
async fn many_layers_and_repeated_ones() {
    let many = (0..60).map(|layer| noise(100 + layer, 50_000 + layer * 1_001)).collect();
    let same = noise(7, MIB + 17);
    spread(&[("sixty", many), ("twice", vec![same.clone(), noise(8, 1_000), same])]).await;
}

/// Catches offsets of 32 bits and budgets that fill up: more than a gigabyte.
#[tokio::test(flavor = "multi_thread")]
async fn one_and_a_half_gibibytes() {
    let mut layer = noise(9, 256 * MIB);
    layer.extend_from_within(..);
    layer.truncate((512 * MIB) as usize);
    let layers = (0..3u8).map(|number| [vec![number], layer.clone()].concat()).collect();
    let lab = Lab::start(2, &[("large", layers)], RegistryOptions::default()).await;
    let function = lab.create("large", "twin").await.unwrap();
    assert!(function.image_bytes > 1536 * MIB);
    lab.provision("large").await.unwrap();
    lab.wait_verified(&function, 0..2).await;
}

/// Catches an update that moves layers which every node already holds.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_changed_layer_moves() {
    let (base, middle) = (noise(10, 20 * MIB), noise(11, 9 * MIB + 5));
    let (old, new) = (noise(12, 3 * MIB), noise(13, 5 * MIB + 1));
    let images = [("old", vec![base.clone(), middle.clone(), old]), ("new", vec![base, middle, new.clone()])];
    let lab = Lab::start(4, &images, RegistryOptions::default()).await;
    lab.create("old", "twin").await.unwrap();
    lab.provision("old").await.unwrap();
    let function = lab.create("new", "twin").await.unwrap();
    let before = lab.origin_bytes();
    lab.provision("new").await.unwrap();
    lab.wait_verified(&function, 0..4).await;
    let config = function.image_bytes - 29 * MIB - 5 - new.len() as u64;
    assert_eq!(lab.origin_bytes() - before, new.len() as u64 + config, "from the origin");
    for index in 0..4 {
        let held = lab.wait_agent(index, "new", "complete", |held| held.state == "complete").await;
        let mut node = faasnet::view::NodeView::default();
        held.refresh(&mut node, &Default::default());
        assert_eq!(node.bytes_received, new.len() as u64 + config, "n{}", index + 1);
        assert_eq!(node.bytes_reused, 29 * MIB + 5, "n{}", index + 1);
    }
}
