//! Who may call: the bearer token of the cluster, except for clients on this machine.

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

    /// For clients: the token unless they call from this machine.
    pub(crate) fn open_on_loopback(secret: ClusterSecret) -> Self {
        Self { secret, loopback_open: true }
    }
}

impl Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let local = request.remote_addr().is_some_and(|address| address.ip().to_canonical().is_loopback());
        let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap_or(""));
        let accepted = match token {
            Some(value) => value.strip_prefix("Bearer ").is_some_and(|token| self.secret.accepts_rpc_token(token)),
            None => self.loopback_open && local,
        };
        if accepted {
            return Ok(request);
        }
        Err(Status::unauthenticated(match token {
            Some(_) => "the bearer token is wrong: caller and controller have different cluster secrets",
            None => "a bearer token is required here; give the caller the controller's cluster secret",
        }))
    }
}
