//! `GET /metrics`: the controller in the text format of Prometheus.

use std::fmt::{Display, Write};

use axum::extract::State;
use axum::response::IntoResponse;

use super::refused::Refused;
use crate::shell::clients::{Clients, unexpected};
use crate::shell::owner::Meters;
use crate::state::{Answer, Ask, BOUNDS_MS, Counts, Histogram};

pub(super) async fn metrics(State(clients): State<Clients>) -> Result<impl IntoResponse, Refused> {
    let counts = match clients.owner.ask(Ask::Count).await? {
        Answer::Counts(counts) => counts,
        other => return Err(unexpected(&other).into()),
    };
    let text = text(&counts, clients.owner.meters());
    Ok(([("content-type", "text/plain; version=0.0.4")], text))
}

fn text(counts: &Counts, meters: &Meters) -> String {
    let mut page = Page(String::new());
    page.one(
        "faasnet_controller_info",
        "gauge",
        "The program.",
        &format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")),
        1,
    );
    page.one("faasnet_controller_term", "gauge", "Number of controller starts.", "", counts.term);
    page.head("faasnet_nodes", "gauge", "Nodes by state.");
    for (state, count) in &counts.nodes {
        page.line("faasnet_nodes", &format!("{{state=\"{state}\"}}"), count);
    }
    page.one("faasnet_functions", "gauge", "Registered functions.", "", counts.functions);
    page.head("faasnet_members", "gauge", "Pairs of a function and a node that shall hold it, by state.");
    for (state, count) in &counts.members {
        page.line("faasnet_members", &format!("{{state=\"{state}\"}}"), count);
    }
    page.one("faasnet_provisions_waiting", "gauge", "Clients that wait for a provision.", "", counts.provisions);
    page.head("faasnet_received_bytes_per_second", "gauge", "Payload that nodes receive, over their last two reports.");
    page.line("faasnet_received_bytes_per_second", "{from=\"origin\"}", counts.origin_bytes_per_second);
    page.line("faasnet_received_bytes_per_second", "{from=\"node\"}", counts.node_bytes_per_second);
    page.histogram(
        "faasnet_provision_seconds",
        "From the wish that a node holds a function until it does.",
        &counts.latencies,
    );
    let [inputs, busy_us, commits, records, commit_us] = meters.read();
    let seconds = |us: u64| us as f64 / 1e6;
    page.one(
        "faasnet_controller_inputs_total",
        "counter",
        "Events, calls and ticks that the state machine took.",
        "",
        inputs,
    );
    page.one(
        "faasnet_controller_busy_seconds_total",
        "counter",
        "Time that the state machine took for them, without writing the state.",
        "",
        seconds(busy_us),
    );
    page.one("faasnet_controller_commits_total", "counter", "Commits of the state.", "", commits);
    page.one("faasnet_controller_committed_records_total", "counter", "Records in these commits.", "", records);
    page.one("faasnet_controller_commit_seconds_total", "counter", "Time that they took.", "", seconds(commit_us));
    page.0
}

/// A page of metrics as it grows.
struct Page(String);

impl Page {
    fn one(&mut self, name: &str, kind: &str, help: &str, labels: &str, value: impl Display) {
        self.head(name, kind, help);
        self.line(name, labels, value);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Ignored: a String takes everything.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bounds = BOUNDS_MS.iter().map(|ms| (*ms as f64 / 1e3).to_string()).chain(["+Inf".to_owned()]);
        let mut count = 0;
        for (bound, here) in bounds.zip(&histogram.buckets) {
            count += here;
            self.line(&format!("{name}_bucket"), &format!("{{le=\"{bound}\"}}"), count);
        }
        self.line(&format!("{name}_sum"), "", histogram.sum_ms as f64 / 1e3);
        self.line(&format!("{name}_count"), "", count);
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        // Ignored: a String takes everything.
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a line that a scraper does not take: each is a comment, or a name with labels and one number.
    #[test]
    fn every_line_is_a_metric() {
        let counts = Counts { term: 3, nodes: [("live", 2)].into(), ..Counts::default() };
        let text = text(&counts, &Meters::default());
        assert!(text.contains("faasnet_nodes{state=\"live\"} 2\n") && text.contains("faasnet_controller_term 3\n"));
        for line in text.lines().filter(|line| !line.starts_with("# ")) {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with("faasnet_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
