//! What the standard set consists of: one job per experiment, in the order of the page. Pure.

use std::fmt;

use clap::ValueEnum;
use faasnet_lab::Rate;
use faasnet_lab::rivals::Rival;
use serde::Serialize;
use serde_json::Value;

use crate::lab_commands::compare::{ComparePlan, System};
use crate::lab_commands::fault::FaultPlan;
use crate::lab_commands::plan::{LabPolicy, Plan};

/// A chapter of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Time until the slowest host has everything against the number of hosts, ours and others
    Completion,
    /// Every host's progress over time
    Timeline,
    /// What one relay costs
    Relay,
    /// Every single fault
    Faults,
    /// Random faults from seeds
    Chaos,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// One experiment.
#[derive(Debug, Clone)]
pub(super) struct Job {
    /// Where it is shown.
    pub(super) part: Part,
    /// Its file's name.
    pub(super) key: String,
    /// What to do.
    pub(super) work: Work,
}

/// What there is to do.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Work {
    /// An experiment of ours.
    Lab(Plan),
    /// Several systems on the same hosts.
    Compare(ComparePlan),
    /// The relay bench.
    Relay(RelayWork),
}

/// Settings of the relay bench.
#[derive(Debug, Clone, Serialize)]
pub(super) struct RelayWork {
    /// Empty: all.
    pub(super) engines: Vec<&'static str>,
    /// Empty: all.
    pub(super) modes: Vec<&'static str>,
    /// Payload per run.
    pub(super) gib: f64,
    /// How often.
    pub(super) runs: usize,
}

/// The sizes of the set.
#[derive(Debug, Clone)]
pub(super) struct Set {
    image: (u64, Rate),
    runs: usize,
    counts: Vec<usize>,
    systems: Vec<System>,
    sweep: bool,
    timelines: Vec<(LabPolicy, usize)>,
    relay: RelayWork,
    faults: Vec<(&'static str, usize)>,
    fault_image: (u64, Rate),
    /// How many seeds, and each one's experiment.
    chaos: (u64, Plan),
}

const MIB: u64 = 1 << 20;
/// Systems in which every host reads the origin.
const ONCE: [System; 2] = [System::Own(LabPolicy::Direct), System::Rival(Rival::Nginx)];
/// Every single fault, and on how many hosts.
const FAULTS: [(&str, usize); 24] = [
    ("kill:root", 15),
    ("kill:inner", 15),
    ("kill:leaf", 15),
    ("kill:half", 15),
    ("kill:two", 15),
    ("kill:controller", 15),
    ("kill:origin@40+2", 15),
    ("stop:root", 15),
    ("stop:inner", 15),
    ("stop:leaf", 15),
    ("stop:half", 15),
    ("stop:inner+1", 15),
    ("stop:controller+2", 15),
    ("stop:origin@40+2", 15),
    ("link:root+1", 15),
    ("link:inner+1", 15),
    ("link:inner+4", 15),
    ("link:leaf+4", 15),
    ("slow:inner@25", 15),
    ("slow:leaf@25", 15),
    ("flip:inner@25", 15),
    ("flip:root@25", 15),
    ("full:n3", 15),
    // 15 hosts at first: thirty join them.
    ("joins:30@50", 45),
];

impl Set {
    /// What the figures of the README come from.
    pub(super) fn full(runs: usize) -> Self {
        let image = (64 * MIB, Rate::nearest(100_000_000));
        Self {
            image,
            runs,
            counts: vec![1, 3, 7, 15, 31],
            systems: System::all(),
            sweep: true,
            timelines: vec![(LabPolicy::Twin, 15), (LabPolicy::Complete, 15), (LabPolicy::Twin, 31)],
            relay: RelayWork { engines: Vec::new(), modes: Vec::new(), gib: 1.0, runs: runs.max(3) },
            faults: FAULTS.into(),
            fault_image: image,
            chaos: (20, Plan { hosts: 15, seconds: 60, ..Plan::default() }),
        }
    }

    /// Every part with as little as it can be tried with.
    pub(super) fn quick() -> Self {
        Self {
            image: (2 * MIB, Rate::nearest(80_000_000)),
            runs: 1,
            counts: vec![1, 3],
            systems: vec![System::Own(LabPolicy::Twin), System::Own(LabPolicy::Direct)],
            sweep: false,
            timelines: vec![(LabPolicy::Twin, 3)],
            relay: RelayWork { engines: vec!["splice", "copy-256k"], modes: vec!["keep"], gib: 0.0625, runs: 1 },
            faults: vec![("kill:inner", 7)],
            fault_image: (8 * MIB, Rate::nearest(40_000_000)),
            chaos: (1, Plan { seconds: 3, ..lab(5, (4 * MIB, Rate::nearest(16_000_000))) }),
        }
    }

    /// All of it.
    pub(super) fn jobs(&self) -> Vec<Job> {
        let mut jobs = self.completion();
        jobs.extend(self.timelines.iter().map(|(policy, hosts)| {
            let plan = Plan { policy: *policy, ..lab(*hosts, self.image) };
            Job { part: Part::Timeline, key: format!("timeline-{policy}-{hosts}"), work: Work::Lab(plan) }
        }));
        jobs.push(Job { part: Part::Relay, key: "relay".into(), work: Work::Relay(self.relay.clone()) });
        jobs.extend(self.faults.iter().filter_map(|(text, hosts)| {
            // Written above and read by a test: always a fault.
            let fault: FaultPlan = text.parse().ok()?;
            let key = format!("fault-{}", text.replace([':', '@', '+'], "-"));
            let plan = Plan { faults: vec![fault], ..lab(*hosts, self.fault_image) };
            Some(Job { part: Part::Faults, key, work: Work::Lab(plan) })
        }));
        let (seeds, plan) = &self.chaos;
        jobs.extend((1..=*seeds).map(|seed| {
            let plan = Plan { chaos: Some(seed), ..plan.clone() };
            Job { part: Part::Chaos, key: format!("chaos-{seed:02}"), work: Work::Lab(plan) }
        }));
        jobs
    }

    /// Reading the origin from every host takes as long as all hosts together, always the same: once is enough.
    fn completion(&self) -> Vec<Job> {
        let (once, rest): (Vec<System>, Vec<System>) = self.systems.iter().partition(|system| ONCE.contains(system));
        let job = |hosts: &usize, name: &str, systems: &[System], runs: usize| {
            let (size, rate) = self.image;
            let systems = systems.to_vec();
            let plan = ComparePlan {
                hosts: vec![*hosts],
                systems,
                size,
                rate,
                runs,
                sweep: self.sweep,
                dir: None,
                quiet: true,
            };
            Job { part: Part::Completion, key: format!("{name}-{hosts:02}"), work: Work::Compare(plan) }
        };
        let all = self.counts.iter().map(|hosts| job(hosts, "completion", &rest, self.runs));
        all.chain(self.counts.iter().map(|hosts| job(hosts, "direct", &once, 1))).collect()
    }
}

fn lab(hosts: usize, (size, rate): (u64, Rate)) -> Plan {
    Plan { hosts, size, rate: Some(rate), ..Plan::default() }
}

impl Job {
    /// What the raw data are compared with: other settings are another experiment.
    pub(super) fn settings(&self) -> Value {
        serde_json::to_value(&self.work).unwrap_or_default()
    }

    /// How long it takes on a machine like ours; the ratio between jobs is what matters.
    pub(super) fn expected_seconds(&self) -> f64 {
        let run =
            |size: u64, rate: Rate, hosts: usize| 3.0 + 0.35 * hosts as f64 + 1.4 * size as f64 / rate.bytes() as f64;
        match &self.work {
            Work::Lab(plan) if plan.chaos.is_some() => 15.0 + 1.2 * plan.seconds as f64,
            Work::Lab(plan) => 1.0 + 1.3 * run(plan.size, plan.rate(), plan.hosts),
            Work::Compare(plan) => {
                let hosts = plan.hosts.iter().sum::<usize>();
                // Most others try two or three settings first.
                let tries = if plan.sweep { 2 } else { 0 };
                let one = |system: &System| match system {
                    system if ONCE.contains(system) => {
                        plan.runs as f64 * run(plan.size * hosts as u64, plan.rate, hosts)
                    }
                    System::Own(_) => plan.runs as f64 * 1.4 * run(plan.size, plan.rate, hosts),
                    System::Rival(_) => (plan.runs + tries) as f64 * 1.6 * run(plan.size, plan.rate, hosts),
                };
                plan.systems.iter().map(one).sum()
            }
            Work::Relay(relay) => {
                let rows = if relay.engines.is_empty() { 16 } else { relay.engines.len() };
                (rows * relay.runs) as f64 * (1.0 + relay.gib)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a fault of the set that cannot be read or done, jobs that share a file, and a part that the set forgets.
    #[test]
    fn the_set_is_whole() {
        for set in [Set::full(3), Set::quick()] {
            let jobs = set.jobs();
            let mut keys: Vec<&str> = jobs.iter().map(|job| &*job.key).collect();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), jobs.len());
            for part in Part::value_variants() {
                assert!(jobs.iter().any(|job| job.part == *part), "{part:?}");
            }
            assert_eq!(jobs.iter().filter(|job| job.part == Part::Faults).count(), set.faults.len());
            for job in &jobs {
                if let Work::Lab(plan) = &job.work {
                    plan.check().unwrap();
                }
            }
        }
    }

    /// Catches an estimate that promises minutes for hours, or the other way round.
    #[test]
    fn the_whole_set_takes_about_two_hours() {
        let minutes = Set::full(3).jobs().iter().map(Job::expected_seconds).sum::<f64>() / 60.0;
        assert!((80.0..160.0).contains(&minutes), "{minutes}");
        assert!(Set::quick().jobs().iter().map(Job::expected_seconds).sum::<f64>() < 90.0);
    }
}
