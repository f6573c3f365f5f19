//! Going up and down, emptying hosts, freeing disks, and a host whose disk lies: with real processes, in one cluster.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use faasnet::demo::verify;
use faasnet::registry::RegistryOptions;
use faasnet::view::FunctionView;
use serde_json::Value;

use crate::common::{DEADLINE, Lab, MIB, TENANT, index_of, noise, run};

/// Runs a client command; what it printed as JSON, or its error.
fn ask(lab: &Lab, arguments: &[&str]) -> Result<Value, String> {
    let (url, secret) = (lab.cluster.url(), lab.cluster.secret_file().display().to_string());
    let at = ["--controller", &url, "--secret-file", &secret, "--json"];
    let output = tokio::task::block_in_place(|| run(&[&at, arguments].concat()));
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// The agents that the controller wants to hold the function.
async fn holders(lab: &Lab) -> Vec<usize> {
    let mut holders: Vec<usize> = lab.trees("app").await.nodes.iter().map(|node| index_of(&node.name)).collect();
    holders.sort_unstable();
    holders
}

/// Waits for something that follows by itself.
async fn eventually(what: &str, mut wanted: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !wanted().await {
        assert!(started.elapsed() < DEADLINE, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn largest_file(dir: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let below = entries.filter_map(|entry| match entry.path() {
        path if path.is_dir() => largest_file(&path),
        path => Some(path),
    });
    below.max_by_key(|path| path.metadata().map_or(0, |metadata| metadata.len()))
}

/// What the origin sent since `before`, in copies of the image.
fn copies(lab: &Lab, function: &FunctionView, before: u64) -> f64 {
    (lab.origin_bytes() - before) as f64 / function.image_bytes as f64
}

/// Catches scaling, draining and leaving that lose the image (so that the origin is read again), that end too early or never, a
/// `release --drop` that frees nothing, and wrong bytes on a disk that nobody looks for.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_goes_up_and_down_and_a_lying_disk_is_found() {
    let lab = Lab::start(4, &[("app", vec![noise(1, 6 * MIB)])], RegistryOptions::default()).await;
    let function = lab.create("app", "twin").await.unwrap();
    let image = function.image_id.parse().unwrap();
    let (tenant, before) = (["--tenant", TENANT], lab.origin_bytes());
    let app = |arguments: &[&str]| ask(&lab, &[arguments, &tenant].concat());

    app(&["scale", "app", "1"]).unwrap();
    let first = holders(&lab).await[0];
    app(&["scale", "app", "4"]).unwrap();
    lab.wait_verified(&function, 0..4).await;
    assert!(copies(&lab, &function, before) <= 1.02, "the first holder feeds the others");
    assert!(app(&["scale", "app", "5"]).unwrap_err().contains("at most 4"));
    app(&["scale", "app", "2"]).unwrap();
    eventually("two let go", async || holders(&lab).await.len() == 2).await;

    // A drained host is empty when the command returns, somebody else has the image, and it can come back.
    let drained = holders(&lab).await[0];
    let name = format!("n{}", drained + 1);
    let answer = ask(&lab, &["drain", &name]).unwrap();
    assert_eq!((&answer["node"]["draining"], &answer["node"]["functions"]), (&true.into(), &0.into()));
    assert!(lab.held(drained, "app").await.is_none(), "it still holds it");
    let left = holders(&lab).await;
    assert!(left.len() == 2 && !left.contains(&drained), "{left:?}");
    lab.wait_verified(&function, left.iter().copied()).await;
    let refused = app(&["provision", "app", "--nodes", &name]).unwrap_err();
    assert!(refused.contains("with undo"), "{refused}");
    assert_eq!(ask(&lab, &["drain", &name, "--undo"]).unwrap()["node"]["draining"], false);
    app(&["scale", "app", "1"]).unwrap();
    eventually("one is left", async || holders(&lab).await.len() == 1).await;
    assert!(copies(&lab, &function, before) <= 1.02, "the origin was read again by {first}'s successors");

    // What is dropped leaves the disk; without `--drop` it stays there for reuse.
    let [keeper] = holders(&lab).await[..] else { panic!("nobody has it") };
    let other = (0..4).find(|index| *index != keeper).unwrap();
    let other_name = format!("n{}", other + 1);
    let on_disk = |index: usize| verify::image(&lab.cluster.store(index), image).is_ok();
    app(&["provision", "app", "--nodes", &other_name]).unwrap();
    app(&["release", "app", "--nodes", &other_name]).unwrap();
    eventually("it is let go", async || lab.held(other, "app").await.is_none()).await;
    assert!(on_disk(other));
    app(&["provision", "app", "--nodes", &other_name]).unwrap();
    app(&["release", "app", "--nodes", &other_name, "--drop"]).unwrap();
    eventually("its disk is free", async || !on_disk(other)).await;

    // The keeper's disk lies now. Whoever receives from it refuses, the controller has the keeper look at its disk, and nobody receives
    // from it any more, until somebody says that it is well again.
    let file = std::fs::OpenOptions::new().write(true).open(largest_file(&lab.cluster.store(keeper)).unwrap()).unwrap();
    let len = file.metadata().unwrap().len();
    (0..len / (256 << 10)).for_each(|block| file.write_all_at(b"a lie", block * (256 << 10) + 999).unwrap());
    app(&["provision", "app", "--nodes", &other_name]).unwrap();
    lab.wait_verified(&function, [other]).await;
    let keeper_name = format!("n{}", keeper + 1);
    let quarantine = || {
        let nodes = ask(&lab, &["nodes"]).unwrap();
        let node = nodes.as_array().unwrap().iter().find(|node| node["name"] == *keeper_name).unwrap().clone();
        node["quarantine"].as_str().unwrap_or_default().to_owned()
    };
    eventually("it is convicted", async || quarantine().contains("on its disk are wrong")).await;
    ask(&lab, &["drain", &keeper_name, "--undo"]).unwrap();
    assert_eq!(quarantine(), "");
}
