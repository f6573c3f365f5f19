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
mod early;
mod places;
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
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::control::Input;
use crate::view::View;
use crate::worker::mailbox::ReportState;
pub(crate) use catalogue::Misses;
use catalogue::{Catalogue, Found};
use places::Places;
use settings::MirrorListen;
use socket::Socket;

/// Connections at a time; for more, those that wait for a request make room. A runtime opens one per layer, at most a few dozen.
const MAX_CONNECTIONS: usize = 256;
/// Connections beyond those that are told at a time that there is no place; further ones are closed at once.
const MAX_TURNED_AWAY: usize = 64;
/// The rest of what it bears.
const LIMITS: Limits = Limits {
    connections: MAX_CONNECTIONS,
    head: Duration::from_secs(10),
    stalled: Duration::from_secs(10),
    held_up: Duration::from_secs(60),
};
/// Images whose cut responses are remembered.
const MAX_STALLED: usize = 256;
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
    limits: Limits,
}

/// What the mirror bears.
#[derive(Debug, Clone, Copy)]
struct Limits {
    connections: usize,
    /// How long a request's head may take to arrive once it has begun: as a whole, since a byte now and then is no head.
    head: Duration,
    /// A response is cut when nothing of its image arrived for this long and no upstream said that it waits. Runtimes ask for all layers
    /// at once, so a late layer waits long in health.
    stalled: Duration,
    /// A response is cut when nothing of its image arrived for this long, whoever waits: what holds up the tree (a root that does not
    /// reach the registry) need not hold up this host.
    held_up: Duration,
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
        self.serve(Mirror { catalogue, stalled: Arc::default(), counters, limits: LIMITS }, stop).await;
    }

    async fn serve(self, mirror: Mirror, stop: CancellationToken) {
        let (mut connections, mut places) = (JoinSet::new(), Places::new(mirror.limits.connections));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.accept() => accepted,
            };
            // Whoever connects is accepted: one that is left in the kernel's backlog hears nothing, and its runtime never goes on.
            match accepted {
                Ok(socket) => match places.find() {
                    Some(place) => {
                        let served = connections.spawn(connection::serve(socket, mirror.clone(), place.clone()));
                        places.take(place, served);
                    }
                    None if connections.len() < mirror.limits.connections + MAX_TURNED_AWAY => {
                        connections.spawn(connection::turn_away(socket, mirror.clone()));
                    }
                    None => drop(socket),
                },
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

    async fn accept(&self) -> io::Result<Socket> {
        match self {
            Self::Closed => std::future::pending().await,
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Ignored: an answer that is delayed by 40 ms is an answer.
                let _ = stream.set_nodelay(true);
                Ok(Socket::Tcp(stream))
            }
            Self::Unix(listener, _) => Ok(Socket::Unix(listener.accept().await?.0)),
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // A socket of a process that is gone refuses; any other is another process's, and to bind there fails.
    let is_socket = fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_socket());
    let refuses = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refuses) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Comes to an end when the image is not this node's any more: its function was dropped, or has another one. Nothing of it may be sent then,
/// and nothing here may keep it open.
async fn is_let_go(catalogue: &Catalogue, found: &Found) {
    let image = found.stored.descriptor().id();
    let is_gone = |view: &Arc<View>| view.rows.get(&found.function).is_none_or(|row| row.image != image);
    // Ignored: the agent stops.
    let _ = catalogue.view.clone().wait_for(is_gone).await;
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
        if all.len() >= MAX_STALLED {
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
