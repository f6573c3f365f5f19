//! What the state machine does when nodes, edges or the controller itself fail.

use faasnet_api::v1::{self, FunctionState};
use faasnet_tree::Policy;

use super::super::*;
use super::world::{World, descriptor, function, layout, node};

fn number(id: NodeId) -> u32 {
    u32::from_be_bytes(id.0[..4].try_into().unwrap())
}

/// Catches a dead root whose place is not taken by its heir, and a dead node that stays in a tree.
#[test]
fn a_killed_root_is_replaced_by_its_heir() {
    let mut world = World::with(7, Policy::Twin);
    let request = world.provision("f", 0, &[0, 1, 2, 3, 4, 5, 6]).unwrap();
    let trees = &world.state.functions[&function("f")].trees;
    let (root, heir) = (trees.root(0).unwrap(), trees.heir(0).unwrap());
    world.kill(number(root));
    world.check();
    let trees = &world.state.functions[&function("f")].trees;
    assert_eq!((trees.root(0), trees.len()), (Some(heir), 6));
    assert_eq!(world.live_state(number(root)), "dead");
    (0..7).for_each(|n| world.beat(n, FunctionState::Complete));
    let last = &world.progress[&request];
    assert!(last.done, "a dead node does not block the others");
    assert_eq!(last.nodes.iter().filter(|node| !node.alive).count(), 1);
    world.attach(number(root));
    world.check();
    assert_eq!(world.members("f").len(), 7, "a member that comes back is a member again");
}

/// Catches a lost stream that is taken for a lost node.
#[test]
fn a_cut_stream_makes_suspect_not_dead() {
    let mut world = World::with(3, Policy::Twin);
    world.provision("f", 3, &[]).unwrap();
    world.cut(1);
    assert_eq!((world.live_state(1).as_str(), world.members("f").len()), ("suspect", 3));
    world.pass(9_000, &[(0, FunctionState::Fetching), (2, FunctionState::Fetching)]);
    assert_eq!(world.members("f").len(), 3);
    world.attach(1);
    assert_eq!(world.live_state(1), "live");
    world.check();
    world.cut(1);
    world.pass(11_000, &[(0, FunctionState::Fetching), (2, FunctionState::Fetching)]);
    assert_eq!((world.live_state(1).as_str(), world.members("f").len()), ("dead", 2));
    world.check();
}

/// Catches a death that is noticed late because the stream ended a moment before the data port was closed.
#[test]
fn a_process_that_dies_slowly_is_dead_soon() {
    let mut world = World::with(3, Policy::Twin);
    world.provision("f", 3, &[]).unwrap();
    world.cut(1);
    assert_eq!(world.live_state(1), "suspect");
    world.agents.get_mut(&node(1)).unwrap().listening = false;
    world.pass(200, &[]);
    assert_eq!((world.live_state(1).as_str(), world.members("f").len()), ("dead", 2));
    world.check();
}

/// Catches a stopped process, which still accepts connections, that stays in the trees.
#[test]
fn silence_makes_suspect_then_dead_and_a_word_revives() {
    let mut world = World::with(3, Policy::Twin);
    world.provision("f", 3, &[]).unwrap();
    let others = [(0, FunctionState::Fetching), (2, FunctionState::Fetching)];
    world.beat(1, FunctionState::Fetching);
    world.pass(900, &others);
    assert_eq!(world.live_state(1), "live");
    world.pass(200, &others);
    assert_eq!(world.live_state(1), "suspect");
    world.pass(1_000, &others);
    assert_eq!((world.live_state(1).as_str(), world.members("f").len()), ("dead", 2));
    world.check();
    world.hear(1, v1::event::Event::Heartbeat(v1::Heartbeat::default()));
    assert_eq!((world.live_state(1).as_str(), world.members("f").len()), ("live", 3));
    world.check();
}

/// Catches an idle node that is held to the pace of a busy one, and a stall of the controller that is blamed on nodes.
#[test]
fn idle_nodes_and_a_stalled_controller_are_no_deaths() {
    let mut world = World::with(2, Policy::Twin);
    world.provision("f", 2, &[]).unwrap();
    world.beat(0, FunctionState::Complete);
    world.beat(1, FunctionState::Fetching);
    world.pass(4_900, &[(1, FunctionState::Fetching)]);
    assert_eq!(world.live_state(0), "live");
    world.now.ms += 60_000;
    world.apply(Input::Tick);
    assert_eq!((world.live_state(0).as_str(), world.live_state(1).as_str()), ("live", "live"));
}

/// Catches a neighbour's word that kills a node which answers, and one that is not checked at once.
#[test]
fn a_failed_edge_condemns_the_node_only_if_it_refuses() {
    let mut world = World::with(3, Policy::Complete);
    world.provision("f", 3, &[]).unwrap();
    let failed = |n: u32| {
        v1::event::Event::EdgeFailed(v1::EdgeFailed {
            function_id: function("f").to_vec(),
            upstream: node(n).to_vec(),
            reason: "silent".into(),
            ..Default::default()
        })
    };
    world.hear(1, failed(0));
    assert_eq!((world.live_state(0).as_str(), world.members("f").len()), ("live", 3));
    world.agents.get_mut(&node(0)).unwrap().listening = false;
    world.hear(1, failed(0));
    assert_eq!((world.live_state(0).as_str(), world.members("f").len()), ("dead", 2));
    world.check();
    // Its stream still speaks: it comes back only when its data address answers.
    world.pass(1_000, &[(0, FunctionState::Fetching)]);
    assert_eq!(world.live_state(0), "dead");
    world.agents.get_mut(&node(0)).unwrap().listening = true;
    world.pass(1_000, &[(0, FunctionState::Fetching)]);
    assert_eq!((world.live_state(0).as_str(), world.members("f").len()), ("live", 3));
    world.check();
}

/// Catches a count that is not kept up, and a node that was replaced but goes on.
#[test]
fn a_dead_node_of_a_count_is_replaced_by_a_spare() {
    let mut world = World::with(4, Policy::Twin);
    let request = world.provision("f", 3, &[]).unwrap();
    let before = world.members("f");
    let lost = number(before[0]);
    world.kill(lost);
    world.check();
    assert_eq!(world.members("f").len(), 3);
    assert!(!world.members("f").contains(&node(lost)));
    assert_eq!(world.progress[&request].nodes.len(), 3, "the provision watches the new node instead");
    // It comes back with the function: there are enough.
    let image_id = descriptor("example/app:1", layout()).id().to_vec();
    let held =
        v1::HeldFunction { function_id: function("f").to_vec(), image_id, term: 1, epoch: 1, ..Default::default() };
    world.attach_with(lost, vec![held]);
    assert!(world.agents[&node(lost)].versions.contains_key(&function("f")), "it was told to drop it");
    assert_eq!(world.members("f").len(), 3);
    world.check();
    // No spare: remembered, and back in its place later.
    let member = number(world.members("f")[1]);
    world.kill(lost);
    world.kill(member);
    assert_eq!(world.members("f").len(), 2);
    world.attach(member);
    assert_eq!(world.members("f").len(), 3);
    world.check();
}

/// Catches a node that cannot hold the image but is still expected to forward it.
#[test]
fn a_failed_image_takes_the_node_out_of_the_trees() {
    let mut world = World::with(3, Policy::Twin);
    let request = world.provision("f", 3, &[]).unwrap();
    let image_id = descriptor("example/app:1", layout()).id().to_vec();
    let failed = v1::ImageFailed { function_id: function("f").to_vec(), image_id, reason: "disk full".into() };
    world.hear(2, v1::event::Event::ImageFailed(failed));
    world.check();
    assert_eq!(world.members("f"), [node(0), node(1)]);
    [0, 1].into_iter().for_each(|n| world.beat(n, FunctionState::Complete));
    let last = &world.progress[&request];
    let shown = last.nodes.iter().find(|shown| shown.name == "n2").unwrap().progress.clone().unwrap();
    assert!(last.done && shown.error == "disk full" && shown.state() == FunctionState::Failed);
    let again = world.provision("f", 3, &[]).unwrap();
    assert_eq!(world.members("f").len(), 3, "a new provision is a new try");
    assert!(!world.progress[&again].done);
    world.check();
}

/// Catches a report about an older membership that ends a new provision too early.
#[test]
fn stale_reports_complete_nothing() {
    let mut world = World::with(1, Policy::Twin);
    world.provision("f", 1, &[]).unwrap();
    let old = world.agents[&node(0)].assigned[&function("f")].clone();
    world.release("f", &[]).unwrap();
    let request = world.provision("f", 1, &[]).unwrap();
    let stale = v1::FunctionProgress {
        function_id: old.function_id,
        image_id: old.image_id,
        term: old.term,
        epoch: old.epoch,
        state: FunctionState::Complete.into(),
        ..Default::default()
    };
    world.hear(0, v1::event::Event::Heartbeat(v1::Heartbeat { functions: vec![stale] }));
    assert!(!world.progress[&request].done);
    world.beat(0, FunctionState::Complete);
    assert!(world.progress[&request].done);
}

/// Catches a restart that forgets functions, trees or intent, repeats a term, or buries nodes before they could come back.
#[test]
fn a_restart_keeps_everything_and_raises_the_term() {
    let mut world = World::with(5, Policy::Twin);
    world.provision("f", 5, &[]).unwrap();
    let (term, order) = (world.state.term(), world.state.functions[&function("f")].trees.to_order());
    world.restart_controller();
    assert_eq!(world.state.term(), term + 1);
    assert_eq!(world.state.functions[&function("f")].trees.to_order(), order);
    world.agents.get_mut(&node(4)).unwrap().listening = false;
    (0..3).for_each(|n| world.attach(n));
    world.check();
    world.pass(1_900, &[]);
    assert_eq!((world.live_state(4).as_str(), world.members("f").len()), ("registered", 5));
    world.pass(200, &[]);
    assert_eq!((world.live_state(3).as_str(), world.live_state(4).as_str()), ("suspect", "dead"));
    assert_eq!(world.members("f").len(), 4);
    world.check();
}

/// Catches a controller that lost its state and then is ignored by agents that know a later term.
#[test]
fn the_term_rises_above_what_agents_report() {
    let mut world = World::with(2, Policy::Twin);
    world.provision("f", 2, &[]).unwrap();
    let image_id = descriptor("example/app:1", layout()).id().to_vec();
    let held = |term, epoch| v1::HeldFunction {
        function_id: function("f").to_vec(),
        image_id: image_id.clone(),
        term,
        epoch,
        complete: true,
        ..Default::default()
    };
    world.attach_with(0, vec![held(7, 3)]);
    assert_eq!(world.state.term(), 8);
    world.check();
    world.attach_with(1, vec![held(8, 900)]);
    assert!(world.agents[&node(1)].assigned[&function("f")].epoch > 900);
    world.check();
}

/// Catches a broken agent whose version near the end of the range is taken over, so that the next command counts as older than all
/// before and every agent ignores it.
#[test]
fn a_version_that_nobody_gave_is_not_taken_over() {
    let mut world = World::with(3, Policy::Twin);
    world.provision("f", 2, &[]).unwrap();
    let (term, epoch) = (world.state.term(), world.state.functions[&function("f")].epoch);
    let why_closed = |world: &mut World| world.agents.get_mut(&node(2)).unwrap().closed.pop().unwrap_or_default();
    let image_id = descriptor("example/app:1", layout()).id().to_vec();
    for (name, their_term, their_epoch) in [
        ("f", u64::MAX, 1),
        ("f", u64::MAX - 1, u64::MAX),
        ("f", term, u64::MAX),
        ("f", term, u64::MAX - 1),
        ("unknown", term, u64::MAX),
        ("unknown", term + 1, u64::MAX),
    ] {
        let (function_id, image_id) = (function(name).to_vec(), image_id.clone());
        world.attach(2);
        let row = v1::FunctionProgress {
            function_id: function_id.clone(),
            image_id: image_id.clone(),
            term: their_term,
            epoch: their_epoch,
            ..Default::default()
        };
        world.hear(2, v1::event::Event::Heartbeat(v1::Heartbeat { functions: vec![row] }));
        assert!(why_closed(&mut world).contains("restart the agent"), "{name}, {their_term}, {their_epoch}");
        let held =
            v1::HeldFunction { function_id, image_id, term: their_term, epoch: their_epoch, ..Default::default() };
        world.attach_with(2, vec![held]);
        assert!(why_closed(&mut world).contains("restart the agent"), "{name}, {their_term}, {their_epoch}");
    }
    assert_eq!((world.state.term(), world.state.functions[&function("f")].epoch), (term, epoch));
    // Versions go on rising for everybody; the pretended agents refuse a command that is older than the one before.
    world.attach(2);
    world.provision("f", 3, &[]).unwrap();
    world.release("f", &[0]).unwrap();
    world.check();
    // A late version that could be true is followed, and after it what we said ourselves is believed.
    let image_id = descriptor("example/app:1", layout()).id().to_vec();
    let late = v1::HeldFunction {
        function_id: function("f").to_vec(),
        image_id,
        term: 1 << 60,
        epoch: 1 << 60,
        ..Default::default()
    };
    world.attach_with(1, vec![late]);
    assert_eq!(world.state.term(), (1 << 60) + 1);
    (0..3).for_each(|n| world.beat(n, FunctionState::Complete));
    let closed = world.agents.values().flat_map(|agent| &agent.closed);
    assert!(closed.into_iter().all(|why| why.contains("has attached again")));
    world.check();
}

/// Catches an agent that attaches with nonsense, as an older incarnation, or twice.
#[test]
fn strange_agents_are_turned_away() {
    let mut world = World::with(1, Policy::Twin);
    let good = v1::Attached {
        node_id: node(0).to_vec(),
        incarnation: 5,
        data_address: "10.0.0.0:7410".into(),
        public_key: super::world::node_key(0).to_vec(),
        ..Default::default()
    };
    let changes: [fn(&mut v1::Attached); 7] = [
        |attached| attached.node_id = vec![1],
        |attached| attached.data_address = "nowhere".into(),
        |attached| attached.data_address = "0.0.0.0:7410".into(),
        |attached| attached.data_address = "10.0.0.1:0".into(),
        |attached| attached.public_key = Vec::new(),
        // Whoever asks for that node by its id would be given this one; a line of the log would be forged.
        |attached| attached.name = node(7).to_string(),
        |attached| attached.name = "n1\nnode n2 is dead".into(),
    ];
    for change in changes {
        let mut attached = good.clone();
        change(&mut attached);
        let outputs =
            world.state.handle(world.now, Input::Attached { session: SessionId(99), attached: attached.into() });
        assert!(matches!(&outputs[..], [Output::Close { .. }]), "{outputs:?}");
    }
    let session = SessionId(100);
    let long = v1::Attached { version: "1\n".repeat(1 << 20), ..good.clone() };
    world.state.handle(world.now, Input::Attached { session, attached: long.into() });
    let info = world.state.nodes[&node(0)].info(world.now);
    assert!(info.incarnation == 5 && info.version.len() < 100 && !info.version.contains('\n'), "{}", info.version);
    let older = v1::Attached { incarnation: 4, ..good };
    let outputs = world.state.handle(world.now, Input::Attached { session: SessionId(101), attached: older.into() });
    assert!(matches!(&outputs[..], [Output::Close { .. }]), "{outputs:?}");
}

/// Catches a host with an emptied store whose old self haunts the trees, since its address answers probes.
#[test]
fn a_new_node_at_an_old_address_ends_the_old_one() {
    let mut world = World::with(2, Policy::Twin);
    world.provision("f", 2, &[]).unwrap();
    world.cut(1);
    let attached = v1::Attached {
        node_id: node(50).to_vec(),
        name: "n1".into(),
        data_address: "10.0.0.1:7410".into(),
        public_key: vec![5; 32],
        ..Default::default()
    };
    world.state.handle(world.now, Input::Attached { session: SessionId(999), attached: attached.into() });
    assert_eq!(world.live_state(1), "dead");
    assert_eq!(world.live_state(50), "live");
}
