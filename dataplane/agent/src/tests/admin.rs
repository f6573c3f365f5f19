//! The admin endpoint: state, joining, and the files of complete images.

use std::os::unix::fs::FileExt;

use faasnet_api::BlockIndex;
use faasnet_store::StoredImage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::test_support::{block_of, digest, eventually, layout};

/// Status and body of a request, and its head.
pub(super) async fn request(admin: SocketAddr, method: &str, path: &str) -> (u16, Vec<u8>, String) {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within("an answer", stream.read_to_end(&mut answer)).await.unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec(), head)
}

async fn get(admin: SocketAddr, path: &str) -> (u16, serde_json::Value) {
    let (status, body, _) = request(admin, "GET", path).await;
    (status, serde_json::from_slice(&body).unwrap())
}

fn fill(stored: &StoredImage, blobs: &[Vec<u8>]) {
    for block in (0..stored.geometry().blocks()).map(BlockIndex) {
        let place = stored.geometry().place(block).unwrap();
        stored.file().write_all_at(block_of(blobs, stored.geometry(), block), place.file_offset).unwrap();
        stored.mark(block).unwrap();
    }
}

pub(super) const RESIZE: &str = "/v1/functions/acme/resize";

/// Catches files that are given out early, not at all, or with other bytes; and a metric that is missing, or there twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_complete_image_can_be_fetched() {
    let folder = tempfile::tempdir().unwrap();
    let (blobs, descriptor) = layout(&folder.path().join("layout"), &[1000, 0, (1 << 20) + 1]);
    let mut controller = Controller::start().await;
    let mut agent = Running::start(&config(&folder.path().join("store"), controller.address)).await;
    let (mut session, _) = controller.accepted().await;
    session.command(assign(1, &descriptor, true)).await;
    let WorkerCommand::Assign(assignment) = agent.worker.command().await else { panic!() };
    let early = request(agent.admin, "GET", &format!("{RESIZE}/blobs/{}", digest(&blobs[0]))).await;
    assert_eq!(early.0, 409, "an incomplete image");

    fill(&assignment.stored.unwrap(), &blobs);
    agent.worker.set_report(function(), descriptor.id(), ReportState::Complete);
    agent.worker.tell(WorkerEvent::Completed { function: function(), image: descriptor.id() }).await;
    session.progress(v1::FunctionState::Complete).await;
    for blob in &blobs {
        let (status, body, head) = request(agent.admin, "GET", &format!("{RESIZE}/blobs/{}", digest(blob))).await;
        assert!(status == 200 && body == *blob, "{head}");
        assert!(head.contains(&format!("content-length: {}", blob.len())));
    }
    let (status, manifest, head) = request(agent.admin, "GET", &format!("{RESIZE}/manifest")).await;
    assert_eq!((status, manifest.as_slice()), (200, descriptor.manifest()));
    assert!(head.contains(descriptor.manifest_media_type()) && head.contains(descriptor.manifest_digest()));
    let (_, encoded, _) = request(agent.admin, "GET", &format!("{RESIZE}/descriptor")).await;
    assert_eq!(encoded, descriptor.encode());
    let used = |event: &Event| match event {
        Event::Heartbeat(beat) => beat.functions.first().filter(|row| row.uses >= 2 + blobs.len() as u64).map(|_| ()),
        _ => None,
    };
    // What is read here counts as a use, or idle reclaim would take it from under its reader.
    session.expect(used).await;
    let unknown = format!("{RESIZE}/blobs/sha256:{}", "0".repeat(64));
    assert_eq!(request(agent.admin, "GET", &unknown).await.0, 404);

    let (_, function) = get(agent.admin, RESIZE).await;
    assert_eq!((&function["state"], &function["bytes_present"]), (&"complete".into(), &(1000 + (1 << 20) + 1).into()));
    let (_, state) = get(agent.admin, "/v1/state").await;
    assert_eq!((&state["name"], &state["functions"][0]), (&"n1".into(), &function));
    let (_, metrics, _) = request(agent.admin, "GET", "/metrics").await;
    let metrics = String::from_utf8(metrics).unwrap();
    for sample in ["faasnet_received_bytes_total", "faasnet_direct_bytes_total"] {
        let sample = format!("\n{sample}{{tenant=\"acme\",function=\"resize\"}} 11\n");
        assert!(metrics.contains(&sample), "{sample}: {metrics}");
    }
    let names: Vec<_> = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1), "twice: {names:?}");
    agent.stop().await.unwrap();
}

/// Catches a join that the controller never hears of, hears of only while it happens to be there, or whose refusal nobody learns.
#[tokio::test(flavor = "multi_thread")]
async fn joins_reach_the_controller() {
    let folder = tempfile::tempdir().unwrap();
    let mut controller = Controller::start().await;
    let agent = Running::start(&config(folder.path(), controller.address)).await;
    assert_eq!(request(agent.admin, "GET", "/healthz").await.0, 200);
    let (status, error) = get(agent.admin, RESIZE).await;
    assert!(status == 404 && error["error"].as_str().unwrap().contains("/join"), "{error}");
    let (mut session, _) = controller.accepted().await;
    assert_eq!(request(agent.admin, "POST", &format!("{RESIZE}/join")).await.0, 202);
    let joined = |event: &Event| match event {
        Event::JoinRequested(join) => Some((join.tenant.clone(), join.function.clone())),
        _ => None,
    };
    assert_eq!(session.expect(joined).await, ("acme".into(), "resize".into()));

    let address = controller.address;
    drop(session);
    controller.running.shutdown().await;
    let mut controller = Controller::start_at(address).await;
    let (mut session, _) = controller.accepted().await;
    assert_eq!(session.expect(joined).await.1, "resize", "an unanswered join is asked again");
    let refused =
        v1::JoinRefused { tenant: "acme".into(), function: "resize".into(), reason: "no such function".into() };
    session.command(v1::command::Command::JoinRefused(refused)).await;
    let mut answer = (0, serde_json::Value::Null);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while answer.0 != 403 && tokio::time::Instant::now() < deadline {
        answer = get(agent.admin, RESIZE).await;
    }
    assert!(answer.1["error"].as_str().unwrap().contains("no such function"), "{}", answer.1);
    agent.stop().await.unwrap();
}

/// Catches a path that answers with a page, and a write by another method.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_else_is_offered() {
    let folder = tempfile::tempdir().unwrap();
    let agent = Running::start(&config(folder.path(), "127.0.0.1:1".parse().unwrap())).await;
    assert_eq!(get(agent.admin, "/etc/passwd").await.0, 404);
    for (method, path, status) in
        [("DELETE", RESIZE, 405), ("POST", "/v1/state", 405), ("GET", "/v1/functions/%ff/x", 400)]
    {
        let (told, body, _) = request(agent.admin, method, path).await;
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(told == status && body["error"].is_string(), "{method} {path}: {told} {body}");
    }
    let stopped = agent.worker.stopped.clone();
    drop(agent.shutdown);
    eventually("the worker is stopped", || stopped.load(Ordering::SeqCst).then_some(())).await;
}
