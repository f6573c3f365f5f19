//! What the state machine does when everybody behaves.

use std::time::{Duration, Instant};

use faasnet_api::v1::upstream::Upstream as Target;
use faasnet_api::v1::{self, FunctionState};
use faasnet_api::{Origin, Ticket};
use faasnet_tree::Policy;

use super::super::*;
use super::world::{World, descriptor, function, layout, node};

fn is_origin(upstream: &v1::Upstream) -> bool {
    matches!(upstream.upstream, Some(Target::Origin(_)))
}

/// Catches a plan that lets anybody but roots and heirs read the origin, or that loses a member.
#[test]
fn seven_nodes_get_their_plans() {
    for policy in [Policy::Complete, Policy::Twin] {
        let mut world = World::with(7, policy);
        let request = world.provision("f", 7, &[]).unwrap();
        world.check();
        let trees = world.state.functions[&function("f")].trees.clone();
        for (id, agent) in &world.agents {
            let assign = &agent.assigned[&function("f")];
            assert_eq!(assign.stripes.len(), usize::from(policy.stripes()));
            for (stripe, plan) in (0u8..).zip(&assign.stripes) {
                let root = trees.root(stripe) == Some(*id);
                let heir = trees.heir(stripe) == Some(*id);
                assert_eq!(is_origin(plan.upstream.as_ref().unwrap()), root);
                assert_eq!(plan.fallbacks.iter().any(is_origin), heir);
                assert_eq!(plan.fallbacks.last().is_some_and(is_origin), heir);
                assert!(root || !plan.fallbacks.is_empty(), "{id} has nowhere to go when its parent dies");
                assert!(plan.children.len() <= 2);
            }
            let ticket = Ticket::from_bytes(assign.ticket.clone().try_into().unwrap());
            let image = descriptor("example/app:1", layout()).id();
            ticket.permits(*id, function("f"), image, world.now.unix_s).unwrap();
            world.state.key_set().check(&ticket, world.now.unix_s).unwrap();
        }
        assert!(!world.progress[&request].done);
        (0..7).for_each(|n| world.beat(n, FunctionState::Complete));
        let last = &world.progress[&request];
        assert!(last.done && last.nodes.len() == 7 && last.nodes.iter().all(|node| node.alive));
    }
}

/// Catches nodes that are told plans again though nothing changed for them.
#[test]
fn a_joiner_disturbs_only_its_neighbourhood() {
    let mut world = World::with(64, Policy::Complete);
    let first: Vec<u32> = (0..63).collect();
    world.provision("f", 0, &first).unwrap();
    let before: u64 = world.agents.values().map(|agent| agent.commands).sum();
    world.provision("f", 0, &[63]).unwrap();
    world.check();
    let after: u64 = world.agents.values().map(|agent| agent.commands).sum();
    // Itself and its parent.
    assert_eq!(after - before, 2);
}

/// Catches a repeated provision that changes something, and one that never ends though everything is there.
#[test]
fn provision_is_idempotent() {
    let mut world = World::with(5, Policy::Twin);
    world.provision("f", 3, &[]).unwrap();
    let members = world.members("f");
    members.iter().for_each(|id| {
        let n = u32::from_be_bytes(id.0[..4].try_into().unwrap());
        world.beat(n, FunctionState::Complete);
    });
    let epoch = world.state.functions[&function("f")].epoch;
    for count in [3, 2] {
        let again = world.provision("f", count, &[]).unwrap();
        assert!(world.progress[&again].done);
        assert_eq!((world.members("f"), world.state.functions[&function("f")].epoch), (members.clone(), epoch));
    }
    world.check();
}

/// Catches refusals that change something or do not say what to do.
#[test]
fn impossible_provisions_are_refused_with_the_reason() {
    let mut world = World::with(3, Policy::Twin);
    let too_many = world.provision("f", 5, &[]).unwrap_err();
    assert!(too_many.message.contains("5 nodes are asked for") && too_many.message.contains("at most 3"), "{too_many}");
    let unknown = world.provision("f", 0, &[0, 9]).unwrap_err();
    assert!(unknown.message.contains("\"n9\"") && unknown.message.contains("n0, n1, n2"), "{unknown}");
    assert_eq!(world.provision("f", 0, &[]).unwrap_err().kind, RefusalKind::Invalid);
    assert_eq!(world.provision("g", 1, &[]).unwrap_err().kind, RefusalKind::NotFound);
    assert!(world.members("f").is_empty());
    world.check();
}

/// Catches a node that is given more functions than it may hold.
#[test]
fn a_node_holds_a_limited_number_of_functions() {
    let mut world = World::new();
    world.attach(0);
    for n in 0..21 {
        world.create(&format!("f{n}"), Policy::Complete).unwrap();
        let by_name = world.provision(&format!("f{n}"), 0, &[0]);
        assert_eq!(by_name.is_ok(), n < 20);
    }
    assert!(world.provision("f20", 1, &[]).unwrap_err().message.contains("functions_per_node"));
    world.hear(0, v1::event::Event::JoinRequested(v1::JoinRequested { tenant: String::new(), function: "f20".into() }));
    assert!(world.agents[&node(0)].refused_joins[0].contains("functions_per_node"));
    world.attach(1);
    world.provision("f20", 1, &[]).unwrap();
    assert_eq!(world.members("f20"), [node(1)]);
    world.check();
}

/// Catches a join that is not answered.
#[test]
fn nodes_may_ask_to_join() {
    let mut world = World::with(2, Policy::Twin);
    let join = |name: &str| {
        v1::event::Event::JoinRequested(v1::JoinRequested { tenant: String::new(), function: name.into() })
    };
    world.hear(1, join("f"));
    assert_eq!(world.members("f"), [node(1)]);
    let before = world.agents[&node(1)].commands;
    world.hear(1, join("f"));
    assert_eq!(world.agents[&node(1)].commands, before + 1, "a repeated wish is answered too");
    world.hear(1, join("nothing"));
    assert!(world.agents[&node(1)].refused_joins[0].contains("no function \"nothing\""));
    world.check();
}

/// Catches an image that is not found by its names, one that is found after it was removed or replaced, a node that is let in without room,
/// and a question without an answer.
#[test]
fn nodes_may_ask_by_image() {
    let mut world = World::new();
    (0..2).for_each(|n| world.attach(n));
    let registry = Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true };
    let create = |world: &mut World, name: &str, reference: &str| {
        let descriptor = descriptor(reference, registry.clone());
        let (tenant, name) = ("default".into(), name.into());
        let new = NewFunction { tenant, name, policy: Policy::Twin, memory_mib: 16, descriptor, holder: None };
        world.ask(Ask::Create(Box::new(new))).unwrap();
    };
    create(&mut world, "f", "r.example/app:1");
    let ask = |world: &mut World, n: u32, reference: &str| {
        let wanted = v1::ImageWanted { request: 7, reference: reference.into(), ..Default::default() };
        world.hear(n, v1::event::Event::ImageWanted(wanted));
        world.check();
        let answer = world.agents.get_mut(&node(n)).unwrap().image_answers.pop().expect("no answer");
        assert_eq!((answer.request, answer.function_id.is_empty()), (7, !answer.reason.is_empty()));
        answer.function_id
    };
    let digest = format!("r.example/app@sha256:{}", "0".repeat(64));
    assert_eq!(ask(&mut world, 0, "r.example/app:1"), function("f").to_vec());
    assert_eq!(ask(&mut world, 1, &digest), function("f").to_vec());
    assert_eq!(world.members("f"), [node(0), node(1)]);
    for unknown in ["r.example/app:2", "other.example/app:1", "", &"x".repeat(10_000)] {
        assert!(ask(&mut world, 0, unknown).is_empty(), "{unknown}");
    }
    // An update: the new name counts from the next provision on.
    let descriptor = descriptor("r.example/app:2", registry.clone());
    let new = NewImage { tenant: "default".into(), name: "f".into(), descriptor, at_once: false, holder: None };
    world.ask(Ask::Update(Box::new(new))).unwrap();
    assert!(ask(&mut world, 0, "r.example/app:2").is_empty());
    world.provision("f", 0, &[0]).unwrap();
    assert!(ask(&mut world, 0, "r.example/app:1").is_empty());
    assert_eq!(ask(&mut world, 0, "r.example/app:2"), function("f").to_vec());
    let remove = v1::RemoveFunctionRequest { tenant: String::new(), function: "f".into() };
    world.ask(Ask::Remove(remove)).unwrap();
    assert!(ask(&mut world, 0, "r.example/app:2").is_empty());
    assert!(world.state.images.is_empty());
    // A node of another tenant is told why it gets nothing.
    world.create_for("acme", "g", Policy::Twin, layout(), 16).unwrap();
    let join = v1::JoinRequested { tenant: "acme".into(), function: "g".into() };
    world.hear(1, v1::event::Event::JoinRequested(join));
    create(&mut world, "h", "r.example/app:1");
    assert!(ask(&mut world, 1, "r.example/app:1").is_empty());
    assert_eq!(ask(&mut world, 0, "r.example/app:1"), function("h").to_vec());
}

/// Catches a released node that keeps the function, and a count that takes it back at once.
#[test]
fn released_nodes_drop_the_function() {
    let mut world = World::with(4, Policy::Twin);
    world.provision("f", 4, &[]).unwrap();
    assert_eq!(world.release("f", &[1, 2]), Ok(2));
    world.check();
    world.pass(1_000, &[]);
    assert_eq!(world.members("f"), [node(0), node(3)]);
    assert!(world.agents[&node(1)].assigned.is_empty());
    assert_eq!(world.release("f", &[1]), Ok(0));
    assert_eq!(world.release("f", &[]), Ok(2));
    world.provision("f", 0, &[1]).unwrap();
    assert_eq!(world.members("f"), [node(1)]);
    world.check();
}

/// Catches a function that is created twice, or over another one.
#[test]
fn creating_is_idempotent_for_the_same_image_only() {
    let mut world = World::with(0, Policy::Twin);
    let again = world.create("f", Policy::Twin).unwrap();
    assert_eq!(again.stripes, 2);
    let other = Origin::Layout { path: "/elsewhere".into() };
    assert_eq!(world.create_from("f", Policy::Twin, other).unwrap_err().kind, RefusalKind::AlreadyExists);
    let registry = Origin::Registry { base_url: "http://r".into(), repository: "a".into(), ranges: false };
    let plain = world.create_from("g", Policy::Twin, registry).unwrap();
    assert_eq!((plain.policy.as_str(), plain.stripes), ("complete", 1));
    assert!(plain.note.contains("range"));
    world.check();
}

/// Catches commands for a new function of an old name that agents would ignore as older than what they hold.
#[test]
fn epochs_go_on_when_a_name_is_used_again() {
    let mut world = World::with(3, Policy::Twin);
    world.provision("f", 3, &[]).unwrap();
    world.cut(2);
    let watched = world.provision("f", 3, &[]).unwrap();
    let is_of_function =
        |key: &Key| matches!(key, Key::Function(_) | Key::Order(_) | Key::Descriptor(_) | Key::NextDescriptor(_));
    world.remove("f");
    assert_eq!(world.answers[&watched].as_ref().unwrap_err().kind, RefusalKind::NotFound);
    assert!(
        world.agents[&node(0)].assigned.is_empty() && !world.records.keys().any(is_of_function),
        "only nodes, keys and the term are left"
    );
    world.create("f", Policy::Complete).unwrap();
    // The world fails when a version goes back.
    world.provision("f", 0, &[0, 1, 2]).unwrap();
    world.attach(2);
    world.check();
}

/// Catches a second read of the origin for a node that becomes a root while another holds the whole image.
#[test]
fn a_new_root_is_fed_by_a_member_that_has_everything() {
    let mut world = World::with(2, Policy::Twin);
    world.provision("f", 0, &[0]).unwrap();
    world.beat(0, FunctionState::Complete);
    world.provision("f", 0, &[1]).unwrap();
    world.check();
    let plan = &world.agents[&node(1)].assigned[&function("f")].stripes[1];
    match plan.upstream.as_ref().and_then(|upstream| upstream.upstream.clone()) {
        Some(Target::Node(donor)) => assert_eq!(donor.node_id, node(0).to_vec()),
        other => panic!("{other:?}"),
    }
    assert!(plan.fallbacks.iter().any(is_origin));
    assert!(world.agents[&node(0)].assigned[&function("f")].stripes[1].children.contains(&node(1).to_vec()));
    world.kill(0);
    world.check();
    let plan = &world.agents[&node(1)].assigned[&function("f")].stripes[1];
    assert!(is_origin(plan.upstream.as_ref().unwrap()), "without the donor the root reads the origin");
}

/// Catches tickets that expire under nodes that stay.
#[test]
fn tickets_are_renewed() {
    let mut world = World::with(1, Policy::Complete);
    world.provision("f", 1, &[]).unwrap();
    let first = world.agents[&node(0)].assigned[&function("f")].ticket.clone();
    world.now.unix_s += 13 * 3600;
    world.pass(100, &[]);
    assert_ne!(world.agents[&node(0)].assigned[&function("f")].ticket, first);
}

/// Catches a client that hears nothing for long, or is flooded.
#[test]
fn progress_is_reported_at_a_steady_pace() {
    let mut world = World::with(2, Policy::Twin);
    let request = world.provision("f", 2, &[]).unwrap();
    let mut reports = 0;
    for step in 1..=20 {
        world.now.ms += 100;
        world.beat(step % 2, FunctionState::Fetching);
        world.progress.remove(&request);
        world.apply(Input::Tick);
        reports += usize::from(world.progress.contains_key(&request));
    }
    assert_eq!(reports, 10);
    world.pass(900, &[]);
    world.progress.remove(&request);
    world.pass(200, &[]);
    assert!(world.progress.contains_key(&request), "a quiet provision is silent");
}

/// Catches work that grows with the square of the cluster.
#[test]
fn ten_thousand_nodes_join_in_a_burst() {
    let start = Instant::now();
    let mut world = World::with(10_000, Policy::Twin);
    let request = world.provision("f", 10_000, &[]).unwrap();
    (0..10_000).for_each(|n| world.beat(n, FunctionState::Complete));
    assert!(world.progress[&request].done);
    (0..100).for_each(|n| world.kill(n * 7));
    world.check();
    assert!(start.elapsed() < Duration::from_secs(30), "took {:?}", start.elapsed());
}

/// Catches an origin that is read again, though a node has just read all of it to register the image, because that node is not open for
/// others yet or is taken for one that fetches.
#[test]
fn who_registered_an_image_feeds_those_who_join() {
    let mut world = World::new();
    (0..3).for_each(|n| world.attach(n));
    let registry = Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true };
    let descriptor = descriptor("r.example/app:1", registry);
    let bytes = descriptor.geometry().image_bytes();
    let (tenant, name, holder) = ("default".into(), "f".into(), world.agents[&node(0)].session);
    let new = NewFunction { tenant, name, policy: Policy::Twin, memory_mib: 0, descriptor, holder };
    world.ask(Ask::Create(Box::new(new))).unwrap();
    assert_eq!(world.members("f"), [node(0)]);
    let reads = |world: &World, n: u32| {
        world.agents[&node(n)].assigned[&function("f")]
            .stripes
            .iter()
            .any(|plan| is_origin(plan.upstream.as_ref().unwrap()))
    };
    for (n, state) in [(1, FunctionState::Waiting), (2, FunctionState::Fetching)] {
        let assign = world.agents[&node(0)].assigned[&function("f")].clone();
        let progress = v1::FunctionProgress {
            function_id: assign.function_id,
            image_id: assign.image_id,
            term: assign.term,
            epoch: assign.epoch,
            state: state.into(),
            bytes_present: if state == FunctionState::Fetching { bytes } else { 0 },
            ..Default::default()
        };
        world.hear(0, v1::event::Event::Heartbeat(v1::Heartbeat { functions: vec![progress] }));
        world.provision("f", 0, &[n]).unwrap();
        world.check();
        assert!((1..=n).all(|n| !reads(&world, n)), "a node reads the origin while another has everything");
    }
}
