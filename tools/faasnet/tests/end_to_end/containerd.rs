//! Debian's containerd, runc and skopeo against the mirror of each host. As root; without root or a program it says loudly what is skipped.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{DEADLINE, MIB, said_loudly};
use crate::image_forms::Forms;
use crate::installed;
use crate::lab::root;
use crate::runtime_hosts::{EXPIRING, FIRST_REGISTERING, LOGIN, PRIVATE, RuntimeHosts, said};

const HOSTS: usize = 4;
/// Bytes that no compression makes less, in the images that are disturbed while they arrive.
const BIG: u64 = 16 * MIB;
/// A link carries one of those in about two seconds.
const RATE: &str = "80mbit";
/// The host that wants what its agent may not read.
const DENIED: usize = 2;

fn installed() -> bool {
    let missing: Vec<_> = ["containerd", "ctr", "runc", "skopeo", "busybox"]
        .into_iter()
        .filter(|program| Command::new(program).arg("--help").output().is_err())
        .collect();
    if !missing.is_empty() {
        said_loudly(&format!("{missing:?} are not installed; get them with `sudo tools/check packages`"));
    }
    missing.is_empty()
}

/// Catches a runtime that does not get an image through the mirror, gets other bytes, or makes the origin be read more than once; one that
/// does not get over an agent, a parent or a disk that fails in the middle of a pull; and a form of image that the mirror does not serve.
#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::await_holding_lock, reason = "labs run one at a time; this test has a runtime of its own")]
async fn unmodified_runtimes_pull_through_the_mirror() {
    let Some(_alone) = root() else { return };
    if !installed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let forms = Forms::new(dir.path());
    for (seed, tag) in ["burst", "killed"].into_iter().enumerate() {
        forms.plain(tag, seed as u64 + 1, BIG);
    }
    forms.plain("expiring", 3, BIG / 2);
    for (seed, tag) in ["unregistered", "private", "denied"].into_iter().enumerate() {
        forms.plain(tag, seed as u64 + 100, 1000);
    }
    forms.plain("small", 9, 100_000);
    forms.plain("wished", 10, MIB);
    forms.schema2("small", "schema2");
    forms.index("small", "index");
    forms.zstd("small", "zstd");
    forms.sixty("sixty");
    let mut hosts = RuntimeHosts::start(HOSTS, RATE, &forms.layout()).await;
    let step = |what: &str, begun: Instant| println!("{what}: {:?}", begun.elapsed());
    let begun = Instant::now();
    all_at_once(&hosts, &forms);
    step("all at once", begun);
    a_parent_dies(&mut hosts, &forms).await;
    step("a parent dies", begun);
    disk_is_damaged(&hosts);
    step("a disk is damaged", begun);
    every_form(&hosts, &forms);
    step("every form", begun);
    copied_byte_by_byte(&hosts, &forms);
    step("skopeo", begun);
    a_miss_is_registered(&hosts, &forms);
    step("a miss", begun);
    a_wrong_password(&hosts);
    step("a wrong password", begun);
    // The controller has read it, and the agents may not. It takes a while until that is certain.
    hosts.create_of("denied", &hosts.image_at(PRIVATE, "denied"));
    let nobodys = hosts.pull_from(PRIVATE, DENIED, "denied", &[]).spawn().unwrap();
    tokens_that_expire(&hosts, &forms);
    step("tokens that expire", begun);
    installed::podman(&hosts, &forms);
    step("podman", begun);
    installed::docker(&hosts, &forms);
    step("docker", begun);
    nobody_may_read(&hosts, nobodys);
    step("nobody may read", begun);
}

/// All hosts at the same moment, and nobody provisioned anything: the mirrors join.
fn all_at_once(hosts: &RuntimeHosts, forms: &Forms) {
    hosts.create("burst");
    let before = hosts.origin_bytes();
    let pulls: Vec<Child> = (0..HOSTS).map(|index| hosts.pull(index, "burst").spawn().unwrap()).collect();
    for (index, pull) in pulls.into_iter().enumerate() {
        said(&format!("pull on host {index}"), pull.wait_with_output().unwrap());
    }
    let (sent, image) = (hosts.origin_bytes() - before, forms.blob_bytes("burst"));
    // Nobody provisioned these hosts together: who joins first reads both stripes, and gives one up to a later one in the middle of a read.
    let in_flight = 2 * MIB;
    assert!(sent <= image + image / 50 + in_flight, "the origin sent {sent} bytes of an image of {image}");
    for index in 0..HOSTS {
        assert_eq!(hosts.run(index, "burst", &["/bin/cat", "/greeting"]), "hello from burst\n");
        assert!(hosts.metric(index, "faasnet_mirror_bytes_total") >= image, "host {index} pulled past its mirror");
        assert_eq!(hosts.metric(index, "faasnet_mirror_cut_total"), 0);
    }
    // A runtime that knows the image by its digest only, and one that asks for what no function has.
    said("an unknown image", hosts.pull(0, "unregistered").output().unwrap());
    assert_eq!(hosts.run(0, "unregistered", &["/bin/cat", "/greeting"]), "hello from unregistered\n");
    assert!(hosts.metric(0, "faasnet_mirror_refused_total") > 0);
}

/// An agent is killed in the middle of a pull, while it feeds another: its runtime goes on at the registry, the others' through their
/// mirrors, with the bytes that are still missing from somebody else.
async fn a_parent_dies(hosts: &mut RuntimeHosts, forms: &Forms) {
    hosts.create("killed");
    let already: Vec<u64> = (0..HOSTS).map(|index| hosts.metric(index, "faasnet_mirror_bytes_total")).collect();
    let nodes: Vec<String> = (0..HOSTS).map(|index| hosts.node_id(index)).collect();
    let pulls: Vec<Child> = (0..HOSTS).map(|index| hosts.pull(index, "killed").spawn().unwrap()).collect();
    let begun = Instant::now();
    let (victim, child) = loop {
        assert!(begun.elapsed() < DEADLINE, "nobody receives from anybody");
        let under_way = |index: &usize| hosts.metric(*index, "faasnet_mirror_bytes_total") > already[*index] + BIG / 8;
        if let Some(found) =
            (0..HOSTS).filter(under_way).find_map(|child| Some((parent_of(hosts, child, &nodes)?, child)))
        {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    hosts.agents[victim].kill().await.unwrap();
    let state = hosts.state(child, "killed").unwrap();
    assert_eq!(state["state"], "fetching", "the parent died too late: {state}");
    let sha256 = format!("{}  /big\n", &forms.big_digest("killed")["sha256:".len()..]);
    for (index, pull) in pulls.into_iter().enumerate() {
        said(&format!("pull on host {index}, after the agent of host {victim} died"), pull.wait_with_output().unwrap());
        assert_eq!(hosts.run(index, "killed", &["/bin/sha256sum", "/big"]), sha256);
    }
    for (index, already) in already.into_iter().enumerate().filter(|(index, _)| *index != victim) {
        let sent = hosts.metric(index, "faasnet_mirror_bytes_total") - already;
        assert!(sent >= BIG, "host {index} got only {sent} bytes through its mirror");
        assert_eq!(hosts.metric(index, "faasnet_mirror_cut_total"), 0, "host {index}'s mirror cut a response");
    }
    let state = hosts.state(child, "killed").unwrap();
    assert!(state["edges_failed"].as_u64().unwrap() > 0, "the child lost nobody: {state}");
    hosts.restart_agent(victim).await;
}

/// The host whose agent feeds that of `child`, which does not have all yet.
fn parent_of(hosts: &RuntimeHosts, child: usize, nodes: &[String]) -> Option<usize> {
    let state = hosts.state(child, "killed").filter(|state| state["state"] == "fetching")?;
    let upstreams = state["upstreams"].as_array()?;
    let feeding = upstreams.iter().filter(|upstream| upstream["bytes"].as_u64() > Some(0));
    feeding.filter_map(|upstream| nodes.iter().position(|node| upstream["node_id"] == **node)).next()
}

/// Bytes on the disk change under a complete image: the mirror notices, the runtime goes to the registry.
fn disk_is_damaged(hosts: &RuntimeHosts) {
    let index = HOSTS - 1;
    let mut damaged = 0;
    for data in files_below(&hosts.store(index)).into_iter().filter(|path| fs::metadata(path).unwrap().len() > BIG) {
        let mut file = fs::File::options().read(true).write(true).open(&data).unwrap();
        let mut byte = [0];
        file.seek(SeekFrom::Start(BIG / 2)).unwrap();
        file.read_exact(&mut byte).unwrap();
        file.seek(SeekFrom::Start(BIG / 2)).unwrap();
        file.write_all(&[!byte[0]]).unwrap();
        damaged += 1;
    }
    assert!(damaged >= 2, "the store's files were not found");
    said("rm", hosts.ctr(index, &["images", "rm", "--sync", &hosts.image("burst")]).output().unwrap());
    said("pull over a damaged disk", hosts.pull(index, "burst").output().unwrap());
    assert_eq!(hosts.run(index, "burst", &["/bin/cat", "/greeting"]), "hello from burst\n");
    assert!(hosts.metric(index, "faasnet_mirror_damaged_total") > 0, "nobody noticed");
}

fn every_form(hosts: &RuntimeHosts, forms: &Forms) {
    for tag in ["schema2", "index", "zstd", "sixty"] {
        hosts.create(tag);
        let (sent, refused) =
            (hosts.metric(1, "faasnet_mirror_bytes_total"), hosts.metric(1, "faasnet_mirror_refused_total"));
        said(tag, hosts.pull(1, tag).output().unwrap());
        assert_eq!(hosts.metric(1, "faasnet_mirror_refused_total"), refused, "{tag}");
        let bytes = hosts.metric(1, "faasnet_mirror_bytes_total") - sent;
        let output = match tag {
            "sixty" => hosts.run(1, tag, &["/bin/ls", "/file56"]),
            _ => hosts.run(1, tag, &["/bin/cat", "/greeting"]),
        };
        assert_eq!(output, if tag == "sixty" { "/file56\n" } else { "hello from small\n" }, "{tag}");
        // Layers that another form brought are on the host already.
        let most = if tag == "index" { forms.blob_bytes("small") } else { forms.blob_bytes(tag) };
        assert!(bytes <= most, "{tag}: {bytes} of {most}");
    }
}

/// skopeo asks by the first path element and takes nothing that does not have its digest; manifest and blobs are compared besides.
fn copied_byte_by_byte(hosts: &RuntimeHosts, forms: &Forms) {
    let out = hosts.path("copied");
    let mut skopeo = hosts.on(2, "skopeo");
    skopeo.args(["--insecure-policy", "copy", "--src-tls-verify=false", "--preserve-digests"]);
    skopeo.arg(format!("docker://127.0.0.1:7412/{}", hosts.image("burst"))).arg(format!("dir:{}", out.display()));
    said("skopeo copy", skopeo.output().unwrap());
    let manifest = fs::read(out.join("manifest.json")).unwrap();
    assert!(manifest == forms.manifest("burst"), "{}", String::from_utf8_lossy(&manifest));
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for link in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let digest = link["digest"].as_str().unwrap();
        let copied = fs::read(out.join(digest.trim_start_matches("sha256:"))).unwrap();
        assert!(copied == fs::read(forms.blob(digest)).unwrap(), "{digest} differs");
    }
}

/// Two runtimes ask for what no function has, at the same moment; later the tag means something else.
fn a_miss_is_registered(hosts: &RuntimeHosts, forms: &Forms) {
    let (before, image) = (hosts.origin_bytes(), forms.blob_bytes("wished"));
    let sent = |index: usize| hosts.metric(index, "faasnet_mirror_bytes_total");
    let asked: Vec<_> = (FIRST_REGISTERING..HOSTS).map(|index| (index, sent(index))).collect();
    let pulls: Vec<_> = asked.iter().map(|(index, _)| hosts.pull(*index, "wished").spawn().unwrap()).collect();
    for (pull, (index, already)) in pulls.into_iter().zip(asked) {
        said("a pull of what no function has", pull.wait_with_output().unwrap());
        assert_eq!(hosts.run(index, "wished", &["/bin/cat", "/greeting"]), "hello from wished\n");
        let came = sent(index) - already;
        assert!(
            came >= MIB,
            "host {index} went to the registry, {came} bytes came; its agent says {}",
            hosts.log(index)
        );
    }
    let read = hosts.origin_bytes() - before;
    assert!(read as f64 <= 1.05 * image as f64, "the registry sent {read} bytes of an image of {image}");
    forms.move_tag("wished", "small");
    let begun = Instant::now();
    loop {
        said("a pull of a tag that moved", hosts.pull(FIRST_REGISTERING, "wished").output().unwrap());
        if hosts.run(FIRST_REGISTERING, "wished", &["/bin/cat", "/greeting"]) == "hello from small\n" {
            break;
        }
        assert!(begun.elapsed() < DEADLINE, "the tag is not looked up again");
    }
}

/// The runtime's password is wrong: the registry's word reaches the user, and the right one is all that is missing.
fn a_wrong_password(hosts: &RuntimeHosts) {
    let pull = |login: &str| hosts.pull_from(PRIVATE, 0, "private", &["--user", login]).output().unwrap();
    let refused = hosts.metric(0, "faasnet_mirror_refused_total");
    denied("the runtime's password is wrong", &pull("me:wrong"));
    assert!(hosts.metric(0, "faasnet_mirror_refused_total") > refused, "the mirror was not asked");
    said("the runtime's password is right", pull(LOGIN));
}

/// The agents' password is wrong, and the runtime has none: it must not hang. containerd tells only what the first of its hosts said, so
/// it is the agent that has to say why.
fn nobody_may_read(hosts: &RuntimeHosts, pull: Child) {
    let output = pull.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("not found"), "nobody's password is right: {text}");
    let log = hosts.log(DENIED);
    assert!(log.contains("(401)") && log.contains("user name and password"), "the agent does not say why: {log}");
    // With its own it gets what no agent can bring.
    said(
        "the runtime's password is right",
        hosts.pull_from(PRIVATE, DENIED, "denied", &["--user", LOGIN]).output().unwrap(),
    );
    let image = hosts.image_at(PRIVATE, "denied");
    assert_eq!(hosts.run_image(DENIED, &image, &["/bin/cat", "/greeting"]), "hello from denied\n");
    assert_eq!(hosts.metric(DENIED, "faasnet_mirror_cut_total"), 0, "the mirror promised what it does not have");
}

fn denied(what: &str, output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("401"), "{what}: {text}");
}

/// The registry wants a new token every few requests. The runtimes have no password, so all that they get comes through their mirrors.
fn tokens_that_expire(hosts: &RuntimeHosts, forms: &Forms) {
    let image = hosts.image_at(EXPIRING, "expiring");
    hosts.create_of("expiring", &image);
    let (before, first) = (hosts.tokens(EXPIRING), hosts.metric(0, "faasnet_mirror_bytes_total"));
    let pulls = [0, 1].map(|index| hosts.pull_from(EXPIRING, index, "expiring", &[]).spawn().unwrap());
    for (index, pull) in pulls.into_iter().enumerate() {
        said("a pull without a password", pull.wait_with_output().unwrap());
        assert_eq!(hosts.run_image(index, &image, &["/bin/cat", "/greeting"]), "hello from expiring\n");
    }
    assert!(hosts.metric(0, "faasnet_mirror_bytes_total") - first >= BIG / 2, "it went past the mirror of {image}");
    let tokens = hosts.tokens(EXPIRING) - before;
    assert!(tokens > 1, "{tokens} tokens sufficed for {} bytes", forms.blob_bytes("expiring"));
}

fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
