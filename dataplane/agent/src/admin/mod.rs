//! The admin endpoint: plain HTTP on loopback for the command line, scrapers and people on this host.
//!
//! Read-only but for one thing: somebody may ask for a function that the node does not have. It reads copies of the state (`View`) and
//! verified files; the data path does not notice it.

mod files;
mod json;
mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::extract::rejection::PathRejection;
use axum::extract::{self, FromRequestParts, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use faasnet_api::FunctionId;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::control::Input;
use crate::feed::Counters;
use crate::mirror;
use crate::table::Row;
use crate::view::{Identity, View};
use crate::worker::leases::Leases;

/// What the handlers read.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) admin_address: SocketAddr,
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) inputs: mpsc::Sender<Input>,
    pub(crate) feed: Arc<Counters>,
    pub(crate) budget: Budget,
    pub(crate) leases: Leases,
    /// `None` when the mirror is off or on a unix socket.
    pub(crate) mirror_address: Option<SocketAddr>,
    pub(crate) mirror: Arc<mirror::Counters>,
}

/// An endpoint that listens and does not serve yet.
pub(crate) struct Admin {
    listener: TcpListener,
}

impl Admin {
    /// Listens; refuses addresses that others than this host could reach.
    pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        anyhow::ensure!(
            address.ip().is_loopback(),
            "admin: {address} is not a loopback address; the endpoint has no access control"
        );
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("admin: cannot listen on {address}; if another agent runs on this host, give this one another port")
        })?;
        Ok(Self { listener })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until `stop` is cancelled; responses under way are finished unless the caller drops the future.
    pub(crate) async fn run(self, shared: Shared, stop: CancellationToken) {
        let served = axum::serve(self.listener, router(shared)).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin endpoint has ended");
        }
    }
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .route("/v1/state", get(state))
        .route("/v1/functions/{tenant}/{function}", get(function))
        .route("/v1/functions/{tenant}/{function}/join", post(join))
        .route("/v1/functions/{tenant}/{function}/manifest", get(files::manifest))
        .route("/v1/functions/{tenant}/{function}/descriptor", get(files::descriptor))
        .route("/v1/functions/{tenant}/{function}/blobs/{digest}", get(files::blob))
        .method_not_allowed_fallback(|| async {
            Refused(StatusCode::METHOD_NOT_ALLOWED, "this path takes other methods, see Allow".into())
        })
        .fallback(|| async { Refused(StatusCode::NOT_FOUND, "no such path; see /v1/state".into()) })
        .with_state(shared)
}

/// An answer that is not a success; its body is `{"error": "…"}`.
#[derive(Debug)]
struct Refused(StatusCode, String);

impl From<PathRejection> for Refused {
    fn from(rejection: PathRejection) -> Self {
        Self(rejection.status(), rejection.body_text())
    }
}

/// The names in a path; what is no text is refused as everything else is.
#[derive(Debug, FromRequestParts)]
#[from_request(via(extract::Path), rejection(Refused))]
struct Path<T>(T);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

impl Shared {
    fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The function's row. 404: this node does not hold it; 403: the controller refused a join.
    fn row(&self, tenant: &str, function: &str) -> Result<(FunctionId, Row), Refused> {
        let (id, view) = (FunctionId::new(tenant, function), self.view());
        match (view.rows.get(&id), view.refused.get(&id)) {
            (Some(row), _) => Ok((id, row.clone())),
            (None, Some(reason)) => {
                Err(Refused(StatusCode::FORBIDDEN, format!("the controller refused {tenant}/{function}: {reason}")))
            }
            (None, None) => Err(Refused(
                StatusCode::NOT_FOUND,
                format!(
                    "this node does not hold {tenant}/{function}; ask for it with a POST to /v1/functions/{tenant}/{function}/join"
                ),
            )),
        }
    }
}

async fn state(State(shared): State<Shared>) -> Json<json::State> {
    Json(json::State::new(&shared, &shared.view()))
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let text = metrics::text(shared.identity.verify, &shared.view(), &shared.feed, &shared.mirror, &shared.leases);
    ([("content-type", "text/plain; version=0.0.4")], text)
}

async fn function(
    State(shared): State<Shared>,
    Path((tenant, function)): Path<(String, String)>,
) -> Result<Json<json::Function>, Refused> {
    let (id, row) = shared.row(&tenant, &function)?;
    Ok(Json(json::Function::new(id, &row)))
}

/// Asks the controller for the function; the answer comes in time, by `GET` of the function.
async fn join(
    State(shared): State<Shared>,
    Path((tenant, function)): Path<(String, String)>,
) -> Result<impl IntoResponse, Refused> {
    let stopping = || Refused(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".into());
    let controller = if shared.view().term.is_some() { "asked" } else { "away; it is asked as soon as it is back" };
    let (heard, was_heard) = oneshot::channel();
    let asked = shared.inputs.send(Input::Join { tenant, name: function, heard }).await;
    asked.map_err(|_| stopping())?;
    was_heard.await.map_err(|_| stopping())?;
    Ok((StatusCode::ACCEPTED, Json(serde_json::json!({ "controller": controller }))))
}
