//! One request of a runtime: its head read from the wire, and what its path asks for.
//!
//! Parsing of foreign bytes: bounded, and anything that is not understood is an answer, never a panic.

use std::borrow::Cow;
use std::time::Duration;

use faasnet_origin::RegistryReference;
use percent_encoding::percent_decode_str;
use tokio::time::{Instant, timeout_at};

use super::reply::{Refusal, refuse};
use super::socket::Socket;

/// The longest head that is read.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// How long a connection without a request stays open.
const IDLE: Duration = Duration::from_secs(90);

/// The parts of a head that matter here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// `HEAD`: the same answer without its body.
    pub(super) head_only: bool,
    pub(super) range: Option<String>,
    pub(super) if_range: Option<String>,
    /// The client wants the connection to go on.
    pub(super) keep_alive: bool,
    pub(super) wish: Result<Wish, Refusal>,
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// `/v2/`: is this a registry?
    Version,
    /// A manifest, by tag or digest.
    Manifest(RegistryReference),
    /// A blob of a repository.
    Blob(RegistryReference, String),
}

/// Reads requests from one connection.
#[derive(Debug)]
pub(super) struct Reader {
    buffer: Vec<u8>,
    /// How long a head may take once it has begun.
    patience: Duration,
}

/// Why no request was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client has ended, or said nothing for long.
    Gone,
    /// It does not speak HTTP/1 as it should: tell it, then end.
    Malformed(Refusal),
}

impl Reader {
    pub(super) fn new(patience: Duration) -> Self {
        Self { buffer: Vec::new(), patience }
    }

    /// The next request.
    pub(super) async fn next(&mut self, socket: &Socket) -> Result<Request, End> {
        let mut has_begun = !self.buffer.is_empty();
        let mut deadline = Instant::now() + if has_begun { self.patience } else { IDLE };
        loop {
            if let Some((request, len)) = parse(&self.buffer).map_err(End::Malformed)? {
                self.buffer.drain(..len);
                return Ok(request);
            }
            if self.buffer.len() >= MAX_HEAD_BYTES {
                return Err(End::Malformed(refuse(431, "UNSUPPORTED", "the request's head is longer than 16 KiB")));
            }
            let begin = self.buffer.len();
            self.buffer.resize(MAX_HEAD_BYTES, 0);
            let received = timeout_at(deadline, socket.receive(&mut self.buffer[begin..])).await;
            let received = received.ok().and_then(Result::ok).unwrap_or(0);
            self.buffer.truncate(begin + received);
            if received == 0 {
                return Err(End::Gone);
            }
            if !has_begun {
                (has_begun, deadline) = (true, Instant::now() + self.patience);
            }
        }
    }
}

/// A request and the bytes of its head; `None` while it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refuse(400, "UNSUPPORTED", format!("this is not HTTP/1.1: {error}"))),
    };
    let header = |name: &str| {
        let found = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok().map(str::trim)
    };
    // All of them, as bytes: of two that differ, or one that is not text, a proxy before this may have believed the other.
    let tells_of_body = |header: &httparse::Header<'_>| match header.name {
        name if name.eq_ignore_ascii_case("transfer-encoding") => true,
        name if name.eq_ignore_ascii_case("content-length") => header.value != b"0",
        _ => false,
    };
    if head.headers.iter().any(tells_of_body) {
        // Where the body ends is not read, so nothing after it can be.
        return Err(refuse(413, "UNSUPPORTED", "the mirror takes no uploads; push to the registry itself"));
    }
    let closes = header("connection")
        .is_some_and(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")));
    let method = head.method.unwrap_or_default();
    let wish = match method {
        "GET" | "HEAD" => Wish::parse(head.path.unwrap_or_default()),
        _ => Err(refuse(405, "UNSUPPORTED", "the mirror is read-only: GET and HEAD; push to the registry itself")),
    };
    let request = Request {
        head_only: method == "HEAD",
        range: header("range").map(str::to_owned),
        if_range: header("if-range").map(str::to_owned),
        keep_alive: head.version == Some(1) && !closes,
        wish,
    };
    Ok(Some((request, len)))
}

impl Wish {
    /// `/v2/NAME/manifests/…` and `/v2/NAME/blobs/…`. The registry is `?ns=`, else the first part of the name if that is a host, else
    /// Docker Hub.
    fn parse(target: &str) -> Result<Self, Refusal> {
        let unknown =
            || refuse(404, "NAME_UNKNOWN", "the mirror's paths are /v2/NAME/manifests/… and /v2/NAME/blobs/…");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (path, query) = (unescape(path), query.split('&').find_map(|pair| pair.strip_prefix("ns=")).map(unescape));
        let rest = path.strip_prefix("/v2").ok_or_else(unknown)?;
        if rest.is_empty() || rest == "/" {
            return Ok(Self::Version);
        }
        let split = |text: &str| text.rsplit_once('/').map(|(front, last)| (front.to_owned(), last.to_owned()));
        let (front, last) = rest.strip_prefix('/').and_then(split).ok_or_else(unknown)?;
        let (name, kind) = split(&front).ok_or_else(unknown)?;
        let name = match query {
            Some(registry) if !registry.is_empty() => format!("{registry}/{name}"),
            _ => with_port(name),
        };
        let is_digest = last.starts_with("sha256:");
        let parsed = |text: String| {
            RegistryReference::parse(&text).map_err(|error| refuse(404, "NAME_UNKNOWN", error.to_string()))
        };
        match (&*kind, is_digest) {
            ("manifests", true) => Ok(Self::Manifest(parsed(format!("{name}@{last}"))?)),
            ("manifests", false) => Ok(Self::Manifest(parsed(format!("{name}:{last}"))?)),
            ("blobs", true) => Ok(Self::Blob(parsed(format!("{name}@{last}"))?, last)),
            ("blobs", false) => Err(refuse(404, "BLOB_UNKNOWN", "faasnet reads images with sha256 digests only")),
            _ => Err(unknown()),
        }
    }
}

/// A host's port stands behind `_` where the host is the first part of a name: a name has no colon, and a host no `_`.
fn with_port(name: String) -> String {
    let registry = name.split_once('/').and_then(|(first, rest)| Some((first.rsplit_once('_')?, rest)));
    let is_host = |host: &str| host.contains('.') || host == "localhost";
    match registry {
        Some(((host, port), rest)) if is_host(host) && port.parse::<u16>().is_ok() => format!("{host}:{port}/{rest}"),
        _ => name,
    }
}

/// Undoes `%3A` and the like; what is not UTF-8 afterwards names nothing here.
fn unescape(text: &str) -> String {
    percent_decode_str(text).decode_utf8().map(Cow::into_owned).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(target: &str) -> Option<String> {
        match Wish::parse(target).ok()? {
            Wish::Version => Some("version".into()),
            Wish::Manifest(reference) => Some(reference.to_string()),
            Wish::Blob(reference, digest) => {
                assert_eq!(reference.digest.as_ref(), Some(&digest));
                Some(format!("blob of {}/{}", reference.registry, reference.repository))
            }
        }
    }

    /// Catches a registry that is not told from the path or the query, and Docker's defaults that are missed.
    #[test]
    fn the_registry_is_in_the_query_or_in_the_path() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (target, wanted) in [
            ("/v2", "version".to_owned()),
            ("/v2/?ns=x.y", "version".to_owned()),
            ("/v2/app/manifests/1?ns=r.example:5000", "r.example:5000/app:1".into()),
            ("/v2/app/manifests/1?x=y&ns=r.example%3A5000", "r.example:5000/app:1".into()),
            ("/v2/a/b/manifests/1?ns=localhost", "localhost/a/b:1".into()),
            ("/v2/r.example/a/b/manifests/1", "r.example/a/b:1".into()),
            ("/v2/r.example_5000/a/b/manifests/1", "r.example:5000/a/b:1".into()),
            ("/v2/localhost_5000/b/manifests/1", "localhost:5000/b:1".into()),
            ("/v2/some_1/b/manifests/1", "registry-1.docker.io/some_1/b:1".into()),
            ("/v2/library/busybox/manifests/latest?ns=docker.io", "registry-1.docker.io/library/busybox:latest".into()),
            ("/v2/library/busybox/manifests/latest", "registry-1.docker.io/library/busybox:latest".into()),
            (&format!("/v2/app/manifests/{digest}?ns=r.x"), format!("r.x/app@{digest}")),
            (&format!("/v2/app/blobs/sha256%3A{}?ns=r.x", "a".repeat(64)), "blob of r.x/app".into()),
        ] {
            assert_eq!(wish(target), Some(wanted), "{target}");
        }
    }

    /// Catches a path that leaves its place, and a name or digest that is taken for something else.
    #[test]
    fn bad_paths_name_nothing() {
        for target in [
            "",
            "/",
            "/v1/",
            "/v2/app",
            "/v2/app/manifests",
            "/v2//manifests/1",
            "/v2/../etc/manifests/passwd",
            "/v2/app/manifests/../../x",
            "/v2/a/%2e%2e/b/manifests/1?ns=r.x",
            "/v2/app/manifests/%ff",
            "/v2/app/manifests/",
            "/v2/app/blobs/sha256:12",
            "/v2/app/blobs/md5:0",
            "/v2/app/tags/list",
            "/v2/APP/manifests/1",
            "*",
            "/v2/app/manifests/1?ns=a%2Fb@c",
            "/v2/app/manifests/1?ns=..",
            "/v2/app/manifests/1?ns=u:p@h",
            "http://x/v2/",
            "/v2/app/manifests/%",
            "/v2/app/manifests/%4",
        ] {
            assert!(wish(target).is_none_or(|found| !found.contains("..")), "{target}: {:?}", wish(target));
        }
        assert_eq!(wish("/v2/../etc/manifests/passwd"), None);
        assert_eq!(wish("/v2/a/%2e%2e/b/manifests/1?ns=r.x"), None);
    }

    /// Catches a head that is read before it is whole, a second one that is lost, a body taken for a request, and a panic on rubbish.
    #[test]
    fn heads_are_read_whole_and_one_by_one() {
        let two =
            b"GET /v2/ HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\n\r\nHEAD /v2/ HTTP/1.0\r\nconnection: Close\r\n\r\n";
        for len in 0..48 {
            assert_eq!(parse(&two[..len]), Ok(None), "{len}");
        }
        let (first, len) = parse(two).unwrap().unwrap();
        assert!(first.keep_alive && !first.head_only && first.range.as_deref() == Some("bytes=0-1"));
        let (second, _) = parse(&two[len..]).unwrap().unwrap();
        assert!(!second.keep_alive && second.head_only && second.wish == Ok(Wish::Version));
        for upload in [
            &b"Content-Length: 5"[..],
            b"Transfer-Encoding: chunked",
            b"content-length: -1",
            b"Content-Length: 0\r\nContent-Length: 20",
            b"Transfer-Encoding: \xffchunked",
        ] {
            let text = [b"GET /v2/ HTTP/1.1\r\n", upload, b"\r\n\r\n"].concat();
            assert_eq!(parse(&text).unwrap_err().status, 413, "{}", upload.escape_ascii());
        }
        assert!(parse(b"GET /v2/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n").is_ok());
        let (post, _) = parse(b"POST /v2/ HTTP/1.1\r\n\r\n").unwrap().unwrap();
        assert_eq!(post.wish.unwrap_err().status, 405);
        for rubbish in [&b"\x16\x03\x01\x02\x00\r\n\r\n"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0\0\0\0"] {
            assert!(parse(rubbish).is_err());
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(65));
        assert!(parse(many.as_bytes()).is_err());
    }
}
