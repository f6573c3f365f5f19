//! `faasnet bench relay` as a user runs it, with little data: figures are not judged, only that they are there.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faasnet"));
    command.args(["bench", "relay", "--gib", "0.0625", "--runs", "1"]).args(arguments).output().unwrap()
}

/// Catches a relay process that hangs or loses bytes (every row counts them), a report without its fields, and a worker that copies what
/// it forwards.
#[test]
fn rows_have_their_figures() {
    let output = bench(&["--engine", "splice,copy,copy-256k,tokio,direct", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {}", row["mode"].as_str().unwrap(), row["engine"].as_str().unwrap()))
        .collect();
    let expected = [
        "forward splice",
        "forward copy",
        "forward copy-256k",
        "forward tokio",
        "forward direct",
        "keep splice",
        "keep copy",
        "keep copy-256k",
        "keep+xxh3 splice",
        "keep+xxh3 copy",
        "keep+xxh3 copy-256k",
        "keep+blake3 splice",
        "keep+blake3 copy",
        "keep+blake3 copy-256k",
    ];
    assert_eq!(names, expected);
    for row in rows {
        for field in ["fragment_bytes", "gib_per_s", "cpu_s_per_gib", "runs"] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field} of {row}");
        }
    }
    // One copy to check it, and one to keep it where the file system takes no direct writes; a pipe that runs full in the middle of a
    // frame may add some bytes.
    let copies = rows[5]["copies_per_byte"].as_f64().unwrap();
    assert!((1.0..2.5).contains(&copies), "{copies}");
    assert!(report["environment"]["kernel"].is_string());
}

/// Catches a measurement that means nothing: where nothing is kept a slow child holds the stream by design.
#[test]
fn a_slow_child_without_a_store_is_refused() {
    let output = bench(&["--slow-child", "--mode", "forward", "--engine", "splice"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--mode keep"), "{said}");
}

/// Catches an engine that does not exist and is measured as another one.
#[test]
fn what_does_not_exist_is_refused() {
    for (arguments, says) in [(["--engine", "epoll"], "not one of"), (["--mode", "fly"], "not one of")] {
        let output = bench(&arguments);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(says));
    }
}

/// Catches a sweep whose values are not applied (a block of another size would not arrive), rows that lose their value, and a plot
/// without its lines.
#[test]
fn a_sweep_has_rows_for_every_value() {
    let folder = tempfile::tempdir().unwrap();
    let svg = folder.path().join("sweep.svg");
    let rows = "splice,copy-256k";
    let knobs = ["--engine", rows, "--mode", "keep", "--sweep", "block-bytes=65536,default", "--huge-pages=off"];
    let output = bench(&[&knobs[..], &["--svg", svg.to_str().unwrap(), "--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<_> =
        report["rows"].as_array().unwrap().iter().map(|row| (&row["sweep"]["value"], &row["engine"])).collect();
    assert_eq!(
        found,
        [("65536", "splice"), ("65536", "copy-256k"), ("default", "splice"), ("default", "copy-256k")]
            .map(|(value, engine)| (Value::from(value), Value::from(engine)))
            .each_ref()
            .map(|(value, engine)| (value, engine))
    );
    assert!(report["rows"][0]["speed_against_copy"].as_f64().is_some_and(|ratio| ratio > 0.0));
    let drawn = std::fs::read_to_string(svg).unwrap();
    assert!(drawn.contains("over block-bytes") && drawn.contains("keep splice"));
}

/// Catches a misspelt knob that is ignored.
#[test]
fn a_wrong_knob_names_the_right_ones() {
    let output = bench(&["--sweep", "mut=1500"]);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let keys = ["mtu", "gso", "congestion", "rmem", "wmem", "pipe-bytes", "block-bytes", "busy-poll", "sqpoll"];
    for key in keys.into_iter().chain(["huge-pages", "buffers", "store-write"]) {
        assert!(said.contains(key), "{said}");
    }
    let output = bench(&["--congestion", "warp", "--engine", "copy-256k", "--mode", "forward"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && (said.contains("there are reno") || said.contains("need root")), "{said}");
}

/// Catches relays that do not stand below one another, and a child that is served by the wrong one. Times are not judged.
#[test]
fn relays_stand_in_a_row() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_faasnet"));
    let output = command.args(["bench", "depth", "--relays", "2", "--pairs", "1", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let seconds = ["direct_s", "relayed_s"].map(|field| report[field].as_f64().unwrap());
    assert!(seconds.iter().all(|seconds| *seconds > 0.0) && report["relays"] == 2, "{report}");
    assert!((report["added_ms"].as_f64().unwrap() - (seconds[1] - seconds[0]) * 1e3).abs() < 1e-6, "{report}");
}
