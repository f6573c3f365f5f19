//! What clients, disks and upstreams may take from the mirror, and what they may not.

use super::*;

impl World {
    /// A client whose whole blob was asked for and whose answer has begun.
    async fn reader(&self) -> Client<TcpStream> {
        let mut client = self.client().await;
        client.say(&format!("GET {} HTTP/1.1\r\n\r\n", self.blob(0))).await;
        assert_eq!(client.head().await.status, 200);
        client
    }
}

/// Catches clients that say nothing, or that are served slowly, and keep the runtime from hearing anything.
#[tokio::test]
async fn nobody_is_left_without_an_answer() {
    let world = World::start_with(Limits { stalled: DEADLINE, ..SMALL }).await;
    let mut silent = Vec::new();
    for _ in 0..SMALL.connections {
        silent.push(world.client().await);
    }
    assert_eq!(world.get("/v2/", "").await.status, 200);
    assert_eq!(silent[0].ended().await.unwrap(), 0, "it has waited longest");
    world.arrive(0);
    let mut readers = Vec::new();
    for _ in 0..SMALL.connections {
        readers.push(world.reader().await);
    }
    let mut late = world.client().await;
    assert_eq!(late.get("/v2/", "").await.status, 503);
    assert_eq!(late.ended().await.unwrap(), 0);
    drop(readers.pop());
    // The mirror sees at its next look that the reader is gone.
    let served = async { while world.get("/v2/", "").await.status != 200 {} };
    tokio::time::timeout(DEADLINE, served).await.expect("a place that is free stays taken");
    world.arrive_all();
    let mut blob = vec![0; world.blobs[0].len()];
    readers[0].stream.read_exact(&mut blob).await.unwrap();
    assert!(blob == world.blobs[0], "the newcomers have cost an answer");
}

/// Catches a head that never ends and keeps its connection.
#[tokio::test]
async fn a_head_comes_in_time_as_a_whole() {
    let world = World::start_with(Limits { head: PATIENCE, ..SMALL }).await;
    let mut client = world.client().await;
    let begun = tokio::time::Instant::now();
    // The connection is reset under who goes on to write.
    while client.stream.write_all(b"G").await.is_ok() {
        assert!(begun.elapsed() < DEADLINE, "it is read for ever");
        tokio::time::sleep(PATIENCE / 8).await;
    }
}

/// Catches a runtime that waits for as long as the root does not reach the registry, though this host may.
#[tokio::test]
async fn a_wait_upstream_ends_too() {
    let world = World::start_with(Limits { held_up: PATIENCE * 2, ..SMALL }).await;
    world.show_waiting(true);
    let begun = tokio::time::Instant::now();
    assert_eq!(world.get(&world.blob(0), "").await.status, 404, "nothing was promised yet");
    assert!(begun.elapsed() >= PATIENCE * 2, "refused after {:?}", begun.elapsed());
    assert_eq!(world.get(&world.blob(0), "").await.status, 404);
    assert_eq!(world.counters.cut.load(Ordering::Relaxed), 0);
}

/// Catches a client that takes nothing and keeps an image open that its function has let go of.
#[tokio::test]
async fn nothing_of_a_dropped_image_is_sent() {
    let world = World::start().await;
    world.arrive_all();
    let mut client = world.reader().await;
    world.view.send_replace(Arc::default());
    let let_go = async {
        while Arc::strong_count(&world.stored) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, let_go).await.expect("it is held open");
    let mut got = Vec::new();
    tokio::time::timeout(DEADLINE, client.stream.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got.len() < world.blobs[0].len() && world.blobs[0].starts_with(&got));
    assert_eq!(world.counters.cut.load(Ordering::Relaxed), 1);
}
