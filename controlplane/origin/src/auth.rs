//! Authentication towards one registry: anonymous, Basic, or a Bearer token from the realm that the registry names.
//!
//! Owned by one `Registry`, so there is one scope and one current permission. Secrets leave only in `Authorization` headers
//! to the registry itself (Basic, Bearer) and to its token realm (Basic). What this host was given from afar goes nowhere without TLS but to
//! this machine; what its own configuration says is the operator's word.

use std::ffi::OsString;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Response, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::challenge::{self, Challenge};
use crate::credentials::{Credentials, Lookup};
use crate::http::{self, Http};
use crate::{Error, SourceOptions, may_carry_password, registry};

/// The largest answer of a token realm.
const MAX_TOKEN_BYTES: u64 = 256 << 10;

/// Why a password that was given is not used.
const WITHHELD: &str = "passwords that the controller keeps do not go over plain HTTP";

#[derive(Debug)]
pub(crate) struct Auth {
    base: Url,
    repository: String,
    lookup: Lookup,
    helper_path: Option<OsString>,
    given: Option<Credentials>,
    current: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct TokenReply {
    token: Option<String>,
    access_token: Option<String>,
}

impl Auth {
    pub(crate) fn new(base: Url, repository: String, lookup: Lookup, options: &SourceOptions) -> Self {
        let (helper_path, mut given) = (options.helper_path.clone(), options.login.clone());
        if given.is_some() && !may_carry_password(base.as_str()) {
            tracing::warn!(registry = %base, "the password that the controller keeps is not used: {WITHHELD}");
            given = None;
        }
        Self { base, repository, lookup, helper_path, given, current: Mutex::new(None) }
    }

    /// What to send with the next request to the registry.
    pub(crate) async fn current(&self) -> Option<HeaderValue> {
        self.current.lock().await.clone()
    }

    /// Gets a new permission after a 401 to a request that carried `refused`. Concurrent callers share one refresh.
    pub(crate) async fn refresh(
        &self,
        http: &Http,
        response: &Response,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let mut current = self.current.lock().await;
        if let Some(header) = current.as_ref().filter(|header| Some(*header) != refused) {
            return Ok(header.clone());
        }
        *current = None;
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<_> = challenges.filter_map(|line| line.to_str().ok()).flat_map(challenge::parse).collect();
        let header = self.answer(http, &challenges, response, refused).await?;
        *current = Some(header.clone());
        Ok(header)
    }

    async fn answer(
        &self,
        http: &Http,
        challenges: &[Challenge],
        response: &Response,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, Error> {
        let of = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let lookup = self.lookup.ask(self.helper_path.as_deref(), self.given.as_ref()).await;
        if let Some(bearer) = of("bearer") {
            return secret(format!("Bearer {}", self.token(http, bearer, &lookup).await?));
        }
        match (lookup.credentials(), of("basic")) {
            // Credentials that were just refused are not worth a second try; a helper may have new ones.
            (Some(credentials), Some(_)) if refused.is_none_or(|old| *old != credentials.basic()) => {
                secret(credentials.basic())
            }
            _ => Err(self.denied_with(&lookup, response.url(), response.status().as_u16())),
        }
    }

    async fn token(&self, http: &Http, bearer: &Challenge, lookup: &Lookup) -> Result<String, Error> {
        let url = self.token_url(bearer)?;
        if matches!(lookup, Lookup::Given(_)) && !may_carry_password(url.as_str()) {
            return Err(self.denied_with(&Lookup::Unusable(WITHHELD.into()), &url, 401));
        }
        let mut headers = HeaderMap::new();
        if let Some(credentials) = lookup.credentials() {
            headers.insert(AUTHORIZATION, secret(credentials.basic())?);
        }
        let response = http.send(Method::GET, &url, headers).await?;
        if matches!(response.status().as_u16(), 400 | 401 | 403 | 404) {
            return Err(self.denied_with(lookup, &url, response.status().as_u16()));
        }
        if !response.status().is_success() {
            return Err(registry::status_error(&response));
        }
        let body = http.read_all(response, MAX_TOKEN_BYTES, "the token").await?;
        // The parser's message could quote the token.
        let reply: Option<TokenReply> = serde_json::from_slice(&body).ok();
        reply
            .and_then(|reply| reply.token.or(reply.access_token))
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Error::Protocol { url: http::shown(&url), what: "its answer holds no token".into() })
    }

    fn token_url(&self, bearer: &Challenge) -> Result<Url, Error> {
        let broken = |what: &str| Error::Protocol { url: http::shown(&self.base), what: what.into() };
        let realm = bearer.param("realm").ok_or_else(|| broken("its token challenge names no realm"))?;
        let mut url = self.base.join(realm).map_err(|_| broken("its token realm is not a URL"))?;
        // A realm without TLS would see the password, and get the token seen, on the way of a registry with TLS.
        if url.scheme() != "https" && (url.scheme() != "http" || self.base.scheme() == "https") {
            return Err(broken("its token realm does not use HTTPS"));
        }
        let scope = match bearer.param("scope") {
            Some(scope) => scope.to_owned(),
            None => format!("repository:{}:pull", self.repository),
        };
        if let Some(service) = bearer.param("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        url.query_pairs_mut().append_pair("scope", &scope);
        Ok(url)
    }

    /// The error after everything was tried, with the next step.
    pub(crate) fn denied(&self, url: &Url, status: u16) -> Error {
        match (&self.lookup, &self.given) {
            (Lookup::None, Some(given)) => self.denied_with(&Lookup::Given(given.clone()), url, status),
            (own, _) => self.denied_with(own, url, status),
        }
    }

    fn denied_with(&self, lookup: &Lookup, url: &Url, status: u16) -> Error {
        let registry = self.base.host_str().unwrap_or_default();
        let port = self.base.port().map(|port| format!(":{port}")).unwrap_or_default();
        let hint = match lookup {
            Lookup::Found(_) | Lookup::Helper(_) => {
                "the user name and password of Docker's config.json, or of its credential helper, are wrong or may not pull this repository".into()
            }
            Lookup::Given(_) => format!(
                "the user name and password that the controller keeps for it are wrong or may not pull this repository; give it others with `faasnet secret set {registry}{port}`"
            ),
            Lookup::None if !may_carry_password(self.base.as_str()) => format!(
                "the repository is private or does not exist; log in with `docker login {registry}{port}`, name another folder with DOCKER_CONFIG, or give the registry a certificate ({WITHHELD})"
            ),
            Lookup::None => format!(
                "the repository is private or does not exist; log in with `docker login {registry}{port}`, name another folder with DOCKER_CONFIG, or have the controller know the password with `faasnet secret set {registry}{port}`"
            ),
            Lookup::Unusable(text) => {
                format!("{text}; put user name and password into the `auths` of Docker's config.json")
            }
        };
        Error::Denied { url: http::shown(url), status, hint }
    }
}

/// A header value that is not printed.
fn secret(text: String) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::try_from(text).map_err(|_| {
        Error::Setting("the registry's credentials or token hold characters that HTTP does not allow".into())
    })?;
    header.set_sensitive(true);
    Ok(header)
}
