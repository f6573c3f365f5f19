//! The controller's HTTP with certificates, as `faasnet certs` makes them.

use std::path::Path;
use std::process::Command;

use faasnet::cluster::Daemon;

use crate::common::{exe, run};

/// The status that curl sees; `None`: no connection or no trust.
fn curl(arguments: &[&str]) -> Option<String> {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]).args(arguments);
    let output = curl.output().expect("curl does not start; install the Debian package curl");
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

async fn controller(dir: &Path) -> Daemon {
    let file = |name: &str| dir.join("certs").join(name);
    std::fs::write(dir.join("secret"), "0123456789abcdef0123456789abcdef").unwrap();
    let mut command = tokio::process::Command::new(exe());
    command.args(["controller", "--listen", "127.0.0.1:0"]).arg("--secret-file").arg(dir.join("secret"));
    command.arg("--state-dir").arg(dir.join("state")).arg("--tls-cert").arg(file("controller.pem"));
    command.arg("--tls-key").arg(file("controller-key.pem")).arg("--tls-client-ca").arg(file("ca.pem"));
    Daemon::start("controller".into(), command, dir).await.unwrap()
}

/// Catches an API that stays readable on the wire although gRPC is encrypted, or that takes nobody's certificate or everybody's.
#[tokio::test(flavor = "multi_thread")]
async fn http_is_encrypted_and_takes_certificates() {
    let dir = tempfile::tempdir().unwrap();
    for certs in ["certs", "others"] {
        let made = run(&["certs", "init", "--dir", &dir.path().join(certs).display().to_string()]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    let mut controller = controller(dir.path()).await;
    let http = controller.address("http");
    let url = format!("https://{http}/v1/version");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (ca, cert, key) = (path("certs/ca.pem"), path("certs/client.pem"), path("certs/client-key.pem"));
    let (other_cert, other_key) = (path("others/client.pem"), path("others/client-key.pem"));
    // Whoever connects and says nothing takes nobody's place: the oldest of these make way.
    let silent: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(http).unwrap()).collect();
    let curls = tokio::task::spawn_blocking(move || {
        assert_eq!(curl(&["--cacert", &ca, &url]).as_deref(), Some("200"));
        assert_eq!(curl(&[&url]), None, "an unknown authority is trusted");
        assert_eq!(curl(&[&url.replace("https", "http")]), None, "plain HTTP is answered");
        // Under a foreign name the loopback rule does not hold, a certificate does.
        let foreign = ["--cacert", &ca, "--header", "host: controller.example", &url];
        assert_eq!(curl(&foreign).as_deref(), Some("403"));
        assert_eq!(curl(&[&["--cert", &cert, "--key", &key], &foreign[..]].concat()).as_deref(), Some("200"));
        assert_eq!(curl(&[&["--cert", &other_cert, "--key", &other_key], &foreign[..]].concat()), None);
    });
    curls.await.unwrap();
    drop(silent);
    controller.stop().await.unwrap();
}
