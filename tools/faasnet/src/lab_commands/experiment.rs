//! One experiment: the runs of a plan, each with daemons and stores of its own on the same hosts, and the report.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasnet_lab::recording::Recording;
use faasnet_lab::sampler::Sampler;
use faasnet_lab::scheduling::{Scheduling, SchedulingDelay};
use faasnet_lab::{Network, flow, leftovers, plot};

use super::audit::{Audit, Baseline};
use super::cluster::LabCluster;
use super::direct::{self, Reads};
use super::fault::Target;
use super::image;
use super::injector::FaultReport;
use super::origin_log;
use super::plan::{LabPolicy, Plan};
use super::report::{HostReport, LabReport, RunReport, median_of};
use super::session::{Closed, Session};
use super::timeline::Timeline;
use super::transfer::{Transfer, fresh_trees, provision, settle};
use crate::cli::Global;
use crate::demo::report::{ImageReport, NodeReport, OriginLog, OriginReport, Report, SecondsReport};
use crate::view::{FunctionView, NodeView, TreeView};
use crate::{daemon, output};

/// The raw flow that gives the bound need not be longer than this.
const FLOW_BYTES: u64 = 16 << 20;
/// A run that takes so many times the bound, and then this long, has failed.
const MOST_BOUNDS: f64 = 20.0;
const GRACE: Duration = Duration::from_secs(60);
/// A host that receives less than this share of its line rate stalls.
const STALL_SHARE: f64 = 0.05;
/// `origin` and `controller` come before the agents in the network's hosts.
pub const FIRST_AGENT: usize = 2;
/// How long the registry may take to note a read that its client has seen the end of.
const LOG_DEADLINE: Duration = Duration::from_secs(2);
/// Exit code after an interruption, as shells expect it.
pub const INTERRUPTED: u8 = 130;

/// What came out of an experiment.
#[derive(Debug)]
pub struct Measured {
    /// All numbers.
    pub report: LabReport,
    /// Of the median run.
    pub timeline: Timeline,
    /// The folder, if it was to be kept.
    pub kept: Option<PathBuf>,
}

/// Runs the plan and prints the report. A failure unless every audit is clean.
pub async fn run(global: &Global, plan: Plan, svg: Option<PathBuf>) -> Result<ExitCode> {
    svg.as_deref().map(plot::check).transpose()?;
    let interrupted = daemon::shutdown(false)?;
    let Some(Measured { report, timeline, kept }) = measure(&plan, !global.json, interrupted).await? else {
        eprintln!("interrupted: the lab is taken down");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    match global.json {
        true => output::json(&report)?,
        false => output::line(report.text(kept.as_ref()))?,
    }
    if let Some(path) = svg {
        timeline.draw(&path)?;
    }
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the plan in a lab of its own, which is gone afterwards; `None` when `interrupted` came first.
pub async fn measure(plan: &Plan, tell: bool, interrupted: impl Future<Output = ()>) -> Result<Option<Measured>> {
    plan.check()?;
    let plan = &plan.clone().with_image_size().await?;
    let session = Session::open(plan, false)?;
    let work = work(session.network.clone(), plan.clone(), session.folder().to_owned(), tell);
    let outcome = tokio::select! {
        outcome = session.inside(work) => Some(outcome),
        () = interrupted => None,
    };
    let Closed { kept, left } = session.close(plan.keep)?;
    let Some(outcome) = outcome else { return Ok(None) };
    let (mut report, timeline) = outcome?;
    report.leftovers = left;
    Ok(Some(Measured { report, timeline, kept }))
}

async fn work(network: Network, plan: Plan, folder: PathBuf, tell: bool) -> Result<(LabReport, Timeline)> {
    let (settings, dir) = (plan.clone(), folder.clone());
    let layout = tokio::task::spawn_blocking(move || image::layout(&settings, &dir)).await;
    let layout = layout.context("making the image broke off")??;
    let mut runs: Vec<(RunReport, Timeline)> = Vec::new();
    for number in 1..=plan.runs {
        if tell {
            output::line(format!("run {number} of {}: {} hosts, {}", plan.runs, plan.hosts, plan.policy))?;
        }
        let dir = folder.join(format!("run{number}"));
        std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (run, recording) = one_run(&network, &plan, &layout, &dir).await?;
        let timeline = Timeline::new(&run, &recording);
        runs.push((run, timeline));
        if !plan.keep {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    let plan = Plan { rate: Some(plan.rate()), ..plan };
    let (runs, timelines): (Vec<_>, Vec<_>) = runs.into_iter().unzip();
    let median = median_of(&runs.iter().map(|run| run.ratio).collect::<Vec<_>>()).context("no run was made")?;
    let timeline = timelines.into_iter().nth(median).unwrap_or_default();
    Ok((LabReport::new(plan, runs, median), timeline))
}

/// Payload bytes per second of one raw TCP flow from the origin, for a transfer of `size` bytes.
pub async fn payload_rate(network: &Network, size: u64) -> Result<f64> {
    let (from, to) = (network.origin().clone(), network.agents()[0].clone());
    let rate = tokio::task::spawn_blocking(move || flow::payload_rate(&from, &to, size.min(FLOW_BYTES))).await;
    Ok(rate.context("the raw flow broke off")??)
}

/// One run of a plan on hosts that are up; everything of it goes to `dir`, which stays.
pub async fn one_run(network: &Network, plan: &Plan, layout: &Path, dir: &Path) -> Result<(RunReport, Recording)> {
    let rate = payload_rate(network, plan.size).await?;
    let mut cluster = LabCluster::start(network, plan, layout, dir).await?;
    let outcome = match plan.policy {
        LabPolicy::Direct => direct_run(&cluster, layout).await,
        _ => tree_run(&mut cluster, plan, rate).await,
    };
    let stopped = cluster.stop().await;
    let mut outcome = match (outcome, &stopped) {
        // A dead daemon is often why the run broke off.
        (Err(error), Ok(wrong)) if !wrong.is_empty() => return Err(error.context(wrong.join("; "))),
        (outcome, _) => outcome?,
    };
    outcome.audit.problems.extend(stopped?);
    let left = leftovers::processes(&leftovers::namespaces(network.id())?);
    outcome
        .audit
        .problems
        .extend(left.iter().map(|pid| format!("process {pid} still runs after all daemons were told to stop")));
    outcome.demo.verified = outcome.audit.is_clean();
    Ok(outcome.finish(network, rate))
}

/// What a run leaves to be put into a report.
struct Outcome {
    demo: Report,
    recording: Recording,
    scheduling: SchedulingDelay,
    hosts: Vec<HostReport>,
    faults: Vec<FaultReport>,
    audit: Audit,
}

/// A run with trees, from registration to audit.
async fn tree_run(cluster: &mut LabCluster, plan: &Plan, rate: f64) -> Result<Outcome> {
    let mut control = cluster.control().await?;
    let before = Baseline::new(cluster);
    let function = cluster.register(&mut control).await?;
    ensure!(function.note.is_empty(), "the controller changed the plan: {}", function.note);
    let registered = logged_reads(cluster, function.image_bytes).await?;
    let mut transfer = Transfer::new(cluster, plan, function.image_bytes).await?;
    let scheduling = Scheduling::start();
    transfer.trees = provision(&mut control, cluster, 0..plan.early_hosts()).await?;
    let bound = Duration::from_secs_f64(MOST_BOUNDS * function.image_bytes as f64 / rate);
    let chaos = Duration::from_secs(plan.chaos.map_or(0, |_| plan.seconds));
    let finished = transfer.run(cluster, plan, Instant::now() + bound + chaos + GRACE).await?;
    let scheduling = scheduling.finish();
    let Transfer { mut watch, sampler, pids, mut injector, trees, .. } = transfer;
    let mut audit = Audit::default();
    let living: Vec<usize> = (0..plan.hosts).filter(|node| injector.expected[*node]).collect();
    injector.finish(cluster).await?;
    audit.problems.append(&mut injector.problems);
    settle(cluster, &mut watch).await;
    injector.note_full_disks(&watch.nodes);
    audit.count(&watch.nodes, &living);
    if !finished {
        audit.problems.push("the run took too long and was ended".into());
    }
    let mut hosts = host_reports(cluster, &sampler, &pids);
    hosts.iter_mut().zip(watch.stalls).for_each(|(host, stalls)| host.stripes = stalls);
    let recording = sampler.stop()?;
    let image = function.image_id.parse().context("the controller named no image")?;
    let problems = audit.hash(cluster, &living, image, function.image_bytes).await?;
    let trees = fresh_trees(cluster).await.unwrap_or(trees);
    audit.release(cluster, &before, image).await?;
    let node = |(index, node): (usize, NodeView)| {
        let disturbed = || "disturbed: not expected to hold the image".to_owned();
        let problem = problems.get(&index).cloned().unwrap_or_else(disturbed);
        NodeReport { node, verified: problem.is_empty(), problem }
    };
    let nodes: Vec<_> = watch.nodes.into_iter().enumerate().map(node).collect();
    let seconds = living.iter().map(|index| nodes[*index].node.seconds).collect();
    let origin = origin_report(cluster, &registered, &injector.reports, &nodes, function.image_bytes)?;
    let demo = demo_report(function, nodes, trees, SecondsReport::new(seconds), origin, audit.is_clean());
    Ok(Outcome { demo, recording, scheduling, hosts, faults: injector.reports, audit })
}

/// What the registry sent so far, once that is at least `bytes`.
async fn logged_reads(cluster: &LabCluster, bytes: u64) -> Result<OriginLog> {
    let deadline = Instant::now() + LOG_DEADLINE;
    loop {
        let log = origin_log::read(&cluster.origin_requests())?;
        // Each read has its line only when the registry has closed it.
        if log.reads.iter().map(|read| read.bytes).sum::<u64>() >= bytes || Instant::now() > deadline {
            return Ok(log);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// By the registry's log; a registry that was killed took the lines of its last reads along, so then by what the agents say.
fn origin_report(
    cluster: &LabCluster,
    registered: &OriginLog,
    faults: &[FaultReport],
    nodes: &[NodeReport],
    bytes: u64,
) -> Result<OriginReport> {
    if faults.iter().any(|fault| fault.fault.target == Target::Origin) {
        return Ok(OriginReport::from_agents(nodes.iter().map(|report| &report.node), bytes));
    }
    Ok(OriginReport::from_log(registered, &origin_log::read(&cluster.origin_requests())?))
}

fn demo_report(
    function: FunctionView,
    nodes: Vec<NodeReport>,
    trees: Vec<TreeView>,
    seconds: SecondsReport,
    origin: OriginReport,
    verified: bool,
) -> Report {
    Report {
        policy: function.policy,
        image: ImageReport {
            bytes: function.image_bytes,
            layers: function.blobs.saturating_sub(1),
            reference: function.reference,
            id: function.image_id,
        },
        origin,
        seconds,
        verified,
        nodes,
        trees,
        dir: None,
    }
}

/// A run in which every host reads the origin.
async fn direct_run(cluster: &LabCluster, layout: &Path) -> Result<Outcome> {
    let reads = Reads::of(layout).await?;
    let readers = direct::start(cluster, &reads)?;
    let sampler = Sampler::start(&cluster.network)?;
    let pids: BTreeMap<usize, Vec<u32>> =
        readers.iter().enumerate().filter_map(|(index, reader)| Some((index, vec![reader.id()?]))).collect();
    pids.values().flatten().for_each(|pid| sampler.watch(*pid));
    let scheduling = Scheduling::start();
    let nodes = direct::finish(cluster, &reads, readers).await?;
    let scheduling = scheduling.finish();
    let sent = logged_reads(cluster, reads.bytes() * nodes.len() as u64).await?;
    let hosts = host_reports(cluster, &sampler, &pids);
    let recording = sampler.stop()?;
    let mut audit = Audit { living: nodes.len(), ..Audit::default() };
    let report = |(index, node): (usize, NodeView)| {
        let problem = direct::verify(&cluster.store(index), &reads);
        NodeReport { node, verified: problem.is_empty(), problem }
    };
    let nodes: Vec<NodeReport> = nodes.into_iter().enumerate().map(report).collect();
    audit.verified = nodes.iter().filter(|node| node.verified).count();
    audit.problems = nodes.iter().filter(|n| !n.verified).map(|n| format!("{}: {}", n.node.name, n.problem)).collect();
    let demo = Report {
        policy: LabPolicy::Direct.to_string(),
        image: ImageReport {
            bytes: reads.bytes(),
            layers: reads.blobs.len().saturating_sub(1) as u32,
            reference: cluster.reference()?,
            id: String::new(),
        },
        // Nothing was lost: all hosts read the same.
        origin: OriginReport { lost_with_root_bytes: 0, ..OriginReport::from_log(&OriginLog::default(), &sent) },
        seconds: SecondsReport::new(nodes.iter().map(|node| node.node.seconds).collect()),
        verified: audit.is_clean(),
        nodes,
        trees: Vec::new(),
        dir: None,
    };
    Ok(Outcome { demo, recording, scheduling, hosts, faults: Vec::new(), audit })
}

impl Outcome {
    fn finish(mut self, network: &Network, rate: f64) -> (RunReport, Recording) {
        let bytes = self.demo.image.bytes;
        let bound_seconds = bytes as f64 / rate;
        let least = network.rate().bytes() as f64 * STALL_SHARE;
        for (index, host) in self.hosts.iter_mut().enumerate() {
            let traffic = self.recording.total(FIRST_AGENT + index);
            (host.interface_received_bytes, host.interface_sent_bytes) = (traffic.received, traffic.sent);
            // What comes after the last block is none of the image.
            let end = self.demo.nodes.get(index).filter(|node| node.node.is_complete());
            let end = end.map_or(f64::INFINITY, |node| node.node.seconds);
            let stall = self.recording.longest_stall(FIRST_AGENT + index, least, end);
            host.stalled(stall);
        }
        let origin = self.recording.total(0).sent;
        let disturbed = |node: &NodeReport| self.faults.iter().any(|fault| fault.victims.contains(&node.node.name));
        let undisturbed = self.demo.nodes.iter().filter(|node| node.verified && !disturbed(node));
        let undisturbed = undisturbed.map(|node| node.node.seconds).fold(0.0, f64::max);
        let delivered = (bytes * self.audit.living.max(1) as u64) as f64 / f64::from(1u32 << 30);
        let run = RunReport {
            payload_rate: rate,
            bound_seconds,
            ratio: self.demo.seconds.max / bound_seconds,
            undisturbed_ratio: undisturbed / bound_seconds,
            cpu_seconds_per_gib: self.hosts.iter().map(|host| host.cpu_seconds).sum::<f64>() / delivered,
            peak_memory_bytes: self.hosts.iter().map(|host| host.peak_memory_bytes).max().unwrap_or(0),
            origin_interface_bytes: origin,
            origin_share: origin as f64 / bytes.max(1) as f64,
            scheduling: self.scheduling,
            hosts: self.hosts,
            faults: self.faults,
            audit: self.audit,
            demo: self.demo,
        };
        (run, self.recording)
    }
}

fn host_reports(cluster: &LabCluster, sampler: &Sampler, pids: &BTreeMap<usize, Vec<u32>>) -> Vec<HostReport> {
    let report = |(index, host): (usize, &faasnet_lab::Host)| {
        let used = pids.get(&index).into_iter().flatten().map(|pid| sampler.used(*pid));
        let mut report = HostReport { name: host.name.clone(), ..HostReport::default() };
        for used in used {
            report.cpu_seconds += used.cpu_seconds;
            report.peak_memory_bytes = report.peak_memory_bytes.max(used.peak_anonymous_bytes);
            report.peak_rss_bytes = report.peak_rss_bytes.max(used.peak_rss_bytes);
        }
        report
    };
    cluster.network.agents().iter().enumerate().map(report).collect()
}
