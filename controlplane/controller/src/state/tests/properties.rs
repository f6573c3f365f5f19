//! The state machine under random histories.

use faasnet_api::v1::FunctionState;
use faasnet_tree::Policy;
use proptest::prelude::*;

use super::world::World;

const NODES: u32 = 12;

#[derive(Debug, Clone)]
enum Step {
    Attach(u32),
    Kill(u32),
    Cut(u32),
    Beat(u32, bool),
    Refuse(u32),
    ProvisionNodes(bool, Vec<u32>),
    ProvisionCount(bool, u32),
    Release(bool, Vec<u32>),
    Recreate(bool),
    Join(u32, bool),
    Pass(u64),
    RestartController,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = || 0..NODES;
    let some = || prop::collection::vec(0..NODES, 1..5);
    let step = prop_oneof![
        6 => n().prop_map(Step::Attach),
        3 => n().prop_map(Step::Kill),
        2 => n().prop_map(Step::Cut),
        4 => (n(), any::<bool>()).prop_map(|(n, complete)| Step::Beat(n, complete)),
        1 => n().prop_map(Step::Refuse),
        3 => (any::<bool>(), some()).prop_map(|(f, nodes)| Step::ProvisionNodes(f, nodes)),
        3 => (any::<bool>(), 1..NODES).prop_map(|(f, count)| Step::ProvisionCount(f, count)),
        2 => (any::<bool>(), some()).prop_map(|(f, nodes)| Step::Release(f, nodes)),
        1 => any::<bool>().prop_map(Step::Recreate),
        1 => (n(), any::<bool>()).prop_map(|(n, f)| Step::Join(n, f)),
        3 => (1u64..40).prop_map(|tenths| Step::Pass(tenths * 100)),
        1 => Just(Step::RestartController),
    ];
    prop::collection::vec(step, 1..80)
}

fn name(second: bool) -> &'static str {
    if second { "g" } else { "f" }
}

fn policy(second: bool) -> Policy {
    if second { Policy::Complete } else { Policy::Twin }
}

fn apply(world: &mut World, step: Step) {
    let known = |world: &World, n: u32| world.agents.contains_key(&super::world::node(n));
    match step {
        Step::Attach(n) => world.attach(n),
        Step::Kill(n) if known(world, n) => world.kill(n),
        Step::Cut(n) if known(world, n) => world.cut(n),
        Step::Beat(n, complete) if known(world, n) => {
            world.beat(n, if complete { FunctionState::Complete } else { FunctionState::Fetching });
        }
        Step::Refuse(n) if known(world, n) => world.beat(n, FunctionState::Failed),
        // Ignored: refusals are answers too; what they must not do is change something, which `check` sees.
        Step::ProvisionNodes(f, nodes) => drop(world.provision(name(f), 0, &nodes)),
        Step::ProvisionCount(f, count) => drop(world.provision(name(f), count, &[])),
        Step::Release(f, nodes) => drop(world.release(name(f), &nodes)),
        Step::Recreate(f) => {
            world.remove(name(f));
            world.create(name(f), policy(f)).unwrap();
        }
        Step::Join(n, f) if known(world, n) => {
            let join = faasnet_api::v1::JoinRequested { tenant: String::new(), function: name(f).into() };
            world.hear(n, faasnet_api::v1::event::Event::JoinRequested(join));
        }
        Step::Pass(ms) => world.pass(ms, &[]),
        Step::RestartController => world.restart_controller(),
        Step::Kill(_) | Step::Cut(_) | Step::Beat(..) | Step::Refuse(_) | Step::Join(..) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Catches trees that differ from intent and liveness, agents that hold an old plan, commands with a stale version, records that differ
    /// from the state, and provisions that end too early or never.
    #[test]
    fn any_history_keeps_agents_trees_and_records_consistent(steps in steps()) {
        let mut world = World::new();
        for second in [false, true] {
            world.create(name(second), policy(second)).unwrap();
        }
        for step in steps {
            apply(&mut world, step);
            world.check();
        }
        // Everybody comes back and finishes: every provision under way must end.
        (0..NODES).for_each(|n| world.attach(n));
        world.check();
        for _ in 0..2 {
            (0..NODES).for_each(|n| world.beat(n, FunctionState::Complete));
        }
        world.check();
        prop_assert!(world.state.watches.is_empty());
    }
}
