//! Where HTTP connections come in: plain, or by TLS with the certificate that gRPC has. A handshake never holds up other callers: there is
//! room for some of each address and for some more in all, and where there is none the oldest one makes way.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;

/// Whoever is slower does not want to speak TLS.
const HANDSHAKE: Duration = Duration::from_secs(5);
const HANDSHAKES_AT_ONCE: usize = 256;
/// Whoever sends silent connections from one host puts out only those of that host.
const HANDSHAKES_PER_ADDRESS: usize = 32;
/// After an error of `accept`, which is mostly a lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) address: SocketAddr,
    /// It showed a certificate of the authority for clients.
    pub(super) certified: bool,
}

/// A connection, whichever way it came.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// See the module's documentation.
pub(super) struct Door {
    arrivals: mpsc::Receiver<(Box<dyn Stream>, Caller)>,
    address: SocketAddr,
}

impl Door {
    /// Takes connections from `listener` until the door is dropped.
    pub(super) fn open(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, arrivals) = mpsc::channel(1);
        tokio::spawn(take(listener, tls.map(TlsAcceptor::from), sender));
        Ok(Self { arrivals, address })
    }
}

impl Listener for Door {
    type Io = Box<dyn Stream>;
    type Addr = Caller;

    async fn accept(&mut self) -> (Self::Io, Caller) {
        match self.arrivals.recv().await {
            Some(arrival) => arrival,
            // The task that takes connections ends with us only.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Caller> {
        Ok(Caller { address: self.address, certified: false })
    }
}

impl Connected<IncomingStream<'_, Door>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        *stream.remote_addr()
    }
}

async fn take(listener: TcpListener, tls: Option<TlsAcceptor>, arrivals: mpsc::Sender<(Box<dyn Stream>, Caller)>) {
    let mut handshakes = Handshakes::default();
    loop {
        let accepted = tokio::select! {
            () = arrivals.closed() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, address)) = accepted else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        // Ignored: small answers come a little later.
        let _ = stream.set_nodelay(true);
        let Some(tls) = tls.clone() else {
            // Ignored: the door is closed.
            let _ = arrivals.send((Box::new(stream), Caller { address, certified: false })).await;
            continue;
        };
        let arrivals = arrivals.clone();
        handshakes.begin(address.ip(), async move {
            if let Some(arrival) = handshake(tls, stream, address).await {
                // Ignored: the door is closed.
                let _ = arrivals.send(arrival).await;
            }
        });
    }
}

/// Handshakes under way, oldest first.
#[derive(Default)]
struct Handshakes(VecDeque<(IpAddr, AbortOnDropHandle<()>)>);

impl Handshakes {
    /// Begins one; where there is no room, the oldest one of that address, or of all, ends.
    fn begin(&mut self, from: IpAddr, handshake: impl Future<Output = ()> + Send + 'static) {
        self.0.retain(|(_, running)| !running.is_finished());
        let own = self.0.iter().filter(|(address, _)| *address == from).count();
        if own >= HANDSHAKES_PER_ADDRESS
            && let Some(oldest) = self.0.iter().position(|(address, _)| *address == from)
        {
            self.0.remove(oldest);
        } else if self.0.len() >= HANDSHAKES_AT_ONCE {
            self.0.pop_front();
        }
        self.0.push_back((from, AbortOnDropHandle::new(tokio::spawn(handshake))));
    }
}

async fn handshake(tls: TlsAcceptor, stream: TcpStream, address: SocketAddr) -> Option<(Box<dyn Stream>, Caller)> {
    let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await.ok()?.ok()?;
    // One that is here was verified.
    let certified = stream.get_ref().1.peer_certificates().is_some_and(|certificates| !certificates.is_empty());
    Some((Box::new(stream), Caller { address, certified }))
}

/// TLS with the settings of gRPC; `None`: plain.
pub(super) fn tls(config: &Config) -> anyhow::Result<Option<Arc<ServerConfig>>> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match &config.tls_client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates(ca)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().context("tls_client_ca")?)
        }
    };
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| format!("tls_key {}", key.display()))?;
    let config = builder.with_single_cert(certificates(cert)?, key).context("tls_cert and tls_key cannot be used")?;
    Ok(Some(config.into()))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.with_context(|| format!("{} is not a file of certificates", path.display()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn host(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    /// Catches silent connections that lock out others: those of another host, and one that comes late from the same.
    #[tokio::test]
    async fn the_oldest_makes_way() {
        let mut handshakes = Handshakes::default();
        let from = |handshakes: &Handshakes, n: u8| handshakes.0.iter().filter(|(from, _)| *from == host(n)).count();
        handshakes.begin(host(1), std::future::pending());
        (0..300).for_each(|_| handshakes.begin(host(2), std::future::pending()));
        assert_eq!((from(&handshakes, 1), from(&handshakes, 2)), (1, HANDSHAKES_PER_ADDRESS));
        let (done, arrived) = tokio::sync::oneshot::channel();
        handshakes.begin(host(2), async move { done.send(()).unwrap() });
        arrived.await.unwrap();
        (3..20)
            .for_each(|n| (0..HANDSHAKES_PER_ADDRESS).for_each(|_| handshakes.begin(host(n), std::future::pending())));
        assert_eq!((handshakes.0.len(), from(&handshakes, 1)), (HANDSHAKES_AT_ONCE, 0));
        assert_eq!(from(&handshakes, 19), HANDSHAKES_PER_ADDRESS);
    }
}
