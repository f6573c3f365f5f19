//! Wrong bytes: who is believed about whom, and for how long.

use faasnet_api::{Origin, v1};
use faasnet_tree::Policy;

use super::world::{World, function, node};

/// Fifteen members, and somebody that three of them may receive from, each of whom has two others besides; with those three.
fn accused() -> (World, u32, [u32; 3]) {
    let mut world = World::with(15, Policy::Twin);
    world.provision("f", 15, &[]).unwrap();
    for bad in 0..15 {
        let may = |n: &u32| world.sources(*n).contains(&bad) && world.sources(*n).len() >= 3;
        let reporters: Vec<u32> = (0..15).filter(may).take(3).collect();
        if let Ok(reporters) = reporters.try_into() {
            return (world, bad, reporters);
        }
    }
    unreachable!("the heir is a fallback of nearly everybody")
}

/// Somebody blames two more of those that it may receive from, so that its word counts no more.
fn blame_two_more(world: &mut World, reporter: u32, besides: u32) {
    let others = world.sources(reporter).into_iter().filter(|other| *other != besides);
    let others: Vec<u32> = others.take(2).collect();
    assert_eq!(others.len(), 2);
    others.into_iter().for_each(|other| world.blame(reporter, other));
}

/// Catches a quarantine by one word, none by two, and a node in quarantine that still feeds others or gets functions.
#[test]
fn two_reporters_make_a_quarantine() {
    let (mut world, bad, [first, second, _]) = accused();
    world.blame(first, bad);
    world.blame(first, bad);
    assert!(world.is_trusted(bad), "one reporter may have a defect of its own");
    assert_eq!(world.agents[&node(bad)].rereads.len(), 1, "but the blamed one has to look at its disk, once");
    world.now.ms += 60_000;
    world.blame(first, bad);
    assert_eq!(world.agents[&node(bad)].rereads.len(), 2, "and again after a while");
    world.blame(second, bad);
    assert!(!world.is_trusted(bad));
    world.check();
    assert!(world.rides("f", bad), "it still gets what it was promised, from a node and not from the origin");
    assert!(world.provision("f", 0, &[bad]).unwrap_err().message.contains("quarantine"));
    world.restart_controller();
    (0..15).for_each(|n| world.attach(n));
    world.check();
    assert!(!world.is_trusted(bad), "a restart of the controller does not heal it");
    world.drain(bad, true).unwrap();
    world.check();
    assert!(!world.rides("f", bad) && world.members("f").contains(&node(bad)), "somebody has mended it");
}

/// Catches words that put away whomever they name: of strangers, about no function, along no edge, or along one that only one end knows.
#[test]
fn only_who_receives_from_a_node_can_blame_it() {
    let (mut world, bad, [first, second, _]) = accused();
    (50..53).for_each(|n| world.attach(n));
    for stranger in 50..53 {
        world.blame(stranger, bad);
        world.blame(first, stranger);
    }
    for reporter in [first, second] {
        let upstream = node(bad).to_vec();
        let (function_id, wrong_bytes) = (vec![0; 16], true);
        let failed = v1::EdgeFailed { function_id, upstream, wrong_bytes, ..Default::default() };
        world.hear(reporter, v1::event::Event::EdgeFailed(failed));
    }
    let far = |n: &u32| *n != bad && !world.sources(*n).contains(&bad);
    let far: Vec<u32> = (0..15).filter(far).take(2).collect();
    for reporter in &far {
        world.names(*reporter, &[bad], &[]);
        world.blame(*reporter, bad);
    }
    assert_eq!(far.len(), 2);
    assert!(world.state.nodes.values().all(|node| node.is_trusted()));
    assert!(world.agents.values().all(|agent| agent.rereads.is_empty()), "nobody's disk is read for nothing");
    // A guest's edge is in no plan, but both ends name it.
    world.names(bad, &[], &far);
    far.iter().for_each(|reporter| world.blame(*reporter, bad));
    assert!(!world.is_trusted(bad));
    world.check();
}

/// Catches a disk that gives wrong bytes and goes on, and an answer that nobody asked for and that counts.
#[test]
fn wrong_blocks_on_its_own_disk_convict_a_node() {
    let (mut world, bad, [first, second, _]) = accused();
    let answer = |request: u64, wrong: u32| {
        let function_id = function("f").to_vec();
        v1::event::Event::BlocksReread(v1::BlocksReread { function_id, request, checked: 9, wrong })
    };
    world.hear(bad, answer(1, 9));
    world.blame(first, bad);
    let order = world.agents[&node(bad)].rereads[0].clone();
    assert!(order.blocks.contains(&3));
    world.hear(second, answer(order.request, 9));
    assert!(world.is_trusted(bad) && world.is_trusted(second));
    world.hear(bad, answer(order.request, 2));
    let why = world.state.nodes[&node(bad)].info(world.now).quarantine;
    assert!(why.contains("2 of 9 blocks"), "{why}");
    world.check();
}

/// Catches one bad reporter that brings node after node into quarantine.
#[test]
fn a_reporter_who_blames_everybody_is_not_believed() {
    let (mut world, bad, [first, second, third]) = accused();
    world.blame(first, bad);
    world.blame(second, bad);
    assert!(!world.is_trusted(bad));
    blame_two_more(&mut world, first, bad);
    assert!(world.is_trusted(bad), "it rested on a word that counts no more");
    assert!(world.state.nodes.values().all(|node| node.is_trusted()));
    world.names(bad, &[], &[third]);
    world.names(third, &[bad], &[]);
    world.blame(third, bad);
    assert!(!world.is_trusted(bad), "there are two believable ones again");
    world.check();
}

/// Catches a quarantine that ends because a stranger to it is found out, be it after the reports on which it rests would have been
/// forgotten, or after a restart, when nobody knows on whom it rested.
#[test]
fn a_quarantine_does_not_end_by_a_word_that_it_does_not_rest_on() {
    for restarted in [false, true] {
        let (mut world, bad, [first, second, third]) = accused();
        world.blame(first, bad);
        world.blame(second, bad);
        assert!(!world.is_trusted(bad));
        world.now.ms += 11 * 60_000;
        if restarted {
            world.restart_controller();
            (0..15).for_each(|n| world.attach(n));
        }
        world.names(bad, &[], &[third]);
        world.names(third, &[bad], &[]);
        world.blame(third, bad);
        blame_two_more(&mut world, third, bad);
        assert!(!world.is_trusted(bad), "restarted: {restarted}");
        world.check();
    }
}

/// Catches members that lose their image because more of them are in quarantine than may ride for being slow.
#[test]
fn all_who_are_in_quarantine_ride() {
    let mut world = World::with(7, Policy::Twin);
    world.provision("f", 0, &[0, 1, 2, 3, 4, 5, 6]).unwrap();
    for _ in 0..4 {
        let bad = world.condemn("f");
        world.check();
        assert!(world.rides("f", bad));
    }
}

/// Catches a word of a node in quarantine that puts away, or has its disk read, somebody else.
#[test]
fn who_is_in_quarantine_blames_nobody() {
    let mut world = World::with(7, Policy::Complete);
    world.provision("f", 7, &[]).unwrap();
    let bad = world.condemn("f");
    let parent = world.sources(bad)[0];
    world.blame(bad, parent);
    assert!(world.agents[&node(parent)].rereads.is_empty());
    let reporter = (0..7).find(|n| *n != bad && *n != parent && world.sources(*n).contains(&parent)).unwrap();
    world.blame(reporter, parent);
    assert!(world.is_trusted(parent), "that is one reporter");
    world.check();
}

/// Catches an only member that is left with neither descriptor nor password because it is in quarantine, and keeps them afterwards.
#[test]
fn an_only_member_in_quarantine_reads_the_origin() {
    let mut world = World::new();
    (0..3).for_each(|n| world.attach(n));
    let origin = Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true };
    world.create_from("f", Policy::Twin, origin).unwrap();
    super::secrets::set(&mut world, "", "r.example").unwrap();
    world.provision("f", 0, &[0, 1]).unwrap();
    let bad = world.condemn("f");
    let told = |world: &World| {
        let assign = &world.agents[&node(bad)].assigned[&function("f")];
        (!assign.descriptor.is_empty(), assign.login.is_some())
    };
    world.check();
    assert_eq!(told(&world), (false, false));
    world.release("f", &[1 - bad]).unwrap();
    world.check();
    assert_eq!(told(&world), (true, true));
    world.provision("f", 0, &[2]).unwrap();
    world.check();
    assert_eq!(told(&world), (false, false));
}

/// Catches a node in quarantine that holds the only leave to read the origin, so that nobody gets the image.
#[test]
fn a_lease_of_a_node_in_quarantine_is_in_nobodys_way() {
    let mut world = World::with(6, Policy::Complete);
    world.provision("f", 6, &[]).unwrap();
    let bad = world.condemn("f");
    let wanted = v1::OriginWanted { function_id: function("f").to_vec(), stripe: 0 };
    let mut granted = |n: u32| {
        world.hear(n, v1::event::Event::OriginWanted(wanted.clone()));
        world.check();
        world.agents[&node(n)].leases.last().unwrap().seconds
    };
    let [good, other] = [1, 2].map(|step| (bad + step) % 6);
    assert_eq!([bad, good, other, bad].map(&mut granted), [30, 30, 0, 0]);
}
