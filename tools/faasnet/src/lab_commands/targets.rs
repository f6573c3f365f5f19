//! What the project wants to reach, and whether a run did. Pure: reports in, verdicts out.
//!
//! Times are wanted for 64 MiB at 100 Mbit/s; runs with other images or links are not judged by them.

use faasnet_lab::rivals::Rival;
use serde::{Deserialize, Serialize};

use super::compare::{CompareRow, System};
use super::fault::{FaultPlan, Kind, Target as Hit};
use super::plan::{LabPolicy, Plan};
use super::report::RunReport;
use crate::output;

const IMAGE_BYTES: f64 = (64u64 << 20) as f64;
const RATE_BITS: u64 = 100_000_000;
/// A made image has a configuration beside its layers.
const IMAGE_SLACK: f64 = 0.01;
/// On these numbers of hosts an undisturbed transfer is judged.
const HOSTS: [usize; 2] = [15, 31];
const TWIN_BOUNDS: f64 = 1.15;
const LEVEL_SECONDS: f64 = 0.05;
const COMPLETE_BOUNDS: f64 = 2.2;
const ORIGIN_IMAGES: f64 = 1.02;
const DISTURBED_BOUNDS: f64 = 1.25;
const INNER_STALL: f64 = 0.5;
const ROOT_STALL: f64 = 1.0;
/// From so many hosts on ours shall be faster than all others.
const MANY_HOSTS: usize = 7;
/// Up to so many hosts a chain of streaming relays that repairs and verifies nothing may be a little faster.
const CHAIN_HOSTS: usize = 15;
const CHAIN_SLACK: f64 = 1.04;
const FEW_SLACK: f64 = 1.03;

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What is wanted.
    pub wanted: String,
    /// What it was.
    pub figure: String,
    /// What it should at most be, in the same unit.
    pub limit: String,
    /// Whether it was.
    pub met: bool,
}

impl Target {
    fn at_most(wanted: &str, figure: f64, limit: f64, show: fn(f64) -> String) -> Self {
        Self { wanted: wanted.into(), figure: show(figure), limit: show(limit), met: figure <= limit }
    }

    /// One line.
    pub fn text(&self) -> String {
        let Self { wanted, figure, limit, .. } = self;
        format!("target {}: {wanted}: {figure} (at most {limit})", self.verdict())
    }

    /// `met` or `MISSED`.
    pub fn verdict(&self) -> &'static str {
        if self.met { "met" } else { "MISSED" }
    }
}

/// The targets of one run of `plan`.
pub fn of_run(plan: &Plan, run: &RunReport) -> Vec<Target> {
    if plan.chaos.is_some() {
        let problems = run.audit.problems.len() as f64;
        return vec![Target::at_most("chaos ends with a clean audit: problems", problems, 0.0, count)];
    }
    let is_size = (run.demo.image.bytes as f64 / IMAGE_BYTES - 1.0).abs() <= IMAGE_SLACK;
    if !is_size || plan.rate().bits() != RATE_BITS {
        return Vec::new();
    }
    match &plan.faults[..] {
        [] if HOSTS.contains(&plan.hosts) => undisturbed(plan.policy, run),
        [fault] => disturbed(fault, run),
        _ => Vec::new(),
    }
}

fn undisturbed(policy: LabPolicy, run: &RunReport) -> Vec<Target> {
    let slowest = match policy {
        LabPolicy::Twin => {
            let wanted = "twin: slowest host within 1.15 × the bound + 50 ms per level";
            Target::at_most(wanted, run.demo.seconds.max, twin_limit(run), output::seconds)
        }
        LabPolicy::Complete => {
            let wanted = "complete: slowest host within 2.2 × the bound";
            Target::at_most(wanted, run.demo.seconds.max, COMPLETE_BOUNDS * run.bound_seconds, output::seconds)
        }
        LabPolicy::Avl | LabPolicy::Direct => return Vec::new(),
    };
    // Payload by the registry's log: the interface's counter has headers in it.
    let share = run.demo.origin.bytes_sent as f64 / run.demo.image.bytes.max(1) as f64;
    vec![slowest, Target::at_most("the origin sends 1.02 images", share, ORIGIN_IMAGES, times)]
}

/// Levels are edges between the root and the deepest node.
fn twin_limit(run: &RunReport) -> f64 {
    let deepest = run.demo.nodes.iter().flat_map(|node| &node.node.levels).max().copied().unwrap_or(0);
    TWIN_BOUNDS * run.bound_seconds + LEVEL_SECONDS * f64::from(deepest)
}

fn disturbed(fault: &FaultPlan, run: &RunReport) -> Vec<Target> {
    let others = run.undisturbed_ratio * run.bound_seconds;
    let stall = run.others_stall();
    let mut targets = match (fault.kind, &fault.target) {
        (Kind::Kill, Hit::Inner) => vec![
            Target::at_most(
                "an inner node dies: every other node done within 1.25 × the bound",
                run.undisturbed_ratio,
                DISTURBED_BOUNDS,
                times,
            ),
            Target::at_most("an inner node dies: no stall beyond 500 ms", stall, INNER_STALL, output::seconds),
            Target::at_most(
                "an inner node dies: one block refetched per edge",
                run.audit.most_refetched_per_edge,
                1.0,
                times,
            ),
        ],
        (Kind::Kill, Hit::Root) => {
            vec![Target::at_most("the root dies: no stall beyond 1 s", stall, ROOT_STALL, output::seconds)]
        }
        (Kind::Kill, Hit::Controller) => {
            let wanted = "the controller dies: slowest host as if it had not";
            vec![Target::at_most(wanted, others, twin_limit(run), output::seconds)]
        }
        _ => Vec::new(),
    };
    if !run.faults.iter().all(|fault| fault.counts) {
        targets.iter_mut().for_each(|target| {
            target.met = false;
            target.figure += ", but the fault did not count";
        });
    }
    targets
}

/// Ours beside the others, at every number of hosts that `rows` have.
pub(super) fn of_comparison(rows: &[CompareRow]) -> Vec<Target> {
    let twin = System::Own(LabPolicy::Twin).to_string();
    let ours = rows.iter().filter(|row| row.system == twin);
    ours.flat_map(|row| {
        let Some(ratio) = row.ratio else { return vec![without_figure(row)] };
        let others = Rival::ALL.into_iter().filter_map(|rival| {
            let found = rows.iter().find(|other| other.hosts == row.hosts && other.system == rival.to_string());
            Some((rival, found?.ratio?))
        });
        beside(row.hosts, ratio, &others.collect::<Vec<_>>())
    })
    .collect()
}

/// Ours did not bring every host the right bytes: that is no reason to leave a number of hosts out.
fn without_figure(row: &CompareRow) -> Target {
    let note = if row.note.is_empty() { "no run delivered" } else { &row.note };
    let wanted = format!("{} hosts: beside the others, ÷ bound", row.hosts);
    Target { wanted, figure: format!("none: {}", output::one_line(note)), limit: "a figure".into(), met: false }
}

fn beside(hosts: usize, ours: f64, others: &[(Rival, f64)]) -> Vec<Target> {
    let best = others.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    if hosts < MANY_HOSTS {
        let target = |(rival, ratio): &(Rival, f64)| {
            let wanted = format!("{hosts} hosts: within 3 % of the best other ({rival}), ÷ bound");
            Target::at_most(&wanted, ours, ratio * FEW_SLACK, times)
        };
        return best.map(target).into_iter().collect();
    }
    let target = |(rival, ratio): &(Rival, f64)| match (rival, hosts <= CHAIN_HOSTS) {
        (Rival::VarnishChain, true) => {
            Target::at_most(&format!("{hosts} hosts: within 4 % of {rival}, ÷ bound"), ours, ratio * CHAIN_SLACK, times)
        }
        _ => Target::at_most(&format!("{hosts} hosts: faster than {rival}, ÷ bound"), ours, *ratio, times),
    };
    others.iter().map(target).collect()
}

fn times(value: f64) -> String {
    format!("{value:.3} ×")
}

fn count(value: f64) -> String {
    format!("{value:.0}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(slowest: f64) -> RunReport {
        let mut run = RunReport { bound_seconds: 5.0, ratio: slowest / 5.0, ..RunReport::default() };
        run.demo.image.bytes = 64 << 20;
        run.demo.origin.bytes_sent = 64 << 20;
        run.demo.seconds.max = slowest;
        run
    }

    fn met(targets: &[Target]) -> Vec<bool> {
        targets.iter().map(|target| target.met).collect()
    }

    /// Catches a target that is met whatever is measured, and one that judges runs for which it does not hold.
    #[test]
    fn undisturbed_runs_are_judged_by_their_own_limits() {
        let plan = Plan::default();
        assert_eq!(met(&of_run(&plan, &run(5.7))), [true, true]);
        assert_eq!(met(&of_run(&plan, &run(5.8))), [false, true]);
        let complete = Plan { policy: LabPolicy::Complete, ..Plan::default() };
        assert_eq!(met(&of_run(&complete, &run(10.9))), [true, true]);
        let mut greedy = run(5.0);
        greedy.demo.origin.bytes_sent = 70 << 20;
        assert_eq!(met(&of_run(&plan, &greedy)), [true, false]);
        assert!(of_run(&Plan { hosts: 7, ..Plan::default() }, &run(5.0)).is_empty());
        let slow = Plan { rate: Some("40mbit".parse().unwrap()), ..Plan::default() };
        assert!(of_run(&slow, &run(5.0)).is_empty());
    }

    /// Catches a long stall after a kill that passes, and chaos with a problem that passes.
    #[test]
    fn disturbed_runs_are_judged_by_stalls_and_audits() {
        let plan = |fault: &str| Plan { faults: vec![fault.parse().unwrap()], ..Plan::default() };
        let mut stalled = run(6.0);
        stalled.undisturbed_ratio = 1.2;
        stalled.hosts = vec![super::super::report::HostReport { longest_stall_seconds: 0.7, ..Default::default() }];
        assert_eq!(met(&of_run(&plan("kill:inner"), &stalled)), [true, false, true]);
        assert_eq!(met(&of_run(&plan("kill:root"), &stalled)), [true]);
        assert!(of_run(&plan("kill:leaf"), &stalled).is_empty());
        let chaos = Plan { chaos: Some(1), ..Plan::default() };
        assert_eq!(met(&of_run(&chaos, &stalled)), [true]);
        stalled.audit.problems.push("n1 ended by itself".into());
        assert_eq!(met(&of_run(&chaos, &stalled)), [false]);
    }

    /// Catches a number of hosts on which ours failed, and which nobody judges therefore.
    #[test]
    fn without_a_figure_of_ours_a_comparison_is_missed() {
        let row =
            |system: &str, hosts, ratio| CompareRow { system: system.into(), hosts, ratio, ..CompareRow::default() };
        let (twin, other) = (System::Own(LabPolicy::Twin).to_string(), Rival::NginxTree.to_string());
        let rows =
            [row(&twin, 7, None), row(&other, 7, Some(1.0)), row(&twin, 15, Some(1.0)), row(&other, 15, Some(1.1))];
        let targets = of_comparison(&rows);
        assert_eq!(met(&targets), [false, true]);
        assert!(targets[0].wanted.starts_with("7 hosts") && targets[0].figure.contains("no run delivered"));
    }

    /// Catches a comparison that is judged by the wrong margin.
    #[test]
    fn others_are_beaten_where_that_is_wanted() {
        let others = [(Rival::VarnishChain, 1.0), (Rival::NginxTree, 1.05)];
        assert_eq!(met(&beside(15, 1.03, &others)), [true, true]);
        assert_eq!(met(&beside(31, 1.03, &others)), [false, true]);
        assert_eq!(met(&beside(3, 1.03, &others)), [true]);
        assert_eq!(met(&beside(3, 1.04, &others)), [false]);
    }
}
