//! Notes which commit the program is built from, for reports. Outside of a git checkout there is none, which is fine.

use std::path::Path;
use std::process::Command;

/// Folders with crates, seen from this one. Whatever changes there makes this crate be built anew in any case.
const CRATES: [&str; 3] = ["../../controlplane", "../../dataplane", ".."];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for folder in CRATES.iter().flat_map(std::fs::read_dir).flatten().flatten() {
        let sources = folder.path().join("src");
        if sources.is_dir() {
            println!("cargo::rerun-if-changed={}", sources.display());
        }
    }
    // A folder below somebody else's repository is not a checkout of ours.
    if !Path::new("../../.git").exists() {
        return;
    }
    let describe = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"];
    let Ok(output) = Command::new("git").args(describe).output() else { return };
    let commit = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && !commit.trim().is_empty() {
        println!("cargo::rustc-env=FAASNET_COMMIT={}", commit.trim());
    }
}
