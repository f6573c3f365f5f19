//! `faasnet state export|import`: what one controller knew, another knows.

use std::os::unix::fs::PermissionsExt;

use faasnet::cluster::Daemon;
use faasnet::registry::RegistryOptions;
use serde_json::Value;

use crate::common::{Lab, error_of, exe, noise, run};

fn json(arguments: &[&str]) -> Value {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Catches an export that a running controller would spoil, a file that everybody can read, an import that loses something or overwrites.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_moves_to_another_controller() {
    let mut lab = Lab::start(1, &[("app", vec![noise(1, 10_000)])], RegistryOptions::default()).await;
    let created = lab.create("app", "twin").await.unwrap();
    lab.provision("app").await.unwrap();
    let path = |name: &str| lab.dir.path().join(name).display().to_string();
    let (old, new, file) = (path("controller"), path("moved"), path("state.json"));
    assert!(error_of(&["state", "export", &file, "--state-dir", &old]).contains("in use by another controller"));
    assert!(error_of(&["state", "export", "-", "--state-dir", &path("nothing")]).contains("nothing"));
    lab.cluster.controller.stop().await.unwrap();
    let exported = json(&["state", "export", &file, "--state-dir", &old, "--json"]);
    assert_eq!((&exported["functions"], &exported["nodes"]), (&1.into(), &1.into()));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let imported = json(&["state", "import", &file, "--state-dir", &new, "--json"]);
    assert_eq!((&imported["functions"], &imported["replaced"]), (&1.into(), &Value::Null));
    assert!(error_of(&["state", "import", &file, "--state-dir", &new]).contains("--force"));
    assert!(json(&["state", "import", &file, "--state-dir", &new, "--force", "--json"])["replaced"].is_string());
    let mut command = tokio::process::Command::new(exe());
    command.args(["controller", "--listen", "127.0.0.1:0", "--state-dir", &new]);
    command.arg("--secret-file").arg(lab.cluster.secret_file());
    let mut controller = Daemon::start("moved".into(), command, lab.dir.path()).await.unwrap();
    let url = format!("http://{}", controller.address("listen"));
    let functions = tokio::task::spawn_blocking(move || json(&["function", "ls", "--json", "--controller", &url]));
    let functions = functions.await.unwrap();
    assert_eq!(functions[0]["image_id"], created.image_id.as_str());
    assert_eq!(functions[0]["nodes"], 1);
    controller.stop().await.unwrap();
}
