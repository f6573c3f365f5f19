//! Histories of one stripe's upstream side.

use super::*;

const ME: NodeId = NodeId([9; 16]);

fn node(n: u8) -> Target {
    Target::Node(NodeId([n; 16]), SocketAddr::from(([127, 0, 0, n], 1)))
}

fn ms(n: u64) -> Now {
    Duration::from_millis(n)
}

fn upstreams(upstream: Target, fallbacks: &[Target]) -> Upstreams {
    let plan = StripePlan { upstream, fallbacks: fallbacks.to_vec(), children: Vec::new() };
    Upstreams::new(ME, plan, Patience::default())
}

fn connect(up: &mut Upstreams, now: Now) -> (LinkId, Target) {
    let actions = up.poll(now, true);
    let connect = actions.iter().find_map(|action| match action {
        UpstreamAction::Connect(id, target) => Some((*id, *target)),
        _ => None,
    });
    connect.unwrap_or_else(|| panic!("no Connect in {actions:?}"))
}

fn stream(up: &mut Upstreams, now: Now) -> (LinkId, Target) {
    let (id, target) = connect(up, now);
    up.connected(id, now);
    up.welcomed(id, now, vec![NodeId([1; 16])]);
    assert_eq!(up.poll(now, true), [UpstreamAction::Want(id)]);
    (id, target)
}

/// Catches a node that stays with a dead parent, or tries it again before the fallbacks.
#[test]
fn a_lost_parent_is_replaced_in_the_order_of_the_plan() {
    let mut up = upstreams(node(1), &[Target::Origin, node(2), node(3)]);
    let (id, _) = stream(&mut up, ms(0));
    up.closed(id, ms(10), "reset", false);
    assert_eq!(up.waiting_for(), WaitingFor::Upstream);
    let (id, target) = connect(&mut up, ms(10));
    assert_eq!(target, node(2));
    up.closed(id, ms(11), "refused", false);
    let (id, target) = connect(&mut up, ms(11));
    assert_eq!(target, node(3));
    up.closed(id, ms(12), "refused", false);
    // Only when no node is left is the origin read.
    assert_eq!(connect(&mut up, ms(12)).1, Target::Origin);
}

/// Catches a stopped parent that is waited for, and a slow one that is left although bytes arrive.
#[test]
fn only_a_silent_parent_is_left() {
    let mut up = upstreams(node(1), &[node(2)]);
    let (id, _) = stream(&mut up, ms(0));
    for t in (0..2000).step_by(100) {
        up.heard(id, ms(t));
        assert_eq!(up.poll(ms(t), true), []);
    }
    assert_eq!(up.poll(ms(2100), true), []);
    let actions = up.poll(ms(2200), true);
    assert!(
        matches!(&actions[..], [UpstreamAction::Close(_), UpstreamAction::Report { .. }, UpstreamAction::Connect(..)]),
        "{actions:?}"
    );
}

/// Catches thrashing while the origin is slow: everybody on the path lives, so nobody may move.
#[test]
fn waiting_for_the_origin_is_borne_for_ever_but_a_lost_upstream_only_for_a_while() {
    let mut up = upstreams(node(1), &[node(2)]);
    let (id, _) = stream(&mut up, ms(0));
    for t in (0..60_000).step_by(50) {
        up.waiting(id, ms(t), WaitingFor::Origin);
        assert_eq!(up.poll(ms(t), true), []);
    }
    assert_eq!(up.waiting_for(), WaitingFor::Origin);
    let moved = (60_000..70_000).step_by(50).find(|t| {
        up.waiting(id, ms(*t), WaitingFor::Upstream);
        !up.poll(ms(*t), true).is_empty()
    });
    assert_eq!(moved, Some(62_050));
}

/// Catches a planned change that closes the old edge before the new one works, or that loses the bytes in flight.
#[test]
fn a_planned_change_stops_the_old_edge_only_when_the_new_one_is_welcomed() {
    let mut up = upstreams(node(1), &[]);
    let (old, _) = stream(&mut up, ms(0));
    up.set_plan(StripePlan { upstream: node(2), fallbacks: vec![], children: vec![] });
    let (new, target) = connect(&mut up, ms(10));
    assert_eq!(target, node(2));
    up.connected(new, ms(11));
    assert_eq!(up.poll(ms(11), true), []);
    up.welcomed(new, ms(12), vec![]);
    assert_eq!(up.poll(ms(12), true), [UpstreamAction::Stop(old)]);
    assert_eq!(up.poll(ms(13), true), []);
    up.closed(old, ms(14), "ended", false);
    assert_eq!(up.poll(ms(14), true), [UpstreamAction::Want(new)]);
}

/// Catches a cycle that is not broken when the path shows this node's own id.
#[test]
fn a_path_with_our_own_id_ends_the_edge_without_blame() {
    let mut up = upstreams(node(1), &[node(2)]);
    let (id, _) = stream(&mut up, ms(0));
    up.path_changed(id, ms(5), vec![NodeId([4; 16]), ME, NodeId([1; 16])]);
    let actions = up.poll(ms(5), true);
    assert!(
        matches!(&actions[..], [UpstreamAction::Close(_), UpstreamAction::Connect(_, target)] if *target == node(2)),
        "{actions:?}"
    );
}

/// Catches a node that ignores where a busy parent sends it.
#[test]
fn the_children_of_a_busy_parent_are_tried() {
    let mut up = upstreams(node(1), &[]);
    let (id, _) = connect(&mut up, ms(0));
    up.connected(id, ms(0));
    let child = SocketAddr::from(([127, 0, 0, 7], 9));
    up.busy(id, ms(1), &[child]);
    assert_eq!(connect(&mut up, ms(1)).1, Target::Address(child));
}

/// Catches a node that keeps its upstream although it has everything.
#[test]
fn a_complete_stripe_lets_go() {
    let mut up = upstreams(node(1), &[]);
    let (id, _) = stream(&mut up, ms(0));
    assert_eq!(up.poll(ms(1), false), [UpstreamAction::Close(id)]);
    assert_eq!(up.poll(ms(2), false), []);
}

/// Catches a root that gives up: the only target is tried again after a pause, however often it fails.
#[test]
fn a_failing_origin_is_tried_again_after_a_pause() {
    let mut up = upstreams(Target::Origin, &[]);
    let mut now = ms(0);
    for _ in 0..20 {
        let (id, _) = connect(&mut up, now);
        up.closed(id, now, "refused", false);
        let actions = up.poll(now, true);
        assert!(!actions.iter().any(|action| matches!(action, UpstreamAction::Connect(..))), "{actions:?}");
        now += ms(5000);
    }
}

/// Catches an heir that reads the origin a second time because the root paused for a moment.
#[test]
fn with_only_the_origin_left_a_silent_parent_gets_more_time() {
    let mut up = upstreams(node(1), &[Target::Origin]);
    stream(&mut up, ms(0));
    assert_eq!(up.poll(ms(1900), true), []);
    let actions = up.poll(ms(2100), true);
    assert!(
        matches!(
            &actions[..],
            [UpstreamAction::Close(_), UpstreamAction::Report { .. }, UpstreamAction::Connect(_, Target::Origin)]
        ),
        "{actions:?}"
    );
}

/// Catches a child that stays for ever with a parent which says that bytes flow while none come.
#[test]
fn a_parent_that_only_promises_is_left() {
    let mut up = upstreams(node(1), &[node(2)]);
    let (id, _) = stream(&mut up, ms(0));
    let moved = (0..20_000).step_by(50).find(|t| {
        up.waiting(id, ms(*t), WaitingFor::Progress);
        !up.poll(ms(*t), true).is_empty()
    });
    assert_eq!(moved, Some(10_050));
}
