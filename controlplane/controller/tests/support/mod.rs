//! A controller on a port of its own, pretended agents that speak real gRPC, and a registrar that needs no registry.

#![allow(unreachable_pub, clippy::unwrap_used)]
// Each test program uses a part of it.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::v1::agent_session_client::AgentSessionClient;
use faasnet_api::v1::command::Command;
use faasnet_api::v1::control_client::ControlClient;
use faasnet_api::v1::event::Event;
use faasnet_api::{
    BLOCK_BYTES, BlockDigest, ClusterSecret, Descriptor, Entry, Introduction, NodeId, Origin, SigningKey, v1,
};
use faasnet_controller::{Config, Controller, Progress, Registered, Registrar, Registration, Resolved};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

pub const SECRET: &str = "0123456789abcdef-test";
/// Nothing in these tests takes this long unless it never comes.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Answers every reference with a one-block image of its own, but refuses those that contain "missing".
pub struct FakeRegistrar;

impl Registrar for FakeRegistrar {
    fn register<'a>(&'a self, registration: Registration, progress: Progress<'a>) -> Registered<'a> {
        Box::pin(async move {
            progress(0, 10);
            if registration.reference.contains("missing") {
                return Err(format!("{} is not in the registry", registration.reference));
            }
            if registration.reference.contains("endless") {
                std::future::pending::<()>().await;
            }
            let parts = DescriptorParts {
                block_bytes: BLOCK_BYTES,
                reference: registration.reference,
                origin: Origin::Layout { path: "/images/app".into() },
                manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                manifest_digest: format!("sha256:{}", "0".repeat(64)),
                manifest: b"{}".to_vec(),
                entries: vec![Entry { digest: format!("sha256:{}", "a".repeat(64)), media_type: "m".into(), len: 10 }],
                blocks: vec![BlockDigest::of(b"0123456789")],
            };
            Descriptor::new(parts).map_err(|error| error.to_string())
        })
    }

    fn resolve(&self, registration: Registration) -> Resolved<'_> {
        Box::pin(async move { Err(format!("{} is not asked for", registration.reference)) })
    }
}

pub fn config(state_dir: &Path) -> Config {
    Config {
        listen: ([127, 0, 0, 1], 0).into(),
        state_dir: state_dir.into(),
        cluster_secret: Some(SECRET.into()),
        ..Config::default()
    }
}

/// A controller that runs until it is stopped.
pub struct Running {
    pub address: SocketAddr,
    pub http: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub async fn start(config: Config) -> Self {
        Self::start_with(config, Arc::new(FakeRegistrar)).await
    }

    pub async fn start_with(config: Config, registrar: Arc<dyn Registrar>) -> Self {
        let controller = Controller::start_with(config, registrar).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (address, http) = (controller.local_addr(), controller.http_addr());
        let task = tokio::spawn(controller.run_until(async { drop(stopped.await) }));
        Self { address, http, stop, task }
    }

    pub async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(DEADLINE, self.task).await.expect("the controller does not stop").unwrap().unwrap();
    }

    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub async fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel().await)
    }

    pub async fn create(&self, name: &str) -> Result<v1::FunctionInfo, Status> {
        self.create_from(name, "example/app:1").await
    }

    pub async fn create_from(&self, name: &str, reference: &str) -> Result<v1::FunctionInfo, Status> {
        let request =
            v1::CreateFunctionRequest { function: name.into(), reference: reference.into(), ..Default::default() };
        let mut progress = self.control().await.create_function(request).await?.into_inner();
        let mut created = None;
        while let Some(message) = progress.message().await? {
            created = message.created;
        }
        Ok(created.expect("the last message carries the function"))
    }

    pub async fn provision(&self, name: &str, count: u32) -> Result<Streaming<v1::ProvisionProgress>, Status> {
        let request = v1::ProvisionRequest { function: name.into(), count, ..Default::default() };
        Ok(self.control().await.provision(request).await?.into_inner())
    }

    pub async fn tree(&self, name: &str) -> v1::GetTreeReply {
        let request = v1::GetTreeRequest { tenant: String::new(), function: name.into() };
        self.control().await.get_tree(request).await.unwrap().into_inner()
    }

    pub async fn nodes(&self) -> v1::ListNodesReply {
        self.control().await.list_nodes(v1::ListNodesRequest {}).await.unwrap().into_inner()
    }

    /// Waits until the nodes' states are as many of each kind as told.
    pub async fn wait_for_states(&self, live: usize, dead: usize) {
        wait_until(|| async {
            let nodes = self.nodes().await.nodes;
            let count = |state: &str| nodes.iter().filter(|node| node.state == state).count();
            (count("live"), count("dead")) == (live, dead)
        })
        .await;
    }
}

pub async fn wait_until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, met).await.expect("the condition is never met");
}

pub fn bearer<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

pub fn token() -> String {
    ClusterSecret::new(SECRET.as_bytes()).rpc_token().into()
}

/// The key of the pretended agent `n`.
pub fn node_key(n: u8) -> SigningKey {
    SigningKey::from_seed([n; 32])
}

/// Attaches as `attached` says, with the controller's challenge signed by `key`.
pub async fn introduce(
    controller: &Running,
    mut attached: v1::Attached,
    key: &SigningKey,
) -> (mpsc::Sender<v1::Event>, Streaming<v1::Command>) {
    let (events, stream) = mpsc::channel(16);
    let mut client = AgentSessionClient::new(controller.channel().await);
    let mut commands = client.attach(bearer(ReceiverStream::new(stream), &token())).await.unwrap().into_inner();
    let Some(Command::Challenge(challenge)) = commands.message().await.unwrap().unwrap().command else {
        panic!("no challenge comes first")
    };
    let node = NodeId::try_from(&attached.node_id[..]).unwrap();
    let (incarnation, data_address) = (attached.incarnation, attached.data_address.as_str());
    let said = Introduction { nonce: &challenge.nonce, node, incarnation, data_address };
    attached.proof = key.sign(&said.message()).to_vec();
    events.send(v1::Event { event: Some(Event::Attached(attached)) }).await.unwrap();
    (events, commands)
}

/// A pretended agent; dropping it closes its stream and its data port.
pub struct FakeAgent {
    pub id: NodeId,
    pub events: mpsc::Sender<v1::Event>,
    pub commands: Streaming<v1::Command>,
    listener: TcpListener,
}

impl FakeAgent {
    pub async fn attach(controller: &Running, n: u8) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::attach_at(controller, n, listener, Vec::new()).await
    }

    pub async fn attach_at(controller: &Running, n: u8, listener: TcpListener, held: Vec<v1::HeldFunction>) -> Self {
        let id = NodeId([n; 16]);
        let attached = v1::Attached {
            node_id: id.to_vec(),
            incarnation: 1,
            name: format!("n{n}"),
            data_address: listener.local_addr().unwrap().to_string(),
            held,
            public_key: node_key(n).public().to_vec(),
            ..Default::default()
        };
        let (events, commands) = introduce(controller, attached, &node_key(n)).await;
        Self { id, events, commands, listener }
    }

    pub async fn next(&mut self) -> Option<Command> {
        let next = tokio::time::timeout(DEADLINE, self.commands.message()).await.expect("no command comes");
        next.ok().flatten().and_then(|command| command.command)
    }

    pub async fn accepted(&mut self) -> v1::Accepted {
        match self.next().await {
            Some(Command::Accepted(accepted)) => accepted,
            other => panic!("{other:?} instead of Accepted"),
        }
    }

    pub async fn assign(&mut self) -> v1::Assign {
        match self.next().await {
            Some(Command::Assign(assign)) => assign,
            other => panic!("{other:?} instead of Assign"),
        }
    }

    pub async fn say(&self, event: Event) {
        self.events.send(v1::Event { event: Some(event) }).await.unwrap();
    }

    pub async fn report(&self, assign: &v1::Assign, state: v1::FunctionState) {
        let progress = v1::FunctionProgress {
            function_id: assign.function_id.clone(),
            image_id: assign.image_id.clone(),
            term: assign.term,
            epoch: assign.epoch,
            state: state.into(),
            ..Default::default()
        };
        self.say(Event::Heartbeat(v1::Heartbeat { functions: vec![progress] })).await;
    }

    /// Ends the stream but keeps the data port, as a restarting controller sees its agents.
    pub fn into_listener(self) -> TcpListener {
        self.listener
    }
}
