//! The page's tables as Markdown. Pure: reports in, text out.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::lab_commands::compare::CompareRow;
use crate::lab_commands::report::{LabReport, RunReport};
use crate::lab_commands::targets::Target;
use crate::output;

/// A table; columns whose headings begin with `>` are right-aligned.
pub(super) fn markdown(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let escape = |cell: String| output::one_line(&cell).replace('|', "\\|");
    let heads: Vec<String> = columns.iter().map(|column| column.trim_start_matches('>').to_owned()).collect();
    let rules: Vec<String> =
        columns.iter().map(|column| if column.starts_with('>') { "--:" } else { ":--" }.to_owned()).collect();
    let rows = rows.into_iter().map(|row| line(&row.into_iter().map(escape).collect::<Vec<_>>()));
    [line(&heads), line(&rules)].into_iter().chain(rows).collect()
}

/// The numbers of hosts in `rows`, sorted, and the systems in the order of their first row.
pub(super) fn axes(rows: &[CompareRow]) -> (Vec<usize>, Vec<String>) {
    let counts: BTreeSet<usize> = rows.iter().map(|row| row.hosts).collect();
    let mut systems: Vec<String> = Vec::new();
    for row in rows {
        if !systems.contains(&row.system) {
            systems.push(row.system.clone());
        }
    }
    (counts.into_iter().collect(), systems)
}

/// The slowest host ÷ bound: a row per system, a column per number of hosts; CPU time and the origin's share at the largest number.
pub(super) fn completion(rows: &[CompareRow]) -> String {
    let (counts, systems) = axes(rows);
    let find = |system: &str, hosts: usize| rows.iter().find(|row| row.system == system && row.hosts == hosts);
    let number = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.2}"));
    let heads: Vec<String> = counts.iter().map(|hosts| format!(">{hosts}")).collect();
    let last = counts.last().copied().unwrap_or(0);
    let (cpu, origin) = (format!(">CPU s/GiB at {last}"), format!(">origin × at {last}"));
    let columns: Vec<&str> =
        std::iter::once("system").chain(heads.iter().map(|head| &**head)).chain([&*cpu, &*origin]).collect();
    let row = |system: &String| {
        let ratios = counts.iter().map(|hosts| number(find(system, *hosts).and_then(|row| row.ratio)));
        let at_last = find(system, last);
        let rest = [at_last.and_then(|row| row.cpu_seconds_per_gib), at_last.and_then(|row| row.origin_share)];
        std::iter::once(system.clone()).chain(ratios).chain(rest.map(number)).collect()
    };
    markdown(&columns, systems.iter().map(row))
}

/// Versions, settings and remarks of the systems, one line each.
pub(in crate::lab_commands) fn systems(rows: &[CompareRow]) -> String {
    let (_, systems) = axes(rows);
    let line = |system: &String| {
        let of = || rows.iter().filter(|row| row.system == *system);
        let version = of().map(|row| &*row.version).find(|text| !text.is_empty()).unwrap_or("not installed");
        let collect = |get: fn(&CompareRow) -> &str| {
            let texts: BTreeSet<&str> = of().map(get).filter(|text| !text.is_empty()).collect();
            texts.into_iter().map(output::one_line).collect::<Vec<_>>().join("; ")
        };
        let (settings, note) = (collect(|row| &row.settings), collect(|row| &row.note));
        let parts = [version.to_owned(), settings, note];
        let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("- {system}: {}\n", parts.join("; "))
    };
    systems.iter().map(line).collect()
}

/// A row per transfer without disturbance.
pub(super) fn transfers<'a>(labs: impl Iterator<Item = &'a LabReport>) -> String {
    let columns = [
        "policy",
        ">hosts",
        ">slowest",
        ">÷ bound",
        ">median host",
        ">longest stall",
        ">origin ×",
        ">CPU s/GiB",
        ">memory",
    ];
    let row = |lab: &LabReport| {
        let run = &lab.median;
        vec![
            run.demo.policy.clone(),
            run.hosts.len().to_string(),
            output::seconds(run.demo.seconds.max),
            format!("{:.3}", run.ratio),
            output::seconds(run.demo.seconds.p50),
            milliseconds(run.longest_stall(|_| true)),
            format!("{:.3}", run.origin_share),
            format!("{:.2}", run.cpu_seconds_per_gib),
            output::bytes(run.peak_memory_bytes),
        ]
    };
    markdown(&columns, labs.map(row))
}

/// A row per fault. "Others" are the hosts that it did not hit.
pub(super) fn faults<'a>(labs: impl Iterator<Item = &'a LabReport>) -> String {
    let columns = [
        "fault",
        "hit",
        ">held",
        ">others' slowest ÷ bound",
        ">others' longest stall",
        ">refetched blocks per edge",
        ">origin ×",
        ">read again",
        "audit",
    ];
    let row = |lab: &LabReport| {
        let run = &lab.median;
        let held = run.faults.iter().flat_map(|fault| &fault.held_percent).min();
        let hit: Vec<_> = run.faults.iter().map(hit).collect();
        let counts = run.faults.iter().all(|fault| fault.counts);
        vec![
            fault_names(run),
            hit.join(", "),
            held.map_or("–".into(), |percent| format!("{percent} %")),
            format!("{:.2}", run.undisturbed_ratio),
            milliseconds(run.others_stall()),
            format!("{:.2}", run.audit.most_refetched_per_edge),
            format!("{:.3}", run.origin_share),
            output::bytes(run.demo.origin.lost_with_root_bytes),
            format!("{}{}", verdict(lab), if counts { "" } else { ", does not count" }),
        ]
    };
    markdown(&columns, labs.map(row))
}

/// A row per seed.
pub(super) fn chaos<'a>(labs: impl Iterator<Item = &'a LabReport>) -> String {
    let columns = [
        ">seed",
        ">faults",
        ">that count",
        ">slowest ÷ bound",
        ">longest stall",
        ">refetched blocks per edge",
        ">origin ×",
        "audit",
    ];
    let row = |lab: &LabReport| {
        let run = &lab.median;
        vec![
            lab.settings.chaos.unwrap_or_default().to_string(),
            run.faults.len().to_string(),
            run.faults.iter().filter(|fault| fault.counts).count().to_string(),
            format!("{:.2}", run.ratio),
            milliseconds(run.longest_stall(|_| true)),
            format!("{:.2}", run.audit.most_refetched_per_edge),
            format!("{:.3}", run.origin_share),
            verdict(lab),
        ]
    };
    markdown(&columns, labs.map(row))
}

/// The rows of the relay bench's JSON.
pub(super) fn relay(report: &Value) -> String {
    let columns = ["mode", "engine", ">GiB/s", ">lowest–highest", ">CPU s/GiB", ">copies per byte", ">CPU ÷ copy-256k"];
    let rows = report["rows"].as_array().into_iter().flatten().map(|row| {
        let text = |name: &str| row[name].as_str().unwrap_or("?").to_owned();
        let number = |name: &str| row[name].as_f64().map_or("–".into(), |value| format!("{value:.2}"));
        let span = format!("{}–{}", number("gib_per_s_min"), number("gib_per_s_max"));
        let cpu = row["cpu_s_per_gib"].as_f64().map_or("–".into(), |value| format!("{value:.3}"));
        vec![
            text("mode"),
            text("engine"),
            number("gib_per_s"),
            span,
            cpu,
            number("copies_per_byte"),
            number("cpu_against_copy"),
        ]
    });
    markdown(&columns, rows)
}

/// A row per target, with the experiment that it is of.
pub(super) fn targets(rows: impl IntoIterator<Item = (String, Target)>) -> String {
    let row = |(experiment, target): (String, Target)| {
        let verdict = if target.met { "met".into() } else { "**missed**".into() };
        vec![target.wanted, experiment, target.figure, target.limit, verdict]
    };
    markdown(&["wanted", "in", ">figure", ">at most", ""], rows.into_iter().map(row))
}

/// The faults of a run as they were asked for.
pub(super) fn fault_names(run: &RunReport) -> String {
    run.faults.iter().map(|fault| fault.fault.to_string()).collect::<Vec<_>>().join(", ")
}

/// Seconds as milliseconds.
pub(super) fn milliseconds(seconds: f64) -> String {
    format!("{:.0} ms", seconds * 1e3)
}

fn hit(fault: &crate::lab_commands::injector::FaultReport) -> String {
    match fault.victims.len() {
        0..=3 => fault.victims.join(" "),
        count => format!("{count} hosts"),
    }
}

fn verdict(lab: &LabReport) -> String {
    match lab.is_clean() {
        true => "clean".into(),
        false => "**FAILED**".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a cell that breaks the table, and columns that are aligned the wrong way.
    #[test]
    fn cells_stay_cells() {
        let table = markdown(&["name", ">value"], [vec!["a|b\nc".into(), "1".into()]]);
        assert_eq!(table, "| name | value |\n| :-- | --: |\n| a\\|b c | 1 |\n");
    }

    /// Catches ratios under the wrong number of hosts, and a system that was not measured everywhere.
    #[test]
    fn systems_and_hosts_are_not_mixed_up() {
        let row =
            |system: &str, hosts, ratio| CompareRow { system: system.into(), hosts, ratio, ..CompareRow::default() };
        let rows =
            [row("twin", 7, Some(1.1)), row("direct", 7, Some(7.0)), row("twin", 1, Some(1.0)), row("direct", 1, None)];
        let text = completion(&rows);
        assert!(text.contains("| system | 1 | 7 |"), "{text}");
        assert!(text.contains("| twin | 1.00 | 1.10 |") && text.contains("| direct | – | 7.00 |"), "{text}");
        assert!(systems(&rows).contains("- direct: not installed"));
    }
}
