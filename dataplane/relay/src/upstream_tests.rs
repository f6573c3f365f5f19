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

/// Catches a detour by a fallback, whose uplink is busy with others, although the repaired plan is here already.
#[test]
fn a_new_plan_overtakes_a_fallback_that_has_not_answered() {
    let mut up = upstreams(node(1), &[node(2)]);
    let (id, _) = stream(&mut up, ms(0));
    up.closed(id, ms(10), "reset", false);
    let (detour, target) = connect(&mut up, ms(10));
    assert_eq!(target, node(2));
    up.connected(detour, ms(11));
    up.set_plan(StripePlan { upstream: node(3), fallbacks: vec![node(2)], children: vec![] });
    let actions = up.poll(ms(12), true);
    assert!(
        matches!(&actions[..], [UpstreamAction::Close(closed), UpstreamAction::Connect(_, target)]
            if *closed == detour && *target == node(3)),
        "{actions:?}"
    );
}

/// Catches a welcome that is thrown away: who has let us in feeds us until the planned parent does.
#[test]
fn a_fallback_that_has_answered_is_used_until_the_planned_parent_is_there() {
    let mut up = upstreams(node(1), &[node(2)]);
    let (id, _) = stream(&mut up, ms(0));
    up.closed(id, ms(10), "reset", false);
    let (detour, _) = connect(&mut up, ms(10));
    up.connected(detour, ms(11));
    up.welcomed(detour, ms(12), vec![NodeId([2; 16])]);
    up.set_plan(StripePlan { upstream: node(3), fallbacks: vec![node(2)], children: vec![] });
    let actions = up.poll(ms(12), true);
    assert!(
        matches!(&actions[..], [UpstreamAction::Want(wanted), UpstreamAction::Connect(_, target)]
            if *wanted == detour && *target == node(3)),
        "{actions:?}"
    );
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

/// Lets every connection fail for `span` from `from`, in steps of 50 ms, and answers with what else was done, and when.
fn fail_everywhere(up: &mut Upstreams, from: u64, span: u64) -> Vec<(u64, UpstreamAction)> {
    let mut done = Vec::new();
    for t in (from..from + span).step_by(50) {
        for action in up.poll(ms(t), true) {
            match action {
                UpstreamAction::Connect(id, target) if target != Target::Origin => {
                    up.closed(id, ms(t), "connection refused", false);
                }
                UpstreamAction::Report { .. } | UpstreamAction::Close(_) => {}
                other => done.push((t, other)),
            }
        }
    }
    done
}

/// Catches an orphan that waits for ever, one that asks while a fallback may still help, and one that reads the origin although the
/// controller said no.
#[test]
fn an_orphan_asks_for_leave_and_reads_the_origin_only_with_it() {
    let mut up = upstreams(node(1), &[node(2), node(3)]);
    let (id, _) = stream(&mut up, ms(0));
    up.closed(id, ms(10), "reset", false);
    let asked = fail_everywhere(&mut up, 10, 6_000);
    assert!((3_000..3_500).contains(&asked[0].0), "{asked:?}");
    assert!(asked.iter().all(|(_, action)| *action == UpstreamAction::AskForOrigin) && asked.len() <= 3, "{asked:?}");
    // Refusals are answers: nothing is read for as long as the controller says no.
    for round in 0..20 {
        up.origin_leave(ms(6_000 + round * 2_000), Duration::ZERO);
        let asked = fail_everywhere(&mut up, 6_000 + round * 2_000, 2_000);
        assert!(asked.iter().all(|(_, action)| *action == UpstreamAction::AskForOrigin), "{asked:?}");
    }
    up.origin_leave(ms(46_000), Duration::from_secs(30));
    let (id, target) = stream(&mut up, ms(46_000));
    assert_eq!(target, Target::Origin);
    // Half of the lease later it asks to go on; what the plan names is tried now and then, and where it fails still, the origin is read on.
    let mut done = Vec::new();
    for t in (46_000..62_000).step_by(50) {
        up.block(id, ms(t));
        done.extend(fail_everywhere(&mut up, t, 50));
        assert_eq!(up.active(), Some((id, Target::Origin)));
    }
    assert_eq!(done.iter().map(|(_, action)| action).collect::<Vec<_>>(), [&UpstreamAction::AskForOrigin]);
    up.origin_leave(ms(62_000), Duration::ZERO);
    assert!(up.poll(ms(62_000), true).contains(&UpstreamAction::Close(id)));
}

/// Catches nodes that depend on the controller for their life, and those that read the origin before they have asked everybody.
#[test]
fn without_an_answer_an_orphan_asks_everybody_once_more_and_then_reads_the_origin() {
    let mut up = upstreams(node(1), &[node(2)]);
    up.meet([node(5)]);
    let (tried, read, _) = last_round(&mut up);
    assert!((8_000..24_000).contains(&read), "{read}");
    let last: Vec<Target> = tried.iter().rev().take(4).copied().collect();
    assert_eq!(last, [Target::Origin, node(5), node(2), node(1)]);
}

/// Lets every node fail and nobody answer until the origin is tried: who was tried, when the origin was, and on which link.
fn last_round(up: &mut Upstreams) -> (Vec<Target>, u64, LinkId) {
    let mut tried = Vec::new();
    for t in (0..60_000).step_by(50) {
        for action in up.poll(ms(t), true) {
            let UpstreamAction::Connect(id, target) = action else { continue };
            tried.push(target);
            if target == Target::Origin {
                return (tried, t, id);
            }
            up.closed(id, ms(t), "connection refused", false);
        }
    }
    panic!("the origin is never read");
}

/// Catches a node that reads the origin for ever because nobody answered once: neither the controller's no nor its parent ends it.
#[test]
fn the_origin_is_given_back_to_a_parent_or_a_controller_that_is_there_again() {
    let reader = || {
        let mut up = upstreams(node(1), &[node(2)]);
        let (_, now, id) = last_round(&mut up);
        up.connected(id, ms(now));
        up.welcomed(id, ms(now), Vec::new());
        assert_eq!(up.poll(ms(now), true), [UpstreamAction::Want(id)]);
        (up, now, id)
    };
    // While nobody is there it asks on, tries its plan, and reads.
    let (mut up, start, id) = reader();
    let mut done = Vec::new();
    for t in (start..start + 20_000).step_by(50) {
        up.block(id, ms(t));
        done.extend(fail_everywhere(&mut up, t, 50));
        assert_eq!(up.active(), Some((id, Target::Origin)));
    }
    assert!(done.len() >= 9 && done.iter().all(|(_, action)| *action == UpstreamAction::AskForOrigin), "{done:?}");
    up.origin_leave(ms(start + 20_000), Duration::ZERO);
    assert!(up.poll(ms(start + 20_000), true).contains(&UpstreamAction::Close(id)));

    // One that got leave gives it back as well, to its parent; and one whose parent is there but has nothing reads on.
    for (lease, has_blocks) in [(None, true), (Some(30), true), (None, false)] {
        let (mut up, start, id) = reader();
        lease.into_iter().for_each(|seconds| up.origin_leave(ms(start), Duration::from_secs(seconds)));
        let (now, back) = (start..start + 10_000)
            .step_by(50)
            .find_map(|t| {
                up.block(id, ms(t));
                up.poll(ms(t), true).into_iter().find_map(|action| match action {
                    UpstreamAction::Connect(back, target) => Some((t, back)).filter(|_| target == node(1)),
                    _ => None,
                })
            })
            .expect("the plan is never tried");
        up.connected(back, ms(now));
        up.welcomed(back, ms(now), vec![NodeId([1; 16])]);
        assert_eq!(up.poll(ms(now), true), [UpstreamAction::Stop(id)]);
        up.closed(id, ms(now), "stopped", false);
        assert_eq!(up.poll(ms(now), true), [UpstreamAction::Want(back)]);
        match has_blocks {
            true => up.block(back, ms(now + 50)),
            false => up.waiting(back, ms(now + 50), WaitingFor::Upstream),
        }
        let next = up.poll(ms(now + 50), true);
        let reads_again = matches!(next[..], [UpstreamAction::Connect(_, Target::Origin)]);
        assert_eq!((reads_again, next.is_empty()), (!has_blocks, has_blocks), "{next:?}");
    }
}

/// Catches an orphan that reads the origin although a member whom only the other stripe's plan names has everything.
#[test]
fn a_member_outside_the_plan_is_tried_before_anybody_asks_for_the_origin() {
    let plans = [
        StripePlan { upstream: node(1), fallbacks: vec![Target::Origin], children: vec![] },
        StripePlan { upstream: node(5), fallbacks: vec![node(6), Target::Origin], children: vec![] },
    ];
    assert_eq!(crate::plan::acquaintances(&plans, 0), [node(5), node(6)]);
    let mut up = upstreams(node(1), &[]);
    up.meet(crate::plan::acquaintances(&plans, 0));
    let first = (0..10_000).step_by(50).find_map(|t| {
        up.poll(ms(t), true).into_iter().find_map(|action| match action {
            UpstreamAction::Connect(id, target) if target == node(1) => {
                up.closed(id, ms(t), "connection refused", false);
                None
            }
            UpstreamAction::Report { .. } => None,
            other => Some((t, other)),
        })
    });
    assert!(matches!(first, Some((3_000, UpstreamAction::Connect(_, target))) if target == node(5)), "{first:?}");
}
