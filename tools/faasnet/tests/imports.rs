//! The direction of dependencies between our crates, read from `cargo metadata` and from the sources.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A crate of the workspace: its folder, and what its library or program (not its tests) depends on.
struct Crate {
    folder: PathBuf,
    imports: BTreeSet<String>,
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Our crates by their folder relative to the workspace, such as `dataplane/ring`.
fn crates() -> BTreeMap<String, Crate> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--locked", "--offline"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            let folder = manifest.parent().unwrap().to_owned();
            let place = folder.strip_prefix(workspace()).unwrap().display().to_string();
            let imports = package["dependencies"].as_array().unwrap().iter().filter(|import| import["kind"] != "dev");
            let imports = imports.map(|import| match import["path"].as_str() {
                Some(path) => Path::new(path).strip_prefix(workspace()).unwrap().display().to_string(),
                None => import["name"].as_str().unwrap().to_owned(),
            });
            (place, Crate { folder, imports: imports.collect() })
        })
        .collect()
}

/// The imports of crates under `from` for which `forbidden` holds, as `a -> b`.
fn breaches(from: &str, forbidden: impl Fn(&str) -> bool) -> Vec<String> {
    let crates = crates();
    let inside = crates.iter().filter(|(place, _)| place.starts_with(from));
    let breaches: Vec<_> = inside
        .clone()
        .flat_map(|(place, krate)| {
            krate.imports.iter().filter(|import| forbidden(import)).map(move |i| format!("{place} -> {i}"))
        })
        .collect();
    assert!(inside.count() > 0, "no crate under {from}: is the folder renamed?");
    breaches
}

/// Catches a control plane that needs the data path to build.
#[test]
fn the_control_plane_imports_nothing_of_the_data_plane() {
    assert_eq!(breaches("controlplane/", |import| import.starts_with("dataplane/")), [""; 0]);
}

/// Catches a data plane that reaches into the control plane past the contract and the origin reader.
#[test]
fn the_data_plane_imports_only_the_contract_and_the_origin() {
    let allowed = ["controlplane/api", "controlplane/origin"];
    let forbidden = |import: &str| import.starts_with("controlplane/") && !allowed.contains(&import);
    assert_eq!(breaches("dataplane/", forbidden), [""; 0]);
}

/// Catches kernel code in the pure relay, or relay decisions in the kernel crate: they meet in the agent.
#[test]
fn ring_and_relay_do_not_know_each_other() {
    assert_eq!(breaches("dataplane/ring", |import| import == "dataplane/relay"), [""; 0]);
    assert_eq!(breaches("dataplane/relay", |import| import == "dataplane/ring"), [""; 0]);
    let outside = |import: &str| import == "dataplane/ring" || import == "dataplane/relay";
    assert_eq!(breaches("controlplane/", outside), [""; 0]);
}

/// Catches a library that depends on the programs built from it.
#[test]
fn nothing_imports_tools_or_benches() {
    let programs = |import: &str| import.starts_with("tools/") || import.starts_with("benches");
    assert_eq!(breaches("controlplane/", programs), [""; 0]);
    assert_eq!(breaches("dataplane/", programs), [""; 0]);
}

/// Catches a pure crate that begins to read clocks, sockets, files or threads through a runtime.
#[test]
fn pure_crates_have_no_runtime() {
    let runtime = |import: &str| {
        [
            "tokio",
            "tokio-util",
            "tokio-stream",
            "futures-util",
            "io-uring",
            "libc",
            "rustix",
            "socket2",
            "reqwest",
            "tonic",
            "tracing",
        ]
        .contains(&import)
    };
    assert_eq!(breaches("dataplane/relay", runtime), [""; 0]);
    assert_eq!(breaches("controlplane/tree", runtime), [""; 0]);
    let effects =
        ["std::fs", "std::net::Tcp", "std::net::Udp", "std::thread", "std::process", "Instant::now", "SystemTime"];
    for krate in ["dataplane/relay", "controlplane/tree"] {
        for (file, text) in sources(&workspace().join(krate).join("src")) {
            for effect in effects {
                assert!(!text.contains(effect), "{} uses {effect}; {krate} is pure", file.display());
            }
        }
    }
}

/// Catches tokio on the data path: the ring's threads must never wait for a runtime. The one exception is the driver that is there for
/// comparison, which brings its own.
#[test]
fn the_kernel_crate_has_no_tokio() {
    let allowed = ["tokio", "tokio-uring"];
    assert_eq!(breaches("dataplane/ring", |import| import.starts_with("tokio") && !allowed.contains(&import)), [""; 0]);
    for (path, text) in sources(&crates()["dataplane/ring"].folder.join("src")) {
        let is_driver = path.file_stem().is_some_and(|name| name.to_string_lossy().starts_with("tokio"));
        assert!(is_driver || !text.contains("tokio::"), "{} uses tokio", path.display());
    }
}

/// Catches unsafe code outside the one crate that wraps the kernel.
#[test]
fn unsafe_code_is_forbidden_outside_the_kernel_crate() {
    for (place, krate) in crates().iter().filter(|(place, _)| *place != "dataplane/ring") {
        let roots = ["src/lib.rs", "src/main.rs"].map(|root| krate.folder.join(root));
        let roots: Vec<_> = roots.iter().filter(|root| root.exists()).collect();
        assert!(!roots.is_empty(), "{place} has neither src/lib.rs nor src/main.rs");
        for root in roots {
            let text = std::fs::read_to_string(root).unwrap();
            assert!(text.contains("#![forbid(unsafe_code)]"), "{} does not forbid unsafe code", root.display());
        }
    }
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => sources(&path),
            false => vec![(path.clone(), std::fs::read_to_string(&path).unwrap())],
        })
        .collect()
}
