//! A real agent, worker and all: as a root it brings an image from a layout into its store.

use super::admin::{RESIZE, request};
use super::*;
use crate::test_support::{claims, controller_key, digest, hello, layout, node_key, trust};
use faasnet_api::{Claims, PublicKey, TenantId};
use faasnet_relay::wire::{Challenge, Frame, HEADER_BYTES, Hello, Kind, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Catches a feed and a worker that do not understand each other, in one stripe or two, and blobs that come out other than they went in.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_fetches_serves_and_keeps() {
    for stripes in [1, 2] {
        let folder = tempfile::tempdir().unwrap();
        let (blobs, descriptor) = layout(&folder.path().join("layout"), &[1, 0, (9 << 20) + 1, 4 << 20, (4 << 20) - 1]);
        let mut controller = Controller::start().await;
        let mut settings = config(&folder.path().join("store"), controller.address);
        settings.workers = stripes;
        let agent = crate::Agent::start(settings.clone()).await.unwrap();
        let (admin, node) = (agent.admin_address(), agent.node_id());
        assert!(agent.data_address().port() != 0);
        let (shutdown, asked) = oneshot::channel::<()>();
        let running = tokio::spawn(agent.run_until(async { drop(asked.await) }));

        let (mut session, attached) = controller.accepted().await;
        assert_eq!(attached.node_id, node.to_vec());
        let v1::command::Command::Assign(mut order) = assign(1, &descriptor, true) else { unreachable!() };
        let node_key = PublicKey::try_from(&attached.public_key[..]).unwrap();
        let claims = Claims { node, node_key, function: function(), ..claims(descriptor.id()) };
        order.ticket = controller_key().issue(claims).as_bytes().to_vec();
        order.stripes = vec![order.stripes[0].clone(); stripes];
        session.command(v1::command::Command::Assign(order)).await;
        let progress = session.progress(v1::FunctionState::Complete).await;
        let bytes = descriptor.geometry().image_bytes();
        assert_eq!((progress.bytes_present, progress.bytes_received, progress.bytes_refetched), (bytes, bytes, 0));
        for blob in &blobs {
            let (status, body, _) = request(admin, "GET", &format!("{RESIZE}/blobs/{}", digest(blob))).await;
            assert!(status == 200 && body == *blob);
        }
        drop(shutdown);
        within("the agent's end", running).await.unwrap().unwrap();
        let store = faasnet_store::Store::open(&settings.store_dir, None).unwrap();
        assert!(store.held()[0].complete, "the image survives the agent");
    }
}

/// Catches an agent that forgets, with its own restart, whom it may serve while the controller is away, and one that then serves anybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_serves_while_the_controller_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(&folder.path().join("layout"), &[(1 << 20) + 1]);
    let mut controller = Controller::start().await;
    let settings = config(&folder.path().join("store"), controller.address);
    let agent = crate::Agent::start(settings.clone()).await.unwrap();
    let node = agent.node_id();
    let (shutdown, asked) = oneshot::channel::<()>();
    let running = tokio::spawn(agent.run_until(async { drop(asked.await) }));
    let (mut session, attached) = controller.accepted().await;
    let claims = Claims { function: function(), tenant: TenantId::new("acme"), ..claims(descriptor.id()) };
    let own = Claims { node, node_key: PublicKey::try_from(&attached.public_key[..]).unwrap(), ..claims };
    let v1::command::Command::Assign(mut order) = assign(1, &descriptor, true) else { unreachable!() };
    order.ticket = controller_key().issue(own).as_bytes().to_vec();
    session.command(v1::command::Command::Assign(order)).await;
    session.progress(v1::FunctionState::Complete).await;
    drop(shutdown);
    within("the agent's end", running).await.unwrap().unwrap();
    drop((session, controller));

    let agent = crate::Agent::start(settings).await.unwrap();
    let (address, ready) = (agent.data_address(), agent.ready());
    let (shutdown, asked) = oneshot::channel::<()>();
    let running = tokio::spawn(agent.run_until(async { drop(asked.await) }));
    within("the agent to go on alone", ready).await;
    let hello = Hello { function: function(), ..hello(descriptor.id()) };
    let good = Hello { ticket: controller_key().issue(claims), ..hello };
    assert_eq!(first_word(address, &good).await.0, Kind::Welcome);
    let foreign =
        Hello { ticket: controller_key().issue(Claims { tenant: TenantId::new("other"), ..claims }), ..hello };
    assert_eq!(first_word(address, &foreign).await, (Kind::Refused, Some(Refusal::Ticket)));
    let forged = Hello { ticket: node_key().issue(claims), ..hello };
    assert_eq!(first_word(address, &forged).await, (Kind::Refused, Some(Refusal::Ticket)));
    drop(shutdown);
    within("the agent's end", running).await.unwrap().unwrap();
}

/// Catches a node that has lost everybody and does not ask, one that does not wait for the answer, and one that cannot use it: it has
/// never seen the image's descriptor.
#[tokio::test(flavor = "multi_thread")]
async fn an_orphan_reads_the_origin_with_leave_of_the_controller() {
    let folder = tempfile::tempdir().unwrap();
    let (_, descriptor) = layout(&folder.path().join("layout"), &[(1 << 20) + 1]);
    let mut controller = Controller::start().await;
    let settings = Config { stranded_ms: 200, ..config(&folder.path().join("store"), controller.address) };
    let agent = crate::Agent::start(settings).await.unwrap();
    let node = agent.node_id();
    let (shutdown, asked) = oneshot::channel::<()>();
    let running = tokio::spawn(agent.run_until(async { drop(asked.await) }));
    let (mut session, attached) = controller.accepted().await;
    let v1::command::Command::Assign(mut order) = assign(1, &descriptor, false) else { unreachable!() };
    let node_key = PublicKey::try_from(&attached.public_key[..]).unwrap();
    let claims = Claims { node, node_key, function: function(), ..claims(descriptor.id()) };
    order.ticket = controller_key().issue(claims).as_bytes().to_vec();
    // Parent, grandparent, uncle and heir: nobody answers at any of these.
    let gone = |n: u8| v1::NodeAddress { node_id: vec![n; 16], address: format!("127.0.0.{n}:1") };
    let gone = |n| v1::Upstream { upstream: Some(v1::upstream::Upstream::Node(gone(n))) };
    order.stripes[0].upstream = Some(gone(2));
    order.stripes[0].fallbacks = vec![gone(3), gone(4), gone(5)];
    session.command(v1::command::Command::Assign(order.clone())).await;
    let lease = |seconds| {
        let function_id = function().to_vec();
        v1::command::Command::OriginLease(v1::OriginLease { function_id, stripe: 0, seconds })
    };
    let wanted = |event: &Event| matches!(event, Event::OriginWanted(_)).then_some(());
    session.expect(wanted).await;
    session.command(lease(0)).await;
    session.expect(wanted).await;
    order.descriptor = descriptor.encode();
    session.command(v1::command::Command::Assign(order)).await;
    session.command(lease(30)).await;
    let progress = session.progress(v1::FunctionState::Complete).await;
    assert_eq!(progress.upstreams.len(), 1);
    assert!(progress.upstreams[0].node_id.is_empty(), "the origin");
    drop(shutdown);
    within("the agent's end", running).await.unwrap().unwrap();
}

/// What a parent answers to a signed `Hello`.
async fn first_word(address: SocketAddr, hello: &Hello) -> (Kind, Option<Refusal>) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (_, challenge) = frame(&mut stream).await;
    let hello = trust().sign(*hello, &Challenge::parse(&challenge).unwrap());
    stream.write_all(&hello.encode()).await.unwrap();
    loop {
        let (frame, _) = within("an answer", frame(&mut stream)).await;
        if frame.kind != Kind::Waiting {
            return (frame.kind, Some(Refusal::from_frame(&frame)).filter(|_| frame.kind == Kind::Refused));
        }
    }
}

async fn frame(stream: &mut tokio::net::TcpStream) -> (Frame, Vec<u8>) {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.unwrap();
    let frame = Frame::parse(&header).unwrap();
    let mut payload = vec![0; frame.len as usize];
    stream.read_exact(&mut payload).await.unwrap();
    (frame, payload)
}
