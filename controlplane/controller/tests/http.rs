//! HTTP, reflection and health of a running controller, with pretended agents.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use faasnet_api::v1::{self, FunctionState};
use serde_json::Value;
use support::{DEADLINE, FakeAgent, Running, config};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// Sends one request and returns the reader at its answer's first line.
fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n");
    stream.write_all(format!("{head}{headers}\r\n{body}").as_bytes()).unwrap();
    BufReader::new(stream)
}

/// The status, the head and the body of an answer.
async fn ask(
    address: SocketAddr,
    method: &'static str,
    path: &'static str,
    body: &'static str,
) -> (u16, String, String) {
    tokio::task::spawn_blocking(move || {
        let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
        let mut text = String::new();
        send(address, method, path, kind, body).read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_owned(), body.to_owned())
    })
    .await
    .unwrap()
}

/// Catches an operation that is missing on HTTP, answers otherwise than by gRPC, or refuses with another status than it says.
#[tokio::test]
async fn http_offers_what_grpc_offers() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let mut agent = FakeAgent::attach(&controller, 1).await;
    agent.accepted().await;
    let at = controller.http;
    let create = r#"{"function": "resize", "reference": "example/app:1"}"#;
    let (status, _, body) = ask(at, "POST", "/v1/functions", create).await;
    let created: v1::CreateFunctionProgress = serde_json::from_str(&body).unwrap();
    assert_eq!((status, created.created.unwrap().function.as_str()), (200, "resize"));
    let provision = ask(at, "POST", "/v1/functions/default/resize/provision", r#"{"count": 1}"#);
    let work = async {
        let assign = agent.assign().await;
        agent.report(&assign, FunctionState::Complete).await;
    };
    let ((status, _, body), ()) = tokio::join!(provision, work);
    let done: v1::ProvisionProgress = serde_json::from_str(&body).unwrap();
    assert!(status == 200 && done.done && done.nodes.len() == 1, "{body}");
    let (_, _, tree) = ask(at, "GET", "/v1/functions/default/resize/tree", "").await;
    assert_eq!(serde_json::from_str::<v1::GetTreeReply>(&tree).unwrap(), controller.tree("resize").await);
    assert!(tree.contains("\"parent\":\"\"") && tree.contains("\"state\":\"complete\""), "{tree}");
    let (_, _, nodes) = ask(at, "GET", "/v1/nodes", "").await;
    assert_eq!(serde_json::from_str::<Value>(&nodes).unwrap()["nodes"][0]["node_id"], "01".repeat(16));
    // An update waits for the next provision.
    let update = r#"{"reference": "example/app:2"}"#;
    assert_eq!(ask(at, "PUT", "/v1/functions/default/resize", update).await.0, 200);
    let (_, _, function) = ask(at, "GET", "/v1/functions/default/resize", "").await;
    let function: v1::FunctionInfo = serde_json::from_str(&function).unwrap();
    assert_eq!((function.reference.as_str(), function.next_reference.as_str()), ("example/app:1", "example/app:2"));
    let provision = ask(at, "POST", "/v1/functions/default/resize/provision", r#"{"count": 1}"#);
    let work = async {
        let assign = agent.assign().await;
        assert_eq!(assign.image_id, function.next_image_id);
        agent.report(&assign, FunctionState::Complete).await;
    };
    assert_eq!(tokio::join!(provision, work).0.0, 200);
    assert!(ask(at, "GET", "/metrics", "").await.2.contains("faasnet_members{state=\"complete\"} 1\n"));
    for (method, path, body, status) in [
        ("GET", "/v1/functions/default/nothing", "", 404),
        ("POST", "/v1/functions/default/resize/provision", r#"{"count": 9}"#, 409),
        ("POST", "/v1/functions/default/resize/provision", r#"{"nods": []}"#, 400),
        ("POST", "/v1/functions", r#"{"function": "No Name", "reference": "x"}"#, 400),
        ("POST", "/v1/functions", r#"{"function": "f", "reference": "missing"}"#, 409),
        ("GET", "/v2", "", 404),
        ("DELETE", "/v1/functions/default/resize", "", 200),
        ("DELETE", "/v1/functions/default/resize", "", 404),
        ("GET", "/healthz", "", 200),
    ] {
        assert_eq!(ask(at, method, path, body).await.0, status, "{method} {path} {body}");
    }
    for (method, path, status, code) in [
        ("PATCH", "/v1/nodes", 405, "unimplemented"),
        ("POST", "/healthz", 405, "unimplemented"),
        ("GET", "/v1/functions?tenant=a&tenant=b", 400, "invalid_argument"),
        ("GET", "/v1/watch?no_such=1", 400, "invalid_argument"),
        ("GET", "/v1/functions/%ff/x", 400, "invalid_argument"),
    ] {
        let (told, head, body) = ask(at, method, path, "").await;
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{method} {path}: {head} {body}"));
        assert_eq!((told, body["code"].as_str()), (status, Some(code)), "{method} {path}: {body}");
        assert!(status != 405 || head.to_lowercase().contains("allow: get"), "{head}");
    }
    controller.stop().await;
}

/// Catches a page without its policy, and a form post of another page that changes something.
#[tokio::test]
async fn browsers_are_kept_in_bounds() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    controller.create("resize").await.unwrap();
    let at = controller.http;
    let (status, head, body) = ask(at, "GET", "/", "").await;
    assert!(status == 200 && body.contains("<title>FaaSNet</title>"));
    assert!(head.to_lowercase().contains("content-security-policy: default-src 'none'"), "{head}");
    let status = |headers: &'static str| async move {
        let answer = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            let path = "/v1/functions/default/resize/release";
            send(at, "POST", path, headers, "").read_line(&mut line).unwrap();
            line
        });
        answer.await.unwrap()
    };
    assert!(status("origin: http://evil.example\r\n").await.contains("403"));
    assert!(status("sec-fetch-site: cross-site\r\n").await.contains("403"));
    assert!(status("authorization: Bearer wrong\r\n").await.contains("401"));
    assert!(status("").await.contains("200"));
    controller.stop().await;
}

/// Catches a watch that tells nothing of a change, and one that keeps a stopping controller alive.
#[tokio::test]
async fn a_watch_tells_changes_and_ends() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let at = controller.http;
    let (sender, mut messages) = tokio::sync::mpsc::unbounded_channel();
    let reader = std::thread::spawn(move || {
        let accept = "accept: application/x-ndjson\r\n";
        let lines = send(at, "GET", "/v1/watch?function=resize&period_ms=100", accept, "").lines();
        for line in lines.map_while(Result::ok).filter(|line| line.starts_with('{')) {
            sender.send(line).unwrap();
        }
    });
    let mut next = async || {
        let line = tokio::time::timeout(DEADLINE, messages.recv()).await.unwrap().unwrap();
        serde_json::from_str::<v1::WatchReply>(&line).map_err(|_| line)
    };
    assert!(next().await.unwrap().first);
    let _agent = FakeAgent::attach(&controller, 1).await;
    assert_eq!(next().await.unwrap().nodes[0].name, "n1");
    controller.create("resize").await.unwrap();
    let created = next().await.unwrap();
    assert!(created.functions.is_some() && created.tree.is_some() && created.nodes.is_empty());
    tokio::time::timeout(Duration::from_secs(10), controller.stop()).await.unwrap();
    let last = loop {
        match next().await {
            Ok(_) => {}
            Err(line) => break line,
        }
    };
    assert!(last.contains("\"code\":\"unavailable\""), "{last}");
    reader.join().unwrap();
}

/// Catches tools that cannot find out what there is to call, or whether the controller serves.
#[tokio::test]
async fn reflection_and_health_answer() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start(config(state.path())).await;
    let mut health = HealthClient::new(controller.channel().await);
    for service in ["", "faasnet.v1.Control", "faasnet.v1.AgentSession"] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(request).await.unwrap().into_inner().status(), ServingStatus::Serving, "{service:?}");
    }
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol("faasnet.v1.Control.Provision".into())),
    };
    let mut reflection = ServerReflectionClient::new(controller.channel().await);
    let requests = tokio_stream::once(request);
    let mut answers = reflection.server_reflection_info(requests).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::FileDescriptorResponse(files)) = answer else { panic!("{answer:?}") };
    assert!(files.file_descriptor_proto.iter().any(|file| file.windows(12).any(|text| text == b"AgentSession")));
    controller.stop().await;
}
