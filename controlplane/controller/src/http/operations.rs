//! One handler per operation: path, query and body become the message of the contract, the reply becomes JSON.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use faasnet_api::v1;
use faasnet_api::v1::control_server::Control;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tonic::Request;

use super::answer::{self, Form};
use super::refused::{Path, Query, Refused};
use crate::shell::clients::Clients;

type Named = Path<(String, String)>;
type Answer<T> = Result<Json<T>, Refused>;

#[derive(Deserialize)]
pub(super) struct OfTenant {
    tenant: Option<String>,
}

pub(super) async fn functions(
    State(clients): State<Clients>,
    Query(of): Query<OfTenant>,
) -> Answer<v1::ListFunctionsReply> {
    let mut reply = clients.list_functions(Request::new(v1::ListFunctionsRequest {})).await?.into_inner();
    if let Some(tenant) = of.tenant {
        reply.functions.retain(|function| function.tenant == tenant);
    }
    Ok(Json(reply))
}

pub(super) async fn function(
    State(clients): State<Clients>,
    Path((tenant, function)): Named,
) -> Answer<v1::FunctionInfo> {
    let request = v1::GetFunctionRequest { tenant, function };
    Ok(Json(clients.get_function(Request::new(request)).await?.into_inner()))
}

pub(super) async fn create(
    State(clients): State<Clients>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let request: v1::CreateFunctionRequest = message(&headers, &body)?;
    let replies = clients.create_function(Request::new(request)).await?.into_inner();
    answer::stream(Form::of(&headers, Form::Last), replies).await
}

pub(super) async fn update(
    State(clients): State<Clients>,
    Path((tenant, function)): Named,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let request = v1::UpdateFunctionRequest { tenant, function, ..message(&headers, &body)? };
    let replies = clients.update_function(Request::new(request)).await?.into_inner();
    answer::stream(Form::of(&headers, Form::Last), replies).await
}

pub(super) async fn remove(
    State(clients): State<Clients>,
    Path((tenant, function)): Named,
) -> Answer<v1::RemoveFunctionReply> {
    let request = v1::RemoveFunctionRequest { tenant, function };
    Ok(Json(clients.remove_function(Request::new(request)).await?.into_inner()))
}

pub(super) async fn provision(
    State(clients): State<Clients>,
    Path((tenant, function)): Named,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let request = v1::ProvisionRequest { tenant, function, ..message(&headers, &body)? };
    let replies = clients.provision(Request::new(request)).await?.into_inner();
    answer::stream(Form::of(&headers, Form::Last), replies).await
}

pub(super) async fn release(
    State(clients): State<Clients>,
    Path((tenant, function)): Named,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<v1::ReleaseReply> {
    let request = v1::ReleaseRequest { tenant, function, ..message(&headers, &body)? };
    Ok(Json(clients.release(Request::new(request)).await?.into_inner()))
}

pub(super) async fn scale(
    State(clients): State<Clients>,
    Path((tenant, function)): Named,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let request = v1::ScaleRequest { tenant, function, ..message(&headers, &body)? };
    let replies = clients.scale(Request::new(request)).await?.into_inner();
    answer::stream(Form::of(&headers, Form::Last), replies).await
}

pub(super) async fn drain(
    State(clients): State<Clients>,
    Path(node): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    let request = v1::DrainRequest { node, ..message(&headers, &body)? };
    let replies = clients.drain(Request::new(request)).await?.into_inner();
    answer::stream(Form::of(&headers, Form::Last), replies).await
}

pub(super) async fn tree(State(clients): State<Clients>, Path((tenant, function)): Named) -> Answer<v1::GetTreeReply> {
    let request = v1::GetTreeRequest { tenant, function };
    Ok(Json(clients.get_tree(Request::new(request)).await?.into_inner()))
}

pub(super) async fn nodes(State(clients): State<Clients>) -> Answer<v1::ListNodesReply> {
    Ok(Json(clients.list_nodes(Request::new(v1::ListNodesRequest {})).await?.into_inner()))
}

pub(super) async fn watch(
    State(clients): State<Clients>,
    Query(request): Query<v1::WatchRequest>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let replies = clients.watch(Request::new(request)).await?.into_inner();
    // It never ends by itself, so there is no last message to wait for.
    answer::stream(Form::of(&headers, Form::Events), replies).await
}

pub(super) async fn version(State(clients): State<Clients>) -> Answer<v1::GetVersionReply> {
    Ok(Json(clients.get_version(Request::new(v1::GetVersionRequest {})).await?.into_inner()))
}

/// The message in a body; no body means that every field has its default.
fn message<T: DeserializeOwned + Default>(headers: &HeaderMap, body: &Bytes) -> Result<T, Refused> {
    if body.is_empty() {
        return Ok(T::default());
    }
    let media = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if media.split(';').next().map(str::trim) != Some("application/json") {
        let text = "the body is JSON; send the header content-type: application/json";
        return Err(Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_argument", text));
    }
    serde_json::from_slice(body).map_err(|error| {
        Refused::new(
            StatusCode::BAD_REQUEST,
            "invalid_argument",
            format!("the body is not what is expected here: {error}"),
        )
    })
}
