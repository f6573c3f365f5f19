//! The demo step by step: image, registry, cluster, registration, provisioning, check.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use faasnet_api::{ImageId, v1};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::report::{ImageReport, NodeReport, OriginLog, OriginReport, Report, SecondsReport};
use super::source::Source;
use super::verify;
use crate::admin::Admin;
use crate::cli::{DemoArgs, Global};
use crate::client::Control;
use crate::cluster::{Cluster, ClusterOptions};
use crate::nodes::{self, FunctionTrees};
use crate::progress::{self, Display};
use crate::view::{FunctionView, NodeView};
use crate::{functions, output, provision, room};

/// What the demo's function is called.
const TENANT: &str = "demo";
const FUNCTION: &str = "demo";
/// How long counters may take to settle after the last block.
const SETTLE_DEADLINE: Duration = Duration::from_secs(5);
/// How often an idle agent looks at its worker in the demo, so that the counters settle soon.
const IDLE_HEARTBEAT_MS: &str = "200";

/// A running demo. [`Demo::stop`] ends its processes whatever `run` did.
pub struct Demo {
    json: bool,
    args: DemoArgs,
    dir: PathBuf,
    source: Option<Source>,
    cluster: Option<Cluster>,
}

impl Demo {
    /// A demo whose files go to `dir`.
    pub fn new(global: &Global, args: DemoArgs, dir: PathBuf) -> Result<Self> {
        Ok(Self { json: global.json, args, dir, source: None, cluster: None })
    }

    /// Every step; the report says whether all nodes hold every byte.
    pub async fn run(&mut self) -> Result<Report> {
        self.say(&self.source_line())?;
        let source = Source::make(&self.args, &self.dir).await?;
        let reference = source.reference().to_owned();
        let plain_http = source.plain_http();
        self.source = Some(source);
        self.say(&format!("starting a controller and {} agents", self.args.agents))?;
        let cluster = Cluster::start(self.cluster_options()?).await?;
        self.say(&format!("watch it at {}/", cluster.http_url()))?;
        let mut control = cluster.control().await?;
        let names = cluster.names();
        let cluster = self.cluster.insert(cluster);
        let (json, policy, source) = (self.json, self.args.policy.to_string(), self.source.as_ref());
        let work = async {
            let function = register(&mut control, json, reference, policy, plain_http).await?;
            let needed = function.image_bytes.saturating_mul(names.len() as u64);
            room::check(&self.dir, needed, &format!("{} nodes", names.len()), "fewer --agents or a smaller --size")?;
            let registration = source.and_then(Source::log).unwrap_or_default();
            spread(&mut control, json, names).await?;
            let trees = nodes::trees(&mut control, TENANT, FUNCTION).await?;
            Ok::<_, anyhow::Error>((function, registration, trees))
        };
        // A daemon that dies would leave us waiting for its progress.
        let (function, registration, trees) = tokio::select! {
            result = work => result?,
            death = cluster.first_death() => return Err(death),
        };
        let nodes = self.check(&function, &trees).await?;
        self.report(function, trees, nodes, registration)
    }

    /// Ends all processes. Safe to call at any time, more than once.
    pub async fn stop(&mut self) -> Result<()> {
        match &mut self.cluster {
            Some(cluster) => cluster.stop().await,
            None => Ok(()),
        }
    }

    fn say(&self, text: &str) -> Result<()> {
        if self.json { Ok(()) } else { output::line(text) }
    }

    fn source_line(&self) -> String {
        match &self.args.image {
            Some(image) => format!("taking the image {image}"),
            None => format!("building an image of about {} from this machine's files", output::bytes(self.args.size)),
        }
    }

    fn cluster_options(&self) -> Result<ClusterOptions> {
        Ok(ClusterOptions {
            exe: std::env::current_exe().context("cannot find this program's own file")?,
            dir: self.dir.clone(),
            agents: self.args.agents.into(),
            first_address: self.args.first_address,
            agent_args: vec!["--engine".into(), self.args.engine.to_string()],
            controller_args: vec!["--idle-heartbeat-ms".into(), IDLE_HEARTBEAT_MS.into()],
        })
    }

    /// Hashes every node's disk, as many at once as there are cores, and adds what the agents counted.
    async fn check(&self, function: &FunctionView, trees: &FunctionTrees) -> Result<Vec<NodeReport>> {
        let cluster = self.cluster.as_ref().context("the cluster is not running")?;
        let image = function.image_id.parse().context("the controller named no image")?;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        self.say(&format!(
            "hashing {} on each of {} nodes",
            output::bytes(function.image_bytes),
            cluster.agents.len()
        ))?;
        let problems: Vec<String> = stream::iter(0..cluster.agents.len())
            .map(|index| hash(cluster.store(index), image, function.image_bytes))
            .buffered(cores)
            .try_collect()
            .await?;
        let nodes = final_counts(cluster, trees).await?;
        let report = |(node, problem): (NodeView, String)| NodeReport { node, verified: problem.is_empty(), problem };
        Ok(nodes.into_iter().zip(problems).map(report).collect())
    }

    fn report(
        &self,
        function: FunctionView,
        trees: FunctionTrees,
        nodes: Vec<NodeReport>,
        registration: OriginLog,
    ) -> Result<Report> {
        let source = self.source.as_ref().context("the demo has no image")?;
        let origin = match source.log() {
            Some(log) => OriginReport::from_log(&registration, &log),
            None => OriginReport::from_agents(nodes.iter().map(|report| &report.node), function.image_bytes),
        };
        Ok(Report {
            policy: function.policy,
            image: ImageReport {
                bytes: function.image_bytes,
                layers: function.blobs.saturating_sub(1),
                reference: function.reference,
                id: function.image_id,
            },
            origin,
            seconds: SecondsReport::new(nodes.iter().map(|report| report.node.seconds).collect()),
            verified: !nodes.is_empty() && nodes.iter().all(|report| report.verified),
            nodes,
            trees: trees.trees,
            dir: None,
        })
    }
}

/// What is wrong with the image in a node's store; empty when nothing is.
async fn hash(store: PathBuf, image: ImageId, expected: u64) -> Result<String> {
    let result = tokio::task::spawn_blocking(move || verify::image(&store, image)).await;
    Ok(match result.context("the check of a node broke off")? {
        Ok(verified) if verified.bytes == expected => String::new(),
        Ok(verified) => format!("its blobs have {} bytes, the image has {expected}", verified.bytes),
        Err(error) => format!("{error:#}"),
    })
}

/// The agents' own counters, in the agents' order. What the controller knows is as old as the last heartbeat; what an agent shows is as
/// old as its last look at its worker, so they are asked until all that was received from nodes has been counted as sent by one.
async fn final_counts(cluster: &Cluster, trees: &FunctionTrees) -> Result<Vec<NodeView>> {
    let deadline = Instant::now() + SETTLE_DEADLINE;
    loop {
        let nodes = counts(cluster, trees).await?;
        let received: u64 =
            nodes.iter().flat_map(|n| &n.upstreams).filter(|up| !up.is_origin()).map(|up| up.bytes).sum();
        let sent: u64 = nodes.iter().map(|node| node.bytes_live + node.bytes_from_store).sum();
        if sent >= received || Instant::now() > deadline {
            return Ok(nodes);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn counts(cluster: &Cluster, trees: &FunctionTrees) -> Result<Vec<NodeView>> {
    let names = trees.nodes.iter().map(|node| (node.id.clone(), node.name.clone())).collect();
    let mut nodes = Vec::new();
    for agent in &cluster.agents {
        let known = trees.nodes.iter().find(|node| node.name == agent.name()).cloned();
        let mut node = known.unwrap_or_else(|| NodeView { name: agent.name().into(), ..NodeView::default() });
        if let Some(held) = Admin::new(&format!("http://{}", agent.address("admin")))?.held(TENANT, FUNCTION).await? {
            held.refresh(&mut node, &names);
        }
        nodes.push(node);
    }
    Ok(nodes)
}

async fn register(
    control: &mut Control,
    json: bool,
    reference: String,
    policy: String,
    plain_http: bool,
) -> Result<FunctionView> {
    let bar = progress::bar(json, "register");
    let request = v1::CreateFunctionRequest {
        tenant: TENANT.into(),
        function: FUNCTION.into(),
        reference,
        policy,
        platform: String::new(),
        plain_http,
        memory_mib: 0,
    };
    let function = functions::create(control, request, |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    })
    .await?;
    bar.finish_and_clear();
    if !json {
        let note = if function.note.is_empty() { String::new() } else { format!(" ({})", function.note) };
        output::line(format!("registered {} in {} blobs{note}", output::bytes(function.image_bytes), function.blobs))?;
    }
    Ok(function)
}

async fn spread(control: &mut Control, json: bool, nodes: Vec<String>) -> Result<()> {
    let mut display = Display::new(json);
    let request = v1::ProvisionRequest { tenant: TENANT.into(), function: FUNCTION.into(), count: 0, nodes };
    provision::provision(control, request, |nodes| display.update(nodes)).await.map(drop)
}
