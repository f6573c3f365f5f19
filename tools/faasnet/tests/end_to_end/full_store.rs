//! A node that has no room for the image: it says so, and nobody else suffers.

use std::path::{Path, PathBuf};
use std::process::Command;

use faasnet::cluster::Daemon;
use faasnet::provision;
use faasnet::registry::RegistryOptions;
use faasnet_api::v1;

use crate::common::{DEADLINE, Lab, MIB, TENANT, exe, noise, said_loudly};

const AGENTS: usize = 4;

/// A small file system; unmounted when dropped, even where a process still uses it.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "faasnet-test"]).arg(path).output();
        mount.is_ok_and(|output| output.status.success()).then(|| Self(path.into()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Ignored: a test that ends has no better way to say it, and the folder's removal will.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Adds a node called `small` to a cluster, with more `arguments` for its agent, and provisions all: it must fail with a reason that
/// contains `reason`, and the others must complete.
async fn a_node_without_room(mut lab: Lab, store: &Path, arguments: &[&str], reason: &str) {
    let function = lab.create("app", "twin").await.unwrap();
    let mut command = tokio::process::Command::new(exe());
    command.args(["agent", "--name", "small", "--listen", "127.77.0.200:0", "--admin", "127.0.0.1:0"]);
    command.args(["--mirror-listen", "off"]);
    command.arg("--controller").arg(lab.cluster.url()).arg("--secret-file").arg(lab.cluster.secret_file());
    command.arg("--store-dir").arg(store).args(arguments);
    let small = Daemon::start("small".into(), command, lab.dir.path()).await.unwrap();
    lab.cluster.agents.push(small);
    lab.cluster.wait_live(AGENTS + 1).await.unwrap();
    let nodes = [lab.cluster.names(), vec!["small".into()]].concat();
    let request = v1::ProvisionRequest { tenant: TENANT.into(), function: "app".into(), count: 0, nodes };
    let mut control = lab.cluster.control().await.unwrap();
    let rows = tokio::time::timeout(DEADLINE, provision::provision(&mut control, request, |_| Ok(()))).await;
    let rows = rows.expect("a node without room keeps the provisioning from ending").unwrap();
    let (small, others): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.name == "small");
    assert_eq!((small[0].state.as_str(), others.len()), ("failed", AGENTS));
    assert!(small[0].error.contains(reason), "{}", small[0].error);
    assert!(others.iter().all(|row| row.is_complete()), "{others:?}");
    lab.wait_verified(&function, 0..AGENTS).await;
    let provisioning = lab.origin_bytes() - function.image_bytes;
    assert!(provisioning as f64 <= function.image_bytes as f64 * 1.02, "the origin sent {provisioning}");
}

async fn lab() -> Lab {
    Lab::start(AGENTS, &[("app", vec![noise(3, 12 * MIB)])], RegistryOptions::default()).await
}

/// Catches a node over its quota that keeps others waiting, or does not say what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_over_the_quota_fails_on_that_node_only() {
    let lab = lab().await;
    let store = lab.dir.path().join("small");
    let quota = (2 * MIB).to_string();
    a_node_without_room(lab, &store, &["--store-quota-bytes", &quota], "raise the quota").await;
}

/// The same for a file system that is full.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_disk_cannot_hold_fails_on_that_node_only() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&dir.path().join("small")) else {
        return said_loudly("mounting a small file system needs root");
    };
    a_node_without_room(lab().await, &disk.0, &[], "no room").await;
}
