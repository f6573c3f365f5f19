//! The registry's answers (OCI distribution specification 1.1, the pull part).

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{
    ACCEPT_RANGES, ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE,
    RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::response::Builder;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use faasnet_origin::manifest::{Document, REF_NAME};
use faasnet_origin::range::{self, Wanted};
use faasnet_origin::{Error, Layout, Manifest, Target};
use percent_encoding::percent_decode_str;
use serde_json::json;

use super::faults::TokenAuth;
use super::record::RequestRecord;
use super::{Repository, Shared, body};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// What is wrong with a request, in the specification's codes.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
enum Wish<'a> {
    Version,
    Token,
    Manifest { name: &'a str, reference: &'a str },
    Blob { name: &'a str, digest: &'a str },
    Tags { name: &'a str },
}

pub(super) async fn answer(shared: Arc<Shared>, remote: SocketAddr, request: Request) -> Response {
    let headers = request.headers().clone();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let record = RequestRecord::new(shared.recorder.clone(), remote, method.as_str(), &path, text(&headers, RANGE));
    if method != Method::GET && method != Method::HEAD {
        let message = format!("this registry is read-only: {method} is not allowed");
        let refusal = Refusal { status: StatusCode::METHOD_NOT_ALLOWED, code: "UNSUPPORTED", message };
        return refuse(record, false, refusal);
    }
    let head = method == Method::HEAD;
    // What is not valid UTF-8 names nothing here.
    let path = percent_decode_str(&path).decode_utf8().unwrap_or_default();
    let Some(wish) = Wish::parse(&path) else {
        let message = "this is an OCI registry; its paths are /v2/NAME/manifests/… and /v2/NAME/blobs/…".into();
        return refuse(record, head, Refusal { status: StatusCode::NOT_FOUND, code: "NAME_UNKNOWN", message });
    };
    if let Some(auth) = shared.faults.token_auth() {
        if wish == Wish::Token {
            return token(&shared, auth, &headers, record);
        }
        if !shared.faults.use_token(text(&headers, AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "))) {
            return challenge(&shared, &wish, record, head);
        }
    }
    match wish {
        Wish::Version => send(started(StatusCode::OK, "application/json"), b"{}"[..].into(), record, head),
        Wish::Token => {
            let message = "this registry asks for no token".into();
            refuse(record, head, Refusal { status: StatusCode::NOT_FOUND, code: "UNSUPPORTED", message })
        }
        Wish::Manifest { name, reference } => manifest(&shared, name, reference, record, head).await,
        Wish::Blob { name, digest } => blob(&shared, name, digest, &headers, record, head).await,
        Wish::Tags { name } => tags(&shared, name, record, head).await,
    }
}

impl<'a> Wish<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        if path == "/token" {
            return Some(Self::Token);
        }
        let rest = path.strip_prefix("/v2")?;
        if rest.is_empty() || rest == "/" {
            return Some(Self::Version);
        }
        let (front, last) = rest.strip_prefix('/')?.rsplit_once('/')?;
        let (name, kind) = front.rsplit_once('/')?;
        match (kind, last) {
            ("manifests", reference) => Some(Self::Manifest { name, reference }),
            ("blobs", digest) => Some(Self::Blob { name, digest }),
            ("tags", "list") => Some(Self::Tags { name }),
            _ => None,
        }
    }

    fn name(&self) -> Option<&'a str> {
        match *self {
            Self::Manifest { name, .. } | Self::Blob { name, .. } | Self::Tags { name } => Some(name),
            Self::Version | Self::Token => None,
        }
    }
}

fn repository<'a>(shared: &'a Shared, name: &str) -> Result<&'a Repository, Refusal> {
    shared.repositories.iter().find(|repository| repository.name == name).ok_or_else(|| {
        let names: Vec<_> = shared.repositories.iter().map(|repository| &*repository.name).collect();
        let message = format!("there is no repository {name:?} here, only {}", names.join(", "));
        Refusal { status: StatusCode::NOT_FOUND, code: "NAME_UNKNOWN", message }
    })
}

async fn manifest(shared: &Shared, name: &str, reference: &str, record: RequestRecord, head: bool) -> Response {
    let layout = match repository(shared, name) {
        Ok(repository) => repository.layout.clone(),
        Err(refusal) => return refuse(record, head, refusal),
    };
    let target = match reference.starts_with("sha256:") {
        true => Target::Digest(reference.into()),
        false => Target::Tag(reference.into()),
    };
    let found = match blocking(move || find_manifest(&layout, &target)).await {
        Ok(found) => found,
        Err(error) => return refuse(record, head, refusal_of(error, "MANIFEST_UNKNOWN")),
    };
    let answer = started(StatusCode::OK, &found.media_type)
        .header(CONTENT_DIGEST, &found.digest)
        .header(ETAG, format!("\"{}\"", found.digest));
    send(answer, found.bytes, record, head)
}

fn find_manifest(layout: &Layout, target: &Target) -> Result<Manifest, Error> {
    let mut manifest = layout.manifest(Some(target))?;
    // Any blob has a digest; only documents are manifests.
    let document = Document::parse(&manifest.bytes);
    let document =
        document.map_err(|_| Error::NotFound { what: format!("manifest {target}"), origin: "this registry".into() })?;
    if manifest.media_type.is_empty() {
        let listed =
            layout.index()?.into_iter().find(|link| link.digest == manifest.digest).map(|link| link.media_type);
        let listed = listed.filter(|media_type| !media_type.is_empty());
        manifest.media_type = listed.unwrap_or_else(|| document.default_media_type().into());
    }
    Ok(manifest)
}

async fn blob(
    shared: &Shared,
    name: &str,
    digest: &str,
    headers: &HeaderMap,
    mut record: RequestRecord,
    head: bool,
) -> Response {
    let layout = match repository(shared, name) {
        Ok(repository) => repository.layout.clone(),
        Err(refusal) => return refuse(record, head, refusal),
    };
    if !head {
        record.is_blob_request();
        if let Some((status, retry_after)) = shared.faults.next_failure() {
            return fail_on_request(record, status, retry_after);
        }
    }
    let wanted_digest = digest.to_owned();
    let (file, len) = match blocking(move || open_blob(&layout, &wanted_digest)).await {
        Ok(opened) => opened,
        Err(error) => return refuse(record, head, refusal_of(error, "BLOB_UNKNOWN")),
    };
    let etag = format!("\"{digest}\"");
    let ranged = !shared.faults.ignores_ranges() && text(headers, IF_RANGE).is_none_or(|value| value == etag);
    let (status, part) = match range::parse(text(headers, RANGE).filter(|_| ranged), len) {
        Wanted::Whole => (StatusCode::OK, 0..len),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Unsatisfiable => {
            let answer = started(StatusCode::RANGE_NOT_SATISFIABLE, "application/json")
                .header(CONTENT_RANGE, format!("bytes */{len}"));
            return send(answer, Bytes::new(), record, head);
        }
    };
    let mut answer = started(status, "application/octet-stream")
        .header(CONTENT_DIGEST, digest)
        .header(ETAG, etag)
        .header(CONTENT_LENGTH, part.end - part.start);
    if !shared.faults.ignores_ranges() {
        answer = answer.header(ACCEPT_RANGES, "bytes");
    }
    if status == StatusCode::PARTIAL_CONTENT {
        answer = answer.header(CONTENT_RANGE, format!("bytes {}-{}/{len}", part.start, part.end - 1));
    }
    record.set_status(status.as_u16());
    if head {
        return built(answer, Body::empty());
    }
    record.sends_blob(digest, part.clone());
    let fault = shared.faults.next_body_fault(part.end - part.start);
    built(answer, body::of_file(file, part, fault, record, shared.stopped.clone()))
}

fn open_blob(layout: &Layout, digest: &str) -> Result<(File, u64), Error> {
    let len = layout.blob_bytes(digest)?;
    let path = layout.blob_path(digest)?;
    let file = File::open(&path).map_err(|error| Error::File { path, cause: error.to_string() })?;
    Ok((file, len))
}

async fn tags(shared: &Shared, name: &str, record: RequestRecord, head: bool) -> Response {
    let layout = match repository(shared, name) {
        Ok(repository) => repository.layout.clone(),
        Err(refusal) => return refuse(record, head, refusal),
    };
    match blocking(move || layout.index()).await {
        Ok(links) => {
            let mut tags: Vec<_> = links.iter().filter_map(|link| link.annotations.get(REF_NAME)).collect();
            tags.sort();
            let list = json!({ "name": name, "tags": tags });
            send(started(StatusCode::OK, "application/json"), list.to_string().into(), record, head)
        }
        Err(error) => refuse(record, head, refusal_of(error, "NAME_UNKNOWN")),
    }
}

fn token(shared: &Shared, auth: &TokenAuth, headers: &HeaderMap, record: RequestRecord) -> Response {
    let granted = auth.login.as_ref().is_none_or(|(user, password)| {
        let expected = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        text(headers, AUTHORIZATION) == Some(&expected)
    });
    if !granted {
        let message = "user name or password are wrong".into();
        return refuse(record, false, Refusal { status: StatusCode::UNAUTHORIZED, code: "UNAUTHORIZED", message });
    }
    let reply = json!({ "token": shared.faults.issue_token(auth), "expires_in": 60 });
    send(started(StatusCode::OK, "application/json"), reply.to_string().into(), record, false)
}

fn challenge(shared: &Shared, wish: &Wish<'_>, record: RequestRecord, head: bool) -> Response {
    let scope = wish.name().map(|name| format!(",scope=\"repository:{name}:pull\"")).unwrap_or_default();
    let header = format!("Bearer realm=\"http://{}/token\",service=\"faasnet registry\"{scope}", shared.address);
    let answer = started(StatusCode::UNAUTHORIZED, "application/json").header(WWW_AUTHENTICATE, header);
    let body = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "get a token first" }] });
    send(answer, body.to_string().into(), record, head)
}

fn fail_on_request(record: RequestRecord, status: u16, retry_after: Option<u64>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = started(status, "application/json");
    if let Some(seconds) = retry_after {
        answer = answer.header(RETRY_AFTER, seconds);
    }
    send(answer, Bytes::new(), record, false)
}

fn refusal_of(error: Error, unknown: &'static str) -> Refusal {
    let (status, code) = match &error {
        Error::NotFound { .. } => (StatusCode::NOT_FOUND, unknown),
        Error::Digest(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
    };
    Refusal { status, code, message: error.to_string() }
}

fn refuse(record: RequestRecord, head: bool, refusal: Refusal) -> Response {
    let body = json!({ "errors": [{ "code": refusal.code, "message": refusal.message }] });
    let mut answer = started(refusal.status, "application/json");
    if refusal.status == StatusCode::METHOD_NOT_ALLOWED {
        answer = answer.header(ALLOW, "GET, HEAD");
    }
    send(answer, body.to_string().into(), record, head)
}

/// The head of an answer.
struct Head {
    status: StatusCode,
    builder: Builder,
}

impl Head {
    fn header(mut self, name: HeaderName, value: impl ToString) -> Self {
        self.builder = self.builder.header(name, value.to_string());
        self
    }
}

fn started(status: StatusCode, media_type: &str) -> Head {
    let builder = Response::builder().status(status).header(CONTENT_TYPE, media_type);
    Head { status, builder: builder.header(API_VERSION, "registry/2.0") }
}

fn send(answer: Head, bytes: Bytes, mut record: RequestRecord, head: bool) -> Response {
    let answer = answer.header(CONTENT_LENGTH, bytes.len());
    record.set_status(answer.status.as_u16());
    let bytes = if head { Bytes::new() } else { bytes };
    built(answer, body::of_bytes(bytes, record))
}

fn built(answer: Head, body: Body) -> Response {
    answer.builder.body(body).unwrap_or_else(|error| {
        // A layout's media type may hold bytes that no header may.
        tracing::warn!(%error, "an answer of the registry cannot be sent");
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Setting(format!("a file operation did not end: {error}"))),
    }
}
