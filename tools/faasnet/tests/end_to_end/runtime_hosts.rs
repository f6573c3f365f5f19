//! Hosts with a container runtime of their own: each in a network namespace with an agent, its mirror and Debian's containerd, beside a
//! registry and a controller on hosts of their own.
//!
//! `nsenter --net` and not `ip netns exec`, which would hide the control groups from runc. Everything ends with the fixture.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use faasnet::cluster::Daemon;
use faasnet::lab_commands::cluster::enter_command;
use faasnet::lab_commands::origin_log;
use faasnet_lab::{Host, LabId, Network, NetworkOptions, leftovers};
use tempfile::TempDir;

use crate::common::{DEADLINE, exe};

/// The registry's port is HTTP's own, so that its name is one path element of the mirror.
const REGISTRY_PORT: u16 = 80;
/// The mirrors of the hosts from this one on register what no function has.
pub(crate) const FIRST_REGISTERING: usize = 2;
const CONTROLLER_PORT: u16 = 7400;
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7411);

/// See the module's documentation.
pub(crate) struct RuntimeHosts {
    pub(crate) agents: Vec<Daemon>,
    runtimes: Vec<Runtime>,
    _controller: Daemon,
    _registry: Daemon,
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
    /// `layout` is what the registry serves, as the repository `layout`.
    pub(crate) async fn start(hosts: usize, rate: &str, layout: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = NetworkOptions { id: LabId::fresh(), hosts, rate: rate.parse().unwrap(), mtu: None };
        let network = Guard(Network::up(options).unwrap());
        fs::write(dir.path().join("secret"), "0123456789abcdef0123").unwrap();
        let host = network.0.origin();
        let mut command = program(host);
        command.arg("registry").arg(layout).args(["--listen", &format!("{}:{REGISTRY_PORT}", host.address)]);
        command.arg("--access-log").arg(dir.path().join("requests"));
        let registry = Daemon::start("registry".into(), command, dir.path()).await.unwrap();
        let host = network.0.controller();
        let mut command = program(host);
        command.arg("controller").args(["--listen", &format!("{}:{CONTROLLER_PORT}", host.address)]);
        command.arg("--secret-file").arg(dir.path().join("secret")).arg("--state-dir").arg(dir.path().join("state"));
        command.args(["--tag-ttl-ms", "300"]);
        let controller = Daemon::start("controller".into(), command, dir.path()).await.unwrap();
        let mut hosts = Self {
            agents: Vec::new(),
            runtimes: Vec::new(),
            _controller: controller,
            _registry: registry,
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
        let mut command = program(host);
        command.arg("agent").args(["--name", &host.name, "--listen", &format!("{}:7410", host.address)]);
        command.arg("--controller").arg(self.controller()).arg("--secret-file").arg(self.path("secret"));
        command.arg("--store-dir").arg(self.store(index));
        if index >= FIRST_REGISTERING {
            command.args(["--mirror-on-miss", "register", "--mirror-register-wait-ms", "60000"]);
            command.args(["--mirror-plain-http", &self.registry()]);
        }
        Daemon::start(host.name.clone(), command, self.dir.path()).await.unwrap()
    }

    /// Starts agent `index` again, with the store that it had.
    pub(crate) async fn restart_agent(&mut self, index: usize) {
        self.agents[index] = self.start_agent(index).await;
    }

    fn start_runtime(&self, index: usize) -> Runtime {
        let dir = self.path(&format!("containerd{index}"));
        let registry = self.registry();
        let hosts = dir.join("hosts").join(&registry);
        fs::create_dir_all(&hosts).unwrap();
        let text = format!(
            "server = \"http://{registry}\"\n[host.\"http://127.0.0.1:7412\"]\n  capabilities = [\"pull\", \"resolve\"]\n\
             [host.\"http://{registry}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(hosts.join("hosts.toml"), text).unwrap();
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
        fs::write(dir.join("config.toml"), text).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = self.enter(index);
        command.arg("containerd").arg("--config").arg(dir.join("config.toml"));
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
        let hosts = self.runtimes[index].dir.join("hosts");
        self.ctr(index, &["images", "pull", "--hosts-dir", hosts.to_str().unwrap(), "--plain-http", &self.image(tag)])
    }

    /// Runs `command` in a new container of an image on host `index`; what it says.
    pub(crate) fn run(&self, index: usize, tag: &str, command: &[&str]) -> String {
        let name = format!("c{index}-{}", faasnet_api::NodeId(faasnet_api::keys::random_bytes()).short());
        let image = self.image(tag);
        let arguments = [&["run", "--rm", &image, &name], command].concat();
        said(&format!("a container on host {index}"), self.ctr(index, &arguments).output().unwrap())
    }

    /// Registers the image as the function of the same name.
    pub(crate) fn create(&self, tag: &str) {
        let mut command: Command = enter_command(&self.network.0.controller().namespace).into_std();
        command.arg(exe()).args(["--controller", &self.controller()]).arg("--secret-file").arg(self.path("secret"));
        command.args(["function", "create", tag, "--plain-http", "--image", &self.image(tag)]);
        said("function create", command.output().unwrap());
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
        origin_log::read(&self.path("requests")).unwrap().reads.iter().map(|read| read.bytes).sum()
    }

    /// `program` on host `index`.
    pub(crate) fn on(&self, index: usize, program: &str) -> Command {
        let mut command = self.enter(index);
        command.arg(program).stdin(Stdio::null());
        command
    }

    /// The reference of an image.
    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}/layout:{tag}", self.registry())
    }

    /// The registry's name.
    pub(crate) fn registry(&self) -> String {
        self.network.0.origin().address.to_string()
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

fn program(host: &Host) -> tokio::process::Command {
    let mut command = enter_command(&host.namespace);
    command.arg(exe());
    command
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
