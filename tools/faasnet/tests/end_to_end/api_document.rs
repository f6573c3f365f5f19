//! The examples of the API's documentation, run as a reader would run them.

use std::process::{Command, Stdio};

use faasnet::registry::RegistryOptions;

use crate::common::{Lab, exe, noise};

const DOCUMENT: &str = include_str!("../../../../controlplane/controller/API.md");

/// The blocks that are marked as shell, in order.
fn examples() -> Vec<&'static str> {
    let blocks = DOCUMENT.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap()).collect()
}

/// Catches an example that does not work: an operation, a field, an option or an error code that was renamed or never was.
#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_the_api_document_works() {
    let lab = Lab::start(4, &[("app", vec![noise(1, 300_000), noise(2, 70_000)])], RegistryOptions::default()).await;
    let examples = examples();
    assert!(examples.len() >= 10, "the examples are not found");
    // One shell for all, which names each block before it runs it.
    let script: String = examples
        .iter()
        .enumerate()
        .map(|(index, block)| format!("echo '=== example {index}' >&2\n{block}\necho\n"))
        .collect();
    let mut path = exe().parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut shell = Command::new("bash");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"FAASNET_")) {
        shell.env_remove(name);
    }
    shell.args(["-euxo", "pipefail", "-c", &script]).stdin(Stdio::null()).env("PATH", path);
    shell.env("API", lab.cluster.http_url()).env("IMAGE", lab.reference("app"));
    shell.env("FAASNET_CONTROLLER", lab.cluster.url()).env("FAASNET_SECRET_FILE", lab.cluster.secret_file());
    let output = tokio::task::spawn_blocking(move || shell.output().unwrap()).await.unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}\n{text}");
    for expected in ["\"created\":{", "\"state\":\"complete\"", "\"done\":true", "\"first\":true", "\"released\":1"] {
        assert!(text.contains(expected), "no example answers with {expected}: {text}");
    }
}
