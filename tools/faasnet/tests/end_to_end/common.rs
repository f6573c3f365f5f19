//! What the tests stand on: a registry in this process, a cluster of child processes, images of exact sizes, checks on disk.
//!
//! Everything ends with the test: processes when their handles drop, folders with the `TempDir`.

use std::io::{Cursor, Read, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use faasnet::admin::{Admin, Held};
use faasnet::cluster::{Cluster, ClusterOptions};
use faasnet::demo::report::Report;
use faasnet::demo::verify;
use faasnet::nodes::{self, FunctionTrees};
use faasnet::registry::{RegistryOptions, RegistryServer};
use faasnet::view::{FunctionView, NodeView, TreeView};
use faasnet::{functions, provision};
use faasnet_api::v1;
use faasnet_image::{BuildOptions, build_opaque};
use tempfile::TempDir;

/// No step of a test takes longer than this on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
pub(crate) const MIB: u64 = 1 << 20;
/// The tenant of every test's functions.
pub(crate) const TENANT: &str = "test";

/// The program under test.
pub(crate) fn exe() -> PathBuf {
    env!("CARGO_BIN_EXE_faasnet").into()
}

/// The program with `arguments`, free of the caller's settings.
pub(crate) fn faasnet(arguments: &[&str]) -> Command {
    let mut command = Command::new(exe());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"FAASNET_")) {
        command.env_remove(name);
    }
    // Agents of tests that run at the same time must not want the same port; those in clusters are given others.
    command.env("FAASNET_AGENT_MIRROR_LISTEN", "off");
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    faasnet(arguments).output().unwrap()
}

/// The one line that a failed run leaves on standard error; the exit code must be 1.
pub(crate) fn error_of(arguments: &[&str]) -> String {
    let output = run(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "an error is one line: {text}");
    text.strip_prefix("error: ").unwrap_or_else(|| panic!("{text}")).trim().to_owned()
}

/// Runs `demo --json` with more arguments; it must succeed.
pub(crate) fn demo(arguments: &[&str]) -> Report {
    let output = run(&[&["demo", "--json"], arguments].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "demo {arguments:?}: {errors}{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A cluster with a registry of its own.
pub(crate) struct Lab {
    /// The agents and the controller.
    pub(crate) cluster: Cluster,
    /// The origin.
    pub(crate) registry: RegistryServer,
    /// Everything on disk; dropped after the processes.
    pub(crate) dir: TempDir,
}

impl Lab {
    /// Starts `agents` agents beside a registry that serves `layouts`, each a name and its layers.
    pub(crate) async fn start(agents: usize, images: &[(&str, Vec<Vec<u8>>)], registry: RegistryOptions) -> Self {
        Self::start_with(agents, images, registry, &[]).await
    }

    /// The same with more arguments for the agents.
    pub(crate) async fn start_with(
        agents: usize,
        images: &[(&str, Vec<Vec<u8>>)],
        registry: RegistryOptions,
        agent_args: &[&str],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layouts: Vec<_> =
            images.iter().map(|(name, layers)| (name.to_string(), layout(dir.path(), name, layers))).collect();
        let options = RegistryOptions { keep_reads: true, ..registry };
        let registry = RegistryServer::start_named(&layouts, (Ipv4Addr::LOCALHOST, 0).into(), options).await.unwrap();
        // Counters are shown as often as heartbeats are sent, and the tests watch them.
        let often = ["--heartbeat-ms", "50", "--idle-heartbeat-ms", "100"].map(str::to_owned);
        let cluster = Cluster::start(ClusterOptions {
            exe: exe(),
            dir: dir.path().to_owned(),
            agents,
            first_address: "127.77.0.1".parse().unwrap(),
            agent_args: agent_args.iter().map(|argument| argument.to_string()).collect(),
            // A node must not count as dead because a busy machine lets a short heartbeat wait.
            controller_args: [&often[..], &["--suspect-after-missed".into(), "40".into()]].concat(),
        });
        Self { cluster: cluster.await.unwrap(), registry, dir }
    }

    /// A reference to one of the images.
    pub(crate) fn reference(&self, image: &str) -> String {
        format!("{}/{image}:latest", self.registry.local_addr())
    }

    /// Registers a function of the image of the same name.
    pub(crate) async fn create(&self, image: &str, policy: &str) -> anyhow::Result<FunctionView> {
        let request = v1::CreateFunctionRequest {
            tenant: TENANT.into(),
            function: image.into(),
            reference: self.reference(image),
            policy: policy.into(),
            platform: String::new(),
            plain_http: true,
            memory_mib: 0,
        };
        functions::create(&mut self.cluster.control().await?, request, |_, _| ()).await
    }

    /// Provisions all agents and waits until the controller says that they are done.
    pub(crate) async fn provision(&self, function: &str) -> anyhow::Result<Vec<NodeView>> {
        let request = self.provision_request(function);
        let mut control = self.cluster.control().await?;
        let work = provision::provision(&mut control, request, |_| Ok(()));
        tokio::time::timeout(DEADLINE, work).await.expect("provisioning takes too long")
    }

    /// Begins to provision all agents, and does not wait.
    pub(crate) async fn begin_provision(&self, function: &str) {
        let mut control = self.cluster.control().await.unwrap();
        let request = self.provision_request(function);
        // Ignored: a test that kills the controller ends this early; the tests look at the nodes themselves.
        tokio::spawn(async move { provision::provision(&mut control, request, |_| Ok(())).await.map(drop) });
    }

    fn provision_request(&self, function: &str) -> v1::ProvisionRequest {
        v1::ProvisionRequest { tenant: TENANT.into(), function: function.into(), count: 0, nodes: self.cluster.names() }
    }

    /// The function's trees as planned now.
    pub(crate) async fn trees(&self, function: &str) -> FunctionTrees {
        nodes::trees(&mut self.cluster.control().await.unwrap(), TENANT, function).await.unwrap()
    }

    /// What agent `index` itself says about a function; `None` also when it cannot be asked.
    pub(crate) async fn held(&self, index: usize, function: &str) -> Option<Held> {
        let admin = Admin::new(&format!("http://{}", self.cluster.agents[index].address("admin"))).unwrap();
        admin.held(TENANT, function).await.ok().flatten()
    }

    /// Buffers that the workers of agent `index` have on lease.
    pub(crate) async fn leased_buffers(&self, index: usize) -> u64 {
        let url = format!("http://{}/v1/state", self.cluster.agents[index].address("admin"));
        let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap();
        let state: serde_json::Value = http.get(url).send().await.unwrap().json().await.unwrap();
        state["leased_buffers"].as_u64().unwrap()
    }

    /// Waits until agent `index` satisfies `wanted`.
    pub(crate) async fn wait_agent(
        &self,
        index: usize,
        function: &str,
        what: &str,
        wanted: impl Fn(&Held) -> bool,
    ) -> Held {
        let started = Instant::now();
        loop {
            let held = self.held(index, function).await;
            if let Some(held) = held.as_ref().filter(|held| wanted(held)) {
                return held.clone();
            }
            assert!(started.elapsed() < DEADLINE, "n{} never was {what}: {held:?}", index + 1);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the agents all hold the function, then hashes it on their disks.
    pub(crate) async fn wait_verified(&self, function: &FunctionView, agents: impl IntoIterator<Item = usize>) {
        for index in agents {
            self.wait_agent(index, &function.function, "complete", |held| held.state == "complete").await;
            let verified = verify::image(&self.cluster.store(index), function.image_id.parse().unwrap()).unwrap();
            assert_eq!(verified.bytes, function.image_bytes);
        }
    }

    /// Body bytes of blobs that the origin sent so far.
    pub(crate) fn origin_bytes(&self) -> u64 {
        self.registry.stats().blob_bytes_sent
    }
}

/// Builds a layout of opaque layers below `dir`.
pub(crate) fn layout(dir: &Path, name: &str, layers: &[Vec<u8>]) -> PathBuf {
    let out = dir.join(format!("layout-{name}"));
    let mut readers: Vec<_> = layers.iter().map(|layer| Cursor::new(layer.as_slice())).collect();
    let mut readers: Vec<&mut dyn Read> = readers.iter_mut().map(|reader| reader as &mut dyn Read).collect();
    build_opaque(&mut readers, &out, &BuildOptions::default()).unwrap();
    out
}

/// Bytes that do not repeat and differ from seed to seed.
pub(crate) fn noise(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len as usize + 8);
    while (bytes.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len as usize);
    bytes
}

/// `n3` → 2.
pub(crate) fn index_of(name: &str) -> usize {
    name.trim_start_matches('n').parse::<usize>().unwrap() - 1
}

/// The node that reads the origin in `tree`.
pub(crate) fn root_of(tree: &TreeView) -> usize {
    let edge = tree.edges.iter().find(|edge| edge.parent == faasnet::view::ORIGIN).unwrap();
    index_of(&edge.node)
}

/// A node of `tree` with a node above and nodes below it.
pub(crate) fn inner_of(tree: &TreeView) -> usize {
    let edge = tree.edges.iter().find(|edge| tree.is_inner(&edge.node)).unwrap();
    index_of(&edge.node)
}

/// Says that a test is skipped, and why, past the capture of test output. In CI nothing is skipped.
pub(crate) fn said_loudly(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "CI skips nothing: {why}");
    // Not `eprintln`, which is shown only when a test fails. Ignored: without standard error nobody listens.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
