//! `faasnet sim`: arguments and output; what is simulated, and how, is `faasnet-sim`.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use faasnet_lab::plot::{self, Labels, Line};
use faasnet_sim::{
    Bug, Case, Faults, Outcome, Reparenting, Scenario, SimPlan, Topology, at_once, reparenting_table, run,
};
use serde::Serialize;

use crate::cli::Global;
use crate::output;

/// What the headings of the table mean.
const LEGEND: &str = "
bound: the image's size by a card's rate; ratio: max by bound
p50, p99, max: when so many of the nodes held the image; others: p99 of those that nothing was done to
origin: copies of the image that it sent; moved: nodes that got another parent
again: bytes that were received twice";

/// `faasnet sim`
#[derive(Debug, Args)]
#[command(after_help = "\
Scenarios: at-once, thousand, bursts, many-functions, deaths, controller-away, slow-tenth, crossing, orphans;
           chaos: at most 50 nodes and 64 MiB, and by the seed anything goes wrong

Examples:
  faasnet sim --nodes 1000 --image-mb 758 --rate-mbit 1000 --policy twin --seed 7 --json
  faasnet sim --scenario at-once
  faasnet sim --scenario chaos --seeds 300
  faasnet sim --svg times.svg
  faasnet sim --reparenting --svg reparenting.svg")]
pub struct SimArgs {
    /// A named set of simulations instead of the one that the options describe
    #[arg(long, value_name = "NAME")]
    pub scenario: Option<String>,
    /// Hosts
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub nodes: u32,
    /// The image, in 10^6 bytes
    #[arg(long, value_name = "MB", default_value_t = 758.0, value_parser = amount)]
    pub image_mb: f64,
    /// A host's card, each way
    #[arg(long, value_name = "MBIT", default_value_t = 1000.0, value_parser = amount)]
    pub rate_mbit: f64,
    /// How the image spreads: twin, complete, avl; to compare with: registry, chain, layers
    #[arg(long, default_value = "twin", value_parser = parse::<Topology>)]
    pub policy: Topology,
    /// From one host to another
    #[arg(long, value_name = "US", default_value_t = 200)]
    pub latency_us: u64,
    /// What the origin sends in all
    #[arg(long, value_name = "MBIT", default_value_t = 10_000.0, value_parser = amount)]
    pub origin_mbit: f64,
    /// Connections that the origin serves at the same time; others are turned away [default: any number]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub origin_connections: Option<usize>,
    /// Functions, each with an image of its own
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub functions: usize,
    /// Nodes of each function [default: all]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub nodes_per_function: Option<usize>,
    /// Share of the nodes that die while the image travels
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub deaths: f64,
    /// Share of the nodes that stand still for a while
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub stops: f64,
    /// Share of the nodes that run at a tenth of the rate
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = share)]
    pub slow: f64,
    /// Rings of nodes that are told to receive from each other at the same moment
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub crossings: u32,
    /// The controller is away from 0.2 seconds after the provision for so long
    #[arg(long, value_name = "SECONDS", value_parser = amount)]
    pub controller_away: Option<f64>,
    /// Where all chance comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Repeat with so many seeds, from --seed on
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seeds: u64,
    /// Plant a defect: no-path-check, marked-before-written, wrong-tee-count, stale-epoch
    #[arg(long, value_name = "NAME", value_parser = parse::<Bug>)]
    pub bug: Option<Bug>,
    /// Count re-parented nodes per change of the trees instead
    #[arg(long)]
    pub reparenting: bool,
    /// Draw completion time against the number of nodes for each policy (or the re-parenting) into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// A case's outcome as it is printed.
#[derive(Serialize)]
struct Row {
    #[serde(skip_serializing_if = "String::is_empty")]
    case: String,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Runs `faasnet sim`.
pub fn sim(global: &Global, args: SimArgs) -> Result<()> {
    if args.reparenting {
        return show_reparenting(global, &args);
    }
    if let Some(path) = &args.svg {
        return draw_times(global, &args, path);
    }
    let seeds = args.seed..args.seed.saturating_add(args.seeds.max(1));
    let mut rows = Vec::new();
    let mut failed = 0;
    for case in seeds.map(|seed| cases(&args, seed)).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
        match run(&case.plan) {
            Ok(outcome) => rows.push(Row { case: case.label, outcome }),
            Err(error) => {
                failed += 1;
                eprintln!("{error:#}\nrepeat it alone: {}", repeat(case.plan.seed));
            }
        }
    }
    print(global, &args, &rows)?;
    if failed > 0 {
        bail!("{failed} of {} simulations failed; each has printed its seed", failed + rows.len());
    }
    Ok(())
}

fn print(global: &Global, args: &SimArgs, rows: &[Row]) -> Result<()> {
    if global.json {
        return match rows {
            [row] if args.scenario.is_none() => output::json(row),
            rows => output::json(&rows),
        };
    }
    let named = rows.iter().any(|row| !row.case.is_empty());
    let columns = [
        "case", ">seed", ">nodes", ">bound", ">p50", ">p99", ">max", ">ratio", ">others", ">origin", ">moved", ">again",
    ];
    let cells = rows.iter().map(|Row { case, outcome }| {
        let seconds = outcome.seconds;
        let mut cells = vec![
            case.clone(),
            outcome.seed.to_string(),
            outcome.nodes.to_string(),
            output::seconds(outcome.bound_seconds),
            output::seconds(seconds.p50),
            output::seconds(seconds.p99),
            output::seconds(seconds.max),
            format!("{:.3}", outcome.ratio),
            output::seconds(outcome.others.p99),
            format!("{:.2} x", outcome.origin_copies),
            outcome.reparented.to_string(),
            output::bytes(outcome.refetched_bytes),
        ];
        cells.drain(..usize::from(!named));
        cells
    });
    output::line(output::table(&columns[usize::from(!named)..], cells))?;
    output::line(LEGEND)
}

fn cases(args: &SimArgs, seed: u64) -> Result<Vec<Case>> {
    let mut cases = match args.scenario.as_deref() {
        None => vec![Case { label: String::new(), plan: plan(args, seed) }],
        Some("chaos") => vec![Case { label: "chaos".into(), plan: SimPlan::chaos(seed) }],
        Some(name) => name.parse::<Scenario>().map_err(|error| anyhow!("{error}, chaos"))?.cases(seed),
    };
    cases.iter_mut().for_each(|case| case.plan.bug = args.bug);
    Ok(cases)
}

fn plan(args: &SimArgs, seed: u64) -> SimPlan {
    let nodes = args.nodes as usize;
    let mut plan = SimPlan::new(nodes, (args.image_mb * 1e6) as u64, args.policy, seed);
    plan.rate_bits = (args.rate_mbit * 1e6) as u64;
    plan.latency_us = args.latency_us;
    plan.origin_bits = (args.origin_mbit * 1e6) as u64;
    plan.origin_connections = args.origin_connections.unwrap_or(usize::MAX);
    plan.functions = args.functions;
    plan.nodes_per_function = args.nodes_per_function.unwrap_or(nodes).min(nodes);
    plan.faults = Faults {
        deaths: args.deaths,
        stops: args.stops,
        slow: args.slow,
        crossings: args.crossings,
        controller_away: args.controller_away.map(|seconds| (0.2, seconds)),
        ..Faults::default()
    };
    plan
}

/// The command line that repeats one seed.
fn repeat(seed: u64) -> String {
    let mut words = Vec::new();
    let mut skip = false;
    for word in std::env::args() {
        let ours = ["--seed", "--seeds"].iter().any(|flag| word == *flag || word.starts_with(&format!("{flag}=")));
        if !ours && !skip {
            words.push(word.clone());
        }
        skip = ours && !word.contains('=');
    }
    format!("{} --seed {seed}", words.join(" "))
}

fn draw_times(global: &Global, args: &SimArgs, path: &Path) -> Result<()> {
    let mut lines: Vec<Line> = Vec::new();
    let mut rows = Vec::new();
    for nodes in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        for Case { label, mut plan } in at_once(nodes, (args.image_mb * 1e6) as u64, args.seed) {
            plan.rate_bits = (args.rate_mbit * 1e6) as u64;
            plan.origin_bits = (args.origin_mbit * 1e6) as u64;
            let outcome = run(&plan)?;
            let point = (nodes as f64, outcome.seconds.max);
            match lines.iter_mut().find(|line| line.name.as_ref() == Some(&label)) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name: Some(label.clone()), points: vec![point] }),
            }
            rows.push(Row { case: label, outcome });
        }
    }
    let title = format!("{} MB at {} Mbit/s: the last of N nodes", args.image_mb, args.rate_mbit);
    plot::lines(path, &Labels { title: &title, x: "nodes", y: "seconds" }, &lines, &[])?;
    print(global, args, &rows)
}

fn show_reparenting(global: &Global, args: &SimArgs) -> Result<()> {
    let rows = reparenting_table(args.seed)?;
    if let Some(path) = &args.svg {
        draw_reparenting(path, &rows)?;
    }
    if global.json {
        return output::json(&rows);
    }
    let columns = ["policy", ">nodes", ">insert", ">max", ">remove", ">max", ">demote", ">max"];
    let cells = rows.iter().map(|row| {
        let mean = |mean: f64| format!("{mean:.2}");
        vec![
            row.policy.clone(),
            row.nodes.to_string(),
            mean(row.per_insert_mean),
            row.per_insert_max.to_string(),
            mean(row.per_remove_mean),
            row.per_remove_max.to_string(),
            mean(row.per_demote_mean),
            row.per_demote_max.to_string(),
        ]
    });
    output::line(output::table(&columns, cells))
}

/// Means and maxima per removal, against the logarithm of the size.
fn draw_reparenting(path: &Path, rows: &[Reparenting]) -> Result<()> {
    let mut lines: Vec<Line> = Vec::new();
    for row in rows {
        let x = (row.nodes as f64).log10();
        let figures = [("mean", row.per_remove_mean), ("max", row.per_remove_max as f64)];
        for (what, y) in figures {
            let name = format!("{} ({what})", row.policy);
            match lines.iter_mut().find(|line| line.name.as_ref() == Some(&name)) {
                Some(line) => line.points.push((x, y)),
                None => lines.push(Line { name: Some(name), points: vec![(x, y)] }),
            }
        }
    }
    let labels = Labels { title: "Nodes re-parented by one removal", x: "log10 of the nodes", y: "nodes" };
    Ok(plot::lines(path, &labels, &lines, &[])?)
}

fn parse<T: std::str::FromStr<Err = String>>(text: &str) -> Result<T, String> {
    text.parse()
}

/// A share of the nodes.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().map_err(|_| "write a number from 0 to 1, such as 0.1 for a tenth".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("a share is from 0 to 1, such as 0.1 for a tenth".into()) }
}

/// A rate, a size or a time.
fn amount(text: &str) -> Result<f64, String> {
    let amount = text.parse().map_err(|_| "write a number, such as 100".to_owned())?;
    if (0.001..=1e9).contains(&amount) { Ok(amount) } else { Err("from 0.001 to 1000000000".into()) }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|_| "write a whole number".to_owned())?;
    if count >= 1 { Ok(count) } else { Err("at least 1".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a rate of nothing, which would be simulated for long and for nothing, and a share of more than all.
    #[test]
    fn ranges_are_checked_before_anything_is_simulated() {
        assert_eq!((share("0"), share("1"), amount("0.5"), at_least_one("1")), (Ok(0.0), Ok(1.0), Ok(0.5), Ok(1)));
        for wrong in ["7", "-1", "NaN", "a"] {
            assert!(share(wrong).is_err(), "{wrong}");
        }
        assert!(["0", "-1", "inf", "NaN"].iter().all(|wrong| amount(wrong).is_err()) && at_least_one("0").is_err());
    }
}
