//! One try to connect to a node's data address.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::state::ProbeAnswer;

/// Connects and hangs up at once.
pub(crate) async fn probe(address: SocketAddr, limit: Duration) -> ProbeAnswer {
    let error = match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(_)) => return ProbeAnswer::Reachable,
        Err(_) => return ProbeAnswer::Silent,
        Ok(Err(error)) => error,
    };
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => ProbeAnswer::Refused,
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => ProbeAnswer::Silent,
        _ => {
            // Our own trouble (no descriptors, no ports) says nothing about the node.
            tracing::warn!(%address, %error, "a probe could not be made");
            ProbeAnswer::Reachable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a probe that takes a listener for a corpse or the other way round.
    #[tokio::test]
    async fn tells_a_listener_from_a_closed_port() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limit = Duration::from_secs(5);
        assert_eq!(probe(address, limit).await, ProbeAnswer::Reachable);
        drop(listener);
        assert_eq!(probe(address, limit).await, ProbeAnswer::Refused);
    }
}
