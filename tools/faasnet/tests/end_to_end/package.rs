//! The Debian package on a host made of a folder: it installs, its units and settings start both daemons, and nothing is left of it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::common::{DEADLINE, exe, said_loudly};

/// A folder with what dpkg needs of a host; scripts of packages run on this machine, with the folder in `DPKG_ROOT`.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for folder in ["etc", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"] {
            fs::create_dir_all(host.path(folder)).unwrap();
        }
        fs::write(host.path("var/lib/dpkg/status"), "").unwrap();
        fs::write(host.path("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
        fs::write(host.path("etc/group"), "root:x:0:\n").unwrap();
        host
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn dpkg(&self, arguments: &[&str]) {
        let mut command = Command::new("dpkg");
        command.arg("--root").arg(self.0.path()).args(["--force-script-chrootless", "--force-depends", "--no-pager"]);
        succeed(command.args(arguments));
    }

    /// The installed program.
    fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path("usr/bin/faasnet"));
        command.args(arguments).env("FAASNET_AGENT_MIRROR_LISTEN", "127.0.0.1:0").stdin(Stdio::null());
        command
    }

    /// Every file and folder, but dpkg's own and what useradd keeps beside its files.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        let mut folders = vec![self.0.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
                let relative = path.strip_prefix(self.0.path()).unwrap().to_owned();
                let others = ["var/lib/dpkg", "etc/passwd-", "etc/group-", "etc/subuid", "etc/subgid", "etc/.pwd.lock"];
                if others.iter().any(|other| relative.starts_with(other)) {
                    continue;
                }
                if path.is_dir() {
                    folders.push(path);
                }
                files.insert(relative);
            }
        }
        files
    }
}

/// Catches a package that does not install or overwrites settings, units that systemd or the daemons do not take, daemons that do not
/// say when they serve, live and stop, and a removal that leaves files or a runtime's entry.
#[test]
fn the_package_installs_starts_and_goes() {
    let is_root = rustix::process::geteuid().is_root();
    let tools = ["dpkg-deb", "objdump", "strip", "systemd-analyze", "useradd"];
    if let Some(missing) = tools
        .iter()
        .find(|tool| !Path::new("/usr/bin").join(tool).exists() && !Path::new("/usr/sbin").join(tool).exists())
    {
        return said_loudly(&format!(
            "the package is not tried: {missing} is missing; tools/check packages installs it"
        ));
    }
    if !is_root {
        return said_loudly("the package is not tried: dpkg installs only as root");
    }
    let (host, built) = (Host::new(), tempfile::tempdir().unwrap());
    let before = host.files();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deb");
    let output = succeed(Command::new(script).arg(exe()).arg(built.path()).env("DEB_COMPRESSION", "none"));
    let package = String::from_utf8(output.stdout).unwrap();
    host.dpkg(&["--install", package.trim()]);
    assert!(fs::read_to_string(host.path("etc/passwd")).unwrap().contains("\nfaasnet:"));
    systemd_takes_the_units(&host);
    the_daemons_start(&host);

    let settings = host.path("etc/faasnet/agent.toml");
    fs::write(&settings, "controller = \"http://elsewhere:7400\"\n").unwrap();
    let root = host.0.path().to_str().unwrap();
    let report = succeed(&mut host.program(&["install", "docker", "--root", root, "--json"]));
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert!(report["changed"] == true && report["files"][0]["action"] == "created", "{report}");
    host.dpkg(&["--install", package.trim()]);
    assert!(fs::read_to_string(&settings).unwrap().contains("elsewhere"), "an upgrade overwrites settings");
    assert!(host.path("etc/docker/daemon.json").exists(), "an upgrade takes the runtime's entry");

    host.dpkg(&["--remove", "faasnet"]);
    assert!(settings.exists() && !host.path("usr/bin/faasnet").exists() && !host.path("etc/docker").exists());
    assert!(host.path("var/lib/faasnet").exists(), "a removal takes the images");
    host.dpkg(&["--purge", "faasnet"]);
    assert!(!fs::read_to_string(host.path("etc/passwd")).unwrap().contains("faasnet"));
    fs::remove_file(host.path("etc/faasnet/secret")).expect("the secret is not the package's");
    fs::remove_dir(host.path("etc/faasnet")).unwrap();
    assert_eq!(host.files(), before);
}

fn systemd_takes_the_units(host: &Host) {
    for unit in ["faasnet-agent.service", "faasnet-controller.service"] {
        let text = fs::read_to_string(host.path("lib/systemd/system").join(unit)).unwrap();
        let program = host.path("usr/bin/faasnet");
        let copy = host.0.path().join(unit);
        fs::write(&copy, text.replace("/usr/bin/faasnet", program.to_str().unwrap())).unwrap();
        let output = succeed(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("faasnet"), "{unit}: {said}");
        fs::remove_file(copy).unwrap();
    }
}

/// Both daemons as the units start them, but for ports and folders.
fn the_daemons_start(host: &Host) {
    fs::write(host.path("etc/faasnet/secret"), "0123456789abcdef0123456789abcdef").unwrap();
    let file = |path: &str| host.path(path).to_str().unwrap().to_owned();
    let secret = ["--secret-file".to_owned(), file("etc/faasnet/secret")];
    let mut controller = Unit::start(
        host,
        "controller",
        &[
            &secret[..],
            &[
                "--config".into(),
                file("etc/faasnet/controller.toml"),
                "--state-dir".into(),
                file("var/lib/faasnet-controller"),
            ],
            &["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"].map(str::to_owned),
        ]
        .concat(),
    );
    controller.hears("READY=1");
    let address = controller.address("listen");
    let mut agent = Unit::start(
        host,
        "agent",
        &[
            &secret[..],
            &["--config".into(), file("etc/faasnet/agent.toml"), "--store-dir".into(), file("var/lib/faasnet")],
            &["--controller".into(), format!("http://{address}")],
            &["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--mirror-listen", "off"].map(str::to_owned),
        ]
        .concat(),
    );
    agent.hears("READY=1");
    for unit in [&mut agent, &mut controller] {
        unit.hears("WATCHDOG=1");
        let pid = unit.child.id().to_string();
        succeed(Command::new("sh").args(["-c", &format!("kill -TERM {pid}")]));
        unit.hears("STOPPING=1");
        assert!(unit.child.wait().unwrap().success());
    }
}

/// A daemon with the socket by which it talks to systemd.
struct Unit {
    child: Child,
    socket: UnixDatagram,
    place: PathBuf,
}

impl Unit {
    fn start(host: &Host, command: &str, arguments: &[String]) -> Self {
        let place = host.path(&format!("{command}.notify"));
        let socket = UnixDatagram::bind(&place).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut program = host.program(&[command]);
        program.args(arguments).env("NOTIFY_SOCKET", &place).env("WATCHDOG_USEC", "200000");
        let child = program.stdout(Stdio::piped()).spawn().unwrap();
        Self { child, socket, place }
    }

    /// Waits until the daemon has said `word`.
    fn hears(&self, word: &str) {
        let mut bytes = [0; 512];
        loop {
            let length = self.socket.recv(&mut bytes).unwrap_or_else(|error| panic!("no {word}: {error}"));
            if String::from_utf8_lossy(&bytes[..length]).lines().any(|line| line == word) {
                return;
            }
        }
    }

    /// An address of its `ready` line.
    fn address(&mut self, what: &str) -> String {
        let mut line = String::new();
        let output = self.child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
        let place = line.split_whitespace().find_map(|word| word.strip_prefix(what)?.strip_prefix('='));
        place.unwrap_or_else(|| panic!("{line}")).to_owned()
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        // Ignored: it has ended, unless the test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.place);
    }
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
    output
}
