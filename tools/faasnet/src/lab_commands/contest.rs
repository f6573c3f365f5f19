//! One number of hosts: every system in turn on the same hosts, round after round, so that what else the machine does meets all alike.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use faasnet_lab::Network;
use faasnet_lab::rivals::{self, Brake, Job, Rival, Settings};

use super::compare::{ComparePlan, CompareRow, System, Tried};
use super::environment;
use super::experiment;
use super::image;
use super::plan::{LabPolicy, Plan};
use super::report::{RunReport, median_of};
use crate::demo::verify;
use crate::output;

/// A host that gets its bytes after all others is done after (hosts × bound); whoever takes this many times that has failed.
const PATIENCE: f64 = 3.0;
const GRACE: Duration = Duration::from_secs(30);
const GIB: f64 = (1u64 << 30) as f64;

/// The systems on the hosts of one lab.
pub(crate) struct Contest {
    network: Network,
    plan: ComparePlan,
    lab: Plan,
    folder: PathBuf,
    layout: PathBuf,
    blob: PathBuf,
    digest: String,
    runs: usize,
    brake: Brake,
}

/// One run of one system that delivered the right bytes to every host.
#[derive(Debug, Clone, Copy)]
struct Run {
    seconds: f64,
    bound_seconds: f64,
    cpu_seconds_per_gib: f64,
    origin_share: f64,
}

/// A system with what has become of it so far.
struct Entry {
    system: System,
    version: String,
    /// The chosen settings of another system.
    settings: Option<&'static Settings>,
    tried: Vec<Tried>,
    runs: Vec<Result<Run>>,
    /// Why it cannot run at all.
    absent: Option<String>,
}

impl Contest {
    /// Makes the bytes in `folder`.
    pub(crate) async fn new(
        network: Network,
        plan: ComparePlan,
        lab: Plan,
        folder: PathBuf,
        brake: Brake,
    ) -> Result<Self> {
        let made = tokio::task::spawn_blocking(move || {
            let layout = image::layout(&lab, &folder)?;
            let blob = image::blob(lab.size, &folder.join("origin"))?;
            let digest = verify::digest_of_reader(File::open(&blob)?).context("cannot read the blob")?;
            Ok(Self { network, plan, lab, folder, layout, blob, digest, runs: 0, brake })
        });
        made.await.context("making the bytes broke off")?
    }

    /// A row per system.
    pub(crate) async fn rows(mut self) -> Result<Vec<CompareRow>> {
        let mut entries: Vec<_> = self.plan.systems.iter().map(|system| Entry::new(*system)).collect();
        if self.plan.sweep {
            for entry in entries.iter_mut().filter(|entry| entry.absent.is_none()) {
                self.sweep(entry).await?;
            }
        }
        for round in 1..=self.plan.runs {
            for entry in entries.iter_mut().filter(|entry| entry.absent.is_none()) {
                self.say(format!("{}: run {round} of {} on {} hosts", entry.system, self.plan.runs, self.lab.hosts))?;
                let run = self.run(entry.system, entry.settings).await;
                entry.runs.push(run);
            }
        }
        Ok(entries.into_iter().map(|entry| entry.row(self.lab.hosts)).collect())
    }

    /// Runs once with each of the system's settings, and chooses the fastest.
    async fn sweep(&mut self, entry: &mut Entry) -> Result<()> {
        let System::Rival(rival) = entry.system else { return Ok(()) };
        if rival.sweep().len() < 2 {
            return Ok(());
        }
        let mut best = f64::INFINITY;
        for settings in rival.sweep() {
            self.say(format!("{rival}: trying {settings} on {} hosts", self.lab.hosts))?;
            let run = self.run(entry.system, Some(settings)).await;
            let ratio = run.as_ref().ok().map(Run::ratio);
            if ratio.is_some_and(|ratio| ratio < best) {
                (best, entry.settings) = (ratio.unwrap_or(best), Some(settings));
            }
            let note = run.err().map(|error| format!("{error:#}")).unwrap_or_default();
            entry.tried.push(Tried { settings: settings.to_string(), ratio, note });
        }
        Ok(())
    }

    /// One run in a folder of its own.
    async fn run(&mut self, system: System, settings: Option<&'static Settings>) -> Result<Run> {
        self.runs += 1;
        let dir = self.folder.join(format!("run{}", self.runs));
        std::fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let run = match (system, settings) {
            (System::Own(policy), _) => self.own(policy, &dir).await,
            (System::Rival(rival), Some(settings)) => self.rival(rival, settings, &dir).await,
            (System::Rival(rival), None) => Err(anyhow::anyhow!("{rival} has no settings")),
        };
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        run
    }

    async fn own(&self, policy: LabPolicy, dir: &Path) -> Result<Run> {
        let plan = Plan { policy, ..self.lab.clone() };
        let (report, _) = experiment::one_run(&self.network, &plan, &self.layout, dir).await?;
        ensure!(report.audit.is_clean(), "{}", report.audit.problems.join("; "));
        Ok(Run::from(&report))
    }

    async fn rival(&self, rival: Rival, settings: &'static Settings, dir: &Path) -> Result<Run> {
        let rate = experiment::payload_rate(&self.network, self.plan.size).await?;
        let bound_seconds = self.plan.size as f64 / rate;
        let patience = Duration::from_secs_f64(PATIENCE * bound_seconds * self.lab.hosts as f64) + GRACE;
        let (network, blob, dir, digest) =
            (self.network.clone(), self.blob.clone(), dir.to_owned(), self.digest.clone());
        let (bytes, brake) = (self.plan.size, self.brake.clone());
        let work = move || {
            let job = Job { network: &network, blob: &blob, bytes, folder: &dir, patience, brake: &brake };
            let delivery = rivals::deliver(rival, settings, &job)?;
            for (file, host) in delivery.files.iter().zip(network.agents()) {
                let got = File::open(file).and_then(verify::digest_of_reader);
                let got = got.with_context(|| format!("{} has no {}", host.name, file.display()))?;
                ensure!(got == digest, "wrong bytes on {}: they hash to {got}, not {digest}", host.name);
            }
            Ok(Run {
                seconds: delivery.seconds.iter().copied().fold(0.0, f64::max),
                bound_seconds,
                cpu_seconds_per_gib: delivery.cpu_seconds * GIB / (bytes * delivery.files.len() as u64) as f64,
                origin_share: delivery.origin_bytes as f64 / bytes as f64,
            })
        };
        tokio::task::spawn_blocking(work).await.context("the run broke off")?
    }

    fn say(&self, text: String) -> Result<()> {
        if self.plan.quiet { Ok(()) } else { output::line(text) }
    }
}

impl Run {
    fn ratio(&self) -> f64 {
        self.seconds / self.bound_seconds
    }
}

impl From<&RunReport> for Run {
    fn from(report: &RunReport) -> Self {
        Self {
            seconds: report.demo.seconds.max,
            bound_seconds: report.bound_seconds,
            cpu_seconds_per_gib: report.cpu_seconds_per_gib,
            origin_share: report.origin_share,
        }
    }
}

impl Entry {
    fn new(system: System) -> Self {
        let mut entry = Self {
            system,
            version: environment::version(),
            settings: None,
            tried: Vec::new(),
            runs: Vec::new(),
            absent: None,
        };
        let System::Rival(rival) = system else { return entry };
        entry.settings = rival.sweep().first();
        let missing = rival.missing();
        (entry.version, entry.absent) = match missing.is_empty() {
            true => (rival.version(), None),
            false => (String::new(), Some(format!("not installed (apt-get install {})", missing.join(" ")))),
        };
        entry
    }

    /// The median of the runs that delivered; not verified when one did not.
    fn row(self, hosts: usize) -> CompareRow {
        let good: Vec<&Run> = self.runs.iter().flatten().collect();
        let failures = self.runs.iter().filter_map(|run| run.as_ref().err()).map(|error| format!("{error:#}"));
        let failures: Vec<String> = self.absent.into_iter().chain(failures).collect();
        let ratios: Vec<f64> = good.iter().map(|run| run.ratio()).collect();
        let median = median_of(&ratios).map(|place| good[place]);
        CompareRow {
            system: self.system.to_string(),
            version: self.version,
            settings: self.settings.map_or("defaults".into(), Settings::to_string),
            hosts,
            seconds: median.map(|run| run.seconds),
            bound_seconds: median.map(|run| run.bound_seconds),
            ratio: median.map(Run::ratio),
            cpu_seconds_per_gib: median.map(|run| run.cpu_seconds_per_gib),
            origin_share: median.map(|run| run.origin_share),
            verified: failures.is_empty() && !good.is_empty(),
            note: failures.join("; "),
            ratios,
            sweep: self.tried,
        }
    }
}
