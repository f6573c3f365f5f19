//! A read-only OCI registry over layout folders, for the demo and for tests: `faasnet registry LAYOUT --listen ADDR`.
//!
//! Counts and logs what it really sends, so that it can testify how often an image was read. No TLS, no uploads: any method but
//! GET and HEAD is refused. The layouts are read anew for each request; blobs are streamed from their files.

mod answer;
mod body;
mod faults;
mod record;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::response::Response;
use faasnet_origin::Layout;
use faasnet_origin::manifest::REF_NAME;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use faults::{Faults, TokenAuth};
pub use record::{BlobRead, RegistryStats};

use faults::FaultState;
use record::Recorder;

/// How long running transfers may take to end after [`RegistryServer::stop`].
const GRACE: Duration = Duration::from_secs(1);

/// How to serve. The default logs nothing and is not limited.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Append one line per request to this file; `-` is standard output.
    pub access_log: Option<PathBuf>,
    /// Send at most so many body bytes per second, over all connections.
    pub rate: Option<u64>,
    /// Remember each blob read for [`RegistryServer::reads`]; grows with every request.
    pub keep_reads: bool,
    /// Misbehaviour, for tests.
    pub faults: Faults,
}

/// One layout under one name.
#[derive(Debug, Clone)]
struct Repository {
    name: String,
    layout: Layout,
}

/// What every request sees.
#[derive(Debug)]
struct Shared {
    repositories: Vec<Repository>,
    address: SocketAddr,
    recorder: Arc<Recorder>,
    faults: FaultState,
    stopped: CancellationToken,
}

/// A running registry. Dropping it stops it.
#[derive(Debug)]
pub struct RegistryServer {
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

impl RegistryServer {
    /// Serves one layout under the folder's name.
    pub async fn start(layout: &Path, listen: SocketAddr, options: RegistryOptions) -> Result<Self> {
        Self::start_named(&[(default_name(layout), layout.into())], listen, options).await
    }

    /// Serves several layouts under the given names.
    pub async fn start_named(
        layouts: &[(String, PathBuf)],
        listen: SocketAddr,
        options: RegistryOptions,
    ) -> Result<Self> {
        let repositories = layouts.iter().map(|(name, path)| {
            ensure!(is_name(name), "{name:?} is not a repository name: use a-z, 0-9, '.', '_', '-', '/'");
            let layout = Layout::open(path)?;
            layout.index()?;
            Ok(Repository { name: name.clone(), layout })
        });
        let repositories = repositories.collect::<Result<Vec<_>>>()?;
        let listener = TcpListener::bind(listen).await;
        let listener = listener
            .with_context(|| format!("cannot listen on {listen}; is the port in use? Choose another with --listen"))?;
        let address = listener.local_addr().context("cannot ask for the listening address")?;
        let recorder = Recorder::new(options.access_log.as_deref(), options.rate, options.keep_reads)?;
        let shared = Arc::new(Shared {
            repositories,
            address,
            recorder: Arc::new(recorder),
            faults: FaultState::new(options.faults),
            stopped: CancellationToken::new(),
        });
        let app = Router::new().fallback(handle).with_state(shared.clone());
        let stopped = shared.stopped.clone();
        let serving = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(stopped.cancelled_owned());
        let serving = tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the registry stopped");
            }
        });
        Ok(Self { shared, serving })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// The repositories' names.
    pub fn repositories(&self) -> impl Iterator<Item = &str> {
        self.shared.repositories.iter().map(|repository| &*repository.name)
    }

    /// A reference to the first image of the first repository: `127.0.0.1:5000/name:tag`.
    pub fn reference(&self) -> Option<String> {
        let repository = self.shared.repositories.first()?;
        let links = repository.layout.index().ok()?;
        let tag = links.iter().find_map(|link| link.annotations.get(REF_NAME)).map_or("latest", |tag| tag);
        Some(format!("{}/{}:{}", self.shared.address, repository.name, tag.rsplit(':').next().unwrap_or(tag)))
    }

    /// The counters since the start.
    pub fn stats(&self) -> RegistryStats {
        self.shared.recorder.stats()
    }

    /// Every GET of a blob since the start, in order of arrival, with what was sent of it so far. Empty without `keep_reads`.
    pub fn reads(&self) -> Vec<BlobRead> {
        self.shared.recorder.reads()
    }

    /// Stops: no new connections, running transfers are cut.
    pub async fn stop(mut self) {
        self.shared.stopped.cancel();
        if tokio::time::timeout(GRACE, &mut self.serving).await.is_err() {
            self.serving.abort();
        }
    }

    /// Serves until the process ends.
    pub async fn wait(mut self) {
        // Ignored: it only says that the task was cancelled or panicked; serving is over either way.
        let _ = (&mut self.serving).await;
    }
}

impl Drop for RegistryServer {
    fn drop(&mut self) {
        self.shared.stopped.cancel();
    }
}

async fn handle(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(remote): ConnectInfo<SocketAddr>,
    request: Request,
) -> Response {
    answer::answer(shared, remote, request).await
}

/// A folder's name as a repository's name: lower case, other characters replaced.
pub fn default_name(layout: &Path) -> String {
    let absolute = layout.canonicalize().unwrap_or_else(|_| layout.into());
    let name = absolute.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let clean = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c) { c } else { '-' };
    let name: String = name.chars().map(clean).collect();
    let name = name.trim_matches(['.', '_', '-']).replace("..", "-");
    if name.is_empty() { "image".into() } else { name }
}

fn is_name(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 255
        && name.split('/').all(|part| {
            part.starts_with(edge)
                && part.ends_with(edge)
                && !part.contains("..")
                && part.chars().all(|c| edge(c) || "._-".contains(c))
        })
}

#[cfg(test)]
mod tests;
