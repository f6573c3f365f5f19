//! What may be wrong at start, and a worker that ends: each with an error that says what to do.

use super::*;

async fn start_error(config: &Config) -> String {
    let (fake, _worker) = Worker::new();
    let started = Parts::start(config, async |_| Ok((fake, "127.0.0.1:1".parse().unwrap()))).await;
    format!("{:#}", started.err().expect("the agent started"))
}

fn nobody() -> SocketAddr {
    "127.0.0.1:1".parse().unwrap()
}

/// Catches start errors that do not name the setting, the cause and the way out.
#[tokio::test(flavor = "multi_thread")]
async fn start_errors_are_clear() {
    let folder = tempfile::tempdir().unwrap();
    let good = config(folder.path(), nobody());
    assert!(start_error(&Config { cluster_secret: None, ..good.clone() }).await.contains("no secret"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = taken.local_addr().unwrap();
    let error = start_error(&Config { admin, ..good.clone() }).await;
    assert!(error.contains("admin") && error.contains("another port"), "{error}");

    let file = tempfile::NamedTempFile::new().unwrap();
    let error = start_error(&Config { store_dir: file.path().join("x"), ..good.clone() }).await;
    assert!(error.contains("cannot be used"), "{error}");

    let failed = Parts::<FakeWorker>::start(&good, async |_| anyhow::bail!("address in use")).await;
    let error = format!("{:#}", failed.err().unwrap());
    assert!(error.contains("listen") && error.contains("address in use"), "{error}");

    let running = Running::start(&good).await;
    let error = start_error(&good).await;
    assert!(error.contains("another agent"), "{error}");
    running.stop().await.unwrap();
    // What a stopped agent held is free again.
    Running::start(&good).await.stop().await.unwrap();
}

/// Catches an agent that lives on without anybody to move bytes.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_worker_is_the_agents() {
    let folder = tempfile::tempdir().unwrap();
    let (fake, worker) = Worker::new();
    // Nobody answers reports any more, and the event queue is closed.
    let (answers, events) = mpsc::channel(1);
    drop(answers);
    let fake = FakeWorker { events, ..fake };
    let config = config(folder.path(), nobody());
    let parts = Parts::start(&config, async |_| Ok((fake, nobody()))).await.unwrap();
    let error = within("the agent's end", parts.run_until(std::future::pending())).await.unwrap_err();
    assert!(error.to_string().contains("worker"), "{error}");
    assert!(worker.stopped.load(Ordering::SeqCst));
}

/// Catches an agent with a wrong secret that gives up, so that correcting the controller does not help.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_agent_keeps_trying() {
    let folder = tempfile::tempdir().unwrap();
    let mut controller = Controller::start().await;
    let wrong = Config {
        cluster_secret: Some(Secret::new("another secret of mine")),
        ..config(folder.path(), controller.address)
    };
    let agent = Running::start(&wrong).await;
    let refused = || controller.refused.load(Ordering::SeqCst);
    crate::test_support::eventually("the agent has tried three times", || (refused() >= 3).then_some(())).await;
    assert!(controller.sessions.try_recv().is_err(), "a session with the wrong secret");
    assert!(!agent.ended.is_finished());
    agent.stop().await.unwrap();
}

/// Catches an agent that says it is ready though the controller refuses it, and one that waits for a controller that is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_agent_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let controller = Controller::start().await;
    let secret = Some(Secret::new("another secret of mine"));
    let wrong = Config { cluster_secret: secret, ..config(folder.path(), controller.address) };
    let agent = crate::Agent::start(wrong.clone()).await.unwrap();
    let ready = tokio::spawn(agent.ready());
    let running = tokio::spawn(agent.run_until(std::future::pending()));
    let refused = || controller.refused.load(Ordering::SeqCst);
    crate::test_support::eventually("the agent has tried three times", || (refused() >= 3).then_some(())).await;
    assert!(!ready.is_finished());
    // Now nobody is there who refuses it.
    drop(controller);
    within("ready without a controller", ready).await.unwrap();
    running.abort();
}

/// Catches a start that cannot be awaited on another thread: the program spawns it.
#[test]
fn starting_is_send() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&crate::Agent::start(Config::default()));
}
