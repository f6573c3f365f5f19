//! Ticket keys: rotated, revoked, kept; which tickets members get.

use faasnet_api::ticket::{LIFETIME_SECONDS, SKEW_SECONDS};
use faasnet_api::{KeyId, KeySet, Ticket};
use faasnet_tree::Policy;

use super::super::*;
use super::world::{World, function, node, node_key};

fn ticket(world: &World, n: u32) -> Ticket {
    Ticket::from_bytes(world.agents[&node(n)].assigned[&function("f")].ticket.clone().try_into().unwrap())
}

fn signed_by(world: &World, n: u32) -> KeyId {
    ticket(world, n).claims().key
}

/// As listed: ids and states.
fn keys(world: &mut World) -> Vec<(String, String)> {
    let Ok(Answer::Keys(reply)) = world.ask(Ask::ListKeys) else { panic!("no keys") };
    reply.keys.into_iter().map(|key| (key.key_id, key.state)).collect()
}

fn rotate(world: &mut World, seed: u8) {
    world.ask(Ask::RotateKeys { seed: [seed; 32] }).unwrap();
}

fn pass_seconds(world: &mut World, seconds: u64) {
    world.now.unix_s += seconds;
    world.apply(Input::Tick);
}

/// Catches a new key that signs before agents know it, members that are told anew for nothing, and a previous key that ends early or late.
#[test]
fn a_rotation_disturbs_nobody() {
    let mut world = World::with(4, Policy::Complete);
    world.provision("f", 0, &[0, 1, 2]).unwrap();
    let first = signed_by(&world, 0);
    let tickets: Vec<Ticket> = (0..3).map(|n| ticket(&world, n)).collect();
    let told: Vec<u64> = world.agents.values().map(|agent| agent.commands - agent.key_sets).collect();
    rotate(&mut world, 9);
    world.check();
    assert!(world.agents.values().all(|agent| agent.key_sets == 1), "every agent hears of the key at once");
    assert_eq!(keys(&mut world).iter().map(|key| &key.1[..]).collect::<Vec<_>>(), ["next", "current"]);
    assert!(world.ask(Ask::RotateKeys { seed: [8; 32] }).is_err(), "one at a time");
    pass_seconds(&mut world, 3);
    assert_eq!(keys(&mut world).iter().map(|key| &key.1[..]).collect::<Vec<_>>(), ["current", "previous"]);
    assert_eq!(world.agents.values().map(|agent| agent.commands - agent.key_sets).collect::<Vec<_>>(), told);
    // Who joins gets a ticket of the new key; the old ones are still good, until the last of them would have ended.
    world.provision("f", 0, &[3]).unwrap();
    assert_ne!(signed_by(&world, 3), first);
    let now = world.now.unix_s;
    for (n, ticket) in (0u32..).zip(&tickets) {
        assert_eq!(world.state.key_set().check(ticket, now), Ok(()));
        assert_eq!(ticket.claims().node_key, node_key(n));
    }
    assert_eq!(world.state.key_set().check(&tickets[0], now + LIFETIME_SECONDS), Ok(()));
    assert!(world.state.key_set().check(&tickets[0], now + LIFETIME_SECONDS + SKEW_SECONDS + 1).is_err());
    pass_seconds(&mut world, LIFETIME_SECONDS + 1);
    assert_eq!(keys(&mut world).len(), 1);
    assert!((0..4).all(|n| signed_by(&world, n) != first), "renewed long before");
    world.check();
}

/// Catches a revoked key that is still named to agents, members left with its worthless tickets, and a controller without a key.
#[test]
fn a_revoked_key_is_gone_and_its_members_get_new_tickets() {
    let mut world = World::with(3, Policy::Complete);
    world.provision("f", 0, &[0, 1, 2]).unwrap();
    let (first, old) = (signed_by(&world, 0), ticket(&world, 0));
    assert!(world.ask(Ask::RevokeKey { key_id: String::new(), seed: [8; 32] }).is_err());
    assert!(world.ask(Ask::RevokeKey { key_id: "zz".into(), seed: [8; 32] }).is_err());
    world.ask(Ask::RevokeKey { key_id: first.to_string()[..6].into(), seed: [8; 32] }).unwrap();
    let (set, now) = (world.state.key_set(), world.now.unix_s);
    assert!(set.check(&old, now).is_err());
    for n in 0..3 {
        assert_eq!(set.check(&ticket(&world, n), now), Ok(()));
    }
    world.check();
}

/// Catches keys that a restart changes, so that every ticket in the cluster would be worthless, and a rotation that it forgets.
#[test]
fn keys_outlive_the_controller() {
    let mut world = World::with(1, Policy::Complete);
    world.provision("f", 1, &[]).unwrap();
    let ticket = ticket(&world, 0);
    rotate(&mut world, 9);
    let before: KeySet = world.state.key_set();
    world.restart_controller();
    assert_eq!(world.state.key_set(), before);
    assert_eq!(world.state.key_set().check(&ticket, world.now.unix_s), Ok(()));
    pass_seconds(&mut world, 3);
    assert_eq!(keys(&mut world)[1].1, "previous");
}

/// Catches an agent that takes over the id of another, with a key of its own, and gets that node's tickets.
#[test]
fn an_id_belongs_to_the_key_that_registered_it() {
    let mut world = World::with(2, Policy::Complete);
    let attached = v1_attached(&world, 1);
    let thief = faasnet_api::v1::Attached { public_key: vec![9; 32], incarnation: 7, ..attached.clone() };
    let session = SessionId(world.number());
    let outputs = world.state.handle(world.now, Input::Attached { session, attached: Box::new(thief) });
    assert!(matches!(&outputs[..], [Output::Close { refusal, .. }] if refusal.message.contains("another key")));
    assert_eq!(world.live_state(1), "live");
    let keyless = faasnet_api::v1::Attached { public_key: Vec::new(), ..attached };
    let outputs = world.state.handle(world.now, Input::Attached { session, attached: Box::new(keyless) });
    assert!(matches!(&outputs[..], [Output::Close { refusal, .. }] if refusal.message.contains("upgrade the agent")));
}

fn v1_attached(world: &World, n: u32) -> faasnet_api::v1::Attached {
    faasnet_api::v1::Attached {
        node_id: node(n).to_vec(),
        incarnation: world.agents[&node(n)].incarnation,
        name: format!("n{n}"),
        data_address: format!("10.0.0.{n}:7410"),
        public_key: node_key(n).to_vec(),
        ..Default::default()
    }
}

/// Catches an incarnation so high that its node could never attach again.
#[test]
fn an_incarnation_does_not_leap() {
    let mut world = World::with(1, Policy::Complete);
    let leap = faasnet_api::v1::Attached { incarnation: 1 << 63, ..v1_attached(&world, 0) };
    let session = SessionId(world.number());
    let outputs = world.state.handle(world.now, Input::Attached { session, attached: Box::new(leap) });
    assert!(matches!(&outputs[..], [Output::Close { refusal, .. }] if refusal.message.contains("starts so often")));
    world.kill(0);
    world.attach(0);
    assert_eq!(world.live_state(0), "live");
}
