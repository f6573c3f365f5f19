//! Debian's containerd, runc and skopeo against the mirror of each host. As root; without root or a program it says loudly what is skipped.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{DEADLINE, MIB, said_loudly};
use crate::image_forms::Forms;
use crate::lab::root;
use crate::runtime_hosts::{FIRST_REGISTERING, RuntimeHosts, said};

const HOSTS: usize = 4;
/// Bytes that no compression makes less, in the images that are disturbed while they arrive.
const BIG: u64 = 16 * MIB;
/// A link carries one of those in about two seconds.
const RATE: &str = "80mbit";

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
    for (seed, tag) in ["burst", "killed", "unregistered"].into_iter().enumerate() {
        forms.plain(tag, seed as u64 + 1, if tag == "unregistered" { 1000 } else { BIG });
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
    agent_dies(&mut hosts).await;
    step("an agent dies", begun);
    disk_is_damaged(&hosts);
    step("a disk is damaged", begun);
    every_form(&hosts, &forms);
    step("every form", begun);
    copied_byte_by_byte(&hosts, &forms);
    step("skopeo", begun);
    a_miss_is_registered(&hosts, &forms);
    step("a miss", begun);
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

/// An agent is killed while its runtime pulls and, being the first, while it feeds others: its runtime goes on at the registry, the others'
/// through their mirrors.
async fn agent_dies(hosts: &mut RuntimeHosts) {
    hosts.create("killed");
    let already: Vec<u64> = (0..HOSTS).map(|index| hosts.metric(index, "faasnet_mirror_bytes_total")).collect();
    let pulls: Vec<Child> = (0..HOSTS).map(|index| hosts.pull(index, "killed").spawn().unwrap()).collect();
    let begun = Instant::now();
    while hosts.metric(0, "faasnet_mirror_bytes_total") < already[0] + BIG / 4 {
        assert!(begun.elapsed() < DEADLINE, "nothing arrives");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    hosts.agents[0].kill().await.unwrap();
    for (index, pull) in pulls.into_iter().enumerate() {
        said(&format!("pull on host {index}, after the agent of host 0 died"), pull.wait_with_output().unwrap());
        assert_eq!(hosts.run(index, "killed", &["/bin/cat", "/greeting"]), "hello from killed\n");
    }
    for (index, already) in already.into_iter().enumerate().skip(1) {
        let sent = hosts.metric(index, "faasnet_mirror_bytes_total") - already;
        assert!(sent >= BIG, "host {index} got only {sent} bytes through its mirror");
    }
    hosts.restart_agent(0).await;
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
        assert!(sent(index) - already >= MIB, "host {index} went to the registry");
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

fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}
