//! Hosts with a container runtime of their own: each in a network namespace with an agent, its mirror and Debian's containerd, beside
//! registries and a controller on hosts of their own. Daemons take the registry for Docker Hub, by an `/etc/hosts` of their own.
//!
//! `nsenter --net` and not `ip netns exec`, which would hide the control groups from runc. Everything ends with the fixture.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use faasnet::cluster::Daemon;
use faasnet::lab_commands::cluster::enter_command;
use faasnet::lab_commands::origin_log;
use faasnet_lab::{Host, LabId, Network, NetworkOptions, leftovers};
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{DEADLINE, exe};

/// The registry's port is HTTP's own, so that its name is one path element of the mirror.
pub(crate) const OPEN: u16 = 80;
/// This one answers only who logs in as [`LOGIN`]. The controller does; the agents have a wrong password.
pub(crate) const PRIVATE: u16 = 5000;
/// Likewise, and the agents know the password; but each token is good for a few requests only.
pub(crate) const EXPIRING: u16 = 5001;
/// User and password.
pub(crate) const LOGIN: &str = "me:right";
/// What each registry serves.
const REPOSITORY: &str = "library/layout";
/// The mirrors of the hosts from this one on register what no function has.
pub(crate) const FIRST_REGISTERING: usize = 2;
const CONTROLLER_PORT: u16 = 7400;
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7411);

/// See the module's documentation.
pub(crate) struct RuntimeHosts {
    pub(crate) agents: Vec<Daemon>,
    runtimes: Vec<Runtime>,
    _controller: Daemon,
    _registries: Vec<Daemon>,
    network: Guard,
    dir: TempDir,
}

/// The network goes last, and even when a test fails.
struct Guard(Network);

impl Drop for Guard {
    fn drop(&mut self) {
        // A failing test says what it found first.
        if let Err(error) = leftovers::remove(self.0.id())
            && !std::thread::panicking()
        {
            panic!("the lab cannot be taken down: {error}");
        }
    }
}

/// One containerd; killed with its shims when dropped.
struct Runtime {
    child: std::process::Child,
    dir: PathBuf,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Ignored: it may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl RuntimeHosts {
    /// `layout` is what every registry serves.
    pub(crate) async fn start(hosts: usize, rate: &str, layout: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = NetworkOptions { id: LabId::fresh(), hosts, rate: rate.parse().unwrap(), mtu: None };
        let network = Guard(Network::up(options).unwrap());
        fs::write(dir.path().join("secret"), "0123456789abcdef0123").unwrap();
        let origin = network.0.origin();
        fs::write(dir.path().join("hosts"), format!("127.0.0.1 localhost\n{} registry-1.docker.io\n", origin.address))
            .unwrap();
        for (who, password) in [("controller", "right"), ("agents", "wrong")] {
            write_logins(&dir.path().join(who), &[(origin, PRIVATE, password), (origin, EXPIRING, "right")]);
        }
        let mut registries = Vec::new();
        for (port, more) in [
            (OPEN, &[][..]),
            (PRIVATE, &["--login", LOGIN][..]),
            (EXPIRING, &["--login", LOGIN, "--token-requests", "4"][..]),
        ] {
            let mut command = program(origin, dir.path());
            command.arg("registry").arg(layout).args(["--name", REPOSITORY]).args(more);
            command.args(["--listen", &format!("{}:{port}", origin.address)]);
            command.arg("--access-log").arg(dir.path().join(format!("requests-{port}")));
            registries.push(Daemon::start(format!("registry-{port}"), command, dir.path()).await.unwrap());
        }
        let host = network.0.controller();
        let mut command = program(host, dir.path());
        command
            .env("DOCKER_CONFIG", dir.path().join("controller"))
            .arg("controller")
            .args(["--listen", &format!("{}:{CONTROLLER_PORT}", host.address)]);
        command.arg("--secret-file").arg(dir.path().join("secret")).arg("--state-dir").arg(dir.path().join("state"));
        command.args(["--tag-ttl-ms", "300"]);
        let controller = Daemon::start("controller".into(), command, dir.path()).await.unwrap();
        let mut hosts = Self {
            agents: Vec::new(),
            runtimes: Vec::new(),
            _controller: controller,
            _registries: registries,
            network,
            dir,
        };
        for index in 0..hosts.network.0.agents().len() {
            let agent = hosts.start_agent(index).await;
            hosts.agents.push(agent);
            let runtime = hosts.start_runtime(index);
            hosts.runtimes.push(runtime);
        }
        hosts.wait_runtimes();
        hosts
    }

    async fn start_agent(&self, index: usize) -> Daemon {
        let host = self.host(index);
        let mut command = program(host, self.dir.path());
        command.env("DOCKER_CONFIG", self.path("agents")).arg("agent").args([
            "--name",
            &host.name,
            "--listen",
            &format!("{}:7410", host.address),
        ]);
        command.arg("--controller").arg(self.controller()).arg("--secret-file").arg(self.path("secret"));
        command.arg("--store-dir").arg(self.store(index));
        if index >= FIRST_REGISTERING {
            command.args(["--mirror-on-miss", "register", "--mirror-register-wait-ms", "60000"]);
            command.args(["--mirror-plain-http", &self.registry(OPEN)]);
        }
        Daemon::start(host.name.clone(), command, self.dir.path()).await.unwrap()
    }

    /// Starts agent `index` again, with the store that it had.
    pub(crate) async fn restart_agent(&mut self, index: usize) {
        self.agents[index] = self.start_agent(index).await;
        // Until it is there the mirror knows what the store holds and nothing else.
        let begun = Instant::now();
        while self.metric(index, "faasnet_controller_attached") != 1 {
            assert!(begun.elapsed() < DEADLINE, "agent {index} never attached again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn start_runtime(&self, index: usize) -> Runtime {
        let dir = self.path(&format!("containerd{index}"));
        let plugins = [
            "grpc.v1.cri",
            "internal.v1.opt",
            "snapshotter.v1.btrfs",
            "snapshotter.v1.zfs",
            "snapshotter.v1.aufs",
            "snapshotter.v1.devmapper",
        ];
        let disabled: Vec<_> = plugins.iter().map(|plugin| format!("\"io.containerd.{plugin}\"")).collect();
        let (root, socket) = (dir.display(), socket(&dir));
        let text = format!(
            "version = 2\nroot = \"{root}/root\"\nstate = \"{root}/state\"\ndisabled_plugins = [{}]\n[grpc]\naddress = \"{socket}\"\n\
             [ttrpc]\naddress = \"{socket}.ttrpc\"\n",
            disabled.join(", ")
        );
        let config = dir.join("etc/containerd/config.toml");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        fs::write(&config, text).unwrap();
        let mut install = Command::new(exe());
        install.args(["install", "containerd", "--root", dir.to_str().unwrap()]);
        for port in [OPEN, PRIVATE, EXPIRING] {
            install.args(["--registry", &format!("http://{}", self.registry(port))]);
        }
        said("install containerd", install.output().unwrap());
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = self.enter(index);
        command.arg("containerd").arg("--config").arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Runtime { child: command.spawn().unwrap(), dir }
    }

    fn wait_runtimes(&self) {
        let begun = Instant::now();
        for index in 0..self.runtimes.len() {
            while !self.ctr(index, &["version"]).output().unwrap().status.success() {
                let log = fs::read_to_string(self.runtimes[index].dir.join("log")).unwrap();
                assert!(begun.elapsed() < DEADLINE, "containerd {index} does not start: {log}");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// `ctr` on host `index`: it does the HTTP of a pull itself, so it runs there.
    pub(crate) fn ctr(&self, index: usize, arguments: &[&str]) -> Command {
        let mut command = self.enter(index);
        command.arg("ctr").args(["--address", &socket(&self.runtimes[index].dir)]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A pull through the mirror of host `index`.
    pub(crate) fn pull(&self, index: usize, tag: &str) -> Command {
        self.pull_from(OPEN, index, tag, &[])
    }

    /// A pull of what the registry at `port` has.
    pub(crate) fn pull_from(&self, port: u16, index: usize, tag: &str, more: &[&str]) -> Command {
        let hosts = self.runtimes[index].dir.join("etc/containerd/certs.d");
        let mut command = self.ctr(index, &["images", "pull", "--hosts-dir", hosts.to_str().unwrap(), "--plain-http"]);
        command.args(more).arg(self.image_at(port, tag));
        command
    }

    /// Runs `command` in a new container of an image on host `index`; what it says.
    pub(crate) fn run(&self, index: usize, tag: &str, command: &[&str]) -> String {
        self.run_image(index, &self.image(tag), command)
    }

    /// The same of an image by its reference.
    pub(crate) fn run_image(&self, index: usize, image: &str, command: &[&str]) -> String {
        let name = format!("c{index}-{}", faasnet_api::NodeId(faasnet_api::keys::random_bytes()).short());
        let arguments = [&["run", "--rm", image, &name], command].concat();
        said(&format!("a container on host {index}"), self.ctr(index, &arguments).output().unwrap())
    }

    /// Registers the image as the function of the same name.
    pub(crate) fn create(&self, tag: &str) {
        self.create_of(tag, &self.image(tag));
    }

    /// Registers an image as the function `name`.
    pub(crate) fn create_of(&self, name: &str, image: &str) {
        let mut command: Command = enter_command(&self.network.0.controller().namespace).into_std();
        command.arg(exe()).args(["--controller", &self.controller()]).arg("--secret-file").arg(self.path("secret"));
        command.args(["function", "create", name, "--plain-http", "--image", image]);
        said("function create", command.output().unwrap());
    }

    /// The state of a function on host `index`, if its agent answers and knows it.
    pub(crate) fn state(&self, index: usize, function: &str) -> Option<Value> {
        let path = format!("/v1/functions/default/{function}");
        match faasnet_lab::http::get(&self.host(index).namespace, ADMIN, &path) {
            Ok((200, body)) => Some(serde_json::from_slice(&body).unwrap()),
            _ => None,
        }
    }

    /// The id of node `index`.
    pub(crate) fn node_id(&self, index: usize) -> String {
        let (_, body) = faasnet_lab::http::get(&self.host(index).namespace, ADMIN, "/v1/state").unwrap();
        let state: Value = serde_json::from_slice(&body).unwrap();
        state["node_id"].as_str().unwrap().to_owned()
    }

    /// What agent `index` has logged.
    pub(crate) fn log(&self, index: usize) -> String {
        fs::read_to_string(self.path(&format!("{}.log", self.host(index).name))).unwrap()
    }

    /// How often the registry at `port` gave out a token.
    pub(crate) fn tokens(&self, port: u16) -> usize {
        let log = fs::read_to_string(self.path(&format!("requests-{port}"))).unwrap();
        log.lines().filter(|line| line.contains(" GET /token ") && line.contains(" 200 ")).count()
    }

    /// A number that the metrics of agent `index` show.
    pub(crate) fn metric(&self, index: usize, name: &str) -> u64 {
        let answer = faasnet_lab::http::get(&self.host(index).namespace, ADMIN, "/metrics");
        let text = answer.map(|(_, body)| String::from_utf8(body).unwrap()).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// Body bytes of blobs that the registry has sent.
    pub(crate) fn origin_bytes(&self) -> u64 {
        origin_log::read(&self.path(&format!("requests-{OPEN}"))).unwrap().reads.iter().map(|read| read.bytes).sum()
    }

    /// `program` on host `index`.
    pub(crate) fn on(&self, index: usize, program: &str) -> Command {
        let mut command = self.enter(index);
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// What a script says that runs as root on host `index`, with `/etc`, `/run` and `/var/lib` of its own that go with it, as do all
    /// processes that it leaves.
    pub(crate) fn script(&self, index: usize, script: &str) -> String {
        const PRELUDE: &str = "for dir in /var/lib /run /dev/shm; do mount -t tmpfs none $dir; done\n\
                               cp -a /etc /var/lib/etc; mount --bind /var/lib/etc /etc\n";
        let mut command = self.on(index, "unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "timeout", "100", "sh", "-ec"]);
        command.arg(format!("{PRELUDE}{script}")).env("faasnet", exe());
        said(script, command.output().unwrap())
    }

    /// The reference of an image.
    pub(crate) fn image(&self, tag: &str) -> String {
        self.image_at(OPEN, tag)
    }

    /// The reference of an image at the registry at `port`.
    pub(crate) fn image_at(&self, port: u16, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.registry(port))
    }

    /// The name of the registry at `port`.
    pub(crate) fn registry(&self, port: u16) -> String {
        let address = self.network.0.origin().address;
        if port == OPEN { address.to_string() } else { format!("{address}:{port}") }
    }

    /// The store of agent `index`.
    pub(crate) fn store(&self, index: usize) -> PathBuf {
        self.path(&format!("store{index}"))
    }

    /// Something in the fixture's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn host(&self, index: usize) -> &Host {
        &self.network.0.agents()[index]
    }

    fn controller(&self) -> String {
        format!("http://{}:{CONTROLLER_PORT}", self.network.0.controller().address)
    }

    fn enter(&self, index: usize) -> Command {
        enter_command(&self.host(index).namespace).into_std()
    }
}

/// Our program on `host`, with the `hosts` file of the fixture's folder.
fn program(host: &Host, dir: &Path) -> tokio::process::Command {
    let mut command = enter_command(&host.namespace);
    command.args(["unshare", "--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
    command.arg(dir.join("hosts")).arg(exe());
    command
}

/// A Docker configuration in `folder` with a password of [`LOGIN`]'s user for each registry.
fn write_logins(folder: &Path, logins: &[(&Host, u16, &str)]) {
    let auths = logins.iter().map(|(host, port, password)| {
        let auth = STANDARD.encode(format!("me:{password}"));
        (format!("{}:{port}", host.address), serde_json::json!({ "auth": auth }))
    });
    let auths: serde_json::Map<_, _> = auths.collect();
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), serde_json::json!({ "auths": auths }).to_string()).unwrap();
}

fn socket(dir: &Path) -> String {
    dir.join("socket").display().to_string()
}

/// What a program said that must have succeeded.
pub(crate) fn said(what: &str, output: Output) -> String {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {text}{errors}");
    text.into_owned()
}
