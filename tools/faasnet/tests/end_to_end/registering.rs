//! Images that no function has, pulled through mirrors that register them: the first agent reads, everybody else receives.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use faasnet::registry::RegistryOptions;
use faasnet_api::v1;
use faasnet_origin::digest;
use faasnet_origin::manifest::Document;
use reqwest::{Response, StatusCode};

use crate::common::{DEADLINE, Lab, MIB, noise};

const REGISTERS: [&str; 2] = ["--mirror-on-miss", "register"];
/// Who is not the first is sent on before the image has been read.
const HASTY: [&str; 4] = ["--mirror-on-miss", "register", "--mirror-register-wait-ms", "1200"];
/// For those who wait until somebody else has read it.
const PATIENT: [&str; 4] = ["--mirror-on-miss", "register", "--mirror-register-wait-ms", "60000"];

/// What a runtime asks of the mirror of agent `index`.
pub(crate) async fn ask(lab: &Lab, index: usize, registry: SocketAddr, path: &str) -> Response {
    let mirror = lab.cluster.agents[index].address("mirror");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    http.get(format!("http://{mirror}/v2/{path}?ns={registry}")).timeout(DEADLINE).send().await.unwrap()
}

/// Pulls `image` as a runtime does, every digest checked; the bytes that came.
pub(crate) async fn pull(lab: &Lab, index: usize, image: &str) -> u64 {
    let registry = lab.registry.local_addr();
    let answer = ask(lab, index, registry, &format!("{image}/manifests/latest")).await;
    let status = answer.status();
    let manifest = answer.bytes().await.unwrap();
    assert_eq!(status, StatusCode::OK, "n{}: {}", index + 1, String::from_utf8_lossy(&manifest));
    let Ok(Document::Image(manifest)) = Document::parse(&manifest) else { panic!("no image") };
    let mut bytes = 0;
    for link in manifest.layers.iter().chain([&manifest.config]) {
        let answer = ask(lab, index, registry, &format!("{image}/blobs/{}", link.digest)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let blob = answer.bytes().await.unwrap();
        assert_eq!(digest::of(&blob), link.digest);
        bytes += blob.len() as u64;
    }
    bytes
}

/// What lies in a store beside whole images.
fn leftovers(store: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(store.join("images")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with('.')).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "{what} never came");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn functions(lab: &Lab) -> usize {
    let mut control = lab.cluster.control().await.unwrap();
    control.list_functions(v1::ListFunctionsRequest {}).await.unwrap().into_inner().functions.len()
}

/// Catches an origin that is read twice, once to register an image and once by its roots; wrong bytes at whoever joins; a first runtime that
/// waits for the whole image before it gets any of it, or that is sent to the registry though the image is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_is_read_once() {
    let layers = vec![noise(1, 8 * MIB), noise(2, 2 * MIB + 77), vec![]];
    let options = RegistryOptions { rate: Some(4 * MIB), ..RegistryOptions::default() };
    let lab = Lab::start_with(4, &[("app", layers)], options, &HASTY).await;
    let registry = lab.registry.local_addr();
    let wishes = (0..4).map(|index| ask(&lab, index, registry, "app/manifests/latest"));
    let answers = futures_util::future::join_all(wishes).await;
    let statuses: Vec<_> = answers.iter().map(Response::status).collect();
    let first = statuses.iter().position(|status| *status == StatusCode::OK).expect("one of them reads it");
    assert!(statuses.iter().all(|status| [StatusCode::OK, StatusCode::NOT_FOUND].contains(status)), "{statuses:?}");
    assert_eq!(functions(&lab).await, 0, "its manifest was given out before its bytes were here");
    assert!(pull(&lab, first, "app").await > 10 * MIB);
    // By now it is known, or all but: everybody joins.
    let begun = Instant::now();
    while functions(&lab).await == 0 {
        assert!(begun.elapsed() < DEADLINE, "the image is never registered");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pulls = (0..4).map(|index| pull(&lab, index, "app"));
    let pulled = futures_util::future::join_all(pulls).await;
    assert!(pulled.iter().all(|bytes| *bytes == pulled[0] && *bytes > 10 * MIB), "{pulled:?}");
    let sent = lab.origin_bytes();
    // Whether the registry honours ranges is asked with one byte.
    assert!(sent <= pulled[0] + 64, "the origin sent {sent} of {}", pulled[0]);
    assert!((0..4).all(|index| leftovers(&lab.cluster.store(index)).is_empty()));
}

/// Catches an image that nobody can have when the agent that reads it dies, and the file that it leaves behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_reader_is_replaced() {
    let options = RegistryOptions { rate: Some(4 * MIB), ..RegistryOptions::default() };
    let mut lab = Lab::start_with(2, &[("app", vec![noise(3, 8 * MIB)])], options, &PATIENT).await;
    let (registry, mirror) = (lab.registry.local_addr(), lab.cluster.agents[0].address("mirror"));
    let first = tokio::spawn(async move {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let get = |path: String| http.get(format!("http://{mirror}/v2/app/{path}?ns={registry}")).send();
        let manifest = get("manifests/latest".into()).await.unwrap().bytes().await.unwrap();
        let Ok(Document::Image(manifest)) = Document::parse(&manifest) else { panic!("no image") };
        get(format!("blobs/{}", manifest.layers[0].digest)).await
    });
    until("the first agent's reading", || lab.origin_bytes() > MIB).await;
    assert_eq!(leftovers(&lab.cluster.store(0)).len(), 1);
    let wish = ask(&lab, 1, registry, "app/manifests/latest");
    let kill = async {
        // Whether the other one has asked by then makes no difference to what must come of it.
        until("more of it", || lab.origin_bytes() > 2 * MIB).await;
        let pid = lab.cluster.agents[0].pid().unwrap();
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    };
    let (answer, ()) = tokio::join!(wish, kill);
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(first.await.unwrap().is_err(), "its runtime sees a cut connection and goes to the registry");
    assert!(pull(&lab, 1, "app").await > 8 * MIB);
    lab.cluster.agents[0].kill().await.unwrap();
    lab.cluster.restart_agent(0).await.unwrap();
    assert!(leftovers(&lab.cluster.store(0)).is_empty(), "a start removes what a killed agent left");
    assert!(pull(&lab, 0, "app").await > 8 * MIB);
}

/// Catches bytes that are not the image's and are given out or registered all the same; a registry that is away and keeps a runtime from
/// going there itself; and a refusal that nobody can explain.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_registered_is_refused_with_a_reason() {
    let lab = Lab::start_with(1, &[("app", vec![noise(4, MIB)])], RegistryOptions::default(), &REGISTERS).await;
    let blobs = lab.dir.path().join("layout-app/blobs/sha256");
    let files = fs::read_dir(blobs).unwrap().map(|entry| entry.unwrap().path());
    let layer = files.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&layer).unwrap();
    bytes[MIB as usize / 2] ^= 1;
    fs::write(&layer, bytes).unwrap();
    // The manifest is right; of the layer nothing is given out, and nothing is registered.
    let registry = lab.registry.local_addr();
    let answer = ask(&lab, 0, registry, "app/manifests/latest").await;
    let status = answer.status();
    let manifest = answer.bytes().await.unwrap();
    if status == StatusCode::OK {
        let Ok(Document::Image(manifest)) = Document::parse(&manifest) else { panic!("no image") };
        let blob = ask(&lab, 0, registry, &format!("app/blobs/{}", manifest.layers[0].digest)).await;
        assert_eq!(blob.status(), StatusCode::NOT_FOUND);
    }
    // Remembered: it is not read again, and the reason is told.
    let answer = ask(&lab, 0, registry, "app/manifests/latest").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let reason = answer.text().await.unwrap();
    assert!(reason.contains("sha256:"), "{reason}");
    assert_eq!(functions(&lab).await, 0);
    assert!(leftovers(&lab.cluster.store(0)).is_empty());
    // Nobody listens there.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let answer = ask(&lab, 0, closed, "app/manifests/latest").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(begun.elapsed() < Duration::from_secs(4), "the runtime waited for {:?}", begun.elapsed());
    let log = lab.cluster.controller.log().to_owned();
    until("the reason in the log", || fs::read_to_string(&log).unwrap().contains(&closed.to_string())).await;
}
