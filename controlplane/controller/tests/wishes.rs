//! Images that runtimes ask for and that no function has, over real gRPC, with a registry that only counts. Who reads them, and who is believed.

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

/// A registry with one image, which agents are to read.
struct OneImage;

const MANIFEST: &str = r#"{"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 10,
    "digest": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}, "layers": []}"#;

fn honest(reference: &str) -> DescriptorParts {
    DescriptorParts {
        block_bytes: BLOCK_BYTES,
        reference: reference.into(),
        origin: Origin::Registry { base_url: "https://r.example".into(), repository: "app".into(), ranges: true },
        manifest_media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        manifest_digest: faasnet_origin::digest::of(MANIFEST.as_bytes()),
        manifest: MANIFEST.into(),
        entries: vec![Entry {
            digest: format!("sha256:{}", "a".repeat(64)),
            media_type: "application/vnd.oci.image.config.v1+json".into(),
            len: 10,
        }],
        blocks: vec![BlockDigest::of(b"0123456789")],
    }
}

impl Registrar for OneImage {
    fn register<'a>(&'a self, _: Registration, _: Progress<'a>) -> Registered<'a> {
        Box::pin(async { Err("the controller is not to read it".into()) })
    }

    fn resolve(&self, _: Registration) -> Resolved<'_> {
        Box::pin(async { Ok(faasnet_origin::digest::of(MANIFEST.as_bytes())) })
    }
}

async fn ordered(agent: &mut FakeAgent) -> v1::ReadImage {
    match agent.next().await {
        Some(Command::ReadImage(order)) => order,
        other => panic!("{other:?} instead of an order to read"),
    }
}

async fn bring_up(agent: &FakeAgent, request: u64, parts: DescriptorParts) {
    let bytes = Descriptor::new(parts).unwrap().encode();
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for (part, done) in [(first, false), (second, true)] {
        let descriptor_part = part.to_vec();
        agent.say(Event::ImageRead(v1::ImageRead { request, descriptor_part, done, ..Default::default() })).await;
    }
}

/// Catches an image that two agents read at once, an order that dies with its agent, a descriptor that is believed though it is not that of the
/// image or not from whom it was ordered, and a first holder that is not known to have everything.
#[tokio::test]
async fn one_agent_at_a_time_reads_and_is_checked() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start_with(config(state.path()), Arc::new(OneImage)).await;
    let mut agents = Vec::new();
    for n in 1..=4 {
        let mut agent = FakeAgent::attach(&controller, n).await;
        agent.accepted().await;
        agents.push(agent);
    }
    let reference = "r.example/app:1";
    let wanted = || v1::ImageWanted {
        request: 5,
        reference: reference.into(),
        register: true,
        reads: true,
        ..Default::default()
    };
    // One after the other, so that it is known who gets the order.
    let [mut dies, mut lies, mut honest_one, mut late] = <[FakeAgent; 4]>::try_from(agents).ok().unwrap();
    dies.say(Event::ImageWanted(wanted())).await;
    let order = ordered(&mut dies).await;
    assert_eq!((&*order.reference, &*order.tenant, order.login.is_none()), (reference, "default", true));
    lies.say(Event::ImageWanted(wanted())).await;
    // Another agent's word on it counts nothing: if it did, the image would be registered now.
    bring_up(&lies, order.request, honest(reference)).await;
    drop(dies);
    let order = ordered(&mut lies).await;
    honest_one.say(Event::ImageWanted(wanted())).await;
    let elsewhere =
        Origin::Registry { base_url: "https://evil.example".into(), repository: "app".into(), ranges: true };
    bring_up(&lies, order.request, DescriptorParts { origin: elsewhere, ..honest(reference) }).await;
    assert!(!answer(&mut lies).await.0);
    let order = ordered(&mut honest_one).await;
    lies.say(Event::ImageWanted(wanted())).await;
    bring_up(&honest_one, order.request, honest(reference)).await;
    assert!(answer(&mut honest_one).await.0);
    late.say(Event::ImageWanted(wanted())).await;
    assert!(answer(&mut late).await.0 && answer(&mut lies).await.0, "everybody else joins");
    let functions = controller.control().await.list_functions(v1::ListFunctionsRequest {}).await.unwrap().into_inner();
    let tree = controller.tree(&functions.functions[0].function).await;
    let complete = |node: &v1::NodeProgress| {
        node.progress.as_ref().is_some_and(|progress| progress.state() == v1::FunctionState::Complete)
    };
    let holders: Vec<_> = tree.nodes.iter().filter(|node| complete(node)).map(|node| node.node_id.clone()).collect();
    assert_eq!(holders, [honest_one.id.to_vec()]);
    // What nobody may have, nobody gets: wrong in itself, and remembered.
    late.say(Event::ImageWanted(v1::ImageWanted { reference: "r.example/app:2".into(), ..wanted() })).await;
    let order = ordered(&mut late).await;
    let failure = "blob sha256:… has another digest".to_owned();
    late.say(Event::ImageRead(v1::ImageRead { request: order.request, failure, ..Default::default() })).await;
    assert!(!answer(&mut late).await.0);
    lies.say(Event::ImageWanted(v1::ImageWanted { reference: "r.example/app:2".into(), ..wanted() })).await;
    assert!(!answer(&mut lies).await.0);
    controller.stop().await;
}

/// Catches an order for a node that may have no image, and agents that one after the other try a registry that has just failed one of them.
#[tokio::test]
async fn nobody_is_ordered_in_vain() {
    let state = tempfile::tempdir().unwrap();
    let controller = Running::start_with(config(state.path()), Arc::new(OneImage)).await;
    let mut agents = Vec::new();
    for n in 1..=3 {
        let mut agent = FakeAgent::attach(&controller, n).await;
        agent.accepted().await;
        agents.push(agent);
    }
    let [mut drained, mut first, mut second] = <[FakeAgent; 3]>::try_from(agents).ok().unwrap();
    let drain = v1::DrainRequest { node: "n1".into(), undo: false };
    let mut progress = controller.control().await.drain(drain).await.unwrap().into_inner();
    while progress.message().await.unwrap().is_some() {}
    let wanted = || v1::ImageWanted {
        request: 5,
        reference: "r.example/app:1".into(),
        register: true,
        reads: true,
        ..Default::default()
    };
    drained.say(Event::ImageWanted(wanted())).await;
    assert!(!answer(&mut drained).await.0);
    first.say(Event::ImageWanted(wanted())).await;
    let request = ordered(&mut first).await.request;
    second.say(Event::ImageWanted(wanted())).await;
    let failure = "the registry does not answer".to_owned();
    let read = v1::ImageRead { request, failure, here_only: true, of_origin: true, ..Default::default() };
    first.say(Event::ImageRead(read)).await;
    assert!(!answer(&mut first).await.0 && !answer(&mut second).await.0);
    controller.stop().await;
}
