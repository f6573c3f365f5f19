//! Images that runtimes ask for and that no function has, over real gRPC, with a registry that only counts.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use faasnet_api::descriptor::DescriptorParts;
use faasnet_api::v1::command::Command;
use faasnet_api::v1::event::Event;
use faasnet_api::{BLOCK_BYTES, BlockDigest, Descriptor, Entry, Origin, v1};
use faasnet_controller::{Config, Progress, Registered, Registrar, Registration, Resolved};
use support::{FakeAgent, Running, config};

/// A registry whose tag means another image whenever `moved` rises; an image is what it means.
#[derive(Default)]
struct Counting {
    registered: AtomicU32,
    resolved: AtomicU32,
    moved: AtomicU32,
}

impl Counting {
    fn digest(&self) -> String {
        format!("sha256:{:064x}", self.moved.load(Ordering::SeqCst))
    }

    /// Registrations and resolutions.
    fn counted(&self) -> (u32, u32) {
        (self.registered.load(Ordering::SeqCst), self.resolved.load(Ordering::SeqCst))
    }
}

impl Registrar for Counting {
    fn register<'a>(&'a self, registration: Registration, _: Progress<'a>) -> Registered<'a> {
        Box::pin(async move {
            self.registered.fetch_add(1, Ordering::SeqCst);
            // Long enough for others to ask meanwhile.
            tokio::time::sleep(Duration::from_millis(50)).await;
            if registration.reference.contains("missing") {
                return Err("there is no such image".into());
            }
            let parts = DescriptorParts {
                block_bytes: BLOCK_BYTES,
                reference: registration.reference,
                origin: Origin::Registry {
                    base_url: "https://r.example".into(),
                    repository: "app".into(),
                    ranges: true,
                },
                manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
                manifest_digest: self.digest(),
                manifest: b"{}".to_vec(),
                entries: vec![Entry { digest: format!("sha256:{}", "a".repeat(64)), media_type: "m".into(), len: 10 }],
                blocks: vec![BlockDigest::of(b"0123456789")],
            };
            Descriptor::new(parts).map_err(|error| error.to_string())
        })
    }

    fn resolve(&self, _: Registration) -> Resolved<'_> {
        self.resolved.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(self.digest()) })
    }
}

async fn wish(agent: &FakeAgent, reference: &str, register: bool) {
    let wanted = v1::ImageWanted { request: 5, reference: reference.into(), register, ..Default::default() };
    agent.say(Event::ImageWanted(wanted)).await;
}

/// The answer, and the image of the last assignment before it.
async fn answer(agent: &mut FakeAgent) -> (bool, Vec<u8>) {
    let mut image = Vec::new();
    loop {
        match agent.next().await.expect("no answer") {
            Command::ImageAnswer(answer) => {
                assert_eq!((answer.request, answer.function_id.is_empty()), (5, !answer.reason.is_empty()));
                return (!answer.function_id.is_empty(), image);
            }
            Command::Assign(assign) => image = assign.image_id,
            other => panic!("{other:?}"),
        }
    }
}

/// Catches an image that is read more than once however many ask, one that is read though nobody wants it registered, a tag that is
/// resolved more often than it should or never again, and a failure that is repeated at every wish.
#[tokio::test]
async fn a_wish_is_fulfilled_once() {
    let state = tempfile::tempdir().unwrap();
    let registry = Arc::new(Counting::default());
    let tag_ttl_ms = 3_600_000;
    let settings = Config { tag_ttl_ms, ..config(state.path()) };
    let controller = Running::start_with(settings.clone(), registry.clone()).await;
    let mut agents = Vec::new();
    for n in 1..=3 {
        let mut agent = FakeAgent::attach(&controller, n).await;
        agent.accepted().await;
        agents.push(agent);
    }
    wish(&agents[0], "r.example/app:1", false).await;
    assert!(!answer(&mut agents[0]).await.0);
    assert_eq!(registry.counted(), (0, 0));
    for agent in &agents {
        wish(agent, "r.example/app:1", true).await;
    }
    for agent in &mut agents {
        let (found, image) = answer(agent).await;
        assert!(found && !image.is_empty(), "everybody joins");
    }
    assert_eq!(registry.counted(), (1, 0));
    // Within its time a tag means what it meant; a digest means that for ever.
    registry.moved.fetch_add(1, Ordering::SeqCst);
    for reference in ["r.example/app:1".to_owned(), format!("r.example/app@sha256:{:064x}", 0)] {
        wish(&agents[0], &reference, true).await;
        assert!(answer(&mut agents[0]).await.0);
        assert_eq!(registry.counted(), (1, 0), "{reference}");
    }
    for _ in 0..2 {
        wish(&agents[1], "r.example/missing:1", true).await;
        assert!(!answer(&mut agents[1]).await.0);
    }
    assert_eq!(registry.counted(), (2, 0), "what failed is not tried at every wish");
    drop(agents);
    controller.stop().await;

    // Another start knows the function, and looks whether the tag has moved: it has.
    let controller = Running::start_with(settings, registry.clone()).await;
    let mut agent = FakeAgent::attach(&controller, 1).await;
    agent.accepted().await;
    wish(&agent, "r.example/app:1", true).await;
    let mut images = Vec::new();
    while images.len() < 2 {
        match agent.next().await.expect("no plan") {
            Command::Assign(assign) => {
                images.push(assign.image_id);
                images.dedup();
            }
            Command::ImageAnswer(answer) => assert!(!answer.function_id.is_empty(), "{}", answer.reason),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(registry.counted(), (3, 1));
    controller.stop().await;
}
