//! Who may talk to whom: ticket keys that change under a transfer, certificates of `faasnet certs`, the cluster's secret.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use faasnet::cluster::Daemon;
use faasnet::registry::RegistryOptions;
use faasnet::view::NodeView;
use faasnet_api::v1;
use rcgen::{CertificateParams, DnType, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::process::Command;

use crate::common::{DEADLINE, Lab, MIB, exe, noise, run, said_loudly};
use crate::failures::bytes_flow;

/// The image, and the origin's rate: a transfer of eight seconds, in which the new key begins to sign after three.
const IMAGE_BYTES: u64 = 32 * MIB;
const RATE: u64 = 4 * MIB;

async fn keys(lab: &Lab) -> Vec<v1::KeyInfo> {
    lab.cluster.control().await.unwrap().list_keys(v1::ListKeysRequest {}).await.unwrap().into_inner().keys
}

/// Catches a rotation that ends connections, has bytes sent again, or locks out who joins before or after it.
#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_in_the_middle_of_a_transfer() {
    let options = RegistryOptions { rate: Some(RATE), ..RegistryOptions::default() };
    let lab = Lab::start(4, &[("app", vec![noise(1, IMAGE_BYTES)])], options).await;
    let function = lab.create("app", "complete").await.unwrap();
    let mut control = lab.cluster.control().await.unwrap();
    let provision = |nodes: &[&str]| v1::ProvisionRequest {
        tenant: crate::common::TENANT.into(),
        function: "app".into(),
        count: 0,
        nodes: nodes.iter().map(|node| node.to_string()).collect(),
    };
    let mut progress = control.provision(provision(&["n1", "n2", "n3"])).await.unwrap().into_inner();
    for index in 0..3 {
        lab.wait_agent(index, "app", "receiving", |held| held.bytes_present > 0).await;
    }
    let first = keys(&lab).await[0].key_id.clone();
    control.rotate_keys(v1::RotateKeysRequest {}).await.unwrap();
    let begun = Instant::now();
    while keys(&lab).await[0].state != "current" {
        assert!(begun.elapsed() < DEADLINE, "the new key never signs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    lab.wait_agent(1, "app", "still receiving", |held| {
        assert!(held.state == "fetching", "the rotation was not in the middle: {held:?}");
        bytes_flow(held) || held.bytes_present > 0
    })
    .await;
    assert_eq!((keys(&lab).await[1].key_id.clone(), keys(&lab).await[1].state.clone()), (first, "previous".into()));
    // One more, with a ticket of the new key, below parents with tickets of the old one.
    let mut late = control.provision(provision(&["n4"])).await.unwrap().into_inner();
    while progress.message().await.unwrap().is_some() {}
    while late.message().await.unwrap().is_some() {}
    lab.wait_verified(&function, 0..4).await;
    for index in 0..4 {
        let mut node = NodeView::default();
        lab.held(index, "app").await.unwrap().refresh(&mut node, &Default::default());
        assert_eq!((node.bytes_refetched, node.edges_failed), (0, 0), "n{}", index + 1);
    }
    for index in 0..3 {
        let mut node = NodeView::default();
        lab.held(index, "app").await.unwrap().refresh(&mut node, &Default::default());
        assert_eq!(node.upstreams.len(), 1, "n{} was connected anew", index + 1);
    }
}

/// Files of `faasnet certs init`.
struct Certificates {
    dir: TempDir,
}

impl Certificates {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        let output = run(&["certs", "init", "--dir", &path, "--host", "controller.test"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// A controller's certificate that ended yesterday.
    fn expired(&self) -> (PathBuf, PathBuf) {
        let authority = KeyPair::from_pem(&fs::read_to_string(self.path("ca-key.pem")).unwrap()).unwrap();
        let mut names = CertificateParams::new(Vec::new()).unwrap();
        names.distinguished_name.push(DnType::CommonName, "FaaSNet cluster CA");
        let mut params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        params.not_before = (SystemTime::now() - Duration::from_secs(2 * 86_400)).into();
        params.not_after = (SystemTime::now() - Duration::from_secs(86_400)).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &Issuer::new(names, authority)).unwrap();
        let files = (self.dir.path().join("old.pem"), self.dir.path().join("old-key.pem"));
        fs::write(&files.0, certificate.pem()).unwrap();
        fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

/// A controller in `dir` with more arguments.
async fn controller(dir: &Path, arguments: &[&str]) -> Daemon {
    let secret = dir.join("secret");
    fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let mut command = Command::new(exe());
    command.args(["controller", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).arg("--secret-file").arg(secret);
    command.arg("--state-dir").arg(dir.join("state")).args(arguments);
    Daemon::start("controller".into(), command, dir).await.unwrap()
}

/// `faasnet nodes` with these arguments: what it printed, or its error.
async fn nodes(arguments: &[&str]) -> Result<String, String> {
    let arguments: Vec<String> = ["nodes"].iter().chain(arguments).map(|text| text.to_string()).collect();
    let output = tokio::task::spawn_blocking(move || run(&arguments.iter().map(|a| &a[..]).collect::<Vec<_>>()));
    let output = output.await.unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// Catches certificates of `faasnet certs` that do not work, and connections that fail without cause and next step, or do not fail.
#[tokio::test(flavor = "multi_thread")]
async fn grpc_is_encrypted_for_who_has_the_right_certificates() {
    let (certs, strangers, dir) = (Certificates::new(), Certificates::new(), tempfile::tempdir().unwrap());
    let (cert, key, ca) = (certs.path("controller.pem"), certs.path("controller-key.pem"), certs.path("ca.pem"));
    let tls = ["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &ca];
    let mut running = controller(dir.path(), &tls).await;
    let (port, secret) = (running.address("listen").port(), dir.path().join("secret").display().to_string());
    let (https, http) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));

    assert!(nodes(&["--controller", &https, "--tls-ca", &ca]).await.unwrap().contains("no nodes yet"));
    let (client, client_key) = (certs.path("client.pem"), certs.path("client-key.pem"));
    let own = ["--controller", &https, "--tls-ca", &ca, "--tls-cert", &client, "--tls-key", &client_key];
    assert!(nodes(&own).await.is_ok());
    let other_ca = strangers.path("ca.pem");
    let wrong = nodes(&["--controller", &https, "--tls-ca", &other_ca]).await.unwrap_err();
    assert!(wrong.contains("not of the authority in --tls-ca"), "{wrong}");
    let (stranger, stranger_key) = (strangers.path("client.pem"), strangers.path("client-key.pem"));
    let foreign = ["--controller", &https, "--tls-ca", &ca, "--tls-cert", &stranger, "--tls-key", &stranger_key];
    // The controller may close before the call is on its way; then the transport does not tell why, and the error names both causes.
    let foreign = nodes(&foreign).await.unwrap_err();
    assert!(foreign.contains("authority") || foreign.contains("--tls-ca"), "{foreign}");
    let plain = nodes(&["--controller", &http]).await.unwrap_err();
    assert!(plain.contains("https://"), "{plain}");
    let nameless = nodes(&["--controller", &https]).await.unwrap_err();
    assert!(nameless.contains("tls_ca"), "{nameless}");

    let mut agent = Command::new(exe());
    agent.args(["agent", "--name", "n1", "--listen", "127.77.0.97:0", "--admin", "127.0.0.1:0"]);
    agent.args(["--mirror-listen", "off"]);
    agent.args(["--controller", &https, "--tls-ca", &ca, "--secret-file", &secret]);
    agent.arg("--store-dir").arg(dir.path().join("store"));
    let mut agent = Daemon::start("n1".into(), agent, dir.path()).await.unwrap();
    assert!(nodes(&own).await.unwrap().contains("n1"));
    agent.stop().await.unwrap();
    running.stop().await.unwrap();

    let (old, old_key) = certs.expired();
    let (old, old_key) = (old.display().to_string(), old_key.display().to_string());
    let mut running = controller(dir.path(), &["--tls-cert", &old, "--tls-key", &old_key]).await;
    let https = format!("https://127.0.0.1:{}", running.address("listen").port());
    let expired = nodes(&["--controller", &https, "--tls-ca", &ca]).await.unwrap_err();
    assert!(expired.contains("not valid now") && expired.contains("certs issue"), "{expired}");
    running.stop().await.unwrap();

    let mut running = controller(dir.path(), &[]).await;
    let https = format!("https://127.0.0.1:{}", running.address("listen").port());
    let plain = nodes(&["--controller", &https, "--tls-ca", &ca]).await.unwrap_err();
    assert!(plain.contains("write http://"), "{plain}");
    running.stop().await.unwrap();
}

/// Catches certificates that other programs do not accept.
#[test]
fn openssl_verifies_the_certificates() {
    let certs = Certificates::new();
    let openssl = |purpose: &str, name: &str| {
        let arguments =
            ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", &certs.path("ca.pem"), &certs.path(name)];
        std::process::Command::new("openssl").args(arguments).output()
    };
    for (purpose, name) in [("sslserver", "controller.pem"), ("sslclient", "client.pem")] {
        match openssl(purpose, name) {
            Ok(output) => assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => return said_loudly(&format!("openssl cannot be run: {error}")),
        }
    }
    assert!(!openssl("sslserver", "client.pem").unwrap().status.success(), "a client's certificate is no server's");
}

/// Catches an agent with a wrong secret that says it is ready, or does not say what is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_a_wrong_secret_is_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = controller(dir.path(), &[]).await;
    let wrong = dir.path().join("wrong");
    fs::write(&wrong, "another secret of some length").unwrap();
    let mut agent = crate::common::faasnet(&["agent", "--listen", "127.77.0.96:0", "--admin", "127.0.0.1:0"]);
    agent.arg("--controller").arg(format!("http://{}", running.address("listen"))).arg("--secret-file").arg(&wrong);
    agent.arg("--store-dir").arg(dir.path().join("store"));
    let log = dir.path().join("agent.log");
    let mut agent = agent.stdout(fs::File::create(dir.path().join("out")).unwrap());
    agent = agent.stderr(fs::File::create(&log).unwrap());
    let mut agent = agent.spawn().unwrap();
    let begun = Instant::now();
    while !fs::read_to_string(&log).unwrap().contains("refuses this agent") {
        assert!(begun.elapsed() < DEADLINE, "{}", fs::read_to_string(&log).unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (said, ended) = (fs::read_to_string(dir.path().join("out")).unwrap(), agent.try_wait().unwrap());
    agent.kill().unwrap();
    agent.wait().unwrap();
    running.stop().await.unwrap();
    assert!(fs::read_to_string(&log).unwrap().contains("same cluster secret"));
    assert_eq!((said, ended), (String::new(), None));
}
