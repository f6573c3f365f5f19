//! Going down without losing what others need: who goes first, who waits for whom, who may come back.

use faasnet_api::v1::{self, FunctionState, event::Event, upstream::Upstream};
use faasnet_tree::Policy;

use super::super::pace::Level;
use super::super::*;
use super::world::{World, function, node};

const POLICIES: [Policy; 3] = [Policy::Twin, Policy::Complete, Policy::Avl];

fn number(id: NodeId) -> u32 {
    u32::from_be_bytes(id.0[..4].try_into().unwrap())
}

fn holds(world: &World, n: u32) -> bool {
    world.agents[&node(n)].assigned.contains_key(&function("f"))
}

fn count(world: &World) -> Option<u32> {
    world.state.functions[&function("f")].count
}

/// Catches a scale that takes the only node with the image and keeps the one that would have to read the origin.
#[test]
fn whoever_has_the_image_stays() {
    for policy in POLICIES {
        let mut world = World::with(2, policy);
        world.provision("f", 0, &[0]).unwrap();
        world.beat(0, FunctionState::Complete);
        world.scale("f", 2).unwrap();
        world.beat(1, FunctionState::Fetching);
        world.scale("f", 1).unwrap();
        assert_eq!(world.members("f"), [node(0)], "{policy}");
        world.check();
    }
}

/// Catches a drain whose successor reads the origin although the node that waits for it has everything, and a donor that is let go
/// before its root is complete.
#[test]
fn a_drained_node_feeds_its_successor() {
    for policy in POLICIES {
        let mut world = World::with(2, policy);
        world.provision("f", 1, &[]).unwrap();
        let old = number(world.members("f")[0]);
        let new = 1 - old;
        world.beat(old, FunctionState::Complete);
        let drained = world.drain(old, false).unwrap();
        assert_eq!(world.members("f"), [node(new)]);
        for plan in &world.agents[&node(new)].assigned[&function("f")].stripes {
            let upstream = plan.upstream.as_ref().and_then(|upstream| upstream.upstream.clone());
            let donor = matches!(upstream, Some(Upstream::Node(from)) if from.node_id == node(old).to_vec());
            assert!(donor, "{policy}: {plan:?}");
        }
        let both = [(old, FunctionState::Complete), (new, FunctionState::Fetching)];
        world.pass(30_000, &both);
        assert!(holds(&world, old) && !world.drains[&drained].done, "{policy}");
        world.beat(new, FunctionState::Complete);
        world.pass(300, &[]);
        assert!(!holds(&world, old) && world.drains[&drained].done, "{policy}");
        world.check();
    }
}

/// Catches a root that is told to receive from a donor that has gone.
#[test]
fn a_root_whose_donor_is_released_reads_the_origin() {
    let mut world = World::with(2, Policy::Complete);
    world.provision("f", 1, &[]).unwrap();
    let old = number(world.members("f")[0]);
    world.beat(old, FunctionState::Complete);
    world.drain(old, false).unwrap();
    world.release("f", &[old]).unwrap();
    let plan = &world.agents[&node(1 - old)].assigned[&function("f")].stripes[0];
    assert!(matches!(plan.upstream.as_ref().unwrap().upstream, Some(Upstream::Origin(_))), "{plan:?}");
    world.check();
}

/// Catches a provision that takes a drained node back because its image failed there.
#[test]
fn a_failed_member_on_a_drained_node_gets_no_other_try() {
    let mut world = World::with(2, Policy::Twin);
    world.provision("f", 1, &[]).unwrap();
    let old = number(world.members("f")[0]);
    let assign = &world.agents[&node(old)].assigned[&function("f")];
    let (function_id, image_id) = (assign.function_id.clone(), assign.image_id.clone());
    world.hear(old, Event::ImageFailed(v1::ImageFailed { function_id, image_id, reason: "disk full".into() }));
    world.drain(old, false).unwrap();
    world.provision("f", 1, &[]).unwrap();
    assert_eq!(world.members("f"), [node(1 - old)]);
    world.check();
}

/// Catches a scale up that is refused while the nodes that were scaled down a moment ago still hold the image.
#[test]
fn who_is_leaving_is_taken_back() {
    for policy in POLICIES {
        let mut world = World::with(6, policy);
        world.provision("f", 6, &[]).unwrap();
        (0..6).for_each(|n| world.flow(n, 1 << 20, |_| 3));
        world.scale("f", 2).unwrap();
        assert_eq!(world.members("f").len(), 2, "{policy}");
        let told: u64 = (0..6).map(|n| u64::from(!holds(&world, n))).sum();
        world.scale("f", 6).unwrap();
        assert_eq!(world.members("f").len(), 6, "{policy}");
        assert!(told < 4, "{policy}: somebody was still needed");
        assert!(world.scale("f", 7).is_err());
        world.check();
    }
}

/// Catches a member that is let go while somebody outside the plan receives from it.
#[test]
fn whoever_serves_a_guest_is_kept() {
    let mut world = World::with(3, Policy::Complete);
    world.provision("f", 0, &[0, 1, 2]).unwrap();
    let trees = &world.state.functions[&function("f")].trees;
    let leaf = (0..3).find(|n| trees.children(0, &node(*n)).next().is_none()).unwrap();
    let guest = (0..3).find(|n| *n != leaf).unwrap();
    let assign = &world.agents[&node(leaf)].assigned[&function("f")];
    let downstream = v1::DownstreamUse { stripe: 0, node_id: node(guest).to_vec(), blocks_ready: 1 };
    let row = v1::FunctionProgress {
        function_id: assign.function_id.clone(),
        image_id: assign.image_id.clone(),
        term: assign.term,
        epoch: assign.epoch,
        state: FunctionState::Complete.into(),
        downstreams: vec![downstream],
        ..Default::default()
    };
    world.hear(leaf, Event::Heartbeat(v1::Heartbeat { functions: vec![row] }));
    world.drain(leaf, false).unwrap();
    assert!(holds(&world, leaf), "its guest would lose it");
    world.pass(1_200, &[]);
    world.beat(leaf, FunctionState::Complete);
    world.pass(200, &[]);
    assert!(!holds(&world, leaf), "the guest has gone");
}

/// Catches numbers that get smaller by what is no member, and by members that died.
#[test]
fn only_members_that_are_there_count() {
    let mut world = World::with(4, Policy::Twin);
    world.provision("f", 3, &[]).unwrap();
    let outside = (0..4).find(|n| !holds(&world, *n)).unwrap();
    world.release("f", &[outside]).unwrap();
    assert_eq!(count(&world), Some(3));
    world.check();
    // No spare: the number asked for stays when a member dies and is forgotten as idle.
    world.kill(outside);
    let dead = number(world.members("f")[0]);
    world.kill(dead);
    world.pass(12_000, &[]);
    let others: Vec<u32> = world.members("f").into_iter().map(number).collect();
    world.state.settings.idle_reclaim_ms = 1_000;
    for function in world.state.functions.values_mut() {
        let alive = function.wanted.iter_mut().filter(|(node, _)| others.contains(&number(**node)));
        alive.for_each(|(_, member)| member.used_ms = u64::MAX - 1_000);
    }
    world.pass(3_000, &[]);
    assert_eq!((count(&world), world.members("f").len()), (Some(3), 2));
    world.check();
}

/// Catches a straggler that was moved down and comes up again with the next deaths, and a slow heir that is made root.
#[test]
fn stragglers_stay_where_they_hold_up_few() {
    let mut world = World::with(15, Policy::Complete);
    world.provision("f", 15, &[]).unwrap();
    let tree = |world: &World| world.state.functions[&function("f")].trees.clone();
    let slow = [tree(&world).heir(0).unwrap(), tree(&world).members().last().unwrap()];
    for id in slow {
        world.state.nodes.get_mut(&id).unwrap().pace.level = Level::Slow;
        world.state.slow.insert(id);
    }
    for _ in 0..6 {
        let root = tree(&world).root(0).unwrap();
        world.kill(number(root));
        world.pass(100, &[]);
        let trees = tree(&world);
        assert!(!trees.contains(&root));
        for id in slow {
            assert!(trees.children(0, &id).next().is_none(), "{id} is an inner node of {} again", trees.len());
        }
        world.check();
    }
}
