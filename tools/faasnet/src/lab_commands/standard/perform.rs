//! Does one job. Whatever it makes is gone when it ends, also when it is interrupted.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::job::{Job, RelayWork, Work};
use crate::lab_commands::compare::{self, ComparePlan, CompareRow};
use crate::lab_commands::environment::Environment;
use crate::lab_commands::experiment;
use crate::lab_commands::plan::Plan;
use crate::lab_commands::report::LabReport;
use crate::lab_commands::timeline::Timeline;

/// What came out of a job; one of the three is there.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Found {
    /// Where it ran.
    pub(super) environment: Option<Environment>,
    /// Of an experiment of ours.
    pub(super) lab: Option<LabReport>,
    /// Of its median run.
    pub(super) timeline: Option<Timeline>,
    /// Of a comparison.
    pub(super) compare: Option<Vec<CompareRow>>,
    /// Of the relay bench: its own JSON, and its plot.
    pub(super) relay: Option<Value>,
    /// See `relay`.
    pub(super) relay_svg: Option<String>,
    /// What is wrong with it; must be empty.
    pub(super) problems: Vec<String>,
}

/// Does `job` and returns early when `stop` is cancelled. Folders go to `dir`.
pub(super) async fn perform(job: &Job, dir: Option<&Path>, stop: &CancellationToken) -> Result<Found> {
    let found = match &job.work {
        Work::Lab(plan) => lab(Plan { dir: dir.map(Path::to_owned), ..plan.clone() }, stop).await?,
        Work::Compare(plan) => comparison(ComparePlan { dir: dir.map(Path::to_owned), ..plan.clone() }, stop).await?,
        Work::Relay(work) => bench(work, dir, stop).await?,
    };
    Ok(Found { environment: Some(Environment::read()), ..found })
}

async fn lab(plan: Plan, stop: &CancellationToken) -> Result<Found> {
    let measured = experiment::measure(&plan, false, stop.clone().cancelled_owned()).await?;
    let measured = measured.context("interrupted")?;
    let runs = measured.report.runs.iter().flat_map(|run| run.audit.problems.iter().cloned());
    let left = measured.report.leftovers.iter().map(|left| format!("left behind: {left}"));
    Ok(Found {
        problems: runs.chain(left).collect(),
        lab: Some(measured.report),
        timeline: Some(measured.timeline),
        ..Found::default()
    })
}

async fn comparison(plan: ComparePlan, stop: &CancellationToken) -> Result<Found> {
    let comparison = tokio::select! {
        comparison = compare::measure(&plan) => comparison?,
        () = stop.cancelled() => bail!("interrupted"),
    };
    let wrong = comparison.rows.iter().filter(|row| !row.verified && !row.version.is_empty());
    let wrong = wrong.map(|row| format!("{} on {} hosts: {}", row.system, row.hosts, row.note));
    let left = comparison.leftovers.iter().map(|left| format!("left behind: {left}"));
    let problems = wrong.chain(left).collect();
    Ok(Found { problems, compare: Some(comparison.rows), ..Found::default() })
}

/// In a process of its own: the bench keeps its threads off the relay's core, and ours must not stay there.
async fn bench(work: &RelayWork, dir: Option<&Path>, stop: &CancellationToken) -> Result<Found> {
    let svg = tempfile::NamedTempFile::new().context("cannot make a file for the bench's plot")?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
    command.args(["bench", "relay", "--json", "--gib", &work.gib.to_string(), "--runs", &work.runs.to_string()]);
    for (flag, values) in [("--engine", work.engines.join(",")), ("--mode", work.modes.join(","))] {
        if !values.is_empty() {
            command.arg(flag).arg(values);
        }
    }
    if let Some(dir) = dir {
        command.arg("--dir").arg(dir);
    }
    command.arg("--svg").arg(svg.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C at the terminal reaches it through us, once.
    let bench = command.process_group(0).kill_on_drop(true).spawn().context("cannot start the relay bench")?;
    let pid = bench.id().and_then(|pid| Pid::from_raw(pid as i32));
    let output = bench.wait_with_output();
    tokio::pin!(output);
    let output = tokio::select! {
        output = &mut output => output,
        () = stop.cancelled() => {
            // It removes what it made and ends. Ignored: it may have ended in the meantime.
            let _ = pid.map(|pid| kill_process(pid, Signal::TERM));
            output.await
        }
    };
    let output = output.context("cannot wait for the relay bench")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the relay bench failed: {}", errors.lines().last().unwrap_or("it says nothing"));
    Ok(Found {
        relay: Some(serde_json::from_slice(&output.stdout).context("the relay bench printed no JSON")?),
        relay_svg: Some(std::fs::read_to_string(svg.path()).context("the relay bench drew nothing")?),
        ..Found::default()
    })
}

impl Found {
    /// In a few words.
    pub(super) fn summary(&self) -> String {
        let mut parts = Vec::new();
        if let Some(lab) = &self.lab {
            parts.push(format!("{:.3} × the bound", lab.median.ratio));
            parts.extend(
                lab.median
                    .faults
                    .iter()
                    .filter(|fault| !fault.counts)
                    .map(|fault| format!("{} does not count", fault.fault))
                    .take(1),
            );
        }
        if let Some(rows) = &self.compare {
            let ratio = |row: &CompareRow| Some(format!("{} {:.2}", row.system, row.ratio?));
            parts.push(rows.iter().filter_map(ratio).collect::<Vec<_>>().join(", "));
        }
        match self.problems.len() {
            0 => parts.push("clean".into()),
            count => parts.push(format!("{count} PROBLEMS: {}", self.problems[0])),
        }
        parts.join(", ")
    }
}
