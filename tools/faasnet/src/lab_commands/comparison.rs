//! What a comparison found, as JSON, text and plot. Pure but for the plot's file.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::compare::{ComparePlan, CompareRow};
use super::environment::Environment;
use super::standard::{figures, tables};
use super::targets::{self, Target};
use crate::output;

/// Everything that `faasnet lab compare --json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// What was asked for.
    pub(crate) settings: ComparePlan,
    /// Where it ran.
    pub(crate) environment: Environment,
    /// By number of hosts, then by system.
    pub(crate) rows: Vec<CompareRow>,
    /// What was left of the labs after they were taken down; must be empty.
    pub(crate) leftovers: Vec<String>,
}

impl Comparison {
    pub(crate) fn new(settings: ComparePlan) -> Self {
        Self { settings, environment: Environment::read(), rows: Vec::new(), leftovers: Vec::new() }
    }

    /// Whether every installed system delivered the right bytes, and nothing was left.
    pub(crate) fn is_clean(&self) -> bool {
        self.leftovers.is_empty() && self.rows.iter().all(|row| row.verified || row.version.is_empty())
    }

    /// The report for people.
    pub(crate) fn text(&self) -> String {
        let plan = &self.settings;
        let mut lines = vec![format!(
            "{} at {}, kernel {}, {} cores; the median of {}",
            output::bytes(plan.size),
            plan.rate,
            self.environment.kernel,
            self.environment.cores,
            if plan.runs == 1 { "one run".into() } else { format!("{} runs", plan.runs) },
        )];
        let columns = ["hosts", "system", ">slowest", ">÷ bound", ">CPU s/GiB", ">origin", "bytes"];
        lines.push(output::table(&columns, self.rows.iter().map(CompareRow::cells)));
        lines.push(tables::systems(&self.rows).trim_end().to_owned());
        lines.extend(self.targets().iter().map(Target::text));
        lines.extend(self.leftovers.iter().map(|left| format!("PROBLEM: left behind: {left}")));
        lines.join("\n")
    }

    /// Figures that are wanted hold for this image on these links.
    fn targets(&self) -> Vec<Target> {
        let is_standard = self.settings.size == 64 << 20 && self.settings.rate.bits() == 100_000_000;
        if is_standard { targets::of_comparison(&self.rows) } else { Vec::new() }
    }

    /// The slowest host ÷ bound over the number of hosts.
    pub(crate) fn draw(&self, path: &Path) -> Result<()> {
        let title = format!("{} at {}", output::bytes(self.settings.size), self.settings.rate);
        figures::completion(path, &title, &self.rows)
    }
}

impl CompareRow {
    fn cells(&self) -> Vec<String> {
        let number = |value: Option<f64>, text: fn(f64) -> String| value.map_or("–".into(), text);
        vec![
            self.hosts.to_string(),
            self.system.clone(),
            number(self.seconds, output::seconds),
            number(self.ratio, |ratio| format!("{ratio:.3}")),
            number(self.cpu_seconds_per_gib, |seconds| format!("{seconds:.2}")),
            number(self.origin_share, |share| format!("{share:.3} ×")),
            if self.verified { "right".into() } else { "–".into() },
        ]
    }
}
