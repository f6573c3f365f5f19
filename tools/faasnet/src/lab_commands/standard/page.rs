//! `report.md`: what was measured, what each plot shows, and the command that makes it again. Made from the folder's raw data alone.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::folder::Folder;
use super::job::{Job, Part, Work};
use super::perform::Found;
use super::{DEFAULT_RUNS, figures, tables};
use crate::lab_commands::compare::CompareRow;
use crate::lab_commands::environment::Environment;
use crate::lab_commands::report::LabReport;
use crate::lab_commands::targets::{self, Target};
use crate::output;

/// What there is of the set.
pub(super) struct Page<'a> {
    folder: &'a Folder,
    jobs: &'a [Job],
    found: Vec<Option<Found>>,
    quick: bool,
    runs: u16,
}

impl<'a> Page<'a> {
    /// Reads what the folder holds of `jobs`.
    pub(super) fn new(folder: &'a Folder, jobs: &'a [Job], quick: bool, runs: u16) -> Self {
        Self { folder, jobs, found: jobs.iter().map(|job| folder.read(job)).collect(), quick, runs }
    }

    /// Where it goes.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("report.md")
    }

    /// Jobs without data.
    pub(super) fn missing(&self) -> Vec<&str> {
        let all = self.jobs.iter().zip(&self.found);
        all.filter(|(_, found)| found.is_none()).map(|(job, _)| &*job.key).collect()
    }

    /// What is wrong with what was found.
    pub(super) fn problems(&self) -> Vec<String> {
        let all = self.jobs.iter().zip(&self.found);
        let problems = all.filter_map(|(job, found)| Some((job, found.as_ref()?)));
        problems.flat_map(|(job, found)| found.problems.iter().map(|text| format!("{}: {text}", job.key))).collect()
    }

    /// A few lines for the terminal.
    pub(super) fn summary(&self, problems: &[String]) -> String {
        let mut lines: Vec<String> = problems.iter().map(|problem| format!("PROBLEM: {problem}")).collect();
        match self.missing().len() {
            0 => {}
            count => lines
                .push(format!("{count} of {} experiments are missing; the same command makes them", self.jobs.len())),
        }
        lines.push(format!("report: {}", self.path().display()));
        lines.join("\n")
    }

    /// Writes the page and its plots.
    pub(super) fn write(&self) -> Result<()> {
        let mut text = self.head() + &self.targets();
        for (part, chapter) in [
            (Part::Completion, self.completion()?),
            (Part::Timeline, self.timelines()?),
            (Part::Relay, self.relay()?),
            (Part::Faults, self.faults()?),
            (Part::Chaos, self.chaos()),
        ] {
            text += &chapter;
            text += &self.remarks(part);
        }
        let path = self.path();
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn head(&self) -> String {
        let mut text = "# FaaSNet in the lab\n\n".to_owned();
        if self.quick {
            text += "**A smoke run: the figures say nothing.**\n\n";
        }
        text += &format!(
            "Made by `{}`. Hosts are network namespaces of one machine with shaped links; \"bound\" is the time that one\nraw TCP flow takes for the same bytes over the same links, measured in the same run. \"Origin ×\" is what left the origin's\ninterface ÷ the image. The numbers of every run are in `raw/`.\n\n",
            self.command(None)
        );
        let mut environments: Vec<&Environment> = Vec::new();
        for environment in self.found.iter().flatten().filter_map(|found| found.environment.as_ref()) {
            if !environments.contains(&environment) {
                environments.push(environment);
            }
        }
        for environment in &environments {
            let sysctls: Vec<_> = environment.sysctls.iter().map(|(name, value)| format!("{name} = {value}")).collect();
            let Environment { version, kernel, processor, cores, memory_bytes, .. } = environment;
            // Ignored: writing to a string cannot fail.
            let _ = writeln!(
                text,
                "- FaaSNet {version}, Linux {kernel}, {cores} cores of {processor}, {} of memory; {}",
                output::bytes(*memory_bytes),
                sysctls.join("; ")
            );
        }
        if let Some((median, most)) = self.waited() {
            text += &format!(
                "- Runnable threads waited for a core {median:.0} % of the time of all cores (median over the experiments; at most {most:.0} %):\n  far above 100 % the machine and not the links sets the pace.\n"
            );
        }
        text
    }

    /// How long runnable threads waited, in percent of the time of all cores: median and most.
    fn waited(&self) -> Option<(f64, f64)> {
        let share = |lab: &LabReport| {
            let delay = lab.median.scheduling;
            Some(100.0 * delay.waited_seconds? / (delay.seconds * delay.cores as f64).max(1e-9))
        };
        let mut shares: Vec<f64> = self.found.iter().flatten().filter_map(|found| share(found.lab.as_ref()?)).collect();
        shares.sort_by(f64::total_cmp);
        Some((*shares.get(shares.len() / 2)?, *shares.last()?))
    }

    /// What was wanted, and what came out.
    fn targets(&self) -> String {
        let of_lab = |(job, found): (&Job, &Found)| {
            let lab = found.lab.as_ref()?;
            let targets = targets::of_run(&lab.settings, &lab.median).into_iter();
            Some(targets.map(|target| (job.key.clone(), target)).collect::<Vec<_>>())
        };
        let all = || self.jobs.iter().zip(&self.found).filter_map(|(job, found)| Some((job, found.as_ref()?)));
        let mut rows: Vec<_> = all().filter_map(of_lab).flatten().collect();
        let compared: Vec<CompareRow> = all().filter_map(|(_, found)| found.compare.clone()).flatten().collect();
        // A smoke run has too little of everything.
        let compared = if self.quick { Vec::new() } else { targets::of_comparison(&compared) };
        rows.extend(compared.into_iter().map(|target| ("completion".to_owned(), target)));
        // Chaos has a row per seed; those that are met say nothing one by one.
        let (chaos, mut rows): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(key, _)| key.starts_with("chaos"));
        if !chaos.is_empty() {
            rows.push(("chaos".into(), self.clean_seeds(&chaos)));
        }
        rows.extend(chaos.into_iter().filter(|(_, target)| !target.met));
        if rows.is_empty() { String::new() } else { title("Targets") + &tables::targets(rows) }
    }

    /// Of all seeds of the set: one whose run broke off is not clean.
    fn clean_seeds(&self, chaos: &[(String, Target)]) -> Target {
        let clean = chaos.iter().filter(|(_, target)| target.met).count();
        let all = self.jobs.iter().filter(|job| job.part == Part::Chaos).count();
        let missing: Vec<&str> = self.missing_of(Part::Chaos).collect();
        let without =
            if missing.is_empty() { String::new() } else { format!("; without data: {}", missing.join(", ")) };
        Target {
            wanted: "chaos ends with a clean audit: seeds".into(),
            figure: format!("{clean} of {all}{without}"),
            limit: all.to_string(),
            met: clean == all,
        }
    }

    fn completion(&self) -> Result<String> {
        let mut rows: Vec<CompareRow> =
            self.of(Part::Completion).filter_map(|(_, found)| found.compare.clone()).flatten().collect();
        rows.sort_by_key(|row| row.hosts);
        let mut text = title("Completion");
        if rows.is_empty() {
            return Ok(text);
        }
        let plans = self.jobs.iter().filter_map(|job| match &job.work {
            Work::Compare(plan) => Some(plan),
            _ => None,
        });
        let what = plans
            .map(|plan| format!("{} at {}, {}", output::bytes(plan.size), plan.rate, runs(plan.runs)))
            .next()
            .unwrap_or_default();
        figures::completion(&self.folder.path().join("completion.svg"), &format!("Slowest host, {what}"), &rows)?;
        text += &format!(
            "![slowest host against number of hosts](completion.svg)\n\nThe time until the slowest host has everything, divided by the bound: {what}. 1 is as fast as a copy to a\nsingle host; `direct` and `nginx` are every host reading the origin (one run). Lower is better; the vertical axis is logarithmic.\n\n"
        );
        text += &tables::completion(&rows);
        text += "\n";
        text += &tables::systems(&rows);
        Ok(text)
    }

    fn timelines(&self) -> Result<String> {
        let mut text = title("Time line");
        for (job, found) in self.of(Part::Timeline) {
            let Some(timeline) = &found.timeline else { continue };
            let file = format!("{}.svg", job.key);
            timeline.draw(&self.folder.path().join(&file))?;
            text += &format!("![{}]({file})\n\n", timeline.title);
        }
        let mut labs = self.labs(Part::Timeline).peekable();
        if labs.peek().is_some() {
            text += "How much of the image each host had received at each moment, one line per host; the vertical stands at the bound. Lines close\ntogether mean that no host waits for another; with one tree (`complete`) they rise at half of the rate.\n\n";
            text += &tables::transfers(labs);
        }
        Ok(text)
    }

    fn relay(&self) -> Result<String> {
        let mut text = title("Relay engines");
        for (_, found) in self.of(Part::Relay) {
            let (Some(report), Some(svg)) = (&found.relay, &found.relay_svg) else { continue };
            let path = self.folder.path().join("relay.svg");
            std::fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
            text += "![throughput of one relay by engine](relay.svg)\n\nOne relay on a core of its own, from one upstream to two children: GiB/s from upstream, and CPU seconds of the relay per GiB. `splice`\nand the like are the agent's worker; `copy-256k` and below are loops to compare with. `keep` writes a file, `+blake3` verifies.\n\n";
            text += &tables::relay(report);
        }
        Ok(text)
    }

    fn faults(&self) -> Result<String> {
        let mut text = title("Faults");
        if self.labs(Part::Faults).next().is_none() {
            return Ok(text);
        }
        figures::faults(&self.folder.path().join("faults.svg"), self.labs(Part::Faults))?;
        text += "![slowest undisturbed host by fault](faults.svg)\n\nEach fault hits when its victim holds so many percent of the image (`@`, else 50); `+` is how long it lasts. The bars are the slowest\nhost that the fault did not hit, divided by the bound; the line stands at 1.25. A stall is a time with less than 5 % of the rate.\n\"Read again\" is what the origin sent twice, mostly bytes that only a dead root had.\n\n";
        text += &tables::faults(self.labs(Part::Faults));
        Ok(text)
    }

    fn chaos(&self) -> String {
        let mut text = title("Chaos");
        if let Some(lab) = self.labs(Part::Chaos).next() {
            let plan = &lab.settings;
            text += &format!(
                "Random faults from a seed for {} s on {} hosts, {} at {}; all are undone, so every host must end with the image. In most\nruns somebody is always away or slow, so the times say little; the audit says everything.\n\n",
                plan.seconds,
                plan.hosts,
                output::bytes(plan.size),
                plan.rate()
            );
            text += &tables::chaos(self.labs(Part::Chaos));
        }
        text
    }

    /// What went wrong, what is missing, and the command.
    fn remarks(&self, part: Part) -> String {
        let mut text = String::new();
        for (job, found) in self.of(part) {
            found
                .problems
                .iter()
                .for_each(|problem| text += &format!("- PROBLEM: {}: {}\n", job.key, output::one_line(problem)));
        }
        let missing: Vec<_> = self.missing_of(part).collect();
        if !missing.is_empty() {
            text += &format!("- not measured: {}\n", missing.join(", "));
        }
        format!("\n{text}\n`{}`\n", self.command(Some(part)))
    }

    fn command(&self, part: Option<Part>) -> String {
        let name = self.folder.path().file_name().unwrap_or_default().to_string_lossy();
        let only = part.map(|part| format!(" --only {part} --again")).unwrap_or_default();
        let set = match (self.quick, self.runs) {
            (true, _) => " --quick".into(),
            (_, DEFAULT_RUNS) => String::new(),
            (_, runs) => format!(" --runs {runs}"),
        };
        format!("faasnet lab report {name}{only}{set}")
    }

    fn of(&self, part: Part) -> impl Iterator<Item = (&Job, &Found)> {
        let all = self.jobs.iter().zip(&self.found).filter(move |(job, _)| job.part == part);
        all.filter_map(|(job, found)| Some((job, found.as_ref()?)))
    }

    fn missing_of(&self, part: Part) -> impl Iterator<Item = &str> {
        let all = self.jobs.iter().zip(&self.found).filter(move |(job, _)| job.part == part);
        all.filter(|(_, found)| found.is_none()).map(|(job, _)| &*job.key)
    }

    fn labs(&self, part: Part) -> impl Iterator<Item = &LabReport> {
        self.of(part).filter_map(|(_, found)| found.lab.as_ref())
    }
}

fn title(text: &str) -> String {
    format!("\n## {text}\n\n")
}

fn runs(count: usize) -> String {
    if count == 1 { "one run".into() } else { format!("median of {count} runs") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab_commands::report::RunReport;
    use crate::lab_commands::standard::job::Set;

    /// Catches a seed whose run broke off and which falls out of the count: nineteen of nineteen is not twenty.
    #[test]
    fn a_seed_without_data_is_not_clean() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let jobs: Vec<Job> = Set::full(1).jobs().into_iter().filter(|job| job.part == Part::Chaos).collect();
        let row = || Page::new(&folder, &jobs, false, 1).targets();
        assert_eq!(row(), "", "nothing was run");
        let (broken, whole) = jobs.split_last().unwrap();
        for job in whole {
            folder.keep(job, found(job)).unwrap();
        }
        let text = row();
        let expected = format!("{} of {}; without data: {}", whole.len(), jobs.len(), broken.key);
        assert!(text.contains(&expected) && text.contains("missed"), "{text}");
        folder.keep(broken, found(broken)).unwrap();
        assert!(!row().contains("missed") && row().contains(&format!("{0} of {0}", jobs.len())), "{}", row());
    }

    fn found(job: &Job) -> Found {
        let Work::Lab(plan) = &job.work else { panic!("{} is no experiment of ours", job.key) };
        let lab = LabReport {
            median: RunReport::default(),
            settings: plan.clone(),
            environment: Environment::read(),
            runs: Vec::new(),
            targets: Vec::new(),
            leftovers: Vec::new(),
        };
        Found { lab: Some(lab), ..Found::default() }
    }
}
