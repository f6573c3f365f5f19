//! The registry against a plain HTTP client and against our own origin reader.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use faasnet_image::{BuildOptions, BuiltImage, RegisterError, RegisterRequest, build_opaque, register};
use faasnet_origin::{Error, Reference, RetryPolicy, Source, SourceOptions};
use reqwest::{Client, Method, Response, StatusCode};

use super::*;

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Served {
    folder: tempfile::TempDir,
    image: BuiltImage,
    server: RegistryServer,
    client: Client,
}

impl Served {
    async fn start(layers: &[Vec<u8>], options: RegistryOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = folder.path().join("app");
        let mut readers: Vec<&[u8]> = layers.iter().map(|layer| &layer[..]).collect();
        let mut readers: Vec<&mut dyn std::io::Read> = readers.iter_mut().map(|reader| reader as _).collect();
        let image =
            build_opaque(&mut readers, &layout, &BuildOptions { tag: "v1".into(), ..Default::default() }).unwrap();
        let server = RegistryServer::start(&layout, ANY_PORT, options).await.unwrap();
        Self { folder, image, server, client: Client::builder().no_proxy().build().unwrap() }
    }

    async fn request(&self, method: Method, path: &str, range: Option<&str>) -> Response {
        let url = format!("http://{}{path}", self.server.local_addr());
        let mut request = self.client.request(method, url);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path, None).await
    }

    fn source(&self) -> Source {
        let reference = Reference::parse(&self.server.reference().unwrap()).unwrap();
        let retry = RetryPolicy { first: Duration::from_millis(1), ..RetryPolicy::default() };
        let options = SourceOptions {
            retry,
            stall_timeout: Duration::from_millis(300),
            credentials_file: None,
            ..Default::default()
        };
        Source::open(&reference, &options).unwrap()
    }

    /// Reads the first layer whole.
    async fn read_layer(&self) -> Result<Vec<u8>, Error> {
        let layer = &self.image.layers[0];
        let mut reader = self.source().read_blob_range(&layer.digest, 0..layer.bytes);
        let mut bytes = Vec::new();
        while let Some(part) = reader.next_bytes().await? {
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 31 + index / 251) as u8).collect()
}

/// Catches an answer that a container runtime would not accept: status, headers, body of each kind of request.
#[tokio::test]
async fn speaks_the_pull_part_of_the_specification() {
    let layer = pattern(300_000);
    let served = Served::start(std::slice::from_ref(&layer), RegistryOptions::default()).await;
    assert_eq!(served.get("/v2/").await.status(), 200);
    let by_tag = served.get("/v2/app/manifests/v1").await;
    assert_eq!(by_tag.headers()["content-type"], faasnet_origin::manifest::OCI_MANIFEST);
    assert_eq!(by_tag.headers()["docker-content-digest"], *served.image.digest);
    let document = by_tag.bytes().await.unwrap();
    let by_digest = served.get(&format!("/v2/app/manifests/{}", served.image.digest.replace(':', "%3A"))).await;
    assert_eq!(by_digest.bytes().await.unwrap(), document);
    let head = served.request(Method::HEAD, "/v2/app/manifests/v1", None).await;
    assert_eq!(head.headers()["content-length"], document.len().to_string());
    let blob = format!("/v2/app/blobs/{}", served.image.layers[0].digest);
    let head = served.request(Method::HEAD, &blob, None).await;
    assert_eq!(
        (head.headers()["content-length"].to_str().unwrap(), &head.headers()["accept-ranges"]),
        ("300000", &"bytes".parse().unwrap())
    );
    assert_eq!(served.get(&blob).await.bytes().await.unwrap(), layer);
    let part = served.request(Method::GET, &blob, Some("bytes=1000-1999")).await;
    assert_eq!(
        (part.status().as_u16(), part.headers()["content-range"].to_str().unwrap()),
        (206, "bytes 1000-1999/300000")
    );
    assert_eq!(part.bytes().await.unwrap(), layer[1000..2000]);
    let beyond = served.request(Method::GET, &blob, Some("bytes=300000-")).await;
    assert_eq!(
        (beyond.status().as_u16(), beyond.headers()["content-range"].to_str().unwrap()),
        (416, "bytes */300000")
    );
    assert!(served.get("/v2/app/tags/list").await.text().await.unwrap().contains("v1"));
}

/// Catches a file outside the layout that can be read, a blob that passes for a manifest, and errors without their code.
#[tokio::test]
async fn what_is_not_there_is_refused_in_the_specifications_words() {
    let served = Served::start(&[pattern(10)], RegistryOptions::default()).await;
    std::fs::write(served.folder.path().join("secret"), b"s3cret").unwrap();
    let unknown = format!("sha256:{}", "0".repeat(64));
    let layer = &served.image.layers[0].digest;
    for (path, status, code) in [
        ("/v2/app/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        (&*format!("/v2/app/manifests/{unknown}"), 404, "MANIFEST_UNKNOWN"),
        (&*format!("/v2/app/manifests/{layer}"), 404, "MANIFEST_UNKNOWN"),
        (&*format!("/v2/app/blobs/{unknown}"), 404, "BLOB_UNKNOWN"),
        (&*format!("/v2/other/blobs/{layer}"), 404, "NAME_UNKNOWN"),
        ("/v2/app/blobs/sha256:..%2F..%2F..%2Fsecret", 404, "NAME_UNKNOWN"),
        ("/v2/app/blobs/..%2Fsecret", 404, "NAME_UNKNOWN"),
        ("/v2/app/blobs/sha512:00", 400, "DIGEST_INVALID"),
        ("/secret", 404, "NAME_UNKNOWN"),
        ("/v2/app/blobs/%ff", 404, "NAME_UNKNOWN"),
    ] {
        let answer = served.get(path).await;
        assert_eq!(answer.status(), status, "{path}");
        let body = answer.text().await.unwrap();
        assert!(body.contains(code) && !body.contains("s3cret"), "{path}: {body}");
    }
    for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
        let answer = served.request(method, &format!("/v2/app/blobs/{layer}"), None).await;
        assert_eq!(
            (answer.status(), &answer.headers()["allow"]),
            (StatusCode::METHOD_NOT_ALLOWED, &"GET, HEAD".parse().unwrap())
        );
    }
}

/// Catches a count of what was asked for in place of what was sent, and a log that disagrees with it.
#[tokio::test]
async fn counts_and_logs_what_it_sends() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let options = RegistryOptions { access_log: Some(log.clone()), keep_reads: true, ..Default::default() };
    let served = Served::start(&[pattern(100_000)], options).await;
    let digest = served.image.layers[0].digest.clone();
    let blob = format!("/v2/app/blobs/{digest}");
    served.request(Method::HEAD, &blob, None).await;
    served.request(Method::GET, &blob, Some("bytes=0-9")).await.bytes().await.unwrap();
    served.request(Method::GET, &blob, Some("bytes=5-")).await.bytes().await.unwrap();
    let stats = served.server.stats();
    assert_eq!((stats.requests, stats.blob_requests, stats.blob_bytes_sent), (3, 2, 10 + 99_995));
    let read = |range, bytes_sent| BlobRead { digest: digest.clone(), range, bytes_sent };
    assert_eq!(served.server.reads(), [read(0..10, 10), read(5..100_000, 99_995)]);
    served.server.stop().await;
    let text = std::fs::read_to_string(log).unwrap();
    let columns: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').skip(2).collect()).collect();
    assert_eq!(columns[0], ["HEAD", &blob, "-", "200", "0"]);
    assert_eq!(columns[1], ["GET", &blob, "bytes=0-9", "206", "10"]);
    assert_eq!(columns[2], ["GET", &blob, "bytes=5-", "206", "99995"]);
}

/// Catches a reader that does not come back after what real registries do to it, or that reads everything again.
#[tokio::test]
async fn our_reader_survives_every_fault() {
    let layer = pattern(1_000_000);
    for (name, most_bytes, faults) in [
        ("500 twice", 1_000_000, Faults { fail_first: 2, fail_status: 500, ..Default::default() }),
        ("429 once", 1_000_000, Faults { fail_first: 1, fail_status: 429, retry_after: Some(0), ..Default::default() }),
        // What a cut connection had not yet delivered is sent again; hyper holds back at most its buffers.
        ("cut twice", 2_000_000, Faults { cut_after: Some(300_000), cut_times: 2, ..Default::default() }),
        ("stall once", 1_000_000, Faults { stall_after: Some(400_000), stall_times: 1, ..Default::default() }),
        ("no ranges", 1_000_000, Faults { ignore_ranges: true, ..Default::default() }),
        (
            "no ranges and a cut",
            2_000_000,
            Faults { ignore_ranges: true, cut_after: Some(500_000), cut_times: 1, ..Default::default() },
        ),
        (
            "short tokens",
            2_000_000,
            Faults {
                token: Some(TokenAuth { login: None, requests: 1 }),
                cut_after: Some(300_000),
                cut_times: 3,
                ..Default::default()
            },
        ),
    ] {
        let served =
            Served::start(std::slice::from_ref(&layer), RegistryOptions { faults, ..Default::default() }).await;
        assert_eq!(served.read_layer().await.unwrap(), layer, "{name}");
        let sent = served.server.stats().blob_bytes_sent;
        assert!(sent <= most_bytes, "{name}: {sent} bytes sent");
    }
}

/// Catches a fault that is waited out though it will never pass.
#[tokio::test]
async fn lasting_faults_end_the_reading() {
    let auth = TokenAuth { login: Some(("me".into(), "pw".into())), requests: 100 };
    let served = Served::start(
        &[pattern(10)],
        RegistryOptions { faults: Faults { token: Some(auth), ..Default::default() }, ..Default::default() },
    )
    .await;
    assert!(matches!(served.read_layer().await, Err(Error::Denied { status: 401, .. })));
    let faults = Faults { fail_first: u32::MAX, fail_status: 503, ..Default::default() };
    let served = Served::start(&[pattern(10)], RegistryOptions { faults, ..Default::default() }).await;
    assert!(matches!(served.read_layer().await, Err(Error::ServerFailed { status: 503, .. })));
}

async fn register_from(server: &RegistryServer) -> Result<faasnet_api::Descriptor, RegisterError> {
    let reference = server.reference().unwrap();
    register(RegisterRequest::new(reference), |_, _| {}).await
}

/// Catches registration that reads a byte twice, or takes ranges for granted.
#[tokio::test]
async fn registration_reads_once_and_learns_about_ranges() {
    for ignore_ranges in [false, true] {
        let faults = Faults { ignore_ranges, ..Default::default() };
        let served =
            Served::start(&[pattern(700_000), pattern(0)], RegistryOptions { faults, ..Default::default() }).await;
        let descriptor = register_from(&served.server).await.unwrap();
        assert_eq!(descriptor.origin().ranges(), !ignore_ranges);
        assert_eq!(descriptor.geometry().image_bytes(), served.image.bytes);
        if !ignore_ranges {
            // The byte that asked for ranges is on top.
            assert_eq!(served.server.stats().blob_bytes_sent, served.image.bytes + 1);
        }
    }
}

/// Catches a limit that is not kept.
#[tokio::test]
async fn the_rate_is_limited() {
    let options = RegistryOptions { rate: Some(1_000_000), ..Default::default() };
    let served = Served::start(&[pattern(300_000)], options).await;
    let start = std::time::Instant::now();
    served.read_layer().await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}

/// Catches names that no client could write, and layouts that are none.
#[tokio::test]
async fn names_and_layouts_are_checked() {
    assert_eq!(default_name(Path::new("/nonexistent/My App..x_")), "my-app-x");
    assert_eq!(default_name(Path::new("/")), "image");
    let folder = tempfile::tempdir().unwrap();
    assert!(RegistryServer::start(folder.path(), ANY_PORT, RegistryOptions::default()).await.is_err());
    let served = Served::start(&[], RegistryOptions::default()).await;
    let layout = served.folder.path().join("app");
    let named = [("a/b".to_owned(), layout.clone()), ("c".to_owned(), layout.clone())];
    let server = RegistryServer::start_named(&named, ANY_PORT, RegistryOptions::default()).await.unwrap();
    assert_eq!(server.repositories().collect::<Vec<_>>(), ["a/b", "c"]);
    register_from(&server).await.unwrap();
    assert!(
        RegistryServer::start_named(&[("A".into(), layout.clone())], ANY_PORT, RegistryOptions::default())
            .await
            .is_err()
    );
    let taken = RegistryServer::start(&layout, server.local_addr(), RegistryOptions::default()).await;
    assert!(taken.unwrap_err().to_string().contains("port in use"));
}
