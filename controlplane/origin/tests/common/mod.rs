//! A small HTTP/1.1 server whose every answer is scripted: statuses, headers, cuts, stalls, TLS.
//!
//! One request per connection, so that a fault hits exactly one request.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use faasnet_origin::{Reference, RetryPolicy, Source, SourceOptions, digest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A request as the server saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub range: Option<Range<u64>>,
    pub authorization: Option<String>,
}

/// What the server answers.
#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many body bytes.
    pub cut_after: Option<usize>,
    /// Send nothing more after so many body bytes, and keep the connection open.
    pub stall_after: Option<usize>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The part of `blob` that was asked for, as a registry answers.
    pub fn blob(seen: &Seen, blob: &[u8]) -> Self {
        match &seen.range {
            None => Self::new(200, blob),
            Some(range) => {
                let end = (range.end as usize).min(blob.len());
                let content_range = format!("bytes {}-{}/{}", range.start, end - 1, blob.len());
                Self::new(206, &blob[range.start as usize..end]).header("Content-Range", content_range)
            }
        }
    }
}

pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `script` gets each request and its number from 0.
    pub async fn start(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        Self::serve(None, script).await
    }

    /// With TLS by a certificate of an authority of its own, whose PEM is returned.
    pub async fn start_tls(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> (Self, String) {
        let certified = rcgen::generate_simple_self_signed(vec!["registry.test".into(), "127.0.0.1".into()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
        let pem = certified.cert.pem();
        (Self::serve(Some(TlsAcceptor::from(Arc::new(config))), script).await, pem)
    }

    async fn serve(tls: Option<TlsAcceptor>, script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, script) = (seen.clone(), Arc::new(script));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, script, tls) = (log.clone(), script.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream, &log, &*script).await,
                        // A client that does not trust us ends the handshake.
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => answer(stream, &log, &*script).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { address, seen, task }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests whose path contains `part`.
    pub fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }

    pub fn source(&self) -> Source {
        self.source_with(options())
    }

    pub fn source_with(&self, options: SourceOptions) -> Source {
        Source::open(&Reference::parse(&format!("{}/app:v1", self.address)).unwrap(), &options).unwrap()
    }
}

/// Reads one request and answers it; `None` when the connection broke.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    log: &Mutex<Vec<Seen>>,
    script: &(dyn Fn(&Seen, usize) -> Reply + Send + Sync),
) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let seen = parse(&String::from_utf8(head).ok()?);
    let number = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    let reply = script(&seen, number);
    let mut text = format!("HTTP/1.1 {} Scripted\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name == "Content-Length") {
        text += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).await.ok()?;
    if seen.method != "HEAD" {
        let end = reply.cut_after.or(reply.stall_after).unwrap_or(reply.body.len());
        stream.write_all(&reply.body[..end]).await.ok()?;
    }
    stream.flush().await.ok()?;
    if reply.stall_after.is_some() {
        // Until the client gives up.
        let _ = stream.read_u8().await;
    }
    stream.shutdown().await.ok()
}

fn parse(head: &str) -> Seen {
    let mut lines = head.lines();
    let mut words = lines.next().unwrap_or_default().split(' ');
    let mut seen = Seen {
        method: words.next().unwrap_or_default().into(),
        path: words.next().unwrap_or_default().into(),
        ..Seen::default()
    };
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        match &*name.to_ascii_lowercase() {
            "authorization" => seen.authorization = Some(value.into()),
            "range" => {
                let (first, last) = value.trim_start_matches("bytes=").split_once('-').unwrap();
                seen.range = Some(first.parse().unwrap()..last.parse::<u64>().unwrap() + 1);
            }
            _ => {}
        }
    }
    seen
}

/// Fast and without anything of this user's configuration.
pub fn options() -> SourceOptions {
    SourceOptions {
        credentials_file: None,
        ca_file: None,
        stall_timeout: Duration::from_millis(300),
        retry: RetryPolicy { attempts: 4, first: Duration::from_millis(1), ..RetryPolicy::default() },
        ..SourceOptions::default()
    }
}

/// Options with this user name and password for `registry`; the file lives as long as the folder.
pub fn options_with_login(folder: &tempfile::TempDir, registry: &str) -> SourceOptions {
    let path: PathBuf = folder.path().join("config.json");
    let json = format!(r#"{{"auths": {{"{registry}": {{"username": "me", "password": "s3cret"}}}}}}"#);
    std::fs::write(&path, json).unwrap();
    SourceOptions { credentials_file: Some(path), ..options() }
}

/// `Basic me:s3cret`.
pub const BASIC: &str = "Basic bWU6czNjcmV0";

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 251) as u8).collect()
}

/// Reads `range` of `blob` through the patient reader.
pub async fn read(source: &Source, blob: &[u8], range: Range<u64>) -> Result<Vec<u8>, faasnet_origin::Error> {
    let mut reader = source.read_blob_range(&digest::of(blob), range);
    let mut bytes = Vec::new();
    while let Some(part) = reader.next_bytes().await? {
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}
