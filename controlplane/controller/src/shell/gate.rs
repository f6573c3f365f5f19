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
