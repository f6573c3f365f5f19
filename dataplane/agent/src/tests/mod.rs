//! The whole control side between a controller and a worker of the tests' own: nothing here moves image bytes.

mod admin;
mod faults;
mod session;
mod whole;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use faasnet_api::v1::agent_session_server::{AgentSession, AgentSessionServer};
use faasnet_api::v1::event::Event;
use faasnet_api::{ClusterSecret, Descriptor, FunctionId, ImageId, v1};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::agent::Parts;
use crate::config::{Config, Secret};
use crate::link::{WorkerEnded, WorkerLink};
use crate::test_support::{DEADLINE, controller_key, report, secret};
use crate::worker::mailbox::{FunctionReport, ReportState, WorkerCommand, WorkerEvent};

/// What the tests' controller has every agent sign.
const NONCE: [u8; 3] = [1, 2, 3];

/// Waits for `future`, but not for ever.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited too long for {what}"))
}

/// A worker that does what the test says.
struct FakeWorker {
    commands: mpsc::UnboundedSender<WorkerCommand>,
    events: mpsc::Receiver<WorkerEvent>,
    answers: mpsc::Sender<WorkerEvent>,
    reports: Arc<Mutex<Vec<FunctionReport>>>,
    stopped: Arc<AtomicBool>,
}

impl WorkerLink for FakeWorker {
    fn send(&self, command: WorkerCommand) -> Result<(), WorkerEnded> {
        match command {
            WorkerCommand::Report => {
                let reports = self.reports.lock().unwrap().clone();
                // Ignored: a full queue drops events, as with the real worker.
                let _ = self.answers.try_send(WorkerEvent::Reported(reports));
                Ok(())
            }
            other => self.commands.send(other).map_err(|_| WorkerEnded),
        }
    }

    async fn next_event(&mut self) -> Option<WorkerEvent> {
        self.events.recv().await
    }

    fn stop(self) {
        self.stopped.store(true, Ordering::SeqCst);
    }
}

/// The test's end of the worker.
struct Worker {
    commands: mpsc::UnboundedReceiver<WorkerCommand>,
    events: mpsc::Sender<WorkerEvent>,
    reports: Arc<Mutex<Vec<FunctionReport>>>,
    stopped: Arc<AtomicBool>,
}

impl Worker {
    fn new() -> (FakeWorker, Self) {
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (events, event_queue) = mpsc::channel(64);
        let (reports, stopped) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let fake = FakeWorker {
            commands,
            events: event_queue,
            answers: events.clone(),
            reports: Arc::clone(&reports),
            stopped: stopped.clone(),
        };
        (fake, Self { commands: command_queue, events, reports, stopped })
    }

    async fn command(&mut self) -> WorkerCommand {
        within("a command to the worker", self.commands.recv()).await.expect("the control side has ended")
    }

    async fn tell(&self, event: WorkerEvent) {
        self.events.send(event).await.unwrap();
    }

    fn set_report(&self, function: FunctionId, image: ImageId, state: ReportState) {
        *self.reports.lock().unwrap() = vec![report(function, image, 1, state)];
    }
}

/// An agent with a fake worker, running until it is dropped or stopped.
struct Running {
    worker: Worker,
    admin: SocketAddr,
    shutdown: Option<oneshot::Sender<()>>,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(config: &Config) -> Self {
        let (fake, worker) = Worker::new();
        let parts = Parts::start(config, async |_| Ok((fake, "127.0.0.1:4711".parse().unwrap()))).await.unwrap();
        let admin = parts.admin_address();
        let (shutdown, asked) = oneshot::channel::<()>();
        let ended = tokio::spawn(parts.run_until(async {
            // Ignored: a test that ends drops the sender, which asks just the same.
            let _ = asked.await;
        }));
        Self { worker, admin, shutdown: Some(shutdown), ended }
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.shutdown.take());
        within("the agent's end", self.ended).await.unwrap()
    }
}

fn config(store: &Path, controller: SocketAddr) -> Config {
    Config {
        name: "n1".into(),
        controller: format!("http://{controller}"),
        listen: "127.0.0.1:0".parse().unwrap(),
        admin: "127.0.0.1:0".parse().unwrap(),
        mirror_listen: "127.0.0.1:0".parse().unwrap(),
        store_dir: store.into(),
        cluster_secret: Some(Secret::new("0123456789abcdef")),
        ..Config::default()
    }
}

/// A controller that hands every session to the test.
struct Controller {
    address: SocketAddr,
    sessions: mpsc::Receiver<Session>,
    /// Agents turned away for their token.
    refused: Arc<AtomicUsize>,
    running: JoinSet<()>,
}

/// One session as the controller sees it.
struct Session {
    events: Streaming<v1::Event>,
    commands: mpsc::Sender<Result<v1::Command, Status>>,
    /// Read while waiting for another kind of event.
    skipped: VecDeque<Event>,
}

struct Service(mpsc::Sender<Session>, Arc<AtomicUsize>, ClusterSecret);

#[tonic::async_trait]
impl AgentSession for Service {
    type AttachStream = ReceiverStream<Result<v1::Command, Status>>;

    async fn attach(&self, request: Request<Streaming<v1::Event>>) -> Result<Response<Self::AttachStream>, Status> {
        let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if token.strip_prefix("Bearer ").is_none_or(|token| !self.2.accepts_rpc_token(token)) {
            self.1.fetch_add(1, Ordering::SeqCst);
            return Err(Status::unauthenticated("wrong token"));
        }
        let (commands, stream) = mpsc::channel(16);
        let session = Session { events: request.into_inner(), commands, skipped: VecDeque::new() };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test has ended"))?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

impl Controller {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(address: SocketAddr) -> Self {
        Self::start_for(address, secret()).await
    }

    /// Of the cluster with `secret`.
    async fn start_for(address: SocketAddr, secret: ClusterSecret) -> Self {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, sessions) = mpsc::channel(4);
        let refused = Arc::new(AtomicUsize::new(0));
        let service = Service(sender, refused.clone(), secret);
        let mut running = JoinSet::new();
        running.spawn(async move {
            let service = AgentSessionServer::new(service);
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { address, sessions, refused, running }
    }

    /// The next session, with its `Attached`.
    async fn attached(&mut self) -> (Session, v1::Attached) {
        let mut session = within("a session", self.sessions.recv()).await.unwrap();
        session.command(v1::command::Command::Challenge(v1::Challenge { nonce: NONCE.to_vec() })).await;
        match session.event().await {
            Some(Event::Attached(attached)) => (session, attached),
            other => panic!("a session opens with Attached, not with {other:?}"),
        }
    }

    /// The next session, accepted, with heartbeats of 50 ms.
    async fn accepted(&mut self) -> (Session, v1::Attached) {
        let (session, attached) = self.attached().await;
        let accepted =
            v1::Accepted { term: 1, heartbeat_ms: 50, idle_heartbeat_ms: 50, ticket_keys: Some(ticket_keys()) };
        session.command(v1::command::Command::Accepted(accepted)).await;
        (session, attached)
    }
}

impl Session {
    async fn command(&self, command: v1::command::Command) {
        self.commands.send(Ok(v1::Command { command: Some(command) })).await.unwrap();
    }

    /// The next event; `None` when the agent ended the session in order.
    async fn event(&mut self) -> Option<Event> {
        within("an event", self.events.message()).await.unwrap().map(|event| event.event.unwrap())
    }

    /// The next event for which `pick` answers something; others are kept for later calls.
    async fn expect<T>(&mut self, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        if let Some(index) = self.skipped.iter().position(|event| pick(event).is_some()) {
            return self.skipped.remove(index).and_then(|event| pick(&event)).unwrap();
        }
        let deadline = tokio::time::Instant::now() + DEADLINE;
        while tokio::time::Instant::now() < deadline {
            let event = self.event().await.expect("the session has ended");
            if let Some(found) = pick(&event) {
                return found;
            }
            if !matches!(event, Event::Heartbeat(_)) {
                self.skipped.push_back(event);
            }
        }
        panic!("the event did not come");
    }

    /// The progress in the first heartbeat in which the only function has the wanted state.
    async fn progress(&mut self, state: v1::FunctionState) -> v1::FunctionProgress {
        self.expect(|event| match event {
            Event::Heartbeat(heartbeat) => heartbeat.functions.first().filter(|f| f.state() == state).cloned(),
            _ => None,
        })
        .await
    }
}

/// The keys of a controller with the key of these tests.
fn ticket_keys() -> v1::TicketKeys {
    let key = v1::TicketKey { public_key: controller_key().public().to_vec(), valid_until: 0 };
    v1::TicketKeys { keys: vec![key] }
}

fn function() -> FunctionId {
    FunctionId::new("acme", "resize")
}

/// An order to hold acme/resize from the origin.
fn assign(epoch: u64, descriptor: &Descriptor, with_descriptor: bool) -> v1::command::Command {
    v1::command::Command::Assign(v1::Assign {
        image_id: descriptor.id().to_vec(),
        descriptor: if with_descriptor { descriptor.encode() } else { Vec::new() },
        ..crate::session::commands::tests::assign(epoch)
    })
}

fn drop_function(epoch: u64) -> v1::command::Command {
    v1::command::Command::Drop(v1::Drop { function_id: function().to_vec(), term: 1, epoch, discard: false })
}
