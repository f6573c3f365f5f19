//! How much of the image each host had received at each moment of a run, thin enough to keep and to draw.

use std::path::Path;

use anyhow::Result;
use faasnet_lab::plot::{self, Labels, Line};
use faasnet_lab::recording::Recording;
use serde::{Deserialize, Serialize};

use super::experiment::FIRST_AGENT;
use super::report::RunReport;

/// Points of a host's line: more cannot be seen, and 31 hosts must stay a small file.
const POINTS: usize = 150;
/// So many hosts are told apart by colour.
const MOST_NAMED: usize = 8;

/// The time line of one run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Timeline {
    /// Policy, hosts, ratio, disturbances.
    pub title: String,
    /// One raw flow would be done then.
    pub bound_seconds: f64,
    /// Name, and pairs of seconds and received ÷ image, by host.
    pub hosts: Vec<(String, Vec<(f64, f64)>)>,
    /// When something was disturbed.
    pub disturbed_at: Vec<f64>,
}

impl Timeline {
    /// Of a run that was recorded.
    pub fn new(run: &RunReport, recording: &Recording) -> Self {
        let round = |(seconds, share): (f64, f64)| ((seconds * 1e3).round() / 1e3, (share * 1e4).round() / 1e4);
        let line = |index: usize| recording.line(FIRST_AGENT + index, run.demo.image.bytes, POINTS);
        let hosts = run.hosts.iter().enumerate();
        let hosts = hosts.map(|(index, host)| (host.name.clone(), line(index).into_iter().map(round).collect()));
        let faults: Vec<_> = run.faults.iter().map(|fault| fault.fault.to_string()).collect();
        let (policy, count) = (&run.demo.policy, run.hosts.len());
        let mut title = format!("{policy}, {count} hosts, slowest {:.3} × the bound", run.ratio);
        if (1..=2).contains(&faults.len()) {
            title += &format!(", {}", faults.join(", "));
        }
        let disturbed = run.faults.iter().filter(|fault| !fault.victims.is_empty());
        Self {
            title,
            bound_seconds: run.bound_seconds,
            hosts: hosts.collect(),
            disturbed_at: disturbed.map(|fault| fault.at_seconds).collect(),
        }
    }

    /// Draws it into `path`; verticals stand at the bound and at disturbances.
    pub fn draw(&self, path: &Path) -> Result<()> {
        let named = self.hosts.len() <= MOST_NAMED;
        let line = |(name, points): &(String, Vec<(f64, f64)>)| Line {
            name: named.then(|| name.clone()),
            points: points.clone(),
        };
        let lines: Vec<Line> = self.hosts.iter().map(line).collect();
        let labels = Labels { title: &self.title, x: "seconds", y: "received ÷ image" };
        let marks: Vec<f64> = self.disturbed_at.iter().copied().chain([self.bound_seconds]).collect();
        Ok(plot::lines(path, &labels, &lines, &marks)?)
    }
}
