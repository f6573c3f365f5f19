//! Authentication, redirects and TLS: that they work, and that secrets stay where they belong.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use common::{BASIC, Reply, Server, options, options_with_login, pattern, read};
use faasnet_origin::{Credentials, Error, Reference, Source, SourceOptions, Target};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn bearer(realm: &str) -> Reply {
    let challenge = format!(r#"Bearer realm="{realm}",service="a, b",scope="repository:app:pull,push""#);
    Reply::new(401, "").header("WWW-Authenticate", challenge)
}

/// Catches a token that is not asked for as registries want it, not reused, or not renewed in the middle of a transfer.
#[tokio::test]
async fn tokens_are_fetched_cached_and_renewed() {
    let blob = pattern(300_000);
    let (content, issued) = (blob.clone(), Arc::new(AtomicUsize::new(0)));
    let server = Server::start(move |seen, _| {
        if seen.path.starts_with("/token") {
            let token = issued.fetch_add(1, Ordering::Relaxed);
            return Reply::new(200, format!(r#"{{"access_token": "t{token}", "expires_in": 1}}"#));
        }
        let newest = format!("Bearer t{}", issued.load(Ordering::Relaxed).wrapping_sub(1));
        let start = seen.range.clone().unwrap().start;
        // The first token expires at 100,000 bytes: the connection is cut there, and the resumed read gets 401.
        let expired = start >= 100_000 && issued.load(Ordering::Relaxed) < 2;
        if seen.authorization != Some(newest) || expired {
            return bearer("/token");
        }
        let cut_after = (start < 100_000).then_some((100_000 - start) as usize);
        Reply { cut_after, ..Reply::blob(seen, &content) }
    });
    let server = server.await;
    let source = server.source();
    assert_eq!(read(&source, &blob, 0..300_000).await.unwrap(), blob);
    assert_eq!(read(&source, &blob, 200_000..200_010).await.unwrap(), blob[200_000..200_010]);
    assert_eq!(server.count("/token"), 2);
    let token_path = server.seen().into_iter().find(|seen| seen.path.starts_with("/token")).unwrap().path;
    assert_eq!(token_path, "/token?service=a%2C+b&scope=repository%3Aapp%3Apull%2Cpush");
}

/// Catches a user name and password that are not used where they belong, or used again after they were refused.
#[tokio::test]
async fn basic_credentials_go_to_registry_or_realm() {
    let blob = pattern(10);
    let folder = tempfile::tempdir().unwrap();
    let content = blob.clone();
    let server = Server::start(move |seen, _| match seen.authorization.as_deref() {
        Some(BASIC) => Reply::blob(seen, &content),
        _ => Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="r""#),
    });
    let server = server.await;
    let login = options_with_login(&folder, &server.address.to_string());
    assert_eq!(read(&server.source_with(login), &blob, 0..10).await.unwrap(), blob);
    assert!(matches!(read(&server.source(), &blob, 0..10).await, Err(Error::Denied { .. })));

    let content = blob.clone();
    let server = Server::start(move |seen, _| match (seen.path.starts_with("/token"), seen.authorization.as_deref()) {
        (true, Some(BASIC)) => Reply::new(200, r#"{"token": "t"}"#),
        (true, _) => Reply::new(401, ""),
        (false, Some("Bearer t")) => Reply::blob(seen, &content),
        (false, _) => bearer("/token"),
    });
    let server = server.await;
    let login = options_with_login(&folder, &server.address.to_string());
    assert_eq!(read(&server.source_with(login), &blob, 0..10).await.unwrap(), blob);
    let error = read(&server.source(), &blob, 0..10).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");

    let refusing = Server::start(|_, _| Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="r""#)).await;
    let source = refusing.source_with(options_with_login(&folder, &refusing.address.to_string()));
    let error = read(&source, &blob, 0..10).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }) && !error.to_string().contains("s3cret"), "{error}");
    assert_eq!(refusing.seen().len(), 2);
    assert!(matches!(read(&source, &blob, 0..10).await, Err(Error::Denied { .. })));
    // What was refused is not sent again.
    assert_eq!(refusing.seen().len(), 3);
}

/// Catches credentials that follow a redirect to another server, a location that is not remembered, or kept after it expired.
#[tokio::test]
async fn redirects_are_followed_without_credentials_and_remembered() {
    let blob = pattern(1000);
    let (content, served) = (blob.clone(), AtomicUsize::new(0));
    let storage = Server::start(move |seen, _| match served.fetch_add(1, Ordering::Relaxed) {
        2 => Reply::new(403, "the signature has expired"),
        _ => Reply::blob(seen, &content),
    });
    let storage = storage.await;
    let location = format!("http://{}/store?signature=s3cret", storage.address);
    let registry = Server::start(move |seen, _| match seen.authorization.as_deref() {
        Some(BASIC) => Reply::new(307, "").header("Location", location.clone()),
        _ => Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="r""#),
    });
    let registry = registry.await;
    let folder = tempfile::tempdir().unwrap();
    let source = registry.source_with(options_with_login(&folder, &registry.address.to_string()));
    for part in [0..10, 10..20, 20..30, 30..40] {
        assert_eq!(read(&source, &blob, part.clone()).await.unwrap(), blob[part.start as usize..part.end as usize]);
    }
    assert!(storage.seen().iter().all(|seen| seen.authorization.is_none()));
    // 401 and redirect for the first part, and one more redirect after the location expired.
    assert_eq!((registry.seen().len(), storage.seen().len()), (3, 5));
}

/// Catches a credential helper that is not asked, asked for something else, or asked only once though what it knows expires; and its
/// secret in a message.
#[tokio::test]
async fn credential_helpers_are_asked() {
    let blob = pattern(10);
    let folder = tempfile::tempdir().unwrap();
    let (content, newest) = (blob.clone(), Arc::new(std::sync::Mutex::new(BASIC.to_owned())));
    let wanted = newest.clone();
    let server = Server::start(move |seen, _| match &seen.authorization {
        Some(given) if *given == *wanted.lock().unwrap() => Reply::blob(seen, &content),
        _ => Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="r""#),
    });
    let server = server.await;
    let helper = folder.path().join("docker-credential-faasnet-test");
    let script = |secret: &str| {
        let text = format!(
            "#!/bin/sh\nread -r server\necho \"$1 $server\" >> {}/asked\n[ \"$server\" = {} ] || {{ echo 's3cret: credentials not found'; exit 1; }}\necho '{{\"Username\": \"me\", \"Secret\": \"{secret}\"}}'\n",
            folder.path().display(),
            server.address
        );
        std::fs::write(&helper, text).unwrap();
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    script("s3cret");
    let config = folder.path().join("config.json");
    let options_of = |json: &str| {
        std::fs::write(&config, json).unwrap();
        SourceOptions { credentials_file: Some(config.clone()), ..options() }
    };
    let path = std::env::join_paths(
        [folder.path().to_owned()].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let with_path =
        SourceOptions { helper_path: Some(path.unwrap()), ..options_of(r#"{"credsStore": "faasnet-test"}"#) };
    let source = server.source_with(with_path.clone());
    assert_eq!(read(&source, &blob, 0..10).await.unwrap(), blob);
    // "me:n3w"
    *newest.lock().unwrap() = "Basic bWU6bjN3".into();
    script("n3w");
    assert_eq!(read(&source, &blob, 0..10).await.unwrap(), blob, "what expired is asked for anew");
    let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
    assert_eq!(asked, format!("get {0}\nget {0}\n", server.address));
    script("wr0ng");
    *newest.lock().unwrap() = "nobody".into();
    let error = read(&source, &blob, 0..10).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }) && !format!("{error:?}{error}").contains("wr0ng"), "{error}");
    let elsewhere = r#"{"credHelpers": {"127.0.0.1:1": "faasnet-test"}}"#;
    let none =
        server.source_with(SourceOptions { helper_path: with_path.helper_path.clone(), ..options_of(elsewhere) });
    let error = read(&none, &blob, 0..10).await.unwrap_err().to_string();
    assert!(error.contains("docker login") && !error.contains("s3cret"), "{error}");
    let missing = server.source_with(options_of(r#"{"credsStore": "no-such-helper"}"#));
    let error = read(&missing, &blob, 0..10).await.unwrap_err().to_string();
    assert!(error.contains("docker-credential-no-such-helper cannot be run"), "{error}");
}

/// Catches a loop of redirects that never ends, and one that leaves HTTP.
#[tokio::test]
async fn bad_redirects_end() {
    for location in ["/v2/app/blobs/again", "ftp://127.0.0.1/x", "http://[bad", ""] {
        let server = Server::start(move |_, _| Reply::new(302, "").header("Location", location)).await;
        let error = read(&server.source(), b"x", 0..1).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{location}: {error}");
        assert!(server.seen().len() <= 6);
    }
}

/// Catches a registry with a certificate authority of its own that cannot be used, or one that is trusted without it.
#[tokio::test]
async fn tls_needs_the_right_authority() {
    let blob = pattern(1000);
    let content = blob.clone();
    let (server, pem) = Server::start_tls(move |seen, _| Reply::blob(seen, &content)).await;
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let origin = faasnet_api::Origin::Registry {
        base_url: format!("https://{}", server.address),
        repository: "app".into(),
        ranges: true,
    };
    let trusting = SourceOptions { ca_file: Some(ca_file.clone()), ..options() };
    let source = Source::from_origin_with(&origin, &trusting).unwrap();
    assert_eq!(read(&source, &blob, 5..1000).await.unwrap(), blob[5..]);
    let stranger = Source::from_origin_with(&origin, &options()).unwrap();
    let error = read(&stranger, &blob, 0..10).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }) && error.to_string().contains("FAASNET_CA_FILE"), "{error}");
    std::fs::write(&ca_file, "no certificate").unwrap();
    assert!(matches!(Source::from_origin_with(&origin, &trusting), Err(Error::Setting(_))));
}

/// Catches a password or a redirect that leaves TLS, and TLS towards a server that speaks none.
#[tokio::test]
async fn nothing_leaves_tls() {
    let plain = Server::start(|_, _| Reply::new(200, "0123456789")).await;
    let target: Arc<OnceLock<String>> = Arc::default();
    target.set(format!("http://{}/x", plain.address)).unwrap();
    let location = target.clone();
    let (server, pem) = Server::start_tls(move |seen, _| match seen.path.contains("manifests") {
        true => bearer(location.get().unwrap()),
        false => Reply::new(302, "").header("Location", location.get().unwrap().clone()),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let origin = |address| faasnet_api::Origin::Registry {
        base_url: format!("https://{address}"),
        repository: "app".into(),
        ranges: true,
    };
    let login = options_with_login(&folder, &server.address.to_string());
    let source =
        Source::from_origin_with(&origin(server.address), &SourceOptions { ca_file: Some(ca_file), ..login }).unwrap();
    assert!(matches!(read(&source, b"x", 0..1).await, Err(Error::Protocol { .. })));
    assert!(matches!(source.manifest(Some(&Target::Tag("v1".into()))).await, Err(Error::Protocol { .. })));
    assert_eq!(plain.seen(), []);
    // Servers without TLS answer a handshake with 400.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = stream.read_u8().await;
        }
    });
    let source = Source::from_origin_with(&origin(address), &options()).unwrap();
    let error = read(&source, b"x", 0..1).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }) && error.to_string().contains("plain HTTP"), "{error}");
}

/// Catches a layout that is read differently from a registry.
#[tokio::test]
async fn layouts_are_read_like_registries() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let blob = pattern(3 << 20);
    let document = br#"{"schemaVersion": 2, "manifests": []}"#;
    std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    for bytes in [&blob[..], document] {
        std::fs::write(path.join("blobs/sha256").join(&faasnet_origin::digest::of(bytes)[7..]), bytes).unwrap();
    }
    let parse = || Source::open(&Reference::parse(path.to_str().unwrap()).unwrap(), &options());
    assert!(matches!(parse(), Err(Error::Layout { .. })));
    std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let source = parse().unwrap();
    assert!(matches!(source.manifest(None).await, Err(Error::NotFound { .. })));
    let link = |tag: &str| {
        format!(
            r#"{{"mediaType": "m+json", "digest": "{}", "size": 1, "annotations": {{"org.opencontainers.image.ref.name": "{tag}"}}}}"#,
            faasnet_origin::digest::of(document)
        )
    };
    let index = |links: &[String]| {
        std::fs::write(
            path.join("index.json"),
            format!(r#"{{"schemaVersion": 2, "manifests": [{}]}}"#, links.join(",")),
        )
        .unwrap();
    };
    index(&[link("v1")]);
    let tag = |tag: &str| Some(Target::Tag(tag.into()));
    assert_eq!(source.manifest(None).await.unwrap().bytes, &document[..]);
    assert!(source.manifest(tag("v1").as_ref()).await.is_ok());
    assert!(matches!(source.manifest(tag("v2").as_ref()).await, Err(Error::NotFound { .. })));
    index(&[link("v1"), link("docker.io/library/x:v2")]);
    assert!(source.manifest(tag("v2").as_ref()).await.is_ok());
    let error = source.manifest(None).await.unwrap_err().to_string();
    assert!(error.contains("v1, docker.io/library/x:v2"), "{error}");
    assert_eq!(read(&source, &blob, 0..3 << 20).await.unwrap(), blob);
    assert_eq!(read(&source, &blob, 100..200).await.unwrap(), blob[100..200]);
    assert_eq!(read(&source, &blob, 5..5).await.unwrap(), b"");
    assert!(matches!(read(&source, &blob, 0..(3 << 20) + 1).await, Err(Error::Layout { .. })));
    assert!(matches!(read(&source, b"none", 0..4).await, Err(Error::NotFound { .. })));
}

/// Catches a password of the controller that crosses a network without TLS, to the registry or to the realm that it names, and one that is not
/// even used on this host.
#[tokio::test]
async fn given_passwords_do_not_go_over_plain_http() {
    let blob = pattern(10);
    let given = Credentials { username: "me".into(), password: "s3cret".into() };
    let options = || SourceOptions { login: Some(given.clone()), ..options() };
    let content = blob.clone();
    let server = Server::start(move |seen, _| match seen.authorization.as_deref() {
        Some(BASIC) => Reply::blob(seen, &content),
        _ => Reply::new(401, "").header("WWW-Authenticate", r#"Basic realm="r""#),
    });
    let server = server.await;
    assert_eq!(read(&server.source_with(options()), &blob, 0..10).await.unwrap(), blob);
    // This host too, but by an address that is not known as its own.
    let elsewhere = format!("0.0.0.0:{}", server.address.port());
    let plain = SourceOptions { plain_http: true, ..options() };
    let source = Source::open(&Reference::parse(&format!("{elsewhere}/app:v1")).unwrap(), &plain).unwrap();
    let error = read(&source, &blob, 0..10).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }) && error.to_string().contains("plain HTTP"), "{error}");
    // What the operator wrote down here is used all the same.
    let folder = tempfile::tempdir().unwrap();
    let own = SourceOptions { plain_http: true, ..options_with_login(&folder, &elsewhere) };
    let source = Source::open(&Reference::parse(&format!("{elsewhere}/app:v1")).unwrap(), &own).unwrap();
    assert_eq!(read(&source, &blob, 0..10).await.unwrap(), blob);

    let realm = Server::start(|_, _| Reply::new(200, r#"{"token": "t"}"#)).await;
    let named = format!("http://0.0.0.0:{}/token", realm.address.port());
    let server = Server::start(move |_, _| bearer(&named)).await;
    let error = read(&server.source_with(options()), &blob, 0..10).await.unwrap_err();
    assert!(error.to_string().contains("plain HTTP") && realm.seen().is_empty(), "{error}");
}
