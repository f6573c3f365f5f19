//! Disturbs a run: waits for the moment, picks the victims from the trees of that moment, does it, and undoes it in time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasnet_lab::network;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::chaos;
use super::cluster::LabCluster;
use super::fault::{FaultPlan, Kind, Target};
use super::plan::Plan;
use super::victims::{Scene, Victim};
use crate::cluster::Daemon;
use crate::view::{NodeView, TreeView};

/// Joins that take longer are no test of many at once.
const RUSH: Duration = Duration::from_secs(1);
/// A slow host has one part in so many of the rate.
const SLOWER: u64 = 10;

/// What became of a disturbance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FaultReport {
    /// As it was asked for.
    pub fault: FaultPlan,
    /// Who was hit.
    pub victims: Vec<String>,
    /// Living nodes that lost a parent at that moment, or would have if the victim had gone.
    pub orphans: Vec<String>,
    /// When, since the start of provisioning.
    pub at_seconds: f64,
    /// How much of the image each victim held, in percent; for others than nodes the median node.
    pub held_percent: Vec<u8>,
    /// Whether a victim held 20–80 % of the image and had a living neighbour.
    pub counts: bool,
    /// Why not, or what else there is to say; or empty.
    pub note: String,
    /// In a lab that stays: daemons that ended by themselves since the last fault.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deaths: Vec<String>,
}

struct Pending {
    plan: FaultPlan,
    /// Seconds since the start; else the share of the image decides.
    at: Option<f64>,
    /// Why nobody was hit so far.
    missed: Missed,
}

/// Why a disturbance has not happened.
#[derive(Debug, Clone, Copy)]
enum Missed {
    /// It was not time.
    Early,
    /// No host is what it is aimed at.
    Nobody,
    /// The daemon was away already.
    Away,
}

/// What the run looks like when the injector is asked.
pub struct Moment<'a> {
    /// Since provisioning began.
    pub seconds: f64,
    /// Of the image, per node, in percent.
    pub held_percent: &'a [u8],
    /// The trees as last heard of.
    pub trees: &'a [TreeView],
}

/// The disturbances of one run.
pub struct Injector {
    pending: Vec<Pending>,
    undo: Vec<(Instant, Kind, Victim)>,
    /// What lasts until it is healed.
    standing: Vec<(Kind, Victim)>,
    /// Nodes that must hold the image at the end.
    pub expected: Vec<bool>,
    /// Nodes that cannot answer now.
    pub silent: Vec<bool>,
    /// Whether hosts that were kept back shall join now.
    pub joins_due: bool,
    /// What was done.
    pub reports: Vec<FaultReport>,
    /// What could not be done or undone: the host's name, a colon, why.
    pub problems: Vec<String>,
    early: usize,
}

impl Injector {
    /// The disturbances of `plan`.
    pub fn new(plan: &Plan) -> Self {
        let planned = plan.faults.iter().cloned().map(|plan| Pending { plan, at: None, missed: Missed::Early });
        let random = plan.chaos.map(|seed| chaos::schedule(seed, plan.seconds, plan.hosts)).unwrap_or_default();
        let random = random.into_iter().map(|(at, plan)| Pending { plan, at: Some(at), missed: Missed::Early });
        Self {
            pending: planned.chain(random).collect(),
            undo: Vec::new(),
            standing: Vec::new(),
            expected: vec![true; plan.hosts],
            silent: vec![false; plan.hosts],
            joins_due: false,
            reports: Vec::new(),
            problems: Vec::new(),
            early: plan.early_hosts(),
        }
    }

    /// Whether nothing is to be done or undone any more. What never happened is reported with the reason; if it was asked for by name,
    /// that is a problem: the run does not show what it was made for.
    pub fn is_done(&mut self, complete: bool) -> bool {
        if complete {
            for late in self.pending.drain(..) {
                let note = late.missed.words(&late.plan.target);
                if late.at.is_none() {
                    self.problems.push(format!("the fault {} hit nobody: {note}", late.plan));
                }
                self.reports.push(FaultReport {
                    fault: late.plan,
                    victims: Vec::new(),
                    orphans: Vec::new(),
                    at_seconds: late.at.unwrap_or_default(),
                    held_percent: Vec::new(),
                    counts: false,
                    note,
                    deaths: Vec::new(),
                });
            }
        }
        self.pending.is_empty() && self.undo.is_empty()
    }

    /// Does and undoes what is due. What fails is noted; the run goes on.
    pub async fn tick(&mut self, cluster: &mut LabCluster, moment: &Moment<'_>) {
        self.undo_due(cluster).await;
        let mut waiting = Vec::new();
        for mut pending in std::mem::take(&mut self.pending) {
            let living = self.living();
            let scene = Scene {
                trees: moment.trees,
                held_percent: moment.held_percent,
                living: &living,
                early: if self.joins_due { living.len() } else { self.early },
            };
            match self.due(cluster, &pending, &scene, moment.seconds) {
                Some(victims) => {
                    self.report(&pending.plan, &victims, &scene, moment.seconds);
                    let (lasts, name) = (pending.plan.lasts(), pending.plan.to_string());
                    if let Err((victim, error)) = self.inject(cluster, pending.plan, victims, lasts).await {
                        self.problems.push(format!("{}: {name} failed: {error:#}", victim.name()));
                    }
                }
                None => {
                    pending.missed = self.missed(cluster, &pending.plan, &scene);
                    waiting.push(pending);
                }
            }
        }
        self.pending = waiting;
    }

    /// A node's agent ended although nobody asked it to: it cannot answer, and nobody waits for it.
    pub fn lose(&mut self, node: usize) {
        self.silent[node] = true;
        self.expected[node] = false;
    }

    /// Undoes what has lasted long enough. What cannot be undone is noted, and stands until it is healed.
    pub async fn undo_due(&mut self, cluster: &mut LabCluster) {
        let now = Instant::now();
        let (due, rest) = std::mem::take(&mut self.undo).into_iter().partition(|(at, ..)| *at <= now);
        self.undo = rest;
        for (_, kind, victim) in due {
            if let Err(error) = self.undo_one(cluster, kind, victim).await {
                self.note_failed_undo(kind, victim, &error);
            }
        }
    }

    /// Does `plan` now, whatever its victims hold. Without a time it lasts until it is healed.
    pub async fn now(&mut self, cluster: &mut LabCluster, plan: FaultPlan, moment: &Moment<'_>) -> Result<FaultReport> {
        let living = self.living();
        let Moment { trees, held_percent, .. } = *moment;
        let fault_target = &plan.target;
        let scene = Scene { trees, held_percent, living: &living, early: living.len() };
        let victims = scene.victims(&plan);
        let victims = victims.with_context(|| match trees.iter().all(|tree| tree.edges.is_empty()) {
            true => "no host is in a tree; provision the image first, or name a host, such as n3".into(),
            false => format!("{}; or name a host, such as n3", fault_target.absence()),
        })?;
        for victim in &victims {
            let up = self.is_up(cluster, *victim);
            ensure!(up, "{} is down already; bring it back with `faasnet lab fault heal {0}`", victim.name());
        }
        self.report(&plan, &victims, &scene, moment.seconds);
        let lasts = plan.seconds;
        self.inject(cluster, plan, victims, lasts).await.map_err(|(victim, error)| error.context(victim.name()))?;
        self.reports.pop().context("a fault has no report")
    }

    /// Undoes everything that was done to a host.
    pub async fn heal(&mut self, cluster: &mut LabCluster, host: &str) -> Result<()> {
        let timed = std::mem::take(&mut self.undo);
        let (ours, rest): (Vec<_>, Vec<_>) = timed.into_iter().partition(|(_, _, victim)| victim.name() == host);
        self.undo = rest;
        let standing = std::mem::take(&mut self.standing);
        let (more, rest): (Vec<_>, Vec<_>) = standing.into_iter().partition(|(_, victim)| victim.name() == host);
        self.standing = rest;
        let mut failed = None;
        for (kind, victim) in ours.into_iter().map(|(_, kind, victim)| (kind, victim)).chain(more) {
            if let Err(error) = self.undo_one(cluster, kind, victim).await {
                // Whoever heals hears it, and may try again.
                self.standing.push((kind, victim));
                failed.get_or_insert(error);
            }
        }
        if self.revive(cluster, host).await? {
            // What was done to its process ended with that.
            self.standing.retain(|(kind, victim)| victim.name() != host || !matches!(kind, Kind::Kill | Kind::Stop));
        }
        match self.standing.iter().any(|(_, victim)| victim.name() == host) {
            true => failed.map_or(Ok(()), Err),
            false => Ok(()),
        }
    }

    /// Starts a host's daemon if it has none: a disturbance that failed half-way, or a death of its own, took it away.
    async fn revive(&mut self, cluster: &mut LabCluster, host: &str) -> Result<bool> {
        match cluster.network.agents().iter().position(|agent| agent.name == host) {
            Some(node) if cluster.agents[node].is_none() => {
                cluster.start_agent(node).await?;
                (self.silent[node], self.expected[node]) = (false, true);
            }
            None if host == network::CONTROLLER && cluster.controller.is_none() => cluster.start_controller().await?,
            None if host == network::ORIGIN && cluster.origin.is_none() => cluster.start_origin().await?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether something that was done to one of `hosts` will be undone by itself.
    pub fn will_undo(&self, hosts: &[String]) -> bool {
        self.undo.iter().any(|(_, _, victim)| hosts.contains(&victim.name()))
    }

    /// Kills nodes that were stopped for good, which could neither answer nor end; brings controller and origin back, which the audit needs.
    pub async fn finish(&self, cluster: &mut LabCluster) -> Result<()> {
        for (node, agent) in cluster.agents.iter_mut().enumerate() {
            if self.silent[node] {
                kill(agent).await?;
            }
        }
        if cluster.controller.is_none() {
            cluster.start_controller().await?;
        }
        if cluster.origin.is_none() {
            cluster.start_origin().await?;
        }
        // To one that was never stopped this means nothing.
        signal(cluster.controller.as_ref(), Signal::CONT)?;
        signal(cluster.origin.as_ref(), Signal::CONT)
    }

    /// A disk is full some time after the start: only at the end it is known with how much of the image, and what the agent said.
    pub fn note_full_disks(&mut self, nodes: &[NodeView]) {
        for report in self.reports.iter_mut().filter(|report| report.fault.kind == Kind::Full) {
            let Some(node) = nodes.iter().find(|node| report.victims.contains(&node.name)) else { continue };
            let percent = (node.bytes_present * 100 / node.bytes_total.max(1)) as u8;
            report.held_percent = vec![percent];
            // The store reserves the whole image first, so it fails before it holds anything.
            report.counts = node.state == "failed";
            report.note = format!("{} {}", node.state, node.error);
        }
    }

    /// Hosts that were kept back have asked for the image and are in the trees, which took so long; beyond a second it is no rush.
    pub fn note_joins(&mut self, took: Duration) {
        for report in self.reports.iter_mut().filter(|report| report.fault.kind == Kind::Joins) {
            let within = format!("{} hosts joined within {:.2} s", report.victims.len(), took.as_secs_f64());
            report.note = if report.note.is_empty() { within } else { format!("{}; {within}", report.note) };
            report.counts &= took < RUSH;
        }
    }

    /// The victims, if it is time. A daemon that is away already is hit later.
    fn due(&self, cluster: &LabCluster, pending: &Pending, scene: &Scene<'_>, seconds: f64) -> Option<Vec<Victim>> {
        let victims = scene.victims(&pending.plan)?;
        if victims.iter().any(|victim| !self.is_up(cluster, *victim)) {
            return None;
        }
        let is_time = match pending.at {
            Some(at) => seconds >= at,
            None if pending.plan.kind == Kind::Full => true,
            None => victims.iter().all(|victim| scene.held(&pending.plan, *victim) >= pending.plan.percent),
        };
        is_time.then_some(victims)
    }

    fn missed(&self, cluster: &LabCluster, plan: &FaultPlan, scene: &Scene<'_>) -> Missed {
        match scene.victims(plan) {
            None => Missed::Nobody,
            Some(victims) if victims.iter().any(|victim| !self.is_up(cluster, *victim)) => Missed::Away,
            Some(_) => Missed::Early,
        }
    }

    fn is_up(&self, cluster: &LabCluster, victim: Victim) -> bool {
        match victim {
            Victim::Node(node) => cluster.agents[node].is_some() && !self.silent[node],
            Victim::Controller => cluster.controller.is_some(),
            Victim::Origin => cluster.origin.is_some(),
        }
    }

    async fn inject(
        &mut self,
        cluster: &mut LabCluster,
        plan: FaultPlan,
        victims: Vec<Victim>,
        lasts: Option<f64>,
    ) -> Result<(), (Victim, anyhow::Error)> {
        if plan.kind == Kind::Joins {
            self.joins_due = true;
            return Ok(());
        }
        for victim in victims {
            self.hit(cluster, &plan, victim).await.map_err(|error| (victim, error))?;
            match lasts {
                Some(seconds) => self.undo.push((Instant::now() + Duration::from_secs_f64(seconds), plan.kind, victim)),
                None => self.give_up(plan.kind, victim),
            }
        }
        Ok(())
    }

    /// The victim stays as it is: an experiment does not wait for it, and whoever runs a lab may heal it.
    fn note_failed_undo(&mut self, kind: Kind, victim: Victim, error: &anyhow::Error) {
        self.problems.push(format!("{}: {kind} could not be undone: {error:#}", victim.name()));
        self.standing.push((kind, victim));
        if let Victim::Node(node) = victim {
            self.expected[node] = false;
        }
    }

    /// A node that stays away, or whose disk is too small, need not hold the image.
    fn give_up(&mut self, kind: Kind, victim: Victim) {
        self.standing.push((kind, victim));
        if let (Kind::Kill | Kind::Stop | Kind::Full, Victim::Node(node)) = (kind, victim) {
            self.expected[node] = false;
        }
    }

    async fn hit(&mut self, cluster: &mut LabCluster, plan: &FaultPlan, victim: Victim) -> Result<()> {
        match (plan.kind, victim) {
            (Kind::Kill, Victim::Node(node)) => {
                self.silent[node] = true;
                kill(&mut cluster.agents[node]).await
            }
            (Kind::Kill, Victim::Controller) => kill(&mut cluster.controller).await,
            (Kind::Kill, Victim::Origin) => kill(&mut cluster.origin).await,
            (Kind::Stop, victim) => {
                if let Victim::Node(node) = victim {
                    self.silent[node] = true;
                }
                signal(daemon(cluster, victim), Signal::STOP)
            }
            (Kind::Link, Victim::Node(node)) => Ok(cluster.network.set_link(&cluster.network.agents()[node], false)?),
            (Kind::Slow, Victim::Node(node)) => {
                let rate = cluster.network.rate().divided(SLOWER);
                Ok(cluster.network.set_rate(&cluster.network.agents()[node], rate)?)
            }
            (Kind::Flip, Victim::Node(node)) => cluster.flip_bits(node, true).await,
            // In an experiment it was there from the start.
            (Kind::Full, Victim::Node(node)) => cluster.shrink_disk(node, true).await,
            // Joins are up to the run; the rest cannot be parsed.
            _ => Ok(()),
        }
    }

    async fn undo_one(&mut self, cluster: &mut LabCluster, kind: Kind, victim: Victim) -> Result<()> {
        if let (Kind::Kill | Kind::Stop | Kind::Full, Victim::Node(node)) = (kind, victim) {
            self.expected[node] = true;
        }
        match (kind, victim) {
            (Kind::Kill, Victim::Node(node)) => {
                cluster.start_agent(node).await?;
                self.silent[node] = false;
                Ok(())
            }
            (Kind::Kill, Victim::Controller) => cluster.start_controller().await,
            (Kind::Kill, Victim::Origin) => cluster.start_origin().await,
            (Kind::Stop, victim) => {
                if let Victim::Node(node) = victim {
                    self.silent[node] = false;
                }
                signal(daemon(cluster, victim), Signal::CONT)
            }
            (Kind::Link, Victim::Node(node)) => Ok(cluster.network.set_link(&cluster.network.agents()[node], true)?),
            (Kind::Slow, Victim::Node(node)) => {
                Ok(cluster.network.set_rate(&cluster.network.agents()[node], cluster.network.rate())?)
            }
            (Kind::Flip, Victim::Node(node)) => cluster.flip_bits(node, false).await,
            (Kind::Full, Victim::Node(node)) => cluster.shrink_disk(node, false).await,
            _ => Ok(()),
        }
    }

    fn report(&mut self, plan: &FaultPlan, victims: &[Victim], scene: &Scene<'_>, seconds: f64) {
        let names = |nodes: &[usize]| nodes.iter().map(|node| Victim::Node(*node).name()).collect();
        let note = scene.verdict(plan, victims);
        let held_percent = match plan.kind {
            Kind::Joins => victims.first().map(|victim| scene.held(plan, *victim)).into_iter().collect(),
            _ => victims.iter().map(|victim| scene.held(plan, *victim)).collect(),
        };
        self.reports.push(FaultReport {
            fault: plan.clone(),
            victims: victims.iter().map(|victim| victim.name()).collect(),
            orphans: names(&scene.orphans(victims)),
            at_seconds: seconds,
            held_percent,
            counts: note.is_empty(),
            note: note.into(),
            deaths: Vec::new(),
        });
    }

    /// Who runs, answers and shall hold the image.
    fn living(&self) -> Vec<bool> {
        self.expected.iter().zip(&self.silent).map(|(expected, silent)| *expected && !silent).collect()
    }
}

impl FaultReport {
    /// One line for who did it by hand.
    pub fn by_hand(&self) -> String {
        let orphans = match self.orphans.is_empty() {
            true => String::new(),
            false => format!("; children: {}", self.orphans.join(" ")),
        };
        let fault = self.fault.to_string();
        // By hand it happens at once, whatever the victim holds.
        let what = fault.split('@').next().unwrap_or_default();
        let deaths: String = self.deaths.iter().map(|death| format!("\nPROBLEM: {death}")).collect();
        format!("{what} hits {}{orphans}{deaths}", self.victims.join(" "))
    }

    /// One line.
    pub fn text(&self) -> String {
        if self.victims.is_empty() {
            return format!("fault {}  hit nobody: {}", self.fault, self.note);
        }
        let held: Vec<_> = self.held_percent.iter().map(|percent| format!("{percent} %")).collect();
        let counts = match (self.counts, self.note.is_empty()) {
            (true, true) => "",
            (true, false) => ": ",
            _ => "  does not count: ",
        };
        format!(
            "fault {}  {} at {:.2} s with {}{counts}{}",
            self.fault,
            self.victims.join(" "),
            self.at_seconds,
            held.join(" "),
            self.note
        )
    }
}

impl Missed {
    fn words(self, target: &Target) -> String {
        match self {
            Self::Early => "the image was everywhere before".into(),
            Self::Nobody => target.absence().into(),
            Self::Away => "its victim was away already".into(),
        }
    }
}

fn daemon(cluster: &LabCluster, victim: Victim) -> Option<&Daemon> {
    match victim {
        Victim::Node(node) => cluster.agents[node].as_ref(),
        Victim::Controller => cluster.controller.as_ref(),
        Victim::Origin => cluster.origin.as_ref(),
    }
}

async fn kill(daemon: &mut Option<Daemon>) -> Result<()> {
    match daemon.take() {
        Some(mut daemon) => daemon.kill().await,
        None => Ok(()),
    }
}

fn signal(daemon: Option<&Daemon>, signal: Signal) -> Result<()> {
    let pid = daemon.and_then(Daemon::pid).and_then(|pid| Pid::from_raw(pid as i32));
    let pid = pid.context("a process that should be signalled is gone; look at its log with --keep")?;
    kill_process(pid, signal).context("cannot signal a daemon")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a fault that hits nobody and passes for one that did no harm, or that names another reason than the true one.
    #[test]
    fn a_fault_that_hits_nobody_is_a_problem() {
        let plan = Plan { faults: vec!["kill:inner".parse().unwrap()], ..Plan::default() };
        let mut injector = Injector::new(&plan);
        injector.pending[0].missed = Missed::Nobody;
        assert!(!injector.is_done(false) && injector.problems.is_empty());
        assert!(injector.is_done(true));
        assert!(
            injector.problems[0].contains("kill:inner@50 hit nobody: no host was inner"),
            "{:?}",
            injector.problems
        );
        assert!(injector.reports[0].text().ends_with("such as --hosts 7") && !injector.reports[0].counts);
        let mut random = Injector::new(&Plan { chaos: Some(7), ..Plan::default() });
        assert!(random.is_done(true) && random.problems.is_empty() && !random.reports.is_empty());
    }
}
