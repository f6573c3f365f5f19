//! The HTTP side of the controller: the operations of the gRPC service as JSON, metrics, and the live page.
//!
//! A thin translation: every operation is the method of the same name of [`Clients`]; nothing is decided here but who may call.

mod answer;
mod door;
mod guard;
mod metrics;
mod operations;
mod page;
mod refused;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Router, middleware};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::door::{Caller, Door};
use self::guard::Guard;
use self::refused::Refused;
use crate::config::Config;
use crate::shell::clients::Clients;
use crate::shell::gate::Gate;

/// An address that is bound and does not serve yet.
pub(crate) struct Http {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
}

impl Http {
    pub(crate) async fn bind(config: &Config) -> anyhow::Result<Self> {
        let (address, tls) = (config.http_address(), door::tls(config)?);
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for HTTP; is another controller running there? Choose another address with http")
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, tls })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; answers under way are finished unless the caller drops the future.
    pub(crate) async fn run(self, clients: Clients, gate: Gate, stop: CancellationToken) -> std::io::Result<()> {
        let service = router(clients, gate).into_make_service_with_connect_info::<Caller>();
        axum::serve(Door::open(self.listener, self.tls)?, service).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

fn router(clients: Clients, gate: Gate) -> Router {
    let function = get(operations::function).put(operations::update).delete(operations::remove);
    let operations = Router::new()
        .route("/v1/functions", get(operations::functions).post(operations::create))
        .route("/v1/functions/{tenant}/{function}", function)
        .route("/v1/functions/{tenant}/{function}/provision", post(operations::provision))
        .route("/v1/functions/{tenant}/{function}/release", post(operations::release))
        .route("/v1/functions/{tenant}/{function}/scale", post(operations::scale))
        .route("/v1/functions/{tenant}/{function}/tree", get(operations::tree))
        .route("/v1/nodes", get(operations::nodes))
        .route("/v1/nodes/{node}/drain", post(operations::drain))
        .route("/v1/watch", get(operations::watch))
        .route("/v1/version", get(operations::version))
        .route("/metrics", get(metrics::metrics))
        .with_state(clients);
    let not_allowed = || async {
        Refused::new(StatusCode::METHOD_NOT_ALLOWED, "unimplemented", "this path takes other methods, see Allow")
    };
    page::routes(operations)
        .method_not_allowed_fallback(not_allowed)
        .fallback(|| async {
            Refused::new(StatusCode::NOT_FOUND, "not_found", "no such path; the API is at /v1, the page at /")
        })
        .layer(middleware::from_fn_with_state(Guard::new(gate), guard::check))
        // Open to everybody: whoever checks health has no secrets, and the answer tells none.
        .route("/healthz", get(|| async { "SERVING\n" }))
        .method_not_allowed_fallback(not_allowed)
}
