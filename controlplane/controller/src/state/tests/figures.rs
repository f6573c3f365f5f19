//! What the state machine costs. Figures of a quiet machine, so apart: `cargo test --release -p faasnet-controller figures -- --ignored
//! --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use faasnet_api::v1::{self, FunctionState};
use faasnet_tree::Policy;

use super::super::*;
use super::world::{World, node};

/// The pretended agents are not what is measured: every input goes to the state machine alone.
fn measured(world: &mut World, input: Input) -> (Duration, Vec<Output>) {
    let start = Instant::now();
    let outputs = world.state.handle(world.now, input);
    (start.elapsed(), outputs)
}

fn provision(world: &mut World, function: &str, count: u32, nodes: Vec<String>) -> (Duration, usize) {
    let request = RequestId(world.number());
    let (tenant, function) = (String::new(), function.into());
    let ask = Ask::Provision(v1::ProvisionRequest { tenant, function, count, nodes });
    let (spent, outputs) = measured(world, Input::Asked { request, ask });
    (spent, outputs.iter().filter(|output| matches!(output, Output::Send { .. })).count())
}

fn thousand(functions: u32) -> World {
    let mut world = World::new();
    (0..1_000).for_each(|n| world.attach(n));
    (0..functions).for_each(|n| drop(world.create(&format!("f{n}"), Policy::Twin).unwrap()));
    world
}

/// Catches a burst that takes the controller's time: 2,500 instances on 1,000 nodes, asked for by number and one by one.
#[test]
#[ignore = "a figure of a quiet machine"]
fn a_burst_of_2500_provisions() {
    let mut world = thousand(5);
    let by_number: Vec<_> = (0..5).map(|n| provision(&mut world, &format!("f{n}"), 500, Vec::new())).collect();
    let total = |calls: &[(Duration, usize)]| {
        (calls.iter().map(|call| call.0).sum::<Duration>(), calls.iter().map(|call| call.1).sum::<usize>())
    };
    let (spent, sent) = total(&by_number);
    println!("5 calls of 500 nodes: {spent:?}, {sent} commands");
    let mut world = thousand(5);
    let one_by_one: Vec<_> = (0..2_500u32)
        .map(|n| provision(&mut world, &format!("f{}", n % 5), 0, vec![format!("n{}", (n / 5 * 2 + n % 2) % 1_000)]))
        .collect();
    let (single, sent) = total(&one_by_one);
    println!("2,500 calls of one node: {single:?}, {sent} commands");
    assert!(spent < Duration::from_millis(250), "{spent:?}");
    assert!(single < Duration::from_millis(250), "{single:?}");
}

/// Catches a state machine whose idle work grows beyond what one core can spare: 10,000 agents, a heartbeat each every five seconds, ticks.
#[test]
#[ignore = "a figure of a quiet machine"]
fn ten_thousand_idle_agents() {
    const AGENTS: u32 = 10_000;
    const SECONDS: u64 = 20;
    let mut world = World::with(AGENTS, Policy::Twin);
    world.provision("f", AGENTS, &[]).unwrap();
    (0..AGENTS).for_each(|n| world.beat(n, FunctionState::Complete));
    let beats: Vec<(SessionId, v1::Heartbeat)> = (0..AGENTS)
        .map(|n| {
            let agent = &world.agents[&node(n)];
            let row = |assign: &v1::Assign| v1::FunctionProgress {
                function_id: assign.function_id.clone(),
                image_id: assign.image_id.clone(),
                term: assign.term,
                epoch: assign.epoch,
                state: FunctionState::Complete.into(),
                ..Default::default()
            };
            (agent.session.unwrap(), v1::Heartbeat { functions: agent.assigned.values().map(row).collect() })
        })
        .collect();
    let mut spent = Duration::ZERO;
    let mut due = beats.iter().cycle();
    for _ in 0..SECONDS * 10 {
        world.now.ms += 100;
        spent += measured(&mut world, Input::Tick).0;
        for (session, heartbeat) in due.by_ref().take(AGENTS as usize / 50) {
            let event = v1::event::Event::Heartbeat(heartbeat.clone());
            spent += measured(&mut world, Input::Heard { session: *session, event }).0;
        }
    }
    let share = spent.as_secs_f64() / SECONDS as f64;
    println!("{AGENTS} idle agents: {:.2} % of a core", share * 100.0);
    assert!(share < 0.02, "{share}");
}
