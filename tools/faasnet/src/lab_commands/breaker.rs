//! How `lab fault` reaches the daemons of a lab that stays: through a socket in the lab's folder, whose keeper disturbs its own daemons in the
//! same way as an experiment does.
//!
//! One line per connection: a fault (`kill:inner+3`) or `heal:n3`. The answer is the fault's report as JSON, then, when it ends by itself,
//! a second line once it is undone.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::cluster::{self, LabCluster};
use super::fault::{FaultPlan, Kind, Target};
use super::injector::{FaultReport, Injector, Moment};
use super::plan::Plan;
use super::transfer::{fresh_trees, provision};
use crate::view::TreeView;

/// The socket's name in the lab's folder.
const SOCKET: &str = "faults";
/// Between two looks at what has to be undone.
const TICK: Duration = Duration::from_millis(50);
/// How long somebody who connects may take to ask.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the keeper answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It happened.
    Done(Box<FaultReport>),
    /// The host is as it was.
    Healed,
    /// What ends by itself has ended.
    Undone,
    /// It cannot happen.
    Refused(String),
}

/// The keeper's side.
pub struct Breaker {
    listener: UnixListener,
    injector: Injector,
    /// Who waits until these hosts are as they were.
    waiting: Vec<(UnixStream, Vec<String>)>,
    hosts: usize,
}

impl Breaker {
    /// Listens in the lab's folder.
    pub fn listen(folder: &Path, plan: &Plan) -> Result<Self> {
        let path = socket(folder);
        let listener = UnixListener::bind(&path);
        let listener =
            listener.with_context(|| format!("cannot listen on {}; is its path too long?", path.display()))?;
        Ok(Self { listener, injector: Injector::new(plan), waiting: Vec::new(), hosts: plan.hosts })
    }

    /// Does what it is asked for until `shutdown`.
    pub async fn serve(mut self, cluster: &mut LabCluster, shutdown: impl Future<Output = ()>) -> Result<()> {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                accepted = self.listener.accept() => {
                    let (stream, _) = accepted.context("cannot accept on the lab's socket")?;
                    self.answer(cluster, stream).await;
                }
                () = tokio::time::sleep(TICK) => {}
            }
            cluster.bury().into_iter().for_each(|node| self.injector.lose(node));
            self.injector.undo_due(cluster).await;
            self.tell_undone().await;
        }
    }

    async fn answer(&mut self, cluster: &mut LabCluster, stream: UnixStream) {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        // Ignored: who connects and says nothing gets nothing.
        let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, stream.read_line(&mut line)).await else { return };
        let answer = match self.act(cluster, line.trim()).await {
            Ok(answer) => answer,
            Err(error) => Answer::Refused(format!("{error:#}")),
        };
        let mut stream = stream.into_inner();
        if say(&mut stream, &answer).await
            && let Answer::Done(report) = answer
        {
            self.waiting.push((stream, report.victims));
        }
    }

    async fn act(&mut self, cluster: &mut LabCluster, line: &str) -> Result<Answer> {
        if let Some(host) = line.strip_prefix("heal:") {
            ensure!(
                cluster.network.host(host).is_some(),
                "there is no host {host}; it has origin, controller and n1 …"
            );
            self.injector.heal(cluster, host).await?;
            return Ok(Answer::Healed);
        }
        let fault: FaultPlan = line.parse()?;
        fault.check(self.hosts)?;
        let trees = fresh_trees(cluster).await.unwrap_or_default();
        if let (Kind::Joins, Target::Count(count)) = (fault.kind, &fault.target) {
            return join(cluster, fault.clone(), *count, &trees).await;
        }
        let held =
            futures_util::future::join_all(cluster.network.agents().iter().map(|host| held(&host.namespace))).await;
        let moment = Moment { seconds: 0.0, held_percent: &held, trees: &trees };
        let mut report = self.injector.now(cluster, fault, &moment).await?;
        report.deaths = cluster.take_deaths();
        Ok(Answer::Done(Box::new(report)))
    }

    async fn tell_undone(&mut self) {
        let mut rest = Vec::new();
        for (mut stream, victims) in std::mem::take(&mut self.waiting) {
            if self.injector.will_undo(&victims) {
                rest.push((stream, victims));
            } else {
                let is_theirs = |problem: &String| victims.iter().any(|name| problem.starts_with(&format!("{name}: ")));
                let (failed, others) = std::mem::take(&mut self.injector.problems).into_iter().partition(is_theirs);
                self.injector.problems = others;
                let failed: Vec<String> = failed;
                let answer = if failed.is_empty() { Answer::Undone } else { Answer::Refused(failed.join("; ")) };
                // Ignored: who left does not want to know.
                say(&mut stream, &answer).await;
            }
        }
        self.waiting = rest;
    }
}

/// Asks for the next hosts that are in no tree, all at once.
async fn join(cluster: &LabCluster, fault: FaultPlan, count: usize, trees: &[TreeView]) -> Result<Answer> {
    let names: Vec<_> = cluster.network.agents().iter().map(|host| &host.name).collect();
    let is_in = |name: &str| trees.iter().flat_map(|tree| &tree.edges).any(|edge| edge.node == name);
    let out: Vec<usize> = (0..names.len()).filter(|index| !is_in(names[*index])).collect();
    ensure!(out.len() >= count, "{} of {} hosts are in no tree; {count} cannot join", out.len(), names.len());
    let joining = &out[..count];
    provision(&mut cluster.control().await?, cluster, joining.iter().copied()).await?;
    Ok(Answer::Done(Box::new(FaultReport {
        fault,
        victims: joining.iter().map(|index| names[*index].clone()).collect(),
        orphans: Vec::new(),
        at_seconds: 0.0,
        held_percent: Vec::new(),
        counts: !trees.is_empty(),
        note: String::new(),
        deaths: Vec::new(),
    })))
}

/// How much of the lab's image an agent has, in percent.
async fn held(namespace: &str) -> u8 {
    let mut node = crate::view::NodeView::default();
    if let Some(held) = cluster::held(namespace.to_owned()).await {
        held.refresh(&mut node, &Default::default());
    }
    if node.bytes_total == 0 { 0 } else { node.percent() as u8 }
}

/// The client's side: asks the keeper of the lab in `folder`. With `wait` until a fault that ends by itself has ended.
pub async fn ask(folder: &Path, line: &str, wait: bool) -> Result<Option<FaultReport>> {
    let path = socket(folder);
    let stream = UnixStream::connect(&path).await;
    let mut stream = stream.with_context(|| format!("nobody listens on {}; is the lab up?", path.display()))?;
    stream.write_all(format!("{line}\n").as_bytes()).await.context("cannot ask the lab's keeper")?;
    let mut lines = BufReader::new(stream).lines();
    let mut hear = async || -> Result<Answer> {
        let line = lines.next_line().await.context("cannot hear from the lab's keeper")?;
        let line = line.context("the lab's keeper ended; look at its log, or take it down with `faasnet lab down`")?;
        serde_json::from_str(&line).context("the lab's keeper is of another version")
    };
    let report = match hear().await? {
        Answer::Refused(why) => bail!("{why}"),
        Answer::Done(report) => Some(*report),
        Answer::Healed | Answer::Undone => None,
    };
    if wait
        && report.is_some()
        && let Answer::Refused(why) = hear().await?
    {
        bail!("{why}; bring it back with `faasnet lab fault heal`");
    }
    Ok(report)
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> bool {
    let Ok(mut text) = serde_json::to_string(answer) else { return false };
    text.push('\n');
    stream.write_all(text.as_bytes()).await.is_ok()
}

fn socket(folder: &Path) -> PathBuf {
    folder.join(SOCKET)
}
