//! Who is told which password.

use faasnet_api::{Origin, v1};
use faasnet_origin::Credentials;
use faasnet_tree::Policy;

use super::super::*;
use super::world::{World, function, node};

pub(super) fn set(world: &mut World, tenant: &str, registry: &str) -> Result<Answer, Refusal> {
    let credentials = Credentials { username: "robot".into(), password: "s3cret".into() };
    let (tenant, registry) = (tenant.into(), registry.into());
    world.ask(Ask::SetSecret(Box::new(NewSecret { tenant, registry, credentials })))
}

/// The nodes that were told a login with their last assignment.
fn told(world: &World) -> Vec<NodeId> {
    let knows = |agent: &super::world::Agent| agent.assigned.get(&function("f")).is_some_and(|a| a.login.is_some());
    world.agents.iter().filter(|(_, agent)| knows(agent)).map(|(id, _)| *id).collect()
}

/// Catches a password that goes to a node which never reads the origin, to another tenant's, or to nobody; one that stays after it was removed;
/// one that is lost by a restart, or shown.
#[test]
fn only_who_reads_the_origin_is_told() {
    let mut world = World::new();
    (0..6).for_each(|n| world.attach(n));
    let origin = Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true };
    world.create_from("f", Policy::Complete, origin).unwrap();
    world.provision("f", 6, &[]).unwrap();
    assert_eq!(told(&world), []);
    set(&mut world, "acme", "r.example").unwrap();
    set(&mut world, "default", "other.example").unwrap();
    assert_eq!(told(&world), [], "another tenant's, and of another registry");
    set(&mut world, "", "https://R.example/").unwrap();
    let leaders = world.state.functions[&function("f")].leaders()[0];
    let mut wanted = vec![leaders.0.unwrap(), leaders.1.unwrap()];
    wanted.sort();
    assert_eq!(told(&world), wanted, "root and heir");
    let root = (0..6).find(|n| node(*n) == leaders.0.unwrap()).unwrap();
    world.release("f", &[root]).unwrap();
    world.check();
    let leaders = world.state.functions[&function("f")].leaders()[0];
    assert!(told(&world).contains(&leaders.0.unwrap()) && told(&world).contains(&leaders.1.unwrap()));
    world.restart_controller();
    let Answer::Secrets(listed) = world.ask(Ask::ListSecrets).unwrap() else { panic!() };
    let names: Vec<_> = listed.secrets.iter().map(|s| (&*s.tenant, &*s.registry, &*s.username)).collect();
    let all = [("acme", "r.example"), ("default", "other.example"), ("default", "r.example")];
    assert_eq!(names, all.map(|(tenant, registry)| (tenant, registry, "robot")));
    assert!(
        !format!("{:?}", world.ask(Ask::FindLogin { tenant: "acme".into(), reference: "r.example/a:1".into() }))
            .contains("s3cret")
    );
    let remove = |registry: &str| Ask::RemoveSecret { tenant: String::new(), registry: registry.into() };
    (1..6).for_each(|n| world.attach(n));
    world.ask(remove("r.example")).unwrap();
    assert_eq!(told(&world), []);
    assert!(world.ask(remove("r.example")).unwrap_err().message.contains("secret list"));
    for bad in ["", "a b", "\n", "r.example?x"] {
        assert!(set(&mut world, "", bad).is_err(), "{bad:?}");
    }
}

/// Catches a node that gets an order to read, and with it a password, though it may have no image: in quarantine, drained, full.
#[test]
fn who_may_have_no_image_gets_no_order_and_no_password() {
    let mut world = World::new();
    (0..5).for_each(|n| world.attach(n));
    set(&mut world, "", "r.example").unwrap();
    let find = |world: &mut World, n: u32| {
        let (session, reference) = (world.agents[&node(n)].session.unwrap(), "r.example/app:1".into());
        match world.ask(Ask::FindImage { session, reference }).unwrap() {
            Answer::Image(known) => known,
            other => panic!("{other:?}"),
        }
    };
    let known = find(&mut world, 0);
    assert!(known.obstacle.is_none() && known.login.is_some() && known.node.contains("n0"), "{known:?}");
    world.create("f", Policy::Complete).unwrap();
    world.provision("f", 3, &[]).unwrap();
    let quarantined = world.condemn("f");
    world.drain(4, false).unwrap();
    for limit in 0..20 {
        world.create(&format!("full{limit}"), Policy::Twin).unwrap();
        if world.provision(&format!("full{limit}"), 0, &[3]).is_err() {
            break;
        }
    }
    for (n, why) in [(quarantined, "quarantine"), (4, "drained"), (3, "functions_per_node")] {
        let known = find(&mut world, n);
        assert!(known.login.is_none(), "{n}");
        assert!(known.obstacle.as_ref().is_some_and(|reason| reason.contains(why)), "{known:?}");
    }
    let session = world.agents[&node(0)].session.unwrap();
    world.cut(0);
    let reference = "r.example/app:1".into();
    let Answer::Image(known) = world.ask(Ask::FindImage { session, reference }).unwrap() else { panic!() };
    assert!(known.login.is_none() && known.obstacle.is_some(), "its stream has ended");
}

/// Catches a password that goes to a node though it would cross the network readable, and one that nobody gets because it is this host's own.
#[test]
fn no_password_for_plain_http() {
    for (base_url, registry, tells) in [
        ("http://r.example", "r.example", false),
        ("http://10.0.0.1:5000", "10.0.0.1:5000", false),
        ("https://R.example", "r.Example", true),
        ("http://127.0.0.1:5000", "127.0.0.1:5000", true),
        ("http://localhost:5000", "LOCALHOST:5000", true),
    ] {
        let mut world = World::new();
        (0..2).for_each(|n| world.attach(n));
        let origin = Origin::Registry { base_url: base_url.into(), repository: "app".into(), ranges: true };
        set(&mut world, "", registry).unwrap();
        world.create_from("f", Policy::Complete, origin).unwrap();
        world.provision("f", 2, &[]).unwrap();
        assert_eq!(!told(&world).is_empty(), tells, "{base_url}");
    }
}

/// Catches a member that goes on with a password that was taken back, because it is on its way out or its image failed.
#[test]
fn members_without_a_place_are_told_too() {
    let mut world = World::new();
    (0..4).for_each(|n| world.attach(n));
    let origin = Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true };
    world.create_from("f", Policy::Complete, origin).unwrap();
    set(&mut world, "", "r.example").unwrap();
    world.provision("f", 3, &[]).unwrap();
    let numbers = |ids: Vec<NodeId>| ids.iter().map(|id| u32::from_be_bytes(id.0[..4].try_into().unwrap())).collect();
    let [fails, leaves]: [u32; 2] = <Vec<u32>>::try_into(numbers(told(&world))).unwrap();
    world.beat(fails, v1::FunctionState::Failed);
    let (function_id, image_id) = (function("f").to_vec(), world.state.functions[&function("f")].image.to_vec());
    let failed = v1::ImageFailed { function_id, image_id, reason: "401".into() };
    world.hear(fails, v1::event::Event::ImageFailed(failed));
    world.drain(leaves, false).unwrap();
    assert!(told(&world).contains(&node(fails)) && told(&world).contains(&node(leaves)));
    world.ask(Ask::RemoveSecret { tenant: String::new(), registry: "R.example".into() }).unwrap();
    world.check();
    assert_eq!(told(&world), []);
    assert!(world.members("f").contains(&node(fails)), "it may be for want of the right password");
}
