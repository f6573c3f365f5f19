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
    Scale(bool, u32),
    Drain(u32, bool),
    Flow(u32, u64, u32),
    Blame(u32, u32),
    Reread(u32, u32),
    WantOrigin(u32),
    Foreign(u32),
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
        3 => (any::<bool>(), 0..NODES).prop_map(|(f, count)| Step::Scale(f, count)),
        2 => (n(), any::<bool>()).prop_map(|(n, undo)| Step::Drain(n, undo)),
        8 => (n(), 1u64..100, 0u32..20).prop_map(|(n, mib, ready)| Step::Flow(n, mib << 20, ready)),
        2 => (n(), n()).prop_map(|(reporter, parent)| Step::Blame(reporter, parent)),
        1 => (n(), 0u32..3).prop_map(|(n, wrong)| Step::Reread(n, wrong)),
        1 => n().prop_map(Step::WantOrigin),
        1 => (1..NODES).prop_map(Step::Foreign),
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
        Step::Scale(f, count) => drop(world.scale(name(f), count)),
        Step::Drain(n, undo) => drop(world.drain(n, undo)),
        Step::Flow(n, bytes, ready) if known(world, n) => {
            // Everybody who is there moves something, some much less: stragglers come of it.
            let there: Vec<u32> = (0..NODES).filter(|other| known(world, *other)).collect();
            for _ in 0..8 {
                world.pass(500, &[]);
                for other in there.iter().copied() {
                    world.flow(
                        other,
                        if other == n { bytes / 50 } else { bytes },
                        |_| if other == n { ready } else { 0 },
                    );
                }
            }
        }
        Step::Blame(reporter, parent) if known(world, reporter) => world.blame(reporter, parent),
        Step::Reread(n, wrong) if known(world, n) => {
            let orders = std::mem::take(&mut world.agents.get_mut(&super::world::node(n)).unwrap().rereads);
            for order in orders {
                let (function_id, request) = (order.function_id, order.request);
                let answer = faasnet_api::v1::BlocksReread { function_id, request, checked: 9, wrong };
                world.hear(n, faasnet_api::v1::event::Event::BlocksReread(answer));
            }
        }
        Step::WantOrigin(n) if known(world, n) => {
            let function_id = super::world::function("f").to_vec();
            let wanted = faasnet_api::v1::OriginWanted { function_id, stripe: n % 3 };
            world.hear(n, faasnet_api::v1::event::Event::OriginWanted(wanted));
        }
        Step::Foreign(count) => {
            let ask = faasnet_api::v1::ProvisionRequest {
                tenant: "other".into(),
                function: "h".into(),
                count,
                nodes: vec![],
            };
            drop(world.begin(crate::state::Ask::Provision(ask)));
        }
        Step::Pass(ms) => world.pass(ms, &[]),
        Step::RestartController => world.restart_controller(),
        Step::Kill(_) | Step::Cut(_) | Step::Beat(..) | Step::Refuse(_) | Step::Join(..) => {}
        Step::Flow(..) | Step::Blame(..) | Step::Reread(..) | Step::WantOrigin(_) => {}
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
        world.create_for("other", "h", Policy::Twin, super::world::layout(), 300).unwrap();
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
        let everybody: Vec<_> = (0..NODES).map(|n| (n, FunctionState::Complete)).collect();
        world.pass(3_000, &everybody);
        world.check();
        prop_assert!(world.state.watches.is_empty());
        prop_assert!(world.state.drains.is_empty() && world.state.leaving.is_empty());
    }
}
