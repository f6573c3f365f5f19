//! What an experiment found, as JSON and as text. Pure: numbers in, text out.

use std::path::PathBuf;

use faasnet_lab::recording::Stall;
use faasnet_lab::scheduling::SchedulingDelay;
use serde::{Deserialize, Serialize};

use super::audit::Audit;
use super::environment::Environment;
use super::injector::FaultReport;
use super::plan::Plan;
use super::targets::{self, Target};
use super::watch::StripeStall;
use crate::demo::report::Report;
use crate::output;

/// Everything that `faasnet lab provision --json` prints: the median run at top level, with the names of `faasnet demo --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabReport {
    /// The median run by `ratio`.
    #[serde(flatten)]
    pub median: RunReport,
    /// What was asked for.
    pub settings: Plan,
    /// Where it ran.
    pub environment: Environment,
    /// All runs, in their order.
    pub runs: Vec<RunReport>,
    /// What the project wants of such a run, and whether the median run reached it.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// What was left of the lab after it was taken down; must be empty.
    pub leftovers: Vec<String>,
}

/// One run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RunReport {
    /// The fields of `faasnet demo`.
    #[serde(flatten)]
    pub demo: Report,
    /// Payload bytes per second of one raw TCP flow through the same links.
    pub payload_rate: f64,
    /// Image bytes ÷ `payload_rate`.
    pub bound_seconds: f64,
    /// Slowest host ÷ `bound_seconds`.
    pub ratio: f64,
    /// The same for the slowest host that nobody disturbed.
    pub undisturbed_ratio: f64,
    /// CPU time of all agents ÷ GiB that they hold together.
    pub cpu_seconds_per_gib: f64,
    /// The most memory of any agent, without file cache.
    pub peak_memory_bytes: u64,
    /// Bytes that left the origin's host, by its interface's counter.
    pub origin_interface_bytes: u64,
    /// `origin_interface_bytes` ÷ image bytes.
    pub origin_share: f64,
    /// How long runnable tasks of this machine waited for a core.
    pub scheduling: SchedulingDelay,
    /// Each host as seen from outside.
    pub hosts: Vec<HostReport>,
    /// The disturbances.
    pub faults: Vec<FaultReport>,
    /// The check at the end.
    pub audit: Audit,
}

/// One host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HostReport {
    /// Its name.
    pub name: String,
    /// CPU time of its agent.
    pub cpu_seconds: f64,
    /// The most memory of its agent, without file cache.
    pub peak_memory_bytes: u64,
    /// The same, with mapped files.
    pub peak_rss_bytes: u64,
    /// Bytes that its interface received.
    pub interface_received_bytes: u64,
    /// Bytes that its interface sent.
    pub interface_sent_bytes: u64,
    /// The longest time without a new block in one stripe, or without bytes for the whole host, whichever is longer.
    pub longest_stall_seconds: f64,
    /// When that began, since the start of provisioning.
    pub longest_stall_at: f64,
    /// Each stripe's longest stall, by the agent's word; empty when there was no agent.
    #[serde(default)]
    pub stripes: Vec<StripeStall>,
}

impl HostReport {
    /// Its interface received nothing for so long; a stripe may have waited longer while the other one went on.
    pub fn stalled(&mut self, interface: Stall) {
        let stripes = self.stripes.iter().map(|stripe| (stripe.seconds, stripe.at));
        let longest = stripes.chain([(interface.seconds, interface.from)]).max_by(|a, b| a.0.total_cmp(&b.0));
        (self.longest_stall_seconds, self.longest_stall_at) = longest.unwrap_or_default();
    }
}

impl LabReport {
    /// Puts the runs together; `median` is a place in them.
    pub fn new(settings: Plan, runs: Vec<RunReport>, median: usize) -> Self {
        let environment = Environment::read();
        let targets = targets::of_run(&settings, &runs[median]);
        Self { median: runs[median].clone(), settings, environment, runs, targets, leftovers: Vec::new() }
    }

    /// Whether every run delivered the right bytes and nothing was left.
    pub fn is_clean(&self) -> bool {
        self.leftovers.is_empty() && self.runs.iter().all(|run| run.audit.is_clean())
    }

    /// The report for people.
    pub fn text(&self, kept: Option<&PathBuf>) -> String {
        let plan = &self.settings;
        let mut lines = vec![format!(
            "{} hosts at {}, {}, {} of {}, kernel {}, {} cores\n",
            plan.hosts,
            plan.rate(),
            plan.policy,
            plan.engine,
            output::bytes(self.median.demo.image.bytes),
            self.environment.kernel,
            self.environment.cores
        )];
        let columns =
            ["run", ">slowest", ">bound", ">ratio", ">median", ">origin", ">CPU s/GiB", ">memory", ">stall", ">waited"];
        lines.push(output::table(&columns, self.runs.iter().zip(1..).map(|(run, number)| run.row(number))));
        for run in &self.runs {
            lines.extend(run.faults.iter().map(FaultReport::text));
            if !run.faults.is_empty() {
                let audit = &run.audit;
                lines.push(format!(
                    "undisturbed hosts done at {:.3} × the bound; {} came twice ({} allowed), {} blocks refused",
                    run.undisturbed_ratio,
                    output::bytes(audit.bytes_refetched),
                    output::bytes(audit.bytes_refetched_allowed),
                    audit.blocks_refused
                ));
            }
            lines.extend(run.audit.problems.iter().map(|problem| format!("PROBLEM: {problem}")));
        }
        lines.extend(self.targets.iter().map(Target::text));
        lines.extend(self.leftovers.iter().map(|left| format!("PROBLEM: left behind: {left}")));
        lines.push(match self.is_clean() {
            true => "audit: every living node has the right bytes, nothing is left behind".into(),
            false => "audit: FAILED".into(),
        });
        lines.extend(kept.map(|folder| format!("files: {}", folder.display())));
        lines.join("\n")
    }
}

impl RunReport {
    /// The longest time without progress of any host that no fault hit.
    pub fn others_stall(&self) -> f64 {
        self.longest_stall(|host| !self.faults.iter().any(|fault| fault.victims.contains(&host.name)))
    }

    /// The longest time without progress of any host that is wanted.
    pub fn longest_stall(&self, wanted: impl Fn(&HostReport) -> bool) -> f64 {
        self.hosts.iter().filter(|host| wanted(host)).map(|host| host.longest_stall_seconds).fold(0.0, f64::max)
    }

    fn row(&self, number: usize) -> Vec<String> {
        let stall = self.longest_stall(|_| true);
        let waited = self.scheduling.waited_seconds.map_or("?".into(), |waited| {
            format!("{:.0} %", 100.0 * waited / (self.scheduling.seconds * self.scheduling.cores as f64).max(1e-9))
        });
        vec![
            number.to_string(),
            output::seconds(self.demo.seconds.max),
            output::seconds(self.bound_seconds),
            format!("{:.3}", self.ratio),
            output::seconds(self.demo.seconds.p50),
            format!("{:.3} ×", self.origin_share),
            format!("{:.2}", self.cpu_seconds_per_gib),
            output::bytes(self.peak_memory_bytes),
            output::seconds(stall),
            waited,
        ]
    }
}

/// The place of the lower median.
pub fn median_of(values: &[f64]) -> Option<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    places.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a stall of one stripe that nobody sees because bytes of the other one went on.
    #[test]
    fn the_longest_stall_is_that_of_any_stripe() {
        let stripes =
            vec![StripeStall { stripe: 0, at: 1.0, seconds: 0.05 }, StripeStall { stripe: 1, at: 2.0, seconds: 0.7 }];
        let mut host = HostReport { stripes, ..HostReport::default() };
        host.stalled(Stall { from: 3.0, seconds: 0.1 });
        assert_eq!((host.longest_stall_seconds, host.longest_stall_at), (0.7, 2.0));
        host.stalled(Stall { from: 3.0, seconds: 0.9 });
        assert_eq!((host.longest_stall_seconds, host.longest_stall_at), (0.9, 3.0));
    }

    /// Catches a "median" that is the first, the best or the worst run.
    #[test]
    fn the_median_run_is_in_the_middle() {
        assert_eq!(median_of(&[3.0, 1.0, 2.0]), Some(2));
        assert_eq!(median_of(&[3.0, 1.0]), Some(1));
        assert_eq!(median_of(&[]), None);
    }
}
