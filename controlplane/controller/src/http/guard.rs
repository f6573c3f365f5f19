//! Who may call by HTTP, and from which page: the same gate as gRPC, and what browsers need beside it.
//!
//! A browser on this machine can be made to call us by any web page. Such a page cannot know the token, so that requests with the token
//! are what they seem; requests without one must name this machine as their host (or the name of an attacker's site would be made to
//! point here), and requests that change something must not come from another page.

use std::net::IpAddr;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::door::Caller;
use super::refused::Refused;
use crate::shell::gate::Gate;

/// What a browser may do with our answers: load nothing from elsewhere, be framed by nobody.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[derive(Clone)]
pub(super) struct Guard {
    gate: Gate,
}

impl Guard {
    pub(super) fn new(gate: Gate) -> Self {
        Self { gate }
    }

    fn admit(&self, caller: Caller, method: &Method, headers: &HeaderMap) -> Result<(), Refused> {
        let token = token(headers);
        self.gate
            .admit(caller.address.ip(), token.as_deref(), caller.certified)
            .map_err(|reason| Refused::new(StatusCode::UNAUTHORIZED, "unauthenticated", reason))?;
        let forbidden = |text: &str| Err(Refused::new(StatusCode::FORBIDDEN, "permission_denied", text));
        if token.is_none() && !caller.certified && !host(headers).is_some_and(names_this_machine) {
            return forbidden("without the token, address the controller as localhost, 127.0.0.1 or [::1]");
        }
        let reads = matches!(*method, Method::GET | Method::HEAD);
        if !reads && comes_from_another_page(headers) {
            return forbidden("another web page made your browser send this; nothing was changed");
        }
        Ok(())
    }
}

/// Lets a request through or answers it; every answer carries the browser's rules.
pub(super) async fn check(
    State(guard): State<Guard>,
    ConnectInfo(caller): ConnectInfo<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match guard.admit(caller, request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => refused.into_response(),
    };
    let unauthorized = response.status() == StatusCode::UNAUTHORIZED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if unauthorized {
        // A browser asks for a password and sends it with every request from then on: the token, with any name.
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"faasnet: the token is the password\""),
        );
    }
    response
}

/// The token of `Bearer`, or the password of `Basic`; empty if there is an authorization that is neither.
fn token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().unwrap_or("");
    let basic = |encoded: &str| {
        let pair = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
        pair.split_once(':').map(|(_, password)| password.to_owned())
    };
    let token = match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.to_owned()),
        Some((scheme, encoded)) if scheme.eq_ignore_ascii_case("basic") => basic(encoded),
        _ => None,
    };
    Some(token.unwrap_or_default())
}

fn host(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::HOST)?.to_str().ok()
}

/// Whether a `Host` header means this machine whatever a name server says.
fn names_this_machine(host: &str) -> bool {
    let port = host.rfind(':').filter(|colon| host[colon + 1..].bytes().all(|byte| byte.is_ascii_digit()));
    // The colons of a bare IPv6 address belong to it, but such a header is not valid.
    let name = &host[..port.unwrap_or(host.len())];
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || literal.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

fn comes_from_another_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    let site = text(header::HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return true;
    }
    match (text(header::ORIGIN), host(headers)) {
        (None, _) => false,
        (Some(origin), Some(host)) => origin.split_once("://").is_none_or(|(_, authority)| authority != host),
        (Some(_), None) => true,
    }
}

#[cfg(test)]
mod tests {
    use faasnet_api::ClusterSecret;

    use super::*;

    const LOCAL: &str = "127.0.0.1:40000";
    const REMOTE: &str = "192.0.2.7:40000";

    fn status(caller: &str, method: Method, pairs: &[(&str, &str)]) -> StatusCode {
        let secret = ClusterSecret::new(b"0123456789abcdef");
        let token = secret.rpc_token().to_owned();
        let guard = Guard::new(Gate::open_on_loopback(secret));
        let basic = format!("Basic {}", STANDARD.encode(format!("me:{token}")));
        let value = |text: &str| text.replace("TOKEN", &token).replace("BASIC", &basic).parse().unwrap();
        let headers = pairs.iter().map(|(name, text)| (name.parse::<header::HeaderName>().unwrap(), value(text)));
        let headers = HeaderMap::from_iter(headers);
        let caller = Caller { address: caller.parse().unwrap(), certified: false };
        match guard.admit(caller, &method, &headers) {
            Ok(()) => StatusCode::OK,
            Err(refused) => refused.into_response().status(),
        }
    }

    /// Catches strangers that are let in, a token that is not taken, and a name server that can point a web page at us.
    #[test]
    fn callers_need_the_token_or_be_on_this_machine() {
        let here = ("host", "localhost:7401");
        for host in ["localhost:7401", "LOCALHOST", "127.0.0.1:7401", "127.9.9.9", "[::1]:7401", "[::ffff:127.0.0.1]"] {
            assert_eq!(status(LOCAL, Method::GET, &[("host", host)]), StatusCode::OK, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:7401", "127.0.0.1.evil.example", "192.0.2.1", "", ":7401"]
        {
            assert_eq!(status(LOCAL, Method::GET, &[("host", host)]), StatusCode::FORBIDDEN, "{host}");
        }
        assert_eq!(status(LOCAL, Method::GET, &[]), StatusCode::FORBIDDEN);
        assert_eq!(status(REMOTE, Method::GET, &[here]), StatusCode::UNAUTHORIZED);
        let elsewhere = ("host", "controller.example:7401");
        assert_eq!(status(REMOTE, Method::GET, &[elsewhere, ("authorization", "Bearer TOKEN")]), StatusCode::OK);
        assert_eq!(status(REMOTE, Method::GET, &[elsewhere, ("authorization", "BASIC")]), StatusCode::OK);
        for wrong in ["Bearer wrong", "Bearer", "TOKEN", "Digest TOKEN", "Basic ???"] {
            // A wrong token is refused from everywhere, or a typo would be found out late.
            assert_eq!(
                status(LOCAL, Method::GET, &[here, ("authorization", wrong)]),
                StatusCode::UNAUTHORIZED,
                "{wrong}"
            );
        }
    }

    /// Catches a web page that creates or removes functions through the browser of somebody on this machine.
    #[test]
    fn other_pages_change_nothing() {
        let here = ("host", "localhost:7401");
        assert_eq!(status(LOCAL, Method::POST, &[here]), StatusCode::OK);
        assert_eq!(status(LOCAL, Method::POST, &[here, ("origin", "http://localhost:7401")]), StatusCode::OK);
        for (name, value) in [
            ("origin", "http://evil.example"),
            ("origin", "http://localhost:8080"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(status(LOCAL, Method::DELETE, &[here, (name, value)]), StatusCode::FORBIDDEN, "{name}: {value}");
            // The password that a browser remembers goes along with such a request.
            let known = [here, (name, value), ("authorization", "BASIC")];
            assert_eq!(status(REMOTE, Method::POST, &known), StatusCode::FORBIDDEN, "{name}: {value}");
        }
    }
}
