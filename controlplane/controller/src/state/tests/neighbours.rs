//! What nodes say of each other: stragglers, wrong bytes, leave to read the origin, leaders that have data.

use std::collections::BTreeSet;

use faasnet_api::v1::{self, FunctionState};
use faasnet_tree::Policy;

use super::super::pace::Level;
use super::super::*;
use super::world::{World, function, node};

const MIB: u64 = 1 << 20;

fn number(id: NodeId) -> u32 {
    u32::from_be_bytes(id.0[..4].try_into().unwrap())
}

/// Some seconds in which everybody receives 50 MiB/s from each parent, except that `rate` of an edge's two ends says otherwise. `ready`: the
/// blocks that wait on an edge.
fn seconds(
    world: &mut World,
    nodes: u32,
    seconds: u64,
    bytes: impl Fn(u32) -> u64,
    ready: impl Fn(u32, NodeId) -> u32,
) {
    for _ in 0..2 * seconds {
        world.pass(500, &[]);
        for n in 0..nodes {
            world.flow(n, bytes(n) / 2, |child| ready(n, child));
        }
    }
}

fn level(world: &World, n: u32) -> Level {
    world.state.nodes[&node(n)].pace.level
}

fn receives_only(world: &World, n: u32) -> bool {
    let assign = &world.agents[&node(n)].assigned[&function("f")];
    assign.stripes.iter().all(|stripe| stripe.children.is_empty())
}

/// Catches a slow receiver that stays above others, that is moved by one bad second, or that nobody feeds afterwards.
#[test]
fn a_node_that_receives_slowly_feeds_nobody() {
    for policy in [Policy::Twin, Policy::Complete, Policy::Avl] {
        let mut world = World::with(15, policy);
        world.provision("f", 15, &[]).unwrap();
        let trees = &world.state.functions[&function("f")].trees;
        let slow = number(trees.children(0, &trees.root(0).unwrap()).next().unwrap());
        let bytes = |n: u32| if n == slow { 5 * MIB } else { 50 * MIB };
        let ready = |_: u32, child: NodeId| if child == node(slow) { 100 } else { 0 };
        seconds(&mut world, 15, 2, bytes, ready);
        assert_eq!(level(&world, slow), Level::Usual, "two seconds are no verdict");
        seconds(&mut world, 15, 4, bytes, ready);
        assert_eq!(level(&world, slow), Level::ReceivesOnly, "{policy}");
        world.check();
        assert!(receives_only(&world, slow) && world.members("f").len() == 15, "{policy}");
        assert!((0..15).all(|n| n == slow || level(&world, n) == Level::Usual), "nobody else is blamed");
        // Another try after some time, and at once for a new process.
        world.kill(slow);
        world.attach(slow);
        assert_eq!(level(&world, slow), Level::Usual);
        world.check();
    }
}

/// Catches a slow sender that goes unnoticed, and a parent that is blamed for one slow child.
#[test]
fn a_node_that_sends_slowly_is_found_by_its_edges() {
    let mut world = World::with(15, Policy::Complete);
    world.provision("f", 15, &[]).unwrap();
    let trees = &world.state.functions[&function("f")].trees;
    let slow = trees.children(0, &trees.root(0).unwrap()).next().unwrap();
    let children: Vec<u32> = trees.children(0, &slow).map(number).collect();
    // It gets rid of 60 of 100 MiB/s.
    let bytes = |n: u32| if children.contains(&n) { 30 * MIB } else { 50 * MIB };
    seconds(&mut world, 15, 6, bytes, |n, _| if node(n) == slow { 100 } else { 0 });
    assert_eq!(level(&world, number(slow)), Level::Slow);
    assert!(receives_only(&world, number(slow)), "in one tree it is a leaf");
    assert!((0..15).all(|n| node(n) == slow || level(&world, n) == Level::Usual));
    world.check();
    // One full edge says nothing about the parent.
    let mut world = World::with(3, Policy::Complete);
    world.provision("f", 3, &[]).unwrap();
    let root = world.state.functions[&function("f")].trees.root(0).unwrap();
    let child = number(world.state.functions[&function("f")].trees.heir(0).unwrap());
    let bytes = |n: u32| if n == child { 5 * MIB } else { 50 * MIB };
    seconds(&mut world, 3, 6, bytes, |_, to| if to == node(child) { 100 } else { 0 });
    assert_eq!((level(&world, number(root)), level(&world, child)), (Level::Usual, Level::ReceivesOnly));
    world.check();
}

/// Catches one child that says it receives a thousand times too much, by which everybody else would be slow.
#[test]
fn who_lies_about_its_rate_moves_nobody_else() {
    for policy in [Policy::Twin, Policy::Complete] {
        let mut world = World::with(15, policy);
        world.provision("f", 15, &[]).unwrap();
        // On a busy network every edge is full.
        let bytes = |n: u32| if n == 9 { 1 << 54 } else { 50 * MIB };
        seconds(&mut world, 15, 6, bytes, |_, _| 100);
        assert!((0..15).all(|n| level(&world, n) == Level::Usual), "{policy}");
        world.check();
    }
}

/// Catches verdicts that make riders of so many nodes that the others cannot feed them.
#[test]
fn riders_are_few() {
    let mut world = World::with(15, Policy::Complete);
    world.provision("f", 15, &[]).unwrap();
    let trees = &world.state.functions[&function("f")].trees;
    let first_child = |parent: NodeId| trees.children(0, &parent).next();
    let slow: BTreeSet<u32> = trees.members().filter_map(first_child).map(number).collect();
    assert_eq!(slow.len(), 7);
    let bytes = |n: u32| if slow.contains(&n) { 5 * MIB } else { 50 * MIB };
    seconds(&mut world, 15, 6, bytes, |_, child| if slow.contains(&number(child)) { 100 } else { 0 });
    assert!(slow.iter().filter(|n| level(&world, **n) == Level::ReceivesOnly).count() > 3, "all were found");
    let riders = world.state.functions[&function("f")].riders.len();
    assert_eq!((riders, world.members("f").len()), (3, 15));
    world.check();
}

/// Catches a straggler for ever, and one that is not where it should be after the others have left.
#[test]
fn stragglers_are_tried_again_and_lead_when_nobody_else_is_there() {
    let mut world = World::with(5, Policy::Twin);
    world.provision("f", 5, &[]).unwrap();
    let bytes = |n: u32| if n == 2 { 5 * MIB } else { 50 * MIB };
    seconds(&mut world, 5, 6, bytes, |_, to| if to == node(2) { 100 } else { 0 });
    assert_eq!(level(&world, 2), Level::ReceivesOnly);
    for n in [0, 1, 3, 4] {
        world.kill(n);
        world.check();
    }
    assert_eq!(world.members("f"), [node(2)], "the last one leads, whatever it is like");
    world.pass(world.state.settings.straggler_retry_ms, &[(2, FunctionState::Fetching)]);
    assert_eq!(level(&world, 2), Level::Usual);
    world.check();
}

/// Catches a crowd that reads the origin, and an orphan that waits for ever.
#[test]
fn one_orphan_at_a_time_may_read_the_origin() {
    let mut world = World::with(6, Policy::Complete);
    world.provision("f", 6, &[]).unwrap();
    let wanted =
        |stripe| v1::event::Event::OriginWanted(v1::OriginWanted { function_id: function("f").to_vec(), stripe });
    let granted = |world: &World, n: u32| world.agents[&node(n)].leases.last().map(|lease| lease.seconds);
    world.hear(4, wanted(0));
    world.hear(5, wanted(0));
    world.hear(4, wanted(0));
    assert_eq!((granted(&world, 4), granted(&world, 5)), (Some(30), Some(0)));
    world.hear(3, wanted(7));
    assert_eq!(granted(&world, 3), Some(0), "there is no such stripe");
    let assigned = |world: &World, n: u32| world.agents[&node(n)].assigned[&function("f")].descriptor.len();
    assert!(assigned(&world, 4) > 0, "who has nobody left lacks the descriptor as well");
    assert_eq!(assigned(&world, 5), 0);
    world.beat(4, FunctionState::Complete);
    world.hear(5, wanted(0));
    assert_eq!(granted(&world, 5), Some(30), "the first one needs it no more");
    world.kill(5);
    world.hear(3, wanted(0));
    assert_eq!(granted(&world, 3), Some(30));
}

/// Catches a node without data that leads after the leaders died, so that the origin is read again.
#[test]
fn leaders_have_data() {
    for policy in [Policy::Complete, Policy::Twin, Policy::Avl] {
        let mut world = World::with(40, policy);
        let first: Vec<u32> = (0..20).collect();
        world.provision("f", 0, &first).unwrap();
        let progress = |assign: &v1::Assign, bytes_present| v1::FunctionProgress {
            function_id: assign.function_id.clone(),
            image_id: assign.image_id.clone(),
            term: assign.term,
            epoch: assign.epoch,
            state: FunctionState::Fetching.into(),
            bytes_present,
            ..Default::default()
        };
        for n in 0..20 {
            let row = progress(&world.agents[&node(n)].assigned[&function("f")], 9_000);
            world.hear(n, v1::event::Event::Heartbeat(v1::Heartbeat { functions: vec![row] }));
        }
        let late: Vec<u32> = (20..40).collect();
        world.provision("f", 0, &late).unwrap();
        for _ in 0..4 {
            let trees = &world.state.functions[&function("f")].trees;
            for dead in [trees.root(0).unwrap(), trees.heir(0).unwrap()] {
                world.kill(number(dead));
                world.check();
            }
            let trees = &world.state.functions[&function("f")].trees;
            for stripe in 0..policy.stripes() {
                let leaders = [trees.root(stripe).unwrap(), trees.heir(stripe).unwrap()];
                assert!(leaders.iter().all(|leader| number(*leader) < 20), "{policy}: {leaders:?} have joined late");
            }
        }
    }
}
