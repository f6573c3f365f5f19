//! The session with the controller: attaching, orders and their order, reconnecting, ending.

use super::*;
use crate::test_support::layout;
use faasnet_api::{ClusterSecret, Introduction, NodeId, PublicKey};

/// Catches a first message that is not `Attached`, wrong facts in it, a missing token, and an agent without a pulse.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_attaches_and_beats() {
    let folder = tempfile::tempdir().unwrap();
    let mut controller = Controller::start().await;
    let agent = Running::start(&config(folder.path(), controller.address)).await;
    let (mut session, attached) = controller.accepted().await;
    assert_eq!((attached.name.as_str(), attached.data_address.as_str()), ("n1", "127.0.0.1:4711"));
    assert_eq!((attached.node_id.len(), attached.held.len()), (16, 0));
    assert!(attached.memory_mib > 0 && attached.incarnation > 0);
    let node = NodeId::try_from(&attached.node_id[..]).unwrap();
    let (incarnation, data_address) = (attached.incarnation, attached.data_address.as_str());
    let said = Introduction { nonce: &NONCE, node, incarnation, data_address };
    let key = PublicKey::try_from(&attached.public_key[..]).unwrap();
    assert!(key.verifies(&said.message(), &attached.proof), "it proves that it holds its key");
    for _ in 0..3 {
        session.expect(|event| matches!(event, Event::Heartbeat(_)).then_some(())).await;
    }
    agent.stop().await.unwrap();
}

/// Catches a stale command that is carried out, a newer one that is not, and an image that is opened anew for each plan.
#[tokio::test(flavor = "multi_thread")]
async fn stale_orders_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(&folder.path().join("layout"), &[1000]);
    let mut controller = Controller::start().await;
    let mut agent = Running::start(&config(&folder.path().join("store"), controller.address)).await;
    let (mut session, _) = controller.accepted().await;

    session.command(assign(5, &descriptor, true)).await;
    let WorkerCommand::Assign(first) = agent.worker.command().await else { panic!() };
    let stored = first.stored.expect("the descriptor came with the order");
    assert_eq!((first.term, first.epoch, stored.descriptor().id()), (1, 5, descriptor.id()));
    session.command(assign(4, &descriptor, true)).await;
    session.command(drop_function(4)).await;
    session.command(assign(6, &descriptor, false)).await;
    let WorkerCommand::Assign(second) = agent.worker.command().await else { panic!() };
    assert_eq!(second.epoch, 6, "epoch 4 must not come through");
    assert!(Arc::ptr_eq(&second.stored.unwrap(), &stored));

    session.command(drop_function(7)).await;
    assert!(matches!(agent.worker.command().await, WorkerCommand::Drop { epoch: 7, .. }));
    agent.worker.tell(WorkerEvent::Dropped { function: function() }).await;
    session.expect(|event| matches!(event, Event::Dropped(_)).then_some(())).await;
    session.command(assign(6, &descriptor, true)).await;
    session.command(assign(8, &descriptor, false)).await;
    let WorkerCommand::Assign(third) = agent.worker.command().await else { panic!() };
    assert_eq!(third.epoch, 8, "a drop outlives what it overtook");
    assert!(third.stored.is_some(), "the image stayed in the store");
    agent.stop().await.unwrap();
}

/// Catches a node below the root that never gets its image's file, or gets it for bytes that are another image.
#[tokio::test(flavor = "multi_thread")]
async fn a_descriptor_that_came_down_the_tree_opens_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(&folder.path().join("layout"), &[1000]);
    let mut controller = Controller::start().await;
    let mut agent = Running::start(&config(&folder.path().join("store"), controller.address)).await;
    let (mut session, _) = controller.accepted().await;
    session.command(assign(1, &descriptor, false)).await;
    let WorkerCommand::Assign(assignment) = agent.worker.command().await else { panic!() };
    assert!(assignment.stored.is_none());

    let arrived = |bytes| WorkerEvent::DescriptorArrived { function: function(), image: descriptor.id(), bytes };
    agent.worker.tell(arrived(descriptor.encode())).await;
    let WorkerCommand::OpenImage { stored, .. } = agent.worker.command().await else { panic!() };
    assert_eq!(stored.tenant(), "acme");
    let progress = session.progress(v1::FunctionState::Waiting).await;
    assert_eq!((progress.bytes_total, progress.image_id), (1000, descriptor.id().to_vec()));

    agent.worker.tell(arrived(vec![1, 2, 3])).await;
    let WorkerCommand::FailImage { image, .. } = agent.worker.command().await else { panic!() };
    assert_eq!(image, descriptor.id());
    let failed = session.expect(|event| match event {
        Event::ImageFailed(failed) => Some(failed.clone()),
        _ => None,
    });
    assert_eq!(failed.await.function_id, function().to_vec());
    session.progress(v1::FunctionState::Failed).await;
    agent.stop().await.unwrap();
}

/// Catches an agent that gives up, or forgets what it holds, when the controller goes away and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_controller_learns_what_is_held() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(&folder.path().join("layout"), &[1000]);
    let mut controller = Controller::start().await;
    let mut agent = Running::start(&config(&folder.path().join("store"), controller.address)).await;
    let (session, _) = controller.accepted().await;
    session.command(assign(3, &descriptor, true)).await;
    agent.worker.command().await;

    let address = controller.address;
    drop(session);
    controller.running.shutdown().await;
    // While nobody listens the worker's life goes on.
    agent.worker.set_report(function(), descriptor.id(), ReportState::Complete);
    agent.worker.tell(WorkerEvent::Completed { function: function(), image: descriptor.id() }).await;

    let mut controller = Controller::start_at(address).await;
    let (mut session, attached) = controller.accepted().await;
    let held = &attached.held[0];
    assert_eq!((held.term, held.epoch, &held.function_id), (1, 3, &function().to_vec()));
    let progress = session.progress(v1::FunctionState::Complete).await;
    assert_eq!((progress.bytes_received, progress.mover.as_str()), (11, "copy"));
    agent.stop().await.unwrap();
}

/// Catches completion that waits for the next heartbeat: a burst's last node would look late by half a second.
#[tokio::test(flavor = "multi_thread")]
async fn completion_is_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(&folder.path().join("layout"), &[1000]);
    let mut controller = Controller::start().await;
    let mut agent = Running::start(&config(&folder.path().join("store"), controller.address)).await;
    let (mut session, _) = controller.attached().await;
    let accepted = v1::Accepted { term: 1, heartbeat_ms: 60_000, idle_heartbeat_ms: 60_000, ticket_keys: None };
    session.command(v1::command::Command::Accepted(accepted)).await;
    session.command(assign(1, &descriptor, true)).await;
    agent.worker.command().await;
    agent.worker.set_report(function(), descriptor.id(), ReportState::Complete);
    agent.worker.tell(WorkerEvent::Completed { function: function(), image: descriptor.id() }).await;
    // Twenty seconds are the deadline of every wait here, a minute is the heartbeat.
    session.progress(v1::FunctionState::Complete).await;
    agent.stop().await.unwrap();
}

/// Catches a malformed order that stops the agent, or that the controller waits for in vain.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_order_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut controller = Controller::start().await;
    let agent = Running::start(&config(folder.path(), controller.address)).await;
    let (mut session, _) = controller.accepted().await;
    let mut order = crate::session::commands::tests::assign(1);
    order.ticket.clear();
    session.command(v1::command::Command::Assign(order)).await;
    let reason = session.expect(|event| match event {
        Event::ImageFailed(failed) => Some(failed.reason.clone()),
        _ => None,
    });
    assert!(reason.await.contains("ticket"));
    agent.stop().await.unwrap();
}

/// Catches a shutdown that breaks the session off, leaves the worker running or the image unsynced.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_says_goodbye() {
    let folder = tempfile::tempdir().unwrap();
    let mut controller = Controller::start().await;
    let agent = Running::start(&config(folder.path(), controller.address)).await;
    let (mut session, _) = controller.accepted().await;
    let stopped = agent.worker.stopped.clone();
    let ended = tokio::spawn(agent.stop());
    while session.event().await.is_some() {}
    drop(session);
    within("the agent's end", ended).await.unwrap().unwrap();
    assert!(stopped.load(Ordering::SeqCst));
}

/// Catches an agent that goes on by the last word of a controller that does not want it, at once or when that controller is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_agent_does_not_go_on_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(&folder.path().join("layout"), &[1000]);
    let mut controller = Controller::start().await;
    let settings = config(&folder.path().join("store"), controller.address);
    let mut agent = Running::start(&settings).await;
    let (session, _) = controller.accepted().await;
    session.command(assign(3, &descriptor, true)).await;
    assert!(matches!(agent.worker.command().await, WorkerCommand::Assign(_)));
    agent.stop().await.unwrap();

    let stranger = Config { cluster_secret: Some(Secret::new("another-cluster's")), ..settings.clone() };
    let mut agent = Running::start(&stranger).await;
    let refused = async {
        // The second try begins after the control side was told how the first one ended.
        while controller.refused.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    within("refusals", refused).await;
    controller.running.shutdown().await;
    // The second connection comes after the control side was told how the first one failed.
    let nobody = tokio::net::TcpListener::bind(controller.address).await.unwrap();
    for _ in 0..2 {
        drop(within("a connection", nobody.accept()).await.unwrap());
    }
    drop(nobody);
    let mut its_own = Controller::start_for(controller.address, ClusterSecret::new(b"another-cluster's")).await;
    let (_session, attached) = its_own.attached().await;
    assert_eq!(attached.held, [], "it held nothing while the controller was away");
    assert!(agent.worker.commands.try_recv().is_err());
    agent.stop().await.unwrap();
    its_own.running.shutdown().await;

    // When nobody is there it does go on.
    let mut agent = Running::start(&settings).await;
    assert!(matches!(agent.worker.command().await, WorkerCommand::Assign(_)));
    agent.stop().await.unwrap();
}

/// Catches a tenant whose function fails on a node for good, because the tenant before has not let go of the same image yet.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_tenant_waits_until_an_image_is_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(&folder.path().join("layout"), &[1000]);
    let mut controller = Controller::start().await;
    let mut agent = Running::start(&config(&folder.path().join("store"), controller.address)).await;
    let (mut session, _) = controller.accepted().await;
    session.command(assign(1, &descriptor, true)).await;
    let WorkerCommand::Assign(held) = agent.worker.command().await else { panic!() };
    session.command(drop_function(2)).await;
    assert!(matches!(agent.worker.command().await, WorkerCommand::Drop { .. }));
    let v1::command::Command::Assign(mut order) = assign(1, &descriptor, true) else { unreachable!() };
    let other = FunctionId::new("other", "resize");
    (order.tenant, order.function_id) = ("other".into(), other.to_vec());
    session.command(v1::command::Command::Assign(order)).await;
    // Time enough for the store to say that the image is in use.
    for _ in 0..5 {
        session.progress(v1::FunctionState::Waiting).await;
    }
    drop(held);
    agent.worker.tell(WorkerEvent::Dropped { function: function() }).await;
    let WorkerCommand::Assign(assignment) = agent.worker.command().await else { panic!() };
    assert_eq!((assignment.function, assignment.stored.unwrap().tenant()), (other, "other"));
    agent.stop().await.unwrap();
}
