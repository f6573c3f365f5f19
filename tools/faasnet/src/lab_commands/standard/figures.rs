//! The page's plots, from raw data. Pure but for the files that it writes.

use std::path::Path;

use anyhow::Result;
use faasnet_lab::plot::{self, Bar, Labels, Series};

use super::tables;
use crate::lab_commands::compare::CompareRow;
use crate::lab_commands::plan::LabPolicy;
use crate::lab_commands::report::LabReport;

/// What the others may take beyond the bound when a node is killed half-way.
const MOST_DISTURBED: f64 = 1.25;

/// The slowest host ÷ bound, over the number of hosts; ours are thick.
pub(in crate::lab_commands) fn completion(path: &Path, title: &str, rows: &[CompareRow]) -> Result<()> {
    let (counts, systems) = tables::axes(rows);
    let line = |system: &String| Series {
        name: system.clone(),
        values: counts
            .iter()
            .map(|hosts| rows.iter().find(|row| row.system == *system && row.hosts == *hosts)?.ratio)
            .collect(),
        strong: *system == LabPolicy::Twin.to_string(),
    };
    let series: Vec<Series> = systems.iter().map(line).filter(|line| line.values.iter().any(Option::is_some)).collect();
    let names: Vec<String> = counts.iter().map(usize::to_string).collect();
    let labels = Labels { title, x: "hosts", y: "slowest host ÷ one TCP flow" };
    Ok(plot::steps(path, &labels, &names, &series)?)
}

/// The others' slowest host ÷ bound, by fault.
pub(super) fn faults<'a>(path: &Path, labs: impl Iterator<Item = &'a LabReport>) -> Result<()> {
    let bar = |lab: &LabReport| Bar {
        name: tables::fault_names(&lab.median),
        value: lab.median.undisturbed_ratio,
        text: format!(
            "{:.2}, longest stall {}",
            lab.median.undisturbed_ratio,
            tables::milliseconds(lab.median.others_stall())
        ),
    };
    let bars: Vec<Bar> = labs.map(bar).collect();
    Ok(plot::bars(path, "Hosts that the fault did not hit", "slowest ÷ one TCP flow", &bars, Some(MOST_DISTURBED))?)
}
