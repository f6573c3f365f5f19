//! One repository of an OCI registry, over HTTP: manifests and ranges of blobs.
//!
//! Follows redirects itself, so that credentials go to the registry alone, and remembers where a blob was found. Makes one
//! try per call; `BlobReader` repeats.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use crate::auth::Auth;
use crate::http::{self, Http};
use crate::source::{BlobStream, Body, Manifest};
use crate::{Error, MAX_MANIFEST_BYTES, SourceOptions, Target, credentials, digest, manifest, reference};

const MAX_REDIRECTS: usize = 5;
const CONTENT_DIGEST: &str = "docker-content-digest";

/// One repository. Cheap to clone; clones share connections, token and blob locations.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    base: Url,
    repository: String,
    http: Http,
    auth: Auth,
    /// Where redirects led, by digest; tried first, forgotten when it stops working (such locations expire).
    locations: Mutex<HashMap<String, Url>>,
}

/// What to do with an answer that starts at byte 0 though a later part was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnNoRanges {
    Fail,
    Skip,
}

impl Registry {
    /// A repository at `base_url` (`http[s]://host[:port]`). Connects to nothing yet.
    pub fn new(base_url: &str, repository: &str, options: &SourceOptions) -> Result<Self, Error> {
        let refuse =
            |reason: &str| Error::Reference { text: format!("{base_url}/{repository}"), reason: reason.into() };
        let base = Url::parse(base_url).map_err(|_| refuse("the address is not a URL"))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() || base.path() != "/" {
            return Err(refuse("the address is not http[s]://host[:port]"));
        }
        if !reference::is_repository(repository) {
            return Err(refuse("the repository's name has parts of a-z, 0-9, '.', '_', '-' between slashes"));
        }
        let port = base.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = format!("{}{port}", base.host_str().unwrap_or_default());
        let lookup = credentials::look_up(options.credentials_file.as_deref(), &host);
        let auth = Auth::new(base.clone(), repository.into(), lookup, options);
        let http = Http::new(options)?;
        let inner = Inner { base, repository: repository.into(), http, auth, locations: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// `http[s]://host[:port]` without a slash at the end.
    pub fn base_url(&self) -> &str {
        self.inner.base.as_str().trim_end_matches('/')
    }

    /// The repository's name.
    pub fn repository(&self) -> &str {
        &self.inner.repository
    }

    /// The digest that a tag stands for now.
    pub async fn resolve(&self, target: &Target) -> Result<String, Error> {
        if let Target::Digest(digest) = target {
            digest::hex(digest)?;
            return Ok(digest.clone());
        }
        let response = self.inner.manifest_request(Method::HEAD, target).await?;
        match response.headers().get(CONTENT_DIGEST).and_then(|value| value.to_str().ok()) {
            Some(digest) if digest::hex(digest).is_ok() => Ok(digest.to_owned()),
            // Registries need not send the header; the bytes tell too.
            _ => Ok(self.manifest(target).await?.digest),
        }
    }

    /// A manifest or index, checked against its digest.
    pub async fn manifest(&self, target: &Target) -> Result<Manifest, Error> {
        let response = self.inner.manifest_request(Method::GET, target).await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let media_type = header(CONTENT_TYPE.as_str()).unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let claimed = header(CONTENT_DIGEST).filter(|digest| digest::hex(digest).is_ok());
        let what = format!("manifest {target}");
        let bytes = self.inner.http.read_all(response, MAX_MANIFEST_BYTES, &what).await?;
        let got = digest::of(&bytes);
        let expected = match target {
            Target::Digest(digest) => Some(digest.clone()),
            Target::Tag(_) => claimed,
        };
        match expected.filter(|expected| *expected != got) {
            Some(expected) => Err(Error::FalseDigest { what, expected, got }),
            None => Ok(Manifest::new(got, media_type, bytes)),
        }
    }

    /// Starts reading a blob, whole or a range of it. A range that is not honoured is [`Error::NoRanges`].
    pub async fn open_blob(&self, digest: &str, range: Option<Range<u64>>) -> Result<BlobStream, Error> {
        self.open_blob_or(digest, range, OnNoRanges::Fail).await
    }

    pub(crate) async fn open_blob_or(
        &self,
        digest: &str,
        range: Option<Range<u64>>,
        on_no_ranges: OnNoRanges,
    ) -> Result<BlobStream, Error> {
        let response = self.inner.blob_request(digest, range.as_ref()).await?;
        let body = body_of(response, range, on_no_ranges)?;
        Ok(BlobStream::http(self.inner.http.clone(), body))
    }

    /// Whether the repository honours ranges, asked for a blob of `len` bytes. Blobs of less than 2 bytes cannot tell: `true`.
    pub async fn probe_ranges(&self, digest: &str, len: u64) -> Result<bool, Error> {
        if len < 2 {
            return Ok(true);
        }
        match self.open_blob(digest, Some(len - 1..len)).await {
            Ok(mut stream) => Ok(stream.next_bytes().await?.is_some()),
            Err(Error::NoRanges { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Inner {
    fn url(&self, kind: &str, name: &str) -> Result<Url, Error> {
        // Repository, tag and digest were checked: none holds a character with a meaning in URLs.
        let path = format!("/v2/{}/{kind}/{name}", self.repository);
        self.base.join(&path).map_err(|_| Error::Reference { text: path, reason: "it makes no URL".into() })
    }

    async fn manifest_request(&self, method: Method, target: &Target) -> Result<Response, Error> {
        if let Target::Digest(digest) = target {
            digest::hex(digest)?;
        }
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(manifest::ACCEPT))]);
        let url = self.url("manifests", &target.to_string())?;
        let (response, _) = self.follow(method, url, headers).await?;
        self.check(response, &format!("manifest {target}"))
    }

    async fn blob_request(&self, digest: &str, range: Option<&Range<u64>>) -> Result<Response, Error> {
        digest::hex(digest)?;
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            let text = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
            headers.insert(RANGE, HeaderValue::try_from(text).map_err(|_| Error::Digest(digest.into()))?);
        }
        let what = format!("blob {digest}");
        if let Some(location) = self.location(digest) {
            let response = self.follow(Method::GET, location, headers.clone()).await;
            match response.and_then(|(response, _)| self.check(response, &what)) {
                Ok(response) => return Ok(response),
                Err(error) => {
                    // Expired or gone: ask the registry again, now or, after an outage, with the next try.
                    self.locations().remove(digest);
                    if error.is_transient() {
                        return Err(error);
                    }
                }
            }
        }
        let url = self.url("blobs", digest)?;
        let (response, end) = self.follow(Method::GET, url.clone(), headers).await?;
        let response = self.check(response, &what)?;
        if end != url {
            self.locations().insert(digest.into(), end);
        }
        Ok(response)
    }

    fn locations(&self) -> std::sync::MutexGuard<'_, HashMap<String, Url>> {
        self.locations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn location(&self, digest: &str) -> Option<Url> {
        self.locations().get(digest).cloned()
    }

    /// Follows redirects; the answer and where it came from.
    async fn follow(&self, method: Method, mut url: Url, headers: HeaderMap) -> Result<(Response, Url), Error> {
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(method.clone(), &url, headers.clone()).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, url));
            }
            let broken = |what: &str| Error::Protocol { url: http::shown(&url), what: what.into() };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| url.join(location).ok());
            let next = next.ok_or_else(|| broken("it redirects without a usable location"))?;
            if next.scheme() != "https" && (next.scheme() != "http" || url.scheme() == "https") {
                return Err(broken("it redirects from HTTPS to an address without"));
            }
            url = next;
        }
        Err(Error::Protocol { url: http::shown(&url), what: format!("more than {MAX_REDIRECTS} redirects") })
    }

    /// One request; to the registry itself with authentication, to anybody else without.
    async fn send(&self, method: Method, url: &Url, mut headers: HeaderMap) -> Result<Response, Error> {
        if url.origin() != self.base.origin() {
            return self.http.send(method, url, headers).await;
        }
        let permission = self.auth.current().await;
        if let Some(header) = &permission {
            headers.insert(AUTHORIZATION, header.clone());
        }
        let response = self.http.send(method.clone(), url, headers.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let header = self.auth.refresh(&self.http, &response, permission.as_ref()).await?;
        headers.insert(AUTHORIZATION, header);
        self.http.send(method, url, headers).await
    }

    fn check(&self, response: Response, what: &str) -> Result<Response, Error> {
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            401 | 403 => Err(self.auth.denied(response.url(), response.status().as_u16())),
            404 | 410 => {
                Err(Error::NotFound { what: what.into(), origin: format!("{}{}", self.base, self.repository) })
            }
            416 => Err(Error::Protocol {
                url: http::shown(response.url()),
                what: "the blob is shorter than its manifest says; push the image again".into(),
            }),
            _ => Err(status_error(&response)),
        }
    }
}

/// The error of a status that is neither success nor about permission.
pub(crate) fn status_error(response: &Response) -> Error {
    let (url, status) = (http::shown(response.url()), response.status().as_u16());
    let retry_after = http::retry_after(response.headers(), SystemTime::now());
    match status {
        429 => Error::TooManyRequests { url, retry_after },
        408 | 500..=599 => Error::ServerFailed { url, status, retry_after },
        _ => Error::Status { url, status },
    }
}

/// Checks that the answer is the part that was asked for.
fn body_of(response: Response, range: Option<Range<u64>>, on_no_ranges: OnNoRanges) -> Result<Body, Error> {
    let url = http::shown(response.url());
    let Some(range) = range else {
        let left = response.content_length();
        return Ok(Body { response, skip: 0, left, received: 0 });
    };
    let left = Some(range.end - range.start);
    if response.status() == StatusCode::PARTIAL_CONTENT {
        let header = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        return match parse_content_range(header) {
            Some((first, last)) if first == range.start && last + 1 >= range.end => {
                Ok(Body { response, skip: 0, left, received: 0 })
            }
            _ => Err(Error::Protocol {
                url,
                what: format!("asked for bytes {}-{}, it sent {header:?}", range.start, range.end - 1),
            }),
        };
    }
    if range.start > 0 && on_no_ranges == OnNoRanges::Fail {
        return Err(Error::NoRanges { url });
    }
    Ok(Body { response, skip: range.start, left, received: 0 })
}

/// `bytes 0-99/1234` → (0, 99).
fn parse_content_range(text: &str) -> Option<(u64, u64)> {
    let (range, _total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last && last < u64::MAX).then_some((first, last))
}
