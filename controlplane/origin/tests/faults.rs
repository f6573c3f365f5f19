//! What registries and networks do to a reader: statuses, cuts, stalls, ranges that are ignored, false bytes.

#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Reply, Server, options, pattern, read};
use faasnet_origin::{Error, Source, Target, digest};

fn tag() -> Option<Target> {
    Some(Target::Tag("v1".into()))
}

/// Catches a failure that passes and is taken for a lasting one, a `Retry-After` that is not obeyed, or tries without end.
#[tokio::test]
async fn passing_failures_are_waited_out() {
    let blob = pattern(1000);
    for status in [500, 502, 503, 504, 429, 408] {
        let content = blob.clone();
        let server = Server::start(move |seen, number| match number {
            0 | 1 => Reply::new(status, ""),
            _ => Reply::blob(seen, &content),
        });
        let server = server.await;
        assert_eq!(read(&server.source(), &blob, 0..1000).await.unwrap(), blob, "{status}");
        assert_eq!(server.seen().len(), 3);
    }
    let content = blob.clone();
    let server = Server::start(move |seen, number| match number {
        0 => Reply::new(429, "").header("Retry-After", "1"),
        _ => Reply::blob(seen, &content),
    });
    let server = server.await;
    let start = Instant::now();
    assert_eq!(read(&server.source(), &blob, 0..1000).await.unwrap(), blob);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let server = Server::start(|_, _| Reply::new(500, "")).await;
    assert!(matches!(read(&server.source(), &blob, 0..1000).await, Err(Error::ServerFailed { status: 500, .. })));
    assert_eq!(server.seen().len(), 4);
}

/// Catches a lasting answer that is asked for again and again, or whose error does not say what is wrong.
#[tokio::test]
async fn lasting_answers_end_at_once() {
    for status in [400, 401, 403, 404, 405, 410, 416, 418] {
        let server = Server::start(move |_, _| Reply::new(status, "")).await;
        let error = read(&server.source(), b"x", 0..1).await.unwrap_err();
        assert!(!error.is_transient(), "{status}: {error}");
        assert_eq!(server.seen().len(), 1, "{status}: {error}");
        match status {
            401 | 403 => {
                assert!(matches!(error, Error::Denied { .. }) && error.to_string().contains("docker login"), "{error}")
            }
            404 | 410 => assert!(matches!(error, Error::NotFound { .. }), "{error}"),
            _ => {}
        }
        assert!(server.source().manifest(tag().as_ref()).await.is_err());
    }
}

/// Catches a cut or stall after which bytes are missing, doubled, or all read again.
#[tokio::test]
async fn cuts_and_stalls_are_resumed_at_the_next_byte() {
    let blob = pattern(500_000);
    let content = blob.clone();
    let server = Server::start(move |seen, number| {
        let reply = Reply::blob(seen, &content);
        match number {
            0 => Reply { cut_after: Some(200_000), ..reply },
            1 => Reply { stall_after: Some(100_000), ..reply },
            _ => reply,
        }
    });
    let server = server.await;
    assert_eq!(read(&server.source(), &blob, 1000..500_000).await.unwrap(), blob[1000..]);
    let starts: Vec<u64> = server.seen().iter().map(|seen| seen.range.clone().unwrap().start).collect();
    assert_eq!(starts, [1000, 201_000, 301_000]);
}

/// Catches an end without an error when an answer says less than it promised, or when a server cuts each answer for ever.
#[tokio::test]
async fn endless_cuts_are_given_up() {
    let blob = pattern(100_000);
    let content = blob.clone();
    let server = Server::start(move |seen, _| Reply { cut_after: Some(10), ..Reply::blob(seen, &content) }).await;
    assert!(matches!(read(&server.source(), &blob, 0..100_000).await, Err(Error::Cut { .. })));
    assert_eq!(server.seen().len(), 4);
    let stalling = Server::start(|_, _| Reply { stall_after: Some(0), ..Reply::new(200, "xx") }).await;
    let error = read(&stalling.source(), &blob, 0..2).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
}

/// Catches the wrong bytes taken from a server without ranges: its first bytes in place of the wanted ones.
#[tokio::test]
async fn ignored_ranges_are_noticed() {
    let blob = pattern(300_000);
    let start = || {
        let content = blob.clone();
        Server::start(move |_, number| match number {
            0 => Reply { cut_after: Some(100_000), ..Reply::new(200, &*content) },
            _ => Reply::new(200, &*content),
        })
    };
    // A reader of an unknown origin skips.
    let server = start().await;
    assert_eq!(read(&server.source(), &blob, 0..300_000).await.unwrap(), blob);
    assert!(!server.source().probe_ranges(&digest::of(&blob), 300_000).await.unwrap());
    // One that was told that there are ranges fails rather than reading everything for each part.
    let server = start().await;
    let origin = |ranges| server.source().to_origin(ranges);
    let told = Source::from_origin_with(&origin(true), &options()).unwrap();
    assert!(matches!(read(&told, &blob, 50_000..60_000).await, Err(Error::NoRanges { .. })));
    let told = Source::from_origin_with(&origin(false), &options()).unwrap();
    assert_eq!(read(&told, &blob, 50_000..60_000).await.unwrap(), blob[50_000..60_000]);
}

/// Catches a part that lies elsewhere than the one that was asked for.
#[tokio::test]
async fn a_wrong_content_range_is_refused() {
    for content_range in ["bytes 0-9/100", "bytes 10-15/100", "bytes */100", "rubbish", ""] {
        let server =
            Server::start(move |_, _| Reply::new(206, "0123456789").header("Content-Range", content_range)).await;
        let error = read(&server.source(), &pattern(100), 10..20).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{content_range}: {error}");
    }
    let blob = pattern(100);
    let server = Server::start(move |seen, _| Reply::blob(seen, &pattern(100))).await;
    assert!(server.source().probe_ranges(&digest::of(&blob), 100).await.unwrap());
}

/// Catches a manifest that is not the one that was named, or one that fills the memory.
#[tokio::test]
async fn manifests_are_checked_and_bounded() {
    let body = br#"{"schemaVersion": 2}"#;
    let server = Server::start(|_, _| {
        Reply::new(200, &body[..]).header("Content-Type", "application/vnd.oci.image.manifest.v1+json; charset=utf-8")
    });
    let server = server.await;
    let manifest = server.source().manifest(tag().as_ref()).await.unwrap();
    assert_eq!(
        (&*manifest.digest, &*manifest.media_type),
        (&*digest::of(body), faasnet_origin::manifest::OCI_MANIFEST)
    );
    let right = Target::Digest(digest::of(body));
    assert_eq!(server.source().manifest(Some(&right)).await.unwrap(), manifest);
    let wrong = Target::Digest(digest::of(b"other"));
    assert!(matches!(server.source().manifest(Some(&wrong)).await, Err(Error::FalseDigest { .. })));
    assert_eq!(server.source().resolve(tag().as_ref()).await.unwrap(), manifest.digest);
    let lying =
        Server::start(|_, _| Reply::new(200, &body[..]).header("Docker-Content-Digest", digest::of(b"other"))).await;
    assert!(matches!(lying.source().manifest(tag().as_ref()).await, Err(Error::FalseDigest { .. })));
    let large = Server::start(|_, _| Reply::new(200, vec![b' '; 5 << 20])).await;
    assert!(matches!(large.source().manifest(tag().as_ref()).await, Err(Error::TooLarge { .. })));
}

/// Catches an unreachable registry whose error does not say so.
#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reference = faasnet_origin::Reference::parse(&format!("{address}/app")).unwrap();
    let source = Source::open(&reference, &options()).unwrap();
    let error = source.manifest(tag().as_ref()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_transient(), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}
