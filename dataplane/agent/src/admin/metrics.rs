//! The counters in Prometheus' text format, written at scrape time from the last reports.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use faasnet_api::v1::FunctionProgress;
use faasnet_api::{Stripe, Verify};

use crate::feed::Counters;
use crate::mirror;
use crate::session::events::progress;
use crate::view::View;
use crate::worker::journal::Stalls;
use crate::worker::leases::Leases;
use crate::worker::mailbox::{Downstream, FunctionReport, Target};

type Read = fn(&FunctionProgress) -> u64;

/// Name, type, help, value: one row per metric of a function.
const PER_FUNCTION: [(&str, &str, &str, Read); 10] = [
    ("faasnet_image_bytes", "gauge", "Length of the function's image; 0 while unknown.", |p| p.bytes_total),
    ("faasnet_present_bytes", "gauge", "Verified bytes of the image on this node.", |p| p.bytes_present),
    ("faasnet_received_bytes_total", "counter", "Payload from upstreams, the origin included.", |p| p.bytes_received),
    ("faasnet_refetched_bytes_total", "counter", "Payload received of blocks that were complete here.", |p| {
        p.bytes_refetched
    }),
    ("faasnet_live_bytes_total", "counter", "Payload sent to children as it passed.", |p| p.bytes_live),
    ("faasnet_from_store_bytes_total", "counter", "Payload sent to children from the store.", |p| p.bytes_from_store),
    ("faasnet_copied_bytes_total", "counter", "Payload sent to children through user space.", |p| p.bytes_copied),
    ("faasnet_edges_failed_total", "counter", "Upstreams that were given up.", |p| p.edges_failed),
    ("faasnet_blocks_refused_total", "counter", "Blocks that failed verification.", |p| p.blocks_refused),
    ("faasnet_function_state", "gauge", "1 waiting, 2 fetching, 3 complete, 4 failed.", |p| p.state as u64),
];

/// The whole exposition.
pub(super) fn text(verify: Verify, view: &View, feed: &Counters, mirror: &mirror::Counters, leases: &Leases) -> String {
    let mut text = String::new();
    let help = "1 unless every block is checked by BLAKE3: a setting for trusted networks and experiments.";
    header(&mut text, "faasnet_verification_reduced", "gauge", help);
    // Ignored here and below: writing to a String does not fail.
    let _ =
        writeln!(text, "faasnet_verification_reduced{{verify=\"{verify}\"}} {}", u8::from(verify != Verify::Blake3));
    let attached = u64::from(view.term.is_some());
    single(
        &mut text,
        "faasnet_controller_attached",
        "gauge",
        "1 while the controller has accepted this agent.",
        attached,
    );
    let leased = leases.total() as u64;
    single(&mut text, "faasnet_leased_buffers", "gauge", "Buffers of the workers that somebody holds.", leased);
    let feed = [
        ("faasnet_origin_requests_total", "Requests to origins.", &feed.requests),
        ("faasnet_origin_bytes_total", "Body bytes read from origins.", &feed.bytes),
        ("faasnet_origin_wrong_blocks_total", "Blocks from origins that failed verification.", &feed.wrong_blocks),
        ("faasnet_origin_retries_total", "Reads of origins that were tried again.", &feed.retries),
        ("faasnet_mirror_requests_total", "Requests of runtimes to the mirror.", &mirror.requests),
        ("faasnet_mirror_refused_total", "Requests to the mirror that were refused, most by 404.", &mirror.refused),
        ("faasnet_mirror_bytes_total", "Body bytes of blobs that the mirror sent.", &mirror.bytes),
        ("faasnet_mirror_cut_total", "Responses of the mirror that were cut.", &mirror.cut),
        ("faasnet_mirror_damaged_total", "Blocks on the disk that the mirror found damaged.", &mirror.damaged),
    ];
    for (name, help, counter) in feed {
        single(&mut text, name, "counter", help, counter.load(Ordering::Relaxed));
    }
    let functions: Vec<_> = view.rows.iter().map(|(function, row)| (row, progress(*function, row))).collect();
    for (name, kind, help, read) in PER_FUNCTION {
        header(&mut text, name, kind, help);
        for (row, progress) in &functions {
            let (tenant, function) = (escape(&row.tenant), escape(&row.name));
            let _ = writeln!(text, "{name}{{tenant=\"{tenant}\",function=\"{function}\"}} {}", read(progress));
        }
    }
    workers(&mut text, view);
    text
}

/// One sample: its labels behind tenant and function, and its value.
type Sample = (String, f64);
type Samples = fn(&FunctionReport) -> Vec<Sample>;

/// Metrics of a function that have more labels, or are not counted in the contract: name, type, help, samples.
const FROM_WORKER: [(&str, &str, &str, Samples); 10] = [
    ("faasnet_upstream_bytes_total", "counter", "Payload from each upstream.", |report| {
        let used = |(stripe, upstream, bytes): &(Stripe, Target, u64)| {
            (format!(",stripe=\"{}\",upstream=\"{}\"", stripe.0, name_of(upstream)), *bytes as f64)
        };
        report.upstreams.iter().map(used).collect()
    }),
    ("faasnet_child_bytes", "gauge", "Bytes that each present child's connection took.", |report| {
        let child = |child: &Downstream| {
            (format!(",stripe=\"{}\",child=\"{}\"", child.stripe.0, child.node), child.bytes_sent as f64)
        };
        report.downstreams.iter().map(child).collect()
    }),
    ("faasnet_mover_bytes_total", "counter", "Payload received by each mover.", |report| {
        report.bytes_by_mover.iter().map(|(mover, bytes)| (format!(",mover=\"{mover}\""), *bytes as f64)).collect()
    }),
    ("faasnet_blocks_verified_total", "counter", "Blocks whose digest was compared.", |report| {
        vec![(String::new(), report.journal.blocks_verified as f64)]
    }),
    ("faasnet_verifying_seconds_total", "counter", "Time that this took.", |report| {
        vec![(String::new(), report.journal.verifying.as_secs_f64())]
    }),
    ("faasnet_stalls_total", "counter", "Silences of more than 100 ms and four usual gaps.", |report| {
        by_stripe(report, |stalls| stalls.count as f64)
    }),
    ("faasnet_stalled_seconds_total", "counter", "Length of these.", |report| {
        by_stripe(report, |stalls| stalls.total.as_secs_f64())
    }),
    ("faasnet_longest_gap_seconds", "gauge", "The longest time between two blocks.", |report| {
        by_stripe(report, |stalls| stalls.longest.as_secs_f64())
    }),
    ("faasnet_direct_bytes_total", "counter", "Payload kept past the page cache, without a copy.", |report| {
        vec![(String::new(), report.bytes_direct as f64)]
    }),
    ("faasnet_pull_seconds", "gauge", "Time from the assignment to the last block, or to now.", |report| {
        vec![(String::new(), report.elapsed.as_secs_f64())]
    }),
];

fn by_stripe(report: &FunctionReport, value: fn(&Stalls) -> f64) -> Vec<Sample> {
    let stripes = report.journal.stalls.iter().enumerate();
    stripes.map(|(stripe, stalls)| (format!(",stripe=\"{stripe}\""), value(stalls))).collect()
}

fn name_of(upstream: &Target) -> String {
    match upstream {
        Target::Node(node, _) => node.to_string(),
        Target::Address(address) => address.to_string(),
        Target::Origin => "origin".into(),
    }
}

/// How blocks pass, function by function, as its worker told last.
fn workers(text: &mut String, view: &View) {
    let reports = || view.rows.values().filter_map(|row| Some((row, row.report.as_ref()?)));
    for (name, kind, help, samples) in FROM_WORKER {
        header(text, name, kind, help);
        for (row, report) in reports() {
            let (tenant, function) = (escape(&row.tenant), escape(&row.name));
            for (labels, value) in samples(report) {
                // Ignored here and below: writing to a String does not fail.
                let _ = writeln!(text, "{name}{{tenant=\"{tenant}\",function=\"{function}\"{labels}}} {value}");
            }
        }
    }
    header(text, "faasnet_mover", "gauge", "1: the mover by which the function's blocks pass, and why this one.");
    for (row, report) in reports() {
        let (tenant, function, reason) = (escape(&row.tenant), escape(&row.name), escape(&report.mover_reason));
        let mover = report.mover;
        let _ = writeln!(
            text,
            "faasnet_mover{{tenant=\"{tenant}\",function=\"{function}\",mover=\"{mover}\",reason=\"{reason}\"}} 1"
        );
    }
    let help = "Completions of what had been closed, at the worker that holds the function.";
    header(text, "faasnet_stale_completions_total", "counter", help);
    for (row, report) in reports() {
        let (tenant, function, stale) = (escape(&row.tenant), escape(&row.name), report.stale_completions);
        let _ =
            writeln!(text, "faasnet_stale_completions_total{{tenant=\"{tenant}\",function=\"{function}\"}} {stale}");
    }
}

fn single(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    header(text, name, kind, help);
    let _ = writeln!(text, "{name} {value}");
}

fn header(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// A label's value: backslash, quote and line feed are the format's three special characters.
fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a function's name that breaks the exposition.
    #[test]
    fn labels_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }

    /// Catches a metric without its header, or a line that is neither comment nor sample.
    #[test]
    fn an_idle_agent_exposes_its_counters() {
        let text = text(
            Verify::Xxh3,
            &View::default(),
            &Counters::default(),
            &mirror::Counters::default(),
            &Leases::default(),
        );
        assert!(text.contains("\nfaasnet_origin_bytes_total 0\n"));
        assert!(text.contains("\nfaasnet_verification_reduced{verify=\"xxh3\"} 1\n"));
        assert!(text.lines().all(|line| line.starts_with("# ") || line.split(' ').count() == 2), "{text}");
    }
}
