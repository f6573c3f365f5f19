//! The controller over real gRPC on loopback, with pretended agents.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use faasnet_api::SigningKey;
use faasnet_api::v1::agent_session_client::AgentSessionClient;
use faasnet_api::v1::command::Command;
use faasnet_api::v1::event::Event;
use faasnet_api::v1::{self, FunctionState};
use faasnet_controller::{Config, Controller};
use support::{DEADLINE, FakeAgent, FakeRegistrar, Running, bearer, config, introduce, node_key, token, wait_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

async fn agents(controller: &Running, count: u8) -> Vec<FakeAgent> {
    let mut agents = Vec::new();
    for n in 1..=count {
        let mut agent = FakeAgent::attach(controller, n).await;
        agent.accepted().await;
        agents.push(agent);
    }
    agents
}

/// Catches a command path that is broken anywhere between a client and an agent, and a node that stays planned after its death.
#[tokio::test]
async fn seven_agents_are_provisioned_and_one_dies() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let mut agents = agents(&controller, 7).await;
    let info = controller.create("resize").await.unwrap();
    assert_eq!((info.tenant.as_str(), info.policy.as_str(), info.image_bytes), ("default", "twin", 10));
    let mut progress = controller.provision("resize", 7).await.unwrap();
    for agent in &mut agents {
        let assign = agent.assign().await;
        assert_eq!((assign.function.as_str(), assign.stripes.len()), ("resize", 2));
        agent.report(&assign, FunctionState::Complete).await;
    }
    let mut last = v1::ProvisionProgress::default();
    while let Some(message) = tokio::time::timeout(DEADLINE, progress.message()).await.unwrap().unwrap() {
        last = message;
    }
    assert!(last.done && last.nodes.len() == 7 && last.nodes.iter().all(|node| node.alive));
    let tree = controller.tree("resize").await;
    assert_eq!(tree.trees.len(), 2);
    assert!(tree.trees.iter().all(|tree| tree.edges.iter().filter(|edge| edge.parent.is_empty()).count() == 1));
    let root = tree.trees[0].edges.iter().find(|edge| edge.parent.is_empty()).unwrap().node_id.clone();
    let position = agents.iter().position(|agent| agent.id.to_vec() == root).unwrap();
    drop(agents.remove(position));
    controller.wait_for_states(6, 1).await;
    assert!(controller.tree("resize").await.trees.iter().all(|tree| tree.edges.len() == 6));
    for agent in &mut agents {
        // The heir changed, so everybody is told.
        let assign = agent.assign().await;
        assert!(assign.epoch > tree.epoch);
    }
    controller.stop().await;
}

/// Catches a stranger that steers nodes, and a local client that is locked out.
#[tokio::test]
async fn tokens_are_checked() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let (_events, stream) = tokio::sync::mpsc::channel::<v1::Event>(1);
    let mut client = AgentSessionClient::new(controller.channel().await);
    let without = client.attach(ReceiverStream::new(stream)).await.unwrap_err();
    assert_eq!(without.code(), Code::Unauthenticated);
    let (_events, stream) = tokio::sync::mpsc::channel::<v1::Event>(1);
    let wrong = client.attach(bearer(ReceiverStream::new(stream), "wrong")).await.unwrap_err();
    assert!(wrong.message().contains("cluster secret"), "{wrong}");
    let mut control = controller.control().await;
    control.list_nodes(v1::ListNodesRequest {}).await.unwrap();
    control.list_nodes(bearer(v1::ListNodesRequest {}, &token())).await.unwrap();
    let wrong = control.list_nodes(bearer(v1::ListNodesRequest {}, "wrong")).await.unwrap_err();
    assert_eq!(wrong.code(), Code::Unauthenticated);
    controller.stop().await;
}

/// Catches an agent that talks without having introduced itself.
#[tokio::test]
async fn the_first_event_is_attached() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let (events, stream) = tokio::sync::mpsc::channel(1);
    events.send(v1::Event { event: Some(Event::Heartbeat(v1::Heartbeat::default())) }).await.unwrap();
    let mut client = AgentSessionClient::new(controller.channel().await);
    let mut commands = client.attach(bearer(ReceiverStream::new(stream), &token())).await.unwrap().into_inner();
    assert!(matches!(commands.message().await, Ok(Some(v1::Command { command: Some(Command::Challenge(_)) }))));
    assert_eq!(commands.message().await.unwrap_err().code(), Code::InvalidArgument);
    controller.stop().await;
}

/// Catches whoever knows a node's id and public key, which every ticket shows, and speaks in its name or locks it out for ever; and an
/// agent of an earlier version that is not told what to do.
#[tokio::test]
async fn a_public_key_in_wrong_hands_is_worth_nothing() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let mut agents = agents(&controller, 1).await;
    let stolen = v1::Attached {
        node_id: agents[0].id.to_vec(),
        incarnation: 2,
        name: "n1".into(),
        data_address: "127.0.0.1:1".into(),
        public_key: node_key(1).public().to_vec(),
        ..Default::default()
    };
    let refused = async |attached: v1::Attached, key: &SigningKey| {
        let (_events, mut commands) = introduce(&controller, attached, key).await;
        commands.message().await.unwrap_err()
    };
    let status = refused(stolen.clone(), &node_key(9)).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("does not hold that node's key"), "{status}");
    // With the key, but never started so often.
    let status = refused(v1::Attached { incarnation: 1 << 63, ..stolen.clone() }, &node_key(1)).await;
    assert!(status.message().contains("no agent starts so often"), "{status}");

    let (events, stream) = tokio::sync::mpsc::channel(1);
    let mut client = AgentSessionClient::new(controller.channel().await);
    let mut commands = client.attach(bearer(ReceiverStream::new(stream), &token())).await.unwrap().into_inner();
    events.send(v1::Event { event: Some(Event::Attached(stolen)) }).await.unwrap();
    commands.message().await.unwrap();
    assert!(commands.message().await.unwrap_err().message().contains("upgrade the agent"));

    // The node itself has noticed nothing.
    controller.create("resize").await.unwrap();
    let _progress = controller.provision("resize", 1).await.unwrap();
    agents[0].assign().await;
    assert_eq!(controller.nodes().await.nodes[0].incarnation, 1);
    controller.stop().await;
}

/// Catches a restart that loses functions, trees or members, or begins with a term that agents have seen.
#[tokio::test]
async fn a_restart_keeps_functions_and_trees() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let mut agents = agents(&controller, 5).await;
    controller.create("resize").await.unwrap();
    let progress = controller.provision("resize", 5).await.unwrap();
    let mut held = Vec::new();
    for agent in &mut agents {
        let assign = agent.assign().await;
        held.push(v1::HeldFunction {
            function_id: assign.function_id,
            image_id: assign.image_id,
            term: assign.term,
            epoch: assign.epoch,
            bytes_present: 10,
            complete: true,
        });
    }
    let before = controller.tree("resize").await;
    drop(progress);
    let listeners: Vec<_> = agents.into_iter().map(FakeAgent::into_listener).collect();
    controller.stop().await;

    let controller = Running::start(config(state.path())).await;
    let after = controller.tree("resize").await;
    assert_eq!((&after.trees, &after.function), (&before.trees, &before.function));
    assert_eq!(after.term, before.term + 1);
    let mut agents = Vec::new();
    for ((n, listener), held) in (1u8..).zip(listeners).zip(held) {
        let mut agent = FakeAgent::attach_at(&controller, n, listener, vec![held]).await;
        assert_eq!(agent.accepted().await.term, after.term);
        assert_eq!(agent.assign().await.term, after.term);
        agents.push(agent);
    }
    let mut progress = controller.provision("resize", 5).await.unwrap();
    let first = progress.message().await.unwrap().unwrap();
    assert!(first.done, "what agents held counts: {first:?}");
    controller.stop().await;
}

/// Catches an owner that waits for an agent which takes no commands.
#[tokio::test]
async fn a_slow_agent_is_cut_off_and_delays_nobody() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(Config { commands_per_agent: 4, ..config(state.path()) }).await;
    let slow = FakeAgent::attach(&controller, 1).await;
    let events = slow.events.clone();
    let flood = tokio::spawn(async move {
        let name = "x".repeat(1_000);
        let join = v1::JoinRequested { tenant: String::new(), function: name };
        // Ends when the controller has hung up.
        while events.send(v1::Event { event: Some(Event::JoinRequested(join.clone())) }).await.is_ok() {}
    });
    tokio::time::timeout(DEADLINE, flood).await.expect("the slow agent is never cut off").unwrap();
    let mut other = FakeAgent::attach(&controller, 2).await;
    other.accepted().await;
    other.say(Event::JoinRequested(v1::JoinRequested { tenant: String::new(), function: "nothing".into() })).await;
    assert!(matches!(other.next().await, Some(Command::JoinRefused(_))));
    controller.stop().await;
    drop(slow);
}

/// Catches a function that is there although its image could not be read, and refusals that do not arrive as such.
#[tokio::test]
async fn refusals_reach_the_client() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let missing = controller.create_from("resize", "example/missing:1").await.unwrap_err();
    assert_eq!(
        (missing.code(), missing.message()),
        (Code::FailedPrecondition, "example/missing:1 is not in the registry")
    );
    let mut control = controller.control().await;
    assert!(control.list_functions(v1::ListFunctionsRequest {}).await.unwrap().into_inner().functions.is_empty());
    assert_eq!(controller.create("No Name").await.unwrap_err().code(), Code::InvalidArgument);
    controller.create("resize").await.unwrap();
    controller.create("resize").await.unwrap();
    assert_eq!(controller.create_from("resize", "other").await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(controller.provision("nothing", 1).await.unwrap_err().code(), Code::NotFound);
    let few = controller.provision("resize", 3).await.unwrap_err();
    assert_eq!(few.code(), Code::FailedPrecondition);
    let remove = v1::RemoveFunctionRequest { tenant: String::new(), function: "resize".into() };
    control.remove_function(remove.clone()).await.unwrap();
    assert_eq!(control.remove_function(remove).await.unwrap_err().code(), Code::NotFound);
    controller.stop().await;
}

/// Catches streams that keep a stopping controller alive, or that end as if all were well.
#[tokio::test]
async fn stopping_ends_every_stream() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let mut agents = agents(&controller, 2).await;
    controller.create("resize").await.unwrap();
    let mut progress = controller.provision("resize", 2).await.unwrap();
    progress.message().await.unwrap().unwrap();
    let mut control = controller.control().await;
    let endless = v1::CreateFunctionRequest { function: "e".into(), reference: "endless".into(), ..Default::default() };
    let mut creating = control.create_function(endless).await.unwrap().into_inner();
    controller.stop().await;
    let ended = loop {
        match tokio::time::timeout(DEADLINE, progress.message()).await.unwrap() {
            Ok(Some(message)) => assert!(!message.done),
            other => break other,
        }
    };
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    assert!(
        tokio::time::timeout(DEADLINE, async { while let Ok(Some(_)) = creating.message().await {} }).await.is_ok()
    );
    for agent in &mut agents {
        while agent.next().await.is_some() {}
    }
}

/// Catches a client that goes away but is remembered, and a provision by name that is not understood.
#[tokio::test]
async fn an_abandoned_provision_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let mut agents = agents(&controller, 2).await;
    controller.create("resize").await.unwrap();
    let request = v1::ProvisionRequest {
        function: "resize".into(),
        nodes: vec!["n1".into(), agents[1].id.to_string()],
        ..Default::default()
    };
    drop(controller.control().await.provision(request).await.unwrap());
    for agent in &mut agents {
        let assign = agent.assign().await;
        agent.report(&assign, FunctionState::Complete).await;
    }
    wait_until(|| async {
        let nodes = controller.tree("resize").await.nodes;
        nodes.iter().all(|node| node.progress.as_ref().unwrap().state() == FunctionState::Complete)
    })
    .await;
    controller.stop().await;
}

/// Catches starts that fail without naming the cause, or that spoil the running controller's state.
#[tokio::test]
async fn a_second_controller_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let start = |config: Config| async {
        let started = Controller::start_with(config, Arc::new(FakeRegistrar)).await;
        format!("{:#}", started.err().expect("must not start"))
    };
    let port = start(Config { listen: controller.address, ..config(state.path()) }).await;
    assert!(port.contains(&controller.address.to_string()) && port.contains("listen"), "{port}");
    let in_use = start(config(state.path())).await;
    assert!(in_use.contains("in use by another controller"), "{in_use}");
    let no_secret = start(Config { cluster_secret: None, ..config(state.path()) }).await;
    assert!(no_secret.contains("cluster_secret_file"), "{no_secret}");
    let unwritable = start(config(std::path::Path::new("/proc/nothing"))).await;
    assert!(unwritable.contains("/proc/nothing") && unwritable.contains("--state-dir"), "{unwritable}");
    assert_eq!(controller.nodes().await.term, 1);
    controller.stop().await;
}

/// Catches a stopped agent, whose port still accepts connections, that is never missed.
#[tokio::test]
async fn a_silent_agent_dies_and_comes_back_with_its_next_word() {
    let state = tempfile::tempdir().unwrap();
    let paces = Config { heartbeat_ms: 100, idle_heartbeat_ms: 100, ..config(state.path()) };
    let controller = Running::start(paces).await;
    let agent = FakeAgent::attach(&controller, 1).await;
    controller.wait_for_states(0, 1).await;
    agent.say(Event::Heartbeat(v1::Heartbeat::default())).await;
    controller.wait_for_states(1, 0).await;
    tokio::time::timeout(Duration::from_secs(10), controller.stop()).await.unwrap();
}
