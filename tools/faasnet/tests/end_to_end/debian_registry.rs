//! Against registries and tools that are not ours: Debian's `docker-registry`, an image pushed by `skopeo`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::common::{MIB, demo, layout, noise, said_loudly};

const AGENTS: u64 = 5;

/// A running `docker-registry`; killed when dropped.
struct DockerRegistry {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
}

impl DockerRegistry {
    fn start(dir: &Path) -> Self {
        let config = dir.join("registry.yml");
        let storage = dir.join("storage");
        let text = format!(
            "version: 0.1\nlog:\n  accesslog:\n    disabled: false\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        // Its own messages go to one stream and the access log to the other; which, has changed between versions.
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        let (sender, address) = std::sync::mpsc::channel();
        for stream in streams {
            let (log, sender) = (log.clone(), sender.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if let Some(place) = line.split("listening on ").nth(1) {
                        let place = place.split(|c: char| !c.is_ascii_digit() && !".:".contains(c)).next().unwrap();
                        // Ignored: the test has its address, or is over.
                        let _ = sender.send(place.to_owned());
                    }
                    *log.lock().unwrap() += &format!("{line}\n");
                }
            });
        }
        let address = address.recv_timeout(std::time::Duration::from_secs(30)).expect("docker-registry did not start");
        Self { child, address, log }
    }

    /// Requests for blobs that were answered with bytes, and those bytes, as its access log counts them.
    fn blob_reads(&self) -> (u64, u64) {
        let log = self.log.lock().unwrap();
        let reads = log.lines().filter(|line| line.contains("\"GET ") && line.contains("/blobs/sha256:"));
        reads.fold((0, 0), |(requests, bytes), line| {
            // … "GET /v2/app/blobs/sha256:… HTTP/1.1" 206 4194304 "" "agent"
            let mut fields = line.split("HTTP/1.1\" ").nth(1).unwrap_or_default().split(' ');
            let ok = fields.next().is_some_and(|status| status.starts_with('2'));
            let sent: u64 = fields.next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
            if ok { (requests + 1, bytes + sent) } else { (requests, bytes) }
        })
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // Ignored: it may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Catches a root that only our own registry understands: the image comes from Debian's, whose own log says what was read.
#[test]
fn an_image_in_debians_registry() {
    if !installed("docker-registry") || !installed("skopeo") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(dir.path());
    let image = layout(dir.path(), "app", &[noise(1, 24 * MIB), noise(2, 17 * MIB + 3), noise(3, 100)]);
    let reference = format!("{}/team/app:1", registry.address);
    let pushed = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
        .args([format!("oci:{}:latest", image.display()), format!("docker://{reference}")])
        .output()
        .unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let (pushing_requests, pushing_bytes) = registry.blob_reads();
    let report = demo(&["--agents", &AGENTS.to_string(), "--image", &reference, "--plain-http"]);
    assert!(report.verified && report.nodes.len() as u64 == AGENTS);
    assert_eq!(report.origin.counted_by, "agents");
    let (requests, bytes) = registry.blob_reads();
    let (requests, bytes) = (requests - pushing_requests, bytes - pushing_bytes);
    // One read by the registration, one by all nodes together.
    let provisioning = bytes.checked_sub(report.image.bytes).expect("the registration reads the image once");
    assert!(
        provisioning as f64 <= report.image.bytes as f64 * 1.02,
        "its log counts {provisioning} of {}",
        report.image.bytes
    );
    assert!(provisioning >= report.image.bytes && requests > 4);
    assert!(report.origin.bytes_sent.abs_diff(provisioning) <= report.image.bytes / 50, "the agents count otherwise");
}

/// Whether a program is there. In CI it must be; elsewhere its absence is said loudly.
fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        said_loudly(&format!(
            "{program} is not installed; get it with `sudo apt-get install {program}` or tools/check packages"
        ));
    }
    found
}
