//! What a restarted controller makes of its stored state and of the agents that come back.

use faasnet_api::v1::upstream::Upstream as Target;
use faasnet_api::v1::{self, FunctionState};
use faasnet_tree::Policy;

use super::world::{World, function, node};

/// Agent `n` comes back to a restarted controller and says what it holds.
fn come_back(world: &mut World, n: u32, complete: bool) {
    let assigned = world.agents[&node(n)].assigned.values();
    let held = |assign: &v1::Assign| v1::HeldFunction {
        function_id: assign.function_id.clone(),
        image_id: assign.image_id.clone(),
        term: assign.term,
        epoch: assign.epoch,
        bytes_present: if complete { 10 } else { 0 },
        complete,
    };
    let held = assigned.map(held).collect();
    world.attach_with(n, held);
}

fn upstream(world: &World, n: u32, stripe: usize) -> Option<Target> {
    let plan = &world.agents[&node(n)].assigned[&function("f")].stripes[stripe];
    plan.upstream.as_ref().and_then(|upstream| upstream.upstream.clone())
}

/// Catches a restart that forgets who feeds a root without data, so that the origin is read a second time.
#[test]
fn a_root_without_data_is_fed_by_a_member_after_a_restart_too() {
    let mut world = World::with(2, Policy::Twin);
    world.provision("f", 0, &[0]).unwrap();
    world.beat(0, FunctionState::Complete);
    world.provision("f", 0, &[1]).unwrap();
    let fed =
        |world: &World| matches!(upstream(world, 1, 1), Some(Target::Node(donor)) if donor.node_id == node(0).to_vec());
    assert!(fed(&world));
    world.restart_controller();
    come_back(&mut world, 1, false);
    assert!(fed(&world), "it is not sent to the origin until its donor is back");
    come_back(&mut world, 0, true);
    let term = world.state.term();
    world.pass(2_200, &[(0, FunctionState::Complete), (1, FunctionState::Fetching)]);
    assert!(fed(&world), "{:?}", upstream(&world, 1, 1));
    assert!(world.agents[&node(1)].assigned[&function("f")].term == term);
    world.check();
}

/// Catches a root that has the image and loses its place because others are back before it.
#[test]
fn a_root_that_takes_its_time_stays_root() {
    let mut world = World::with(4, Policy::Complete);
    world.provision("f", 4, &[]).unwrap();
    let root = world.state.functions[&function("f")].trees.root(0);
    let others: Vec<u32> = (0..4).filter(|n| Some(node(*n)) != root).collect();
    let first = (0..4).find(|n| Some(node(*n)) == root).unwrap();
    world.beat(first, FunctionState::Complete);
    world.restart_controller();
    others.iter().for_each(|n| come_back(&mut world, *n, *n == others[0]));
    let beating: Vec<_> = others.iter().map(|n| (*n, FunctionState::Fetching)).collect();
    world.pass(5_000, &beating);
    assert_eq!(world.state.functions[&function("f")].trees.root(0), root);
    come_back(&mut world, first, true);
    world.pass(1_000, &beating);
    assert_eq!(world.state.functions[&function("f")].trees.root(0), root);
    world.check();
}

/// Catches a node that died while the controller was away and stays in the trees, or one that is thrown out before it had time to come back.
#[test]
fn who_does_not_come_back_leaves_the_trees_after_the_grace() {
    let mut world = World::with(5, Policy::Complete);
    world.provision("f", 5, &[]).unwrap();
    (0..5).for_each(|n| world.beat(n, FunctionState::Complete));
    world.restart_controller();
    world.agents.get_mut(&node(2)).unwrap().listening = false;
    for n in [0, 1, 3, 4] {
        come_back(&mut world, n, true);
    }
    let beating = [0, 1, 3, 4].map(|n| (n, FunctionState::Complete));
    world.pass(1_900, &beating);
    assert_eq!(world.live_state(2), "registered");
    world.pass(500, &beating);
    assert_eq!(world.live_state(2), "dead");
    assert_eq!(world.members("f").len(), 4);
    world.check();
}
