//! The registry mirror: what container runtimes on this host pull from, by the OCI distribution protocol.
//!
//! On the control side, for this host only. It reads verified blocks from store files and sends them as they are; it answers 404 for what
//! it does not know, and the runtime goes on at the registry. It never sends a byte that is not verified, and rather cuts a response than
//! letting it hang.
//!
//! An HTTP/1.1 responder of its own, because the bytes go from file to socket by sendfile, which server libraries do not offer.

mod body;
mod catalogue;
mod connection;
pub(crate) mod questions;
mod reply;
mod request;
pub mod settings;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use faasnet_api::ImageId;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::Input;
use crate::view::View;
use crate::worker::mailbox::ReportState;
pub(crate) use catalogue::Misses;
use catalogue::{Catalogue, Found};
use settings::MirrorListen;
use socket::Socket;

/// Connections at a time; more wait to be accepted. A runtime opens one per layer, at most a few dozen.
const MAX_CONNECTIONS: usize = 256;
/// A response is cut when nothing of its image arrived for this long and no upstream said that it waits. Runtimes ask for all layers at
/// once, so a late layer waits long in health.
const STALLED: Duration = Duration::from_secs(10);
/// After an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The unix socket is root's and its group's: runtimes run as root.
const SOCKET_MODE: u32 = 0o660;

/// What the mirror did, for the metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) damaged: AtomicU64,
}

/// What all connections share. Cheap to clone.
#[derive(Debug, Clone)]
struct Mirror {
    catalogue: Catalogue,
    stalled: Arc<Stalled>,
    counters: Arc<Counters>,
    patience: Duration,
}

/// Images of which a response was cut, with the blocks that they had then: until another one arrives there is no use in waiting again.
#[derive(Debug, Default)]
struct Stalled(Mutex<HashMap<ImageId, u32>>);

/// The bound end of the mirror.
#[derive(Debug)]
pub(crate) enum Door {
    Closed,
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Door {
    /// Listens. A unix socket that nobody listens on any more is replaced.
    pub(crate) async fn bind(listen: &MirrorListen) -> anyhow::Result<Self> {
        match listen {
            MirrorListen::Off => Ok(Self::Closed),
            MirrorListen::Tcp(address) => Ok(Self::Tcp(TcpListener::bind(address).await.with_context(|| {
                format!("mirror_listen: cannot listen on {address}; give the mirror another port, or switch it off")
            })?)),
            MirrorListen::Unix(path) => {
                let bound = bind_unix(path);
                let listener = bound.with_context(|| format!("mirror_listen: cannot listen on {}", path.display()))?;
                Ok(Self::Unix(listener, path.clone()))
            }
        }
    }

    /// Where it listens by TCP.
    pub(crate) fn address(&self) -> anyhow::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => Ok(Some(listener.local_addr()?)),
            Self::Closed | Self::Unix(..) => Ok(None),
        }
    }

    /// Serves until `stop` is cancelled; ends every connection then.
    pub(crate) async fn run(
        self,
        view: watch::Receiver<Arc<View>>,
        inputs: mpsc::Sender<Input>,
        misses: Misses,
        counters: Arc<Counters>,
        stop: CancellationToken,
    ) {
        let catalogue = Catalogue { view, inputs, misses };
        self.serve(Mirror { catalogue, stalled: Arc::default(), counters, patience: STALLED }, stop).await;
    }

    async fn serve(self, mirror: Mirror, stop: CancellationToken) {
        let mut connections = JoinSet::new();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.accept(&places) => accepted,
            };
            match accepted {
                Ok((socket, place)) => {
                    let mirror = mirror.clone();
                    connections.spawn(async move {
                        connection::serve(socket, mirror).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the mirror cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        if let Self::Unix(_, path) = &self {
            // Ignored: the next start replaces what stays.
            let _ = fs::remove_file(path);
        }
    }

    async fn accept(&self, places: &Arc<Semaphore>) -> io::Result<(Socket, tokio::sync::OwnedSemaphorePermit)> {
        let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
        let socket = match self {
            Self::Closed => std::future::pending().await,
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Ignored: an answer that is delayed by 40 ms is an answer.
                let _ = stream.set_nodelay(true);
                Socket::Tcp(stream)
            }
            Self::Unix(listener, _) => Socket::Unix(listener.accept().await?.0),
        };
        Ok((socket, place))
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // A socket of a process that is gone refuses; one that answers is another agent's.
    let is_left = fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
    if is_left && std::os::unix::net::UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Whether what is missing of an image is going to come: `Some(true)` when an upstream says that it waits itself, `None` when the image
/// is not received here any more.
fn is_on_its_way(catalogue: &Catalogue, found: &Found) -> Option<bool> {
    let view = catalogue.view.borrow();
    let row = view.rows.get(&found.function).filter(|row| row.image == found.stored.descriptor().id())?;
    match row.state() {
        ReportState::Failed(_) => None,
        // Whoever asks misses a block: one that the worker does not know to be missing.
        ReportState::Complete if !found.stored.is_complete() => None,
        _ => Some(row.report.as_ref().is_some_and(|report| report.upstream_waits)),
    }
}

impl Stalled {
    fn note(&self, image: ImageId, blocks: u32) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_CONNECTIONS {
            all.clear();
        }
        all.insert(image, blocks);
    }

    /// Whether nothing of `image`, which has so many blocks, has arrived since a response was cut.
    fn is(&self, image: ImageId, blocks: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&image) == Some(&blocks)
    }
}

impl Counters {
    fn asked(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn sent(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    fn damaged(&self) {
        self.damaged.fetch_add(1, Ordering::Relaxed);
    }
}
