//! What a controller costs while very many agents hold a session and nothing is to be done: `faasnet bench agents`.
//!
//! The controller is a process of its own with the settings that it has by default. The agents are this process: each with a key, a
//! connection and a stream of its own, which says what an idle agent says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use faasnet_api::v1::agent_session_client::AgentSessionClient;
use faasnet_api::v1::{command::Command, event::Event as Kind};
use faasnet_api::{ClusterSecret, Introduction, NodeId, SigningKey, v1};
use faasnet_lab::process;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::transport::Endpoint;

use crate::client;
use crate::cluster::Cluster;

/// See the module's documentation.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Crowd {
    /// Agents with a session.
    pub agents: usize,
    /// From the first connection to the last accepted agent.
    pub attach_seconds: f64,
    /// For how long the controller was watched after that.
    pub seconds: f64,
    /// CPU time of the controller's process over that time: 1 is a whole core.
    pub cores: f64,
    /// The share of it that its state machine took.
    pub state_machine_cores: f64,
    /// The controller's memory without file cache, at the end.
    pub anonymous_bytes: u64,
}

/// Agents that connect at a time.
const AT_ONCE: usize = 64;
/// An agent that is not accepted within this never will be.
const ATTACH: Duration = Duration::from_secs(60);
/// As agents do it.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Starts a controller, attaches `agents`, and watches for `period`.
pub async fn run(agents: usize, period: Duration, progress: impl Fn(usize)) -> Result<Crowd> {
    crate::daemon::raise_open_files();
    let (mut cluster, _dir) = Cluster::start_fresh(0, [127, 79, 0, 1].into()).await?;
    let watched = watch(&cluster, agents, period, progress).await;
    cluster.stop().await?;
    watched
}

async fn watch(cluster: &Cluster, agents: usize, period: Duration, progress: impl Fn(usize)) -> Result<Crowd> {
    let pid = cluster.controller.pid().context("the controller has ended")?;
    let secret = client::read_secret(None, Some(&cluster.secret_file()))?.context("the cluster has no secret")?;
    let begin = Instant::now();
    let mut sessions = JoinSet::new();
    let (accepted, door) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(AT_ONCE)));
    for index in 0..agents {
        let (url, secret) = (cluster.url(), ClusterSecret::new(&secret));
        let (accepted, door) = (accepted.clone(), door.clone());
        sessions.spawn(async move { session(&url, &secret, index, &accepted, &door).await });
    }
    while accepted.load(Ordering::Relaxed) < agents {
        tokio::select! {
            Some(ended) = sessions.join_next() => bail!("an agent lost its session: {:#}", failure(ended)),
            () = tokio::time::sleep(Duration::from_millis(100)) => progress(accepted.load(Ordering::Relaxed)),
        }
    }
    let attach_seconds = begin.elapsed().as_secs_f64();
    // The last ones are still being stored and answered.
    tokio::time::sleep(KEEP_ALIVE).await;
    let gone = || "the controller has ended";
    let (before, busy_before) = (process::usage(pid).with_context(gone)?, busy_seconds(cluster).await?);
    let watched = Instant::now();
    tokio::time::sleep(period).await;
    let (after, busy_after) = (process::usage(pid).with_context(gone)?, busy_seconds(cluster).await?);
    let seconds = watched.elapsed().as_secs_f64();
    if let Some(ended) = sessions.try_join_next() {
        bail!("an agent lost its session: {:#}", failure(ended));
    }
    Ok(Crowd {
        agents,
        attach_seconds,
        seconds,
        cores: (after.cpu_seconds - before.cpu_seconds) / seconds,
        state_machine_cores: (busy_after - busy_before) / seconds,
        anonymous_bytes: after.anonymous_bytes,
    })
}

fn failure(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(())) => anyhow::anyhow!("the controller ended it"),
        Ok(Err(error)) => error,
        Err(error) => error.into(),
    }
}

/// One agent, until its session ends.
async fn session(
    url: &str,
    secret: &ClusterSecret,
    index: usize,
    accepted: &AtomicUsize,
    door: &Semaphore,
) -> Result<()> {
    let place = door.acquire().await?;
    let (events, outbound) = mpsc::channel(4);
    let mut request = Request::new(ReceiverStream::new(outbound));
    request.metadata_mut().insert("authorization", format!("Bearer {}", secret.rpc_token()).parse()?);
    let endpoint = Endpoint::from_shared(url.to_owned())?
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(6 * KEEP_ALIVE)
        .keep_alive_while_idle(true);
    let attach = async {
        let mut client = AgentSessionClient::new(endpoint.connect().await?);
        let mut commands = client.attach(request).await?.into_inner();
        let Some(Command::Challenge(challenge)) = commands.message().await?.and_then(|first| first.command) else {
            bail!("the controller sent no challenge");
        };
        events.send(attached(index, &challenge.nonce)?).await?;
        let Some(Command::Accepted(told)) = commands.message().await?.and_then(|next| next.command) else {
            bail!("the controller did not accept the agent");
        };
        Ok((commands, Duration::from_millis(told.idle_heartbeat_ms.into())))
    };
    let (mut commands, every) = tokio::time::timeout(ATTACH, attach).await.context("no answer within a minute")??;
    accepted.fetch_add(1, Ordering::Relaxed);
    drop(place);
    // Spread as those of hosts that started at different times.
    tokio::time::sleep(every.mul_f64((index % 1000) as f64 / 1e3)).await;
    let mut beats = tokio::time::interval(every);
    loop {
        tokio::select! {
            _ = beats.tick() => {
                let beat = v1::Event { event: Some(Kind::Heartbeat(v1::Heartbeat::default())) };
                events.send(beat).await?;
            }
            command = commands.message() => ensure!(command?.is_some(), "the controller ended the session"),
        }
    }
}

fn attached(index: usize, nonce: &[u8]) -> Result<v1::Event> {
    let key = SigningKey::random();
    let mut node = [0xfa; 16];
    node[..8].copy_from_slice(&(index as u64).to_be_bytes());
    let node = NodeId(node);
    // Nobody listens there; nothing is sent there either, while nothing is provisioned.
    let data_address = SocketAddr::from(([127, 80, (index >> 8) as u8, index as u8], 7410)).to_string();
    let said = Introduction { nonce, node, incarnation: 1, data_address: &data_address };
    let proof = key.sign(&said.message()).to_vec();
    let attached = v1::Attached {
        node_id: node.to_vec(),
        incarnation: 1,
        name: format!("crowd{index}"),
        data_address,
        public_key: key.public().to_vec(),
        memory_mib: 1024,
        version: env!("CARGO_PKG_VERSION").into(),
        held: Vec::new(),
        proof,
    };
    Ok(v1::Event { event: Some(Kind::Attached(attached)) })
}

/// What the controller's own metrics say that its state machine took so far.
async fn busy_seconds(cluster: &Cluster) -> Result<f64> {
    const NAME: &str = "faasnet_controller_busy_seconds_total ";
    let text = reqwest::get(format!("{}/metrics", cluster.http_url())).await?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(NAME)).context("the controller counts no busy time")?;
    Ok(value.trim().parse()?)
}
