//! `faasnet lab report` as root, with as little data as there can be. Figures are not judged.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::faasnet;
use crate::lab::root;

/// Catches a part of the standard set that fails, a page without its plots, a second command that measures everything again, and an
/// interruption that leaves a lab behind or loses what was measured.
#[test]
fn a_report_is_made_once_and_continued() {
    let Some(_alone) = root() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (out, labs) = (dir.path().join("figures"), dir.path().join("labs"));
    std::fs::create_dir(&labs).unwrap();
    let arguments = ["lab", "report", out.to_str().unwrap(), "--quick", "--json", "--dir", labs.to_str().unwrap()];
    let report = |more: &[&str]| {
        let output = faasnet(&[&arguments[..], more].concat()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default(), errors)
    };

    // Interrupted in its first experiment, as Ctrl-C does it.
    let mut first = faasnet(&arguments).stdout(std::process::Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::fs::read_dir(&labs).unwrap().count() == 0 {
        assert!(Instant::now() < deadline && first.try_wait().unwrap().is_none(), "no experiment begins");
    }
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(130));
    assert_eq!(std::fs::read_dir(&labs).unwrap().count(), 0, "the interrupted experiment left files");

    let (code, answer, errors) = report(&[]);
    assert_eq!(code, Some(0), "{errors}{answer}");
    assert_eq!(answer["missing"].as_array().map(Vec::len), Some(0));
    let page = std::fs::read_to_string(out.join("report.md")).unwrap();
    for part in ["## Completion", "## Time line", "## Relay engines", "## Faults", "## Chaos"] {
        assert!(page.contains(part), "{part} is missing: {page}");
    }
    for plot in page.split("](").skip(1).filter_map(|text| text.split(')').next()) {
        let svg = std::fs::read_to_string(out.join(plot)).unwrap();
        assert!(svg.starts_with("<svg") && svg.len() < 100_000, "{plot} has {} bytes", svg.len());
        assert!(!svg.contains("href"), "{plot} needs other files");
    }

    let began = Instant::now();
    let (code, _, errors) = report(&[]);
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("0 experiments to run"), "measured again: {errors}");
    assert!(began.elapsed() < Duration::from_secs(10), "what is there was not kept");
}
