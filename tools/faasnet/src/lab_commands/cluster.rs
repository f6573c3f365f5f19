//! The daemons of a lab, each in the namespace of its host: registry, controller, agents. Like `crate::cluster`, with real addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use faasnet_lab::enter;
use faasnet_lab::network::{Host, Network};
use faasnet_lab::proxy::Proxy;
use futures_util::future::{join_all, try_join_all};
use tokio::process::Command;
use tokio::time::timeout;

use super::fault::{FaultPlan, Kind};
use super::image;
use super::plan::Plan;
use crate::client::{self, Control};
use crate::cluster::{self, Daemon};
use crate::registry;
use crate::view::{FunctionView, HostView};
use crate::{functions, nodes};

/// What the lab's function is called.
pub const TENANT: &str = "lab";
/// See [`TENANT`].
pub const FUNCTION: &str = "image";
/// Ports; every host has its own set.
const REGISTRY_PORT: u16 = 5000;
const CONTROLLER_PORT: u16 = 7400;
const DATA_PORT: u16 = 7410;
/// Where an agent behind a proxy listens.
const HIDDEN_PORT: u16 = 7409;
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7411);
/// How long agents may take to reach the controller.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a killed agent's port may stay taken.
const PORT_DEADLINE: Duration = Duration::from_secs(5);
/// Remounts a folder as a small file system that only the following program sees, so that nothing of it can stay behind.
const SMALL_DISK: &str = r#"mount -t tmpfs -o "size=$1" fnlab "$2" && shift 2 && exec "$@""#;

/// Running daemons.
pub struct LabCluster {
    /// The hosts.
    pub network: Network,
    /// `n1`, `n2`, …; `None` while killed.
    pub agents: Vec<Option<Daemon>>,
    /// The control plane; `None` while killed.
    pub controller: Option<Daemon>,
    /// The registry; `None` while killed.
    pub origin: Option<Daemon>,
    /// Daemons that ended although nobody asked them to, and how.
    deaths: Vec<String>,
    /// In front of agents whose bits can be flipped: of all when the plan does so.
    proxies: BTreeMap<usize, Proxy>,
    /// Agents whose disk has room for half of the image.
    small_disks: BTreeSet<usize>,
    plan: Plan,
    layout: PathBuf,
    dir: PathBuf,
    exe: PathBuf,
    secret: String,
}

impl LabCluster {
    /// Starts everything and waits until all agents are live. Folders and logs go to `dir`, which must exist.
    pub async fn start(network: &Network, plan: &Plan, layout: &Path, dir: &Path) -> Result<Self> {
        let secret = cluster::random_secret()?;
        cluster::write_secret(&dir.join("secret"), &secret)?;
        let mut started = Self {
            network: network.clone(),
            agents: Vec::new(),
            controller: None,
            origin: None,
            deaths: Vec::new(),
            proxies: BTreeMap::new(),
            small_disks: plan.faults.iter().filter_map(FaultPlan::small_disk).collect(),
            plan: plan.clone(),
            layout: layout.to_owned(),
            dir: dir.to_owned(),
            exe: std::env::current_exe().context("cannot find this program's own file")?,
            secret,
        };
        if plan.faults.iter().any(|fault| fault.kind == Kind::Flip) {
            let proxies = network.agents().iter().enumerate().map(|(index, host)| Ok((index, proxy(host)?)));
            started.proxies = proxies.collect::<Result<_>>()?;
        }
        started.start_origin().await?;
        started.start_controller().await?;
        let agents = try_join_all((0..plan.hosts).map(|index| started.agent(index))).await?;
        started.agents = agents.into_iter().map(Some).collect();
        started.wait_live().await?;
        Ok(started)
    }

    /// Starts the registry (again).
    pub async fn start_origin(&mut self) -> Result<()> {
        let host = self.network.origin();
        let mut command = self.program(host);
        command.arg("registry").arg(&self.layout).arg("--listen").arg(address(host, REGISTRY_PORT).to_string());
        command.arg("--access-log").arg(self.origin_requests());
        self.origin = Some(Daemon::start(host.name.clone(), command, &self.dir).await?);
        Ok(())
    }

    /// Starts the controller (again), with the state that it had.
    pub async fn start_controller(&mut self) -> Result<()> {
        let host = self.network.controller();
        let mut command = self.program(host);
        command.arg("controller").arg("--listen").arg(address(host, CONTROLLER_PORT).to_string());
        command.arg("--secret-file").arg(self.secret_file()).arg("--state-dir").arg(self.dir.join("state"));
        self.controller = Some(Daemon::start(host.name.clone(), command, &self.dir).await?);
        Ok(())
    }

    /// Starts an agent again, with the store that it had.
    pub async fn start_agent(&mut self, index: usize) -> Result<()> {
        self.agents[index] = Some(self.agent(index).await?);
        Ok(())
    }

    async fn agent(&self, index: usize) -> Result<Daemon> {
        let host = &self.network.agents()[index];
        let mut command = self.enter(host);
        if self.small_disks.contains(&index) {
            let store = self.store(index);
            std::fs::create_dir_all(&store).with_context(|| format!("cannot make {}", store.display()))?;
            command.args(["unshare", "--mount", "--propagation", "private", "sh", "-c", SMALL_DISK, "sh"]);
            command.arg((self.plan.size / 2).to_string()).arg(store);
        }
        command.arg(&self.exe).arg("agent").args(["--name", &host.name]).arg("--controller").arg(self.url());
        command.arg("--secret-file").arg(self.secret_file()).arg("--store-dir").arg(self.store(index));
        let port = if self.proxies.contains_key(&index) { HIDDEN_PORT } else { DATA_PORT };
        command.arg("--listen").arg(address(host, port).to_string());
        command.arg("--advertise").arg(address(host, DATA_PORT).to_string()).arg("--admin").arg(ADMIN.to_string());
        command.args(["--engine", &self.plan.engine.to_string()]).args(&self.plan.agent_args);
        Daemon::start(host.name.clone(), command, &self.dir).await
    }

    /// Flips bits of what an agent sends, or no longer. One without a proxy is started anew behind one.
    pub async fn flip_bits(&mut self, index: usize, flip: bool) -> Result<()> {
        if flip && !self.proxies.contains_key(&index) {
            self.kill_agent(index).await?;
            self.proxies.insert(index, proxy(&self.network.agents()[index])?);
            self.start_agent(index).await?;
        }
        if let Some(proxy) = self.proxies.get(&index) {
            proxy.arm(flip);
        }
        Ok(())
    }

    /// Starts an agent anew on a disk with room for half of the image, or on its own disk again.
    pub async fn shrink_disk(&mut self, index: usize, shrink: bool) -> Result<()> {
        let changed = if shrink { self.small_disks.insert(index) } else { self.small_disks.remove(&index) };
        if changed {
            self.kill_agent(index).await?;
            self.start_agent(index).await?;
        }
        Ok(())
    }

    /// Kills an agent to start it anew at once: waits until its port is free. The kernel closes the sockets of a ring some time after the
    /// process is gone.
    async fn kill_agent(&mut self, index: usize) -> Result<()> {
        if let Some(mut agent) = self.agents[index].take() {
            agent.kill().await?;
        }
        let host = &self.network.agents()[index];
        let wanted = address(host, if self.proxies.contains_key(&index) { HIDDEN_PORT } else { DATA_PORT });
        let deadline = Instant::now() + PORT_DEADLINE;
        loop {
            match enter::run(&host.namespace, move || TcpListener::bind(wanted))? {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).with_context(|| format!("{wanted} does not become free on {}", host.name));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The controller's address for clients on the lab's network.
    pub fn url(&self) -> String {
        format!("http://{}", address(self.network.controller(), CONTROLLER_PORT))
    }

    /// Where the registry writes a line for every request.
    pub fn origin_requests(&self) -> PathBuf {
        self.dir.join("origin.requests")
    }

    /// The file with the secret.
    pub fn secret_file(&self) -> PathBuf {
        self.dir.join("secret")
    }

    /// The store of an agent as it sees it: on a small disk it is another one than the same path leads to from here.
    pub fn own_store(&self, index: usize) -> PathBuf {
        let (store, pid) = (self.store(index), self.agents[index].as_ref().and_then(Daemon::pid));
        match (pid, store.strip_prefix("/")) {
            (Some(pid), Ok(path)) => Path::new("/proc").join(pid.to_string()).join("root").join(path),
            _ => store,
        }
    }

    /// The store of an agent.
    pub fn store(&self, index: usize) -> PathBuf {
        self.dir.join(&self.network.agents()[index].name)
    }

    /// A connection to the controller; only from the lab's network.
    pub async fn control(&self) -> Result<Control> {
        client::connect(&self.url(), Some(self.secret.as_bytes())).await
    }

    /// Registers the image.
    pub async fn register(&self, control: &mut Control) -> Result<FunctionView> {
        let request = faasnet_api::v1::CreateFunctionRequest {
            tenant: TENANT.into(),
            function: FUNCTION.into(),
            reference: self.reference()?,
            policy: self.plan.policy.to_string(),
            platform: String::new(),
            plain_http: true,
            memory_mib: 0,
        };
        functions::create(control, request, |_, _| ()).await
    }

    /// How the registry calls the image.
    pub fn reference(&self) -> Result<String> {
        let tag = image::tag(&self.layout)?;
        Ok(format!("{}/{}:{tag}", self.registry_address(), registry::default_name(&self.layout)))
    }

    /// Where the registry listens.
    pub fn registry_address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.network.origin().address, REGISTRY_PORT)
    }

    /// The nodes as the controller knows them.
    pub async fn hosts(&self) -> Result<Vec<HostView>> {
        nodes::hosts(&mut self.control().await?).await
    }

    /// Process ids of the agents that run.
    pub fn pids(&self) -> Vec<(usize, u32)> {
        let pid = |(index, agent): (usize, &Option<Daemon>)| Some((index, agent.as_ref()?.pid()?));
        self.agents.iter().enumerate().filter_map(pid).collect()
    }

    /// Puts away daemons that ended although nobody asked them to; the agents among them.
    pub fn bury(&mut self) -> Vec<usize> {
        let mut dead = Vec::new();
        for (index, agent) in self.agents.iter_mut().enumerate() {
            if let Some(death) = agent.as_mut().and_then(Daemon::death) {
                self.deaths.push(death);
                *agent = None;
                dead.push(index);
            }
        }
        for daemon in [&mut self.controller, &mut self.origin] {
            if let Some(death) = daemon.as_mut().and_then(Daemon::death) {
                self.deaths.push(death);
                *daemon = None;
            }
        }
        dead
    }

    /// What is known of daemons that ended unasked and was not told yet.
    pub fn take_deaths(&mut self) -> Vec<String> {
        std::mem::take(&mut self.deaths)
    }

    /// Ends everything in order. Tells what went wrong: daemons that had ended before, do not stop, or fail.
    pub async fn stop(&mut self) -> Result<Vec<String>> {
        self.proxies.clear();
        let agents = join_all(self.agents.iter_mut().flatten().map(Daemon::end)).await;
        let rest = join_all([&mut self.controller, &mut self.origin].into_iter().flatten().map(Daemon::end)).await;
        let ends = agents.into_iter().chain(rest).collect::<Result<Vec<_>>>()?;
        Ok(self.take_deaths().into_iter().chain(ends.into_iter().flatten()).collect())
    }

    async fn wait_live(&self) -> Result<()> {
        let all = async {
            let mut control = self.control().await?;
            while nodes::hosts(&mut control).await?.iter().filter(|host| host.state == "live").count() < self.plan.hosts
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        match timeout(START_DEADLINE, all).await {
            Ok(result) => result,
            Err(_) => bail!("not all of {} agents reached the controller; see the logs with --keep", self.plan.hosts),
        }
    }

    fn program(&self, host: &Host) -> Command {
        let mut command = self.enter(host);
        command.arg(&self.exe);
        command
    }

    fn enter(&self, host: &Host) -> Command {
        enter_command(&host.namespace)
    }
}

/// The start of a command that runs in `namespace`; the program follows. It replaces itself, so the process id stays the same.
pub fn enter_command(namespace: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", enter::path(namespace).display())).arg("--");
    command
}

/// An agent's row for the lab's function, asked from inside its host; `None` when it does not answer or has none.
pub async fn held(namespace: String) -> Option<crate::admin::Held> {
    let path = format!("/v1/functions/{TENANT}/{FUNCTION}");
    let answer = tokio::task::spawn_blocking(move || faasnet_lab::http::get(&namespace, ADMIN, &path)).await;
    match answer {
        Ok(Ok((200, body))) => serde_json::from_slice(&body).ok(),
        _ => None,
    }
}

fn proxy(host: &Host) -> Result<Proxy> {
    Ok(Proxy::start(&host.namespace, address(host, DATA_PORT), address(host, HIDDEN_PORT))?)
}

fn address(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.address.into(), port)
}
