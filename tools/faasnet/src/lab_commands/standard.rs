//! `faasnet lab report`: the standard set of experiments, and a page that shows what came out.
//!
//! The set is a list of jobs, each with a file of raw data in the folder. A job whose file is there is not run again, so an interrupted
//! command goes on where it stopped; the page and its plots are made from the files alone.

pub(super) mod figures;
mod folder;
mod job;
mod page;
mod perform;
mod progress;
pub(super) mod tables;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use tokio_util::sync::CancellationToken;

use self::folder::Folder;
use self::job::{Job, Set};
use self::page::Page;
use self::progress::Progress;
use super::experiment::INTERRUPTED;
use super::plan::RUNS;
use crate::cli::Global;
use crate::{daemon, output};

pub use self::job::Part;

const DEFAULT_RUNS: u16 = 3;

/// `faasnet lab report`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Writes DIR/report.md with its plots beside it, and DIR/raw/*.json, the numbers of every run. What DIR already holds is kept, so an
interrupted command is continued by giving it again. Ctrl-C takes the lab down and writes the page of what is there.

Examples:
  faasnet lab report figures
  faasnet lab report figures --only faults,chaos
  faasnet lab report figures --only relay --again
  faasnet lab report /tmp/smoke --quick")]
pub struct ReportArgs {
    /// Where the report goes
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// Run only these parts
    #[arg(long, value_enum, value_name = "PART,…", value_delimiter = ',')]
    pub only: Vec<Part>,
    /// Run what is there once more, also if it was made with other settings
    #[arg(long)]
    pub again: bool,
    /// A smoke run: every part, with so little data that the figures say nothing
    #[arg(long)]
    pub quick: bool,
    /// How often each system is compared, and each relay measured
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RUNS, value_parser = clap::value_parser!(u16).range(RUNS))]
    pub runs: u16,
    /// Where to make the labs' folders [default: the system's folder for temporary files]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Runs the command. A failure unless every run of the set was made and every audit is clean.
pub async fn run(global: &Global, args: ReportArgs) -> Result<ExitCode> {
    let stop = CancellationToken::new();
    let (interrupted, stopping) = (daemon::shutdown(false)?, stop.clone());
    tokio::spawn(async move {
        interrupted.await;
        stopping.cancel();
    });
    let folder = Folder::open(&args.folder)?;
    let jobs = if args.quick { Set::quick() } else { Set::full(args.runs.into()) }.jobs();
    if !args.again
        && let Some(job) = jobs.iter().find(|job| folder.holds_other(job))
    {
        bail!(
            "{} holds {} with other settings (--quick, --runs, or another version); choose another folder, or replace it with --again",
            folder.path().display(),
            job.key
        );
    }
    let is_wanted = |job: &Job| args.only.is_empty() || args.only.contains(&job.part);
    let wanted: Vec<&Job> = jobs.iter().filter(|job| is_wanted(job) && (args.again || !folder.holds(job))).collect();
    let mut progress = Progress::new(wanted.iter().map(|job| job.expected_seconds()).collect());
    progress.begin(jobs.len());
    for job in wanted {
        progress.next(&job.key);
        let outcome = perform::perform(job, args.dir.as_deref(), &stop).await;
        if stop.is_cancelled() {
            eprintln!("interrupted: the lab is taken down; the same command goes on with {}", job.key);
            break;
        }
        match outcome {
            Ok(found) => {
                progress.finished(&found.summary());
                folder.keep(job, found)?;
            }
            Err(error) => progress.failed(&job.key, &format!("{error:#}")),
        }
    }
    let page = Page::new(&folder, &jobs, args.quick, args.runs);
    page.write()?;
    let problems: Vec<String> = progress.failures().iter().cloned().chain(page.problems()).collect();
    match global.json {
        true => output::json(&serde_json::json!({
            "report": page.path(), "jobs": jobs.len(), "missing": page.missing(), "problems": problems,
        }))?,
        false => output::line(page.summary(&problems))?,
    }
    let is_complete = page.missing().is_empty() || !args.only.is_empty();
    Ok(match (stop.is_cancelled(), problems.is_empty() && is_complete) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (_, true) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
