//! `faasnet lab compare` as root, with the other systems' programs. Without root or a program it says loudly what is skipped; in CI it fails.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::faasnet;
use crate::lab::root;

/// How the files of the other systems' programs begin.
const PROGRAMS: [&str; 7] = ["nginx", "varnishd", "aria2c", "opentracker", "curl", "dash", "python3"];

/// Catches a system that says "done" with other bytes or none, one that is missing without a word, figures that cannot be, and processes,
/// namespaces or files that outlive the command.
#[test]
fn every_system_delivers_the_right_bytes_and_leaves_nothing() {
    let Some(_alone) = root() else { return };
    let before = nameless();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let svg = tempfile::NamedTempFile::new().unwrap();
    let all = "twin,nginx,nginx-tree,varnish-tree,varnish-chain,aria2,libtorrent";
    let arguments =
        ["--hosts", "3", "--size", "3MiB", "--no-sweep", "--systems", all, "--dir", path, "--json", "--svg"];
    let command = [&["lab", "compare"], &arguments[..], &[svg.path().to_str().unwrap()]].concat();
    let output = faasnet(&command).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["leftovers"], serde_json::json!([]));
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows.iter().map(|row| row["system"].as_str().unwrap()).collect();
    assert_eq!(names.join(","), all);
    let drawn = std::fs::read_to_string(svg.path()).unwrap();
    for row in rows.iter().filter(|row| is_installed(row)) {
        assert_eq!(row["verified"], true, "{row}");
        let number = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} is missing: {row}"));
        assert!(number("ratio") > 0.9 && number("origin_share") >= 1.0, "{row}");
        // The kernel counts in steps of 10 ms: a small delivery may seem to cost nothing.
        assert!((0.0..100.0).contains(&number("cpu_seconds_per_gib")), "{row}");
        assert!(!row["settings"].as_str().unwrap().is_empty() && row["ratios"].as_array().unwrap().len() == 1, "{row}");
        assert!(drawn.contains(row["system"].as_str().unwrap()), "{} is not in the plot", row["system"]);
    }
    nothing_is_left(dir.path(), &before);
}

/// Catches relays and clients that outlive an interrupted command.
#[test]
fn an_interrupted_comparison_leaves_nothing() {
    let Some(_alone) = root() else { return };
    let before = nameless();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    // Slow enough to be in the middle whenever the signal comes.
    let arguments = ["--hosts", "3", "--rate", "20mbit", "--size", "6MiB", "--no-sweep", "--systems", "nginx-tree"];
    let mut command = faasnet(&[&["lab", "compare", "--json", "--dir", path], &arguments[..]].concat());
    let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !somebody_receives(dir.path()) {
        if command.try_wait().unwrap().is_some() {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "the comparison ended before it was interrupted");
            eprintln!("SKIPPED: nothing was delivered; is nginx installed? sudo tools/check packages");
            return;
        }
        assert!(Instant::now() < deadline, "nobody receives anything");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill_process(Pid::from_child(&command), Signal::INT).unwrap();
    assert_eq!(command.wait().unwrap().code(), Some(130));
    nothing_is_left(dir.path(), &before);
}

/// Whether a row has a system that is there; one that is not must say which package brings it.
fn is_installed(row: &Value) -> bool {
    let note = row["note"].as_str().unwrap();
    if !note.contains("not installed") {
        return true;
    }
    assert!(note.contains("apt-get install "), "{note}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{}: {note}", row["system"]);
    eprintln!("SKIPPED: {}: {note}", row["system"]);
    false
}

/// Whether a host below the comparison's folder has a part of the file.
fn somebody_receives(dir: &Path) -> bool {
    let lab = std::fs::read_dir(dir).unwrap().flatten().next();
    let got = lab.map(|lab| lab.path().join("run1/n1/got/blob"));
    got.and_then(|got| got.metadata().ok()).is_some_and(|blob| blob.len() > 0)
}

fn nothing_is_left(dir: &Path, before: &BTreeSet<u32>) {
    assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0, "files were left behind");
    let left: Vec<_> = nameless().difference(before).copied().collect();
    assert!(left.is_empty(), "the processes {left:?} live in a namespace that is gone");
}

/// Processes of such programs in a network namespace without a name: the lab's own are gone when it is, with whoever still lives in one.
fn nameless() -> BTreeSet<u32> {
    let identity = |path: &str| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut named: BTreeSet<_> = entries.filter_map(|entry| identity(entry.path().to_str()?)).collect();
    named.extend(identity("/proc/self/ns/net"));
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let name = program.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let lives = identity(&format!("/proc/{pid}/ns/net"));
        PROGRAMS.iter().any(|program| name.starts_with(program))
            && lives.is_some_and(|namespace| !named.contains(&namespace))
    })
    .collect()
}
