//! The running controller: listener, state, services, and their orderly end.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use faasnet_api::keys::random_bytes;
use faasnet_api::tls::chain;
use faasnet_api::v1::agent_session_server::AgentSessionServer;
use faasnet_api::v1::control_server::ControlServer;
use faasnet_api::{ClusterSecret, v1};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use crate::config::Config;
use crate::http::Http;
use crate::registrar::{ImageRegistrar, Registrar};
use crate::shell::agents::Agents;
use crate::shell::clients::Clients;
use crate::shell::gate::Gate;
use crate::shell::owner::{Handle, Owner, now};
use crate::shell::wishes::Wishes;
use crate::state::{Key, State};
use crate::store::{RedbStore, StateStore};

/// Streams that have been told to end get this long.
const GOODBYE: Duration = Duration::from_secs(5);
/// Connections whose other end vanished without a word are found out after this and [`KEEPALIVE_TIMEOUT`].
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A controller that listens and has its state, and serves once [`Controller::run_until`] runs.
pub struct Controller {
    listener: TcpListener,
    local_addr: SocketAddr,
    http: Http,
    owner: Owner,
    handle: Handle,
    secret: ClusterSecret,
    registrar: Arc<dyn Registrar>,
    commands_per_agent: usize,
    tag_ttl: Duration,
    server: Server,
}

impl Controller {
    /// Binds the address, opens the state and begins a new term.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        Self::start_with(config, Arc::new(ImageRegistrar)).await
    }

    /// As [`Controller::start`], with another way to register images.
    pub async fn start_with(config: Config, registrar: Arc<dyn Registrar>) -> anyhow::Result<Self> {
        let secret = config.secret()?;
        let settings = config.settings(random_bytes())?;
        let server = server(&config)?;
        // Bound before the state is touched: a second controller must not raise the term on its way out.
        let listener = TcpListener::bind(config.listen).await.with_context(|| {
            format!(
                "cannot listen on {}; is another controller running there? Choose another address with --listen",
                config.listen
            )
        })?;
        let local_addr = listener.local_addr()?;
        let http = Http::bind(&config).await?;
        let store: Arc<dyn StateStore> = Arc::new(RedbStore::open(&config.state_dir)?);
        let clock = Instant::now();
        let state = State::restore(settings, now(clock), store.load()?).with_context(|| {
            format!(
                "the state in {} cannot be restored; restore it from a copy or delete it",
                config.state_dir.display()
            )
        })?;
        store.commit([Key::Term, Key::TicketKeys].map(|key| (key, state.record(key))).into())?;
        tracing::info!(%local_addr, http = %http.address(), term = state.term(), "controller started");
        let open = |address: &SocketAddr| config.tls_cert.is_none() && !address.ip().is_loopback();
        for address in [local_addr, http.address()].into_iter().filter(open) {
            tracing::warn!("{address} is not encrypted; callers from other machines need the cluster's token");
        }
        let (owner, handle) = Owner::new(state, store, clock, Duration::from_millis(config.probe_timeout_ms));
        let commands_per_agent = config.commands_per_agent;
        let tag_ttl = Duration::from_millis(config.tag_ttl_ms);
        Ok(Self { listener, local_addr, http, owner, handle, secret, registrar, commands_per_agent, tag_ttl, server })
    }

    /// Where it listens; the real port when the configured one was 0.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http.address()
    }

    /// Serves until `shutdown` completes; then every stream ends and the state is closed. Fails when the state cannot be written.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let mut owner = tokio::spawn(self.owner.run(stop.clone()));
        let wishes = Wishes::new(self.handle.clone(), self.registrar.clone(), self.tag_ttl);
        let agents = Agents { owner: self.handle.clone(), queue: self.commands_per_agent, wishes, stop: stop.clone() };
        let clients = Clients { owner: self.handle, registrar: self.registrar, stop: stop.clone() };
        let gate = Gate::open_on_loopback(self.secret.clone());
        let (health_reporter, health) = tonic_health::server::health_reporter();
        // The state is loaded, or we would not be here.
        health_reporter.set_serving::<ControlServer<Clients>>().await;
        health_reporter.set_serving::<AgentSessionServer<Agents>>().await;
        let mut server = self.server;
        let server = server
            .add_service(InterceptedService::new(AgentSessionServer::new(agents), Gate::closed(self.secret)))
            .add_service(InterceptedService::new(ControlServer::new(clients.clone()), gate.clone()))
            .add_service(InterceptedService::new(reflection()?, gate.clone()))
            .add_service(health)
            .serve_with_incoming_shutdown(TcpIncoming::from(self.listener), stop.clone().cancelled_owned());
        let http = self.http.run(clients, gate, stop.clone());
        let mut server = tokio::spawn(async move {
            let (grpc, http) = tokio::join!(server, http);
            grpc.context("the gRPC server failed")?;
            http.context("the HTTP server failed")
        });
        let (mut owned, mut served) = (None, None);
        tokio::select! {
            () = shutdown => {}
            result = &mut owner => owned = Some(result),
            result = &mut server => served = Some(result),
        }
        stop.cancel();
        if served.is_none() {
            match tokio::time::timeout(GOODBYE, &mut server).await {
                Ok(result) => served = Some(result),
                // Somebody does not take the end of its stream; it sees the connection close instead.
                Err(_) => server.abort(),
            }
        }
        let owned = match owned {
            Some(owned) => owned,
            None => owner.await,
        };
        owned.context("the controller's owner task failed")??;
        if let Some(served) = served {
            served.context("the task of the servers failed")??;
        }
        tracing::info!("controller stopped");
        Ok(())
    }
}

/// Tells clients such as grpcurl what can be called.
fn reflection() -> anyhow::Result<ServerReflectionServer<impl ServerReflection>> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("the contract cannot be shown by reflection")
}

/// The gRPC server, with TLS if the settings name a certificate.
fn server(config: &Config) -> anyhow::Result<Server> {
    let server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
    match config.tls().load()? {
        Some(tls) => server.tls_config(tls).map_err(|error| {
            anyhow!(
                "tls_cert and tls_key cannot be used ({}); is the key the certificate's? `faasnet certs issue` makes a pair",
                chain(&error)
            )
        }),
        None => Ok(server),
    }
}
