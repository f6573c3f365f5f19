//! Who gets what: pools, tenants, memory, scaling, draining, idle members, names.

use faasnet_api::v1::{self, FunctionState};
use faasnet_tree::Policy;

use super::super::*;
use super::world::{World, function, layout, node};

fn number(id: NodeId) -> u32 {
    u32::from_be_bytes(id.0[..4].try_into().unwrap())
}

fn complete(world: &mut World, nodes: u32) {
    (0..nodes).for_each(|n| world.beat(n, FunctionState::Complete));
}

fn other_tenant(count: u32, nodes: &[u32]) -> Ask {
    let nodes = nodes.iter().map(|n| format!("n{n}")).collect();
    Ask::Provision(v1::ProvisionRequest { tenant: "other".into(), function: "h".into(), count, nodes })
}

/// Catches nodes that are spread over when one tenant's own have room, and a node that holds functions of two tenants.
#[test]
fn a_node_is_one_tenants_and_is_filled_before_the_next() {
    let mut world = World::with(4, Policy::Complete);
    world.create("g", Policy::Complete).unwrap();
    world.create_for("other", "h", Policy::Complete, layout(), 16).unwrap();
    world.provision("f", 2, &[]).unwrap();
    let first = world.members("f");
    world.provision("g", 1, &[]).unwrap();
    assert!(first.contains(&world.members("g")[0]), "the tenant's own nodes come before free ones");
    let refused = world.begin(other_tenant(3, &[])).unwrap_err();
    assert!(
        refused.message.contains("at most 2") && refused.message.contains("2 hold functions of other tenants"),
        "{refused}"
    );
    let held = number(first[0]);
    let refused = world.begin(other_tenant(0, &[held])).unwrap_err();
    assert!(refused.message.contains("\"default\"") && refused.message.contains("one tenant's only"), "{refused}");
    world.begin(other_tenant(2, &[])).unwrap();
    world.check();
    world.release("f", &[]).unwrap();
    world.release("g", &[]).unwrap();
    // Back in the free pool: anybody's.
    world.begin(other_tenant(4, &[])).unwrap();
    world.check();
}

/// Catches a node that is given more memory's worth of functions than it has, and a refusal that does not say why.
#[test]
fn memory_is_packed_and_never_exceeded() {
    let mut world = World::with(2, Policy::Complete);
    for (name, memory_mib) in [("a", 600), ("b", 300), ("c", 300)] {
        world.create_for("default", name, Policy::Complete, layout(), memory_mib).unwrap();
    }
    // Each node has 1,024 MiB, of which functions may fill 921.
    world.provision("a", 1, &[]).unwrap();
    world.provision("b", 1, &[]).unwrap();
    assert_eq!(world.members("a"), world.members("b"), "600 + 300 fit into one node");
    let full = number(world.members("a")[0]);
    let refused = world.provision("c", 0, &[full]).unwrap_err();
    assert!(refused.message.contains("21 MiB left") && refused.message.contains("300 MiB"), "{refused}");
    let refused = world.provision("c", 2, &[]).unwrap_err();
    assert!(
        refused.message.contains("1 have less than 300 MiB left") && refused.message.contains("at most 1"),
        "{refused}"
    );
    world.provision("c", 1, &[]).unwrap();
    assert_ne!(world.members("c"), world.members("a"));
    world.check();
}

/// Catches scaling up that waits for nobody, and scaling down that takes inner nodes, that leaves too many, or that comes back by itself.
#[test]
fn scaling_goes_both_ways_and_takes_leaves_first() {
    let mut world = World::with(15, Policy::Complete);
    let up = world.scale("f", 15).unwrap();
    assert!(!world.progress[&up].done);
    complete(&mut world, 15);
    assert!(world.progress[&up].done);
    let trees = world.state.functions[&function("f")].trees.clone();
    let inner: Vec<NodeId> = trees.members().filter(|node| trees.children(0, node).next().is_some()).collect();
    let down = world.scale("f", 7).unwrap();
    assert!(world.progress[&down].done && world.progress[&down].nodes.len() == 7);
    let mut left = world.members("f");
    left.sort_unstable();
    assert!(inner.iter().all(|node| left.contains(node)) && left.len() == 7, "inner nodes stay");
    world.pass(2_000, &[]);
    world.check();
    assert_eq!(world.members("f").len(), 7, "the number asked for is kept");
    assert!(world.scale("f", 99).unwrap_err().message.contains("at most 15"));
    world.scale("f", 0).unwrap();
    assert!(world.members("f").is_empty());
    world.check();
}

/// Catches a node that is let go while its children still receive from it.
#[test]
fn whoever_feeds_others_goes_when_they_have_moved() {
    let mut world = World::with(8, Policy::Twin);
    world.provision("f", 8, &[]).unwrap();
    let all: Vec<(u32, FunctionState)> = (0..8).map(|n| (n, FunctionState::Fetching)).collect();
    let trees = &world.state.functions[&function("f")].trees;
    let inner = number(trees.root(0).unwrap());
    let drained = world.drain(inner, false).unwrap();
    world.check();
    assert!(!world.members("f").contains(&node(inner)), "others are planned around it");
    assert!(world.agents[&node(inner)].assigned.contains_key(&function("f")), "but it still serves them");
    let others: Vec<_> = all.iter().copied().filter(|(n, _)| *n != inner).collect();
    for _ in 0..4 {
        world.pass(500, &others);
        world.flow(inner, 1, |_| 3);
    }
    let progress = &world.drains[&drained];
    assert!(!progress.done && progress.functions[0].children > 0, "{progress:?}");
    assert!(progress.functions[0].waits_for.contains("still receive"), "{progress:?}");
    // Its children have gone: the next word says so.
    world.pass(500, &others);
    world.beat(inner, FunctionState::Fetching);
    world.pass(200, &others);
    assert!(world.drains[&drained].done && world.agents[&node(inner)].assigned.is_empty());
    let refused = world.provision("f", 0, &[inner]).unwrap_err();
    assert!(refused.message.contains("with undo"), "{refused}");
    assert!(world.provision("f", 8, &[]).unwrap_err().message.contains("1 are being drained"));
    let undone = world.drain(inner, true).unwrap();
    assert!(world.drains[&undone].done);
    world.check();
    assert_eq!(world.members("f").len(), 8, "the number asked for is there again");
}

/// Catches a drain that takes an instance away before another one holds the image, and one that a restart of the controller forgets.
#[test]
fn a_drained_node_is_replaced_first() {
    let mut world = World::with(4, Policy::Twin);
    world.provision("f", 3, &[]).unwrap();
    complete(&mut world, 4);
    let before = world.members("f");
    let leaving = number(before[0]);
    world.drain(leaving, false).unwrap();
    assert_eq!(world.members("f").len(), 3);
    let new = number(*world.members("f").iter().find(|node| !before.contains(node)).unwrap());
    let old: Vec<_> = before.iter().map(|node| (number(*node), FunctionState::Complete)).collect();
    let everybody: Vec<_> = old.iter().copied().chain([(new, FunctionState::Fetching)]).collect();
    world.pass(5_000, &everybody);
    assert!(world.agents[&node(leaving)].assigned.contains_key(&function("f")), "the successor is still receiving");
    world.beat(new, FunctionState::Complete);
    world.pass(200, &old);
    assert!(world.agents[&node(leaving)].assigned.is_empty());
    world.restart_controller();
    assert!(world.state.nodes[&node(leaving)].draining);
    (0..4).for_each(|n| world.attach(n));
    world.check();
    assert!(!world.members("f").contains(&node(leaving)));
}

/// Catches a member that is reclaimed while it is used, and one that is never reclaimed.
#[test]
fn idle_members_are_reclaimed() {
    let mut world = World::with(2, Policy::Complete);
    world.provision("f", 2, &[]).unwrap();
    complete(&mut world, 2);
    world.state.settings.idle_reclaim_ms = 20_000;
    let beat = |world: &mut World, n: u32, uses: u64| {
        let Some(assign) = world.agents[&node(n)].assigned.get(&function("f")) else { return };
        let row = v1::FunctionProgress {
            function_id: assign.function_id.clone(),
            image_id: assign.image_id.clone(),
            term: assign.term,
            epoch: assign.epoch,
            state: FunctionState::Complete.into(),
            uses,
            ..Default::default()
        };
        world.hear(n, v1::event::Event::Heartbeat(v1::Heartbeat { functions: vec![row] }));
    };
    for step in 0..5 {
        world.pass(4_500, &[]);
        beat(&mut world, 0, 0);
        beat(&mut world, 1, step);
    }
    assert_eq!(world.members("f"), [node(1)], "one was read, the other was not");
    assert!(world.state.nodes[&node(0)].tenant.is_none(), "it is free");
    assert_eq!(world.state.functions[&function("f")].count, Some(1), "nobody comes in its place");
    world.check();
}

/// Catches two nodes that one name means.
#[test]
fn names_are_given_once() {
    let mut world = World::with(1, Policy::Twin);
    let attached = |n: u32| v1::Attached {
        node_id: node(n).to_vec(),
        name: "n0".into(),
        data_address: format!("10.9.0.{n}:7410"),
        public_key: vec![n as u8; 32],
        ..Default::default()
    };
    let session = |n: u32| SessionId(1_000 + u64::from(n));
    world.state.handle(world.now, Input::Attached { session: session(7), attached: attached(7).into() });
    let name = |world: &World, n: u32| world.state.nodes[&node(n)].name.clone();
    assert_eq!((name(&world, 0), name(&world, 7)), ("n0".into(), format!("n0-{}", node(7).short())));
    world.provision("f", 0, &[0]).unwrap();
    assert_eq!(world.members("f"), [node(0)]);
    // The one that had the name is gone: the other one gets it.
    world.kill(0);
    world.state.handle(world.now, Input::Attached { session: session(8), attached: attached(7).into() });
    assert_eq!(name(&world, 7), "n0");
    world.attach(0);
    assert_eq!(name(&world, 0), format!("n0-{}", node(0).short()));
    assert!(world.state.names.len() <= world.state.nodes.len() + 1);
}

/// Catches a list of nodes that calls everybody just seen after a restart, and indices that only grow.
#[test]
fn what_is_remembered_is_true_and_bounded() {
    let mut world = World::with(1, Policy::Twin);
    world.kill(0);
    world.restart_controller();
    world.now.unix_s += 100;
    let shown = world.state.nodes[&node(0)].info(world.now).last_seen_ms;
    assert!((100_000..110_000).contains(&shown), "{shown}");
    for round in 0..50u64 {
        let attached = v1::Attached {
            node_id: node(3).to_vec(),
            name: format!("name{round}"),
            data_address: format!("10.8.0.{round}:7410"),
            public_key: vec![3; 32],
            incarnation: round,
            ..Default::default()
        };
        world.state.handle(world.now, Input::Attached { session: SessionId(500 + round), attached: attached.into() });
        let name = format!("g{round}");
        world.create(&name, Policy::Twin).unwrap();
        world.remove(&name);
    }
    assert_eq!((world.state.addresses.len(), world.state.names.len()), (2, 2));
}

/// Catches a disk that is not freed though somebody said so.
#[test]
fn a_release_can_free_the_disk() {
    let mut world = World::with(2, Policy::Twin);
    world.provision("f", 2, &[]).unwrap();
    world.release("f", &[0]).unwrap();
    let request = v1::ReleaseRequest { function: "f".into(), discard: true, ..Default::default() };
    assert_eq!(world.ask(Ask::Release(request)), Ok(Answer::Released(1)));
    assert_eq!([0, 1].map(|n| world.agents[&node(n)].discarded), [0, 1]);
}
