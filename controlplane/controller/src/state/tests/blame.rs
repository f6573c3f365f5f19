//! Wrong bytes: who is believed about whom, and for how long.

use faasnet_api::v1;
use faasnet_tree::Policy;

use super::world::{World, function, node};

/// Fifteen members, and somebody that three of them may receive from, each of whom has two others besides; with those three.
fn accused() -> (World, u32, [u32; 3]) {
    let mut world = World::with(15, Policy::Twin);
    world.provision("f", 15, &[]).unwrap();
    for bad in 0..15 {
        let may = |n: &u32| world.sources(*n).contains(&bad) && world.sources(*n).len() >= 3;
        let reporters: Vec<u32> = (0..15).filter(may).take(3).collect();
        if let Ok(reporters) = reporters.try_into() {
            return (world, bad, reporters);
        }
    }
    unreachable!("the heir is a fallback of nearly everybody")
}

/// Somebody blames two more of those that it may receive from, so that its word counts no more.
fn blame_two_more(world: &mut World, reporter: u32, besides: u32) {
    let others = world.sources(reporter).into_iter().filter(|other| *other != besides);
    let others: Vec<u32> = others.take(2).collect();
    assert_eq!(others.len(), 2);
    others.into_iter().for_each(|other| world.blame(reporter, other));
}

/// Catches a quarantine by one word, none by two, and a node in quarantine that still feeds others or gets functions.
#[test]
fn two_reporters_make_a_quarantine() {
    let (mut world, bad, [first, second, _]) = accused();
    world.blame(first, bad);
    world.blame(first, bad);
    assert!(world.is_trusted(bad), "one reporter may have a defect of its own");
    assert_eq!(world.agents[&node(bad)].rereads.len(), 1, "but the blamed one has to look at its disk, once");
    world.now.ms += 60_000;
    world.blame(first, bad);
    assert_eq!(world.agents[&node(bad)].rereads.len(), 2, "and again after a while");
    world.blame(second, bad);
    assert!(!world.is_trusted(bad));
    world.check();
    assert!(world.rides("f", bad), "it still gets what it was promised, from a node and not from the origin");
    assert!(world.provision("f", 0, &[bad]).unwrap_err().message.contains("quarantine"));
    world.restart_controller();
    (0..15).for_each(|n| world.attach(n));
    world.check();
    assert!(!world.is_trusted(bad), "a restart of the controller does not heal it");
    world.drain(bad, true).unwrap();
    world.check();
    assert!(!world.rides("f", bad) && world.members("f").contains(&node(bad)), "somebody has mended it");
}

/// Catches words that put away whomever they name: of strangers, about no function, along no edge, or along one that only one end knows.
#[test]
fn only_who_receives_from_a_node_can_blame_it() {
    let (mut world, bad, [first, second, _]) = accused();
    (50..53).for_each(|n| world.attach(n));
    for stranger in 50..53 {
        world.blame(stranger, bad);
        world.blame(first, stranger);
    }
    for reporter in [first, second] {
        let upstream = node(bad).to_vec();
        let (function_id, wrong_bytes) = (vec![0; 16], true);
        let failed = v1::EdgeFailed { function_id, upstream, wrong_bytes, ..Default::default() };
        world.hear(reporter, v1::event::Event::EdgeFailed(failed));
    }
    let far = |n: &u32| *n != bad && !world.sources(*n).contains(&bad);
    let far: Vec<u32> = (0..15).filter(far).take(2).collect();
    for reporter in &far {
        world.names(*reporter, &[bad], &[]);
        world.blame(*reporter, bad);
    }
    assert_eq!(far.len(), 2);
    assert!(world.state.nodes.values().all(|node| node.is_trusted()));
    assert!(world.agents.values().all(|agent| agent.rereads.is_empty()), "nobody's disk is read for nothing");
    // A guest's edge is in no plan, but both ends name it.
    world.names(bad, &[], &far);
    far.iter().for_each(|reporter| world.blame(*reporter, bad));
    assert!(!world.is_trusted(bad));
    world.check();
}

/// Catches a disk that gives wrong bytes and goes on, and an answer that nobody asked for and that counts.
#[test]
fn wrong_blocks_on_its_own_disk_convict_a_node() {
    let (mut world, bad, [first, second, _]) = accused();
    let answer = |request: u64, wrong: u32| {
        let function_id = function("f").to_vec();
        v1::event::Event::BlocksReread(v1::BlocksReread { function_id, request, checked: 9, wrong })
    };
    world.hear(bad, answer(1, 9));
    world.blame(first, bad);
    let order = world.agents[&node(bad)].rereads[0].clone();
    assert!(order.blocks.contains(&3));
    world.hear(second, answer(order.request, 9));
    assert!(world.is_trusted(bad) && world.is_trusted(second));
    world.hear(bad, answer(order.request, 2));
    let why = world.state.nodes[&node(bad)].info(world.now).quarantine;
    assert!(why.contains("2 of 9 blocks"), "{why}");
    world.check();
}

/// Catches one bad reporter that brings node after node into quarantine.
#[test]
fn a_reporter_who_blames_everybody_is_not_believed() {
    let (mut world, bad, [first, second, third]) = accused();
    world.blame(first, bad);
    world.blame(second, bad);
    assert!(!world.is_trusted(bad));
    blame_two_more(&mut world, first, bad);
    assert!(world.is_trusted(bad), "it rested on a word that counts no more");
    assert!(world.state.nodes.values().all(|node| node.is_trusted()));
    world.names(bad, &[], &[third]);
    world.names(third, &[bad], &[]);
    world.blame(third, bad);
    assert!(!world.is_trusted(bad), "there are two believable ones again");
    world.check();
}

/// Catches a quarantine that ends because a stranger to it is found out, be it after the reports on which it rests would have been
/// forgotten, or after a restart, when nobody knows on whom it rested.
#[test]
fn a_quarantine_does_not_end_by_a_word_that_it_does_not_rest_on() {
    for restarted in [false, true] {
        let (mut world, bad, [first, second, third]) = accused();
        world.blame(first, bad);
        world.blame(second, bad);
        assert!(!world.is_trusted(bad));
        world.now.ms += 11 * 60_000;
        if restarted {
            world.restart_controller();
            (0..15).for_each(|n| world.attach(n));
        }
        world.names(bad, &[], &[third]);
        world.names(third, &[bad], &[]);
        world.blame(third, bad);
        blame_two_more(&mut world, third, bad);
        assert!(!world.is_trusted(bad), "restarted: {restarted}");
        world.check();
    }
}
