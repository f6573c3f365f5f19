//! Who may call: the bearer token of the cluster, except for clients on this machine or with a certificate of the authority for clients.

use std::net::IpAddr;

use faasnet_api::ClusterSecret;
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Checks every call before its service sees it.
#[derive(Clone)]
pub(crate) struct Gate {
    secret: ClusterSecret,
    /// Callers on a loopback address need no token.
    loopback_open: bool,
}

impl Gate {
    /// For agents: always the token, since what they say steers other nodes.
    pub(crate) fn closed(secret: ClusterSecret) -> Self {
        Self { secret, loopback_open: false }
    }

    /// For clients: the token unless they call from this machine or show a certificate.
    pub(crate) fn open_on_loopback(secret: ClusterSecret) -> Self {
        Self { secret, loopback_open: true }
    }

    /// Whether a caller with this token, or without one, may go on; else why not. `certified`: it showed a certificate that was verified
    /// against the authority for clients.
    pub(crate) fn admit(&self, caller: IpAddr, token: Option<&str>, certified: bool) -> Result<(), &'static str> {
        match token {
            Some(token) if self.secret.accepts_rpc_token(token) => Ok(()),
            Some(_) => Err("the bearer token is wrong: caller and controller have different cluster secrets"),
            None if self.loopback_open && (certified || caller.to_canonical().is_loopback()) => Ok(()),
            None => Err(
                "a bearer token is required here; give the caller the controller's cluster secret, or a certificate that tls_client_ca knows",
            ),
        }
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let caller = request.remote_addr().map_or(IpAddr::from([0, 0, 0, 0]), |address| address.ip());
        let token = request.metadata().get("authorization").map(|value| {
            let value = value.to_str().unwrap_or("");
            value.strip_prefix("Bearer ").unwrap_or("")
        });
        let certified = request.peer_certs().is_some_and(|certificates| !certificates.is_empty());
        match self.admit(caller, token, certified) {
            Ok(()) => Ok(request),
            Err(reason) => Err(Status::unauthenticated(reason)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a gate that lets strangers in by their address, and one that keeps out who shows a certificate, off this machine too; agents
    /// need the secret in any case.
    #[test]
    fn off_this_machine_a_certificate_or_the_token_is_needed() {
        let secret = ClusterSecret::new(b"0123456789abcdef");
        let token = secret.rpc_token().to_string();
        let (here, mapped, there) = ("127.0.0.1", "::ffff:127.0.0.1", "192.0.2.7");
        let (clients, agents) = (Gate::open_on_loopback(secret.clone()), Gate::closed(secret));
        let admits = |gate: &Gate, caller: &str, token: Option<&str>, certified| {
            gate.admit(caller.parse().unwrap(), token, certified).is_ok()
        };
        assert!(!admits(&clients, there, None, false));
        assert!(admits(&clients, there, None, true));
        assert!(admits(&clients, there, Some(&token), false));
        assert!(!admits(&clients, there, Some("another"), true), "a wrong token is not passed over");
        assert!(admits(&clients, here, None, false) && admits(&clients, mapped, None, false));
        assert!(!admits(&agents, here, None, true) && admits(&agents, there, Some(&token), false));
    }
}
