//! Private registries whose password only the controller knows.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use faasnet::registry::{Faults, RegistryOptions, TokenAuth};
use reqwest::StatusCode;

use crate::common::{Lab, MIB, faasnet, noise};
use crate::registering::{ask, pull};

const PASSWORD: &str = "correct-horse-battery";
const AGENTS: usize = 3;

fn secret(lab: &Lab, arguments: &[&str], input: &str) -> String {
    let mut command = faasnet(&["secret"]);
    command.args(arguments).args(["--controller", &lab.cluster.url()]).arg("--secret-file");
    command.arg(lab.cluster.secret_file());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

/// Catches nodes that cannot read a registry whose password the controller has, a password that is shown or logged, a removed one that is
/// still used, and an error that does not say what to do.
#[tokio::test(flavor = "multi_thread")]
async fn the_controllers_password_opens_a_private_registry() {
    let token = TokenAuth { login: Some(("robot".into(), PASSWORD.into())), requests: 1000 };
    let faults = Faults { token: Some(token), ..Faults::default() };
    let options = RegistryOptions { faults, ..RegistryOptions::default() };
    let names = ["app", "wished", "late"];
    let images: Vec<_> = names.iter().zip(1..).map(|(name, seed)| (*name, vec![noise(seed, 3 * MIB)])).collect();
    let lab = Lab::start_with(AGENTS, &images, options, &["--mirror-on-miss", "register"]).await;
    let registry = lab.registry.local_addr().to_string();
    let refused = lab.create("app", "twin").await.unwrap_err().to_string();
    assert!(refused.contains(&format!("faasnet secret set {registry}")), "{refused}");
    for tenant in ["test", "default"] {
        secret(&lab, &["set", &registry, "--username", "robot", "--tenant", tenant], PASSWORD);
    }
    let listed = secret(&lab, &["list"], "");
    assert!(listed.contains(&registry) && listed.contains("robot") && !listed.contains(PASSWORD), "{listed}");
    let function = lab.create("app", "twin").await.unwrap();
    lab.provision("app").await.unwrap();
    lab.wait_verified(&function, 0..AGENTS).await;
    // These nodes are the tenant's now, and so is what their runtimes ask for.
    assert!(pull(&lab, 0, "wished").await > 3 * MIB);
    secret(&lab, &["remove", &registry, "--tenant", "test"], "");
    let answer = ask(&lab, 0, lab.registry.local_addr(), "late/manifests/latest").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    let reason = answer.text().await.unwrap();
    assert!(reason.contains("faasnet secret set"), "{reason}");
    let refused = lab.create("late", "twin").await.unwrap_err().to_string();
    assert!(refused.contains("private or does not exist"), "{refused}");
    let logs = lab.cluster.agents.iter().chain([&lab.cluster.controller]).map(|daemon| daemon.log().to_owned());
    let kept = (0..AGENTS).map(|index| lab.cluster.store(index).join("last-word"));
    for file in logs.chain(kept) {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(PASSWORD.len()).any(|part| part == PASSWORD.as_bytes()), "{} has it", file.display());
    }
}
