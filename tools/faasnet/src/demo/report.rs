//! What the demo found out, as JSON and as text. Pure: numbers in, text out.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::output;
use crate::view::{NodeView, ORIGIN, TreeView, UpstreamView};

/// Everything that `faasnet demo --json` prints.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// How the trees were shaped.
    pub policy: String,
    /// What was moved.
    pub image: ImageReport,
    /// What the origin did.
    pub origin: OriginReport,
    /// Each node, sorted by name.
    pub nodes: Vec<NodeReport>,
    /// How long nodes took, from their assignment to their last block.
    pub seconds: SecondsReport,
    /// One per stripe.
    pub trees: Vec<TreeView>,
    /// Where images, stores and logs are, when they are kept.
    pub dir: Option<PathBuf>,
    /// Whether every node holds every byte.
    pub verified: bool,
}

/// The image.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImageReport {
    /// Sum of its blobs.
    pub bytes: u64,
    /// Its layers.
    pub layers: u32,
    /// As given or built.
    pub reference: String,
    /// Its id, hexadecimal.
    pub id: String,
}

/// The origin's count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginReport {
    /// Body bytes of blob reads while provisioning, those of `lost_with_root_bytes` included.
    pub bytes_sent: u64,
    /// Blob requests while provisioning.
    pub requests: u64,
    /// Body bytes of blob reads while registering the function.
    pub registration_bytes: u64,
    /// Bytes of `bytes_sent` that were sent before: what only a root had that went away, or a cut connection lost.
    pub lost_with_root_bytes: u64,
    /// Who counted: `registry` (its own log) or `agents` (a registry of somebody else's: what the roots received).
    pub counted_by: String,
}

/// One node.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NodeReport {
    /// What the agent says.
    #[serde(flatten)]
    pub node: NodeView,
    /// Whether the demo itself hashed every blob on the node's disk and found it right.
    pub verified: bool,
    /// Why not, or empty.
    pub problem: String,
}

/// A distribution of seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SecondsReport {
    /// The median.
    pub p50: f64,
    /// 99 of 100 nodes took at most this.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

/// One blob read of the origin: which bytes it sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRead {
    /// Which blob.
    pub digest: String,
    /// Offset of the first byte sent.
    pub start: u64,
    /// How many bytes were sent.
    pub bytes: u64,
}

/// What an origin sent up to some moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OriginLog {
    /// Blob requests, refused ones included.
    pub requests: u64,
    /// Blob reads in the order of arrival.
    pub reads: Vec<BlobRead>,
}

impl SecondsReport {
    /// Of the nearest ranks.
    pub fn new(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let rank = |share: f64| match seconds.len() {
            0 => 0.0,
            len => seconds[((share * len as f64).ceil() as usize).clamp(1, len) - 1],
        };
        Self { p50: rank(0.5), p99: rank(0.99), max: rank(1.0) }
    }
}

impl OriginReport {
    /// From the registry's log: `before` as it was when provisioning began, `after` now.
    pub fn from_log(before: &OriginLog, after: &OriginLog) -> Self {
        let sent = |reads: &[BlobRead]| reads.iter().map(|read| read.bytes).sum::<u64>();
        let provisioning = &after.reads[before.reads.len()..];
        Self {
            bytes_sent: sent(provisioning),
            requests: after.requests - before.requests,
            registration_bytes: sent(&before.reads),
            lost_with_root_bytes: sent(provisioning) - distinct(provisioning),
            counted_by: "registry".into(),
        }
    }

    /// From what agents received of an origin that is not ours to watch. Requests and lost bytes stay 0: nobody counted them.
    pub fn from_agents<'a>(nodes: impl Iterator<Item = &'a NodeView>, registration_bytes: u64) -> Self {
        let from_origin =
            |node: &NodeView| node.upstreams.iter().filter(|up| up.is_origin()).map(|up| up.bytes).sum::<u64>();
        Self {
            bytes_sent: nodes.map(from_origin).sum(),
            registration_bytes,
            counted_by: "agents".into(),
            ..Self::default()
        }
    }
}

/// How many different bytes the reads cover.
fn distinct(reads: &[BlobRead]) -> u64 {
    let mut blobs: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    for read in reads {
        blobs.entry(&read.digest).or_default().push((read.start, read.start + read.bytes));
    }
    blobs
        .into_values()
        .map(|mut ranges| {
            ranges.sort_unstable();
            let (mut covered, mut end) = (0, 0);
            for (from, to) in ranges {
                covered += to.saturating_sub(from.max(end));
                end = end.max(to);
            }
            covered
        })
        .sum()
}

impl Report {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut parts = vec![self.drawings(), self.table(), self.summary()];
        parts.extend(self.problems());
        parts.join("\n\n")
    }

    fn drawings(&self) -> String {
        let label = |name: &str| {
            let node = self.nodes.iter().find(|node| node.node.name == name);
            node.map_or_else(|| name.to_owned(), |node| format!("{name}  {}", output::seconds(node.node.seconds)))
        };
        let tree = |tree: &TreeView| format!("stripe {}\n{}", tree.stripe, tree.draw(label).join("\n"));
        self.trees.iter().map(tree).collect::<Vec<_>>().join("\n\n")
    }

    fn table(&self) -> String {
        let columns =
            ["node", "parents", "levels", ">received", ">sent live", ">from store", ">time", "mover", "verified"];
        let rows = self.nodes.iter().map(|report| {
            let node = &report.node;
            let levels: Vec<_> = node.levels.iter().map(u32::to_string).collect();
            vec![
                node.name.clone(),
                parents(&node.upstreams),
                levels.join(" "),
                output::bytes(node.bytes_received),
                output::bytes(node.bytes_live),
                output::bytes(node.bytes_from_store),
                output::seconds(node.seconds),
                node.mover.clone(),
                if report.verified { "yes".into() } else { "NO".into() },
            ]
        });
        output::table(&columns, rows)
    }

    fn summary(&self) -> String {
        let alone = self.image.bytes * self.nodes.len() as u64;
        let times = if self.image.bytes == 0 { 0.0 } else { self.origin.bytes_sent as f64 / self.image.bytes as f64 };
        let mut text = format!(
            "image        {} in {} layers\n\
             origin sent  {} = {times:.2} × the image (counted by the {}); {} nodes on their own: {}\n\
             registration {}, once per function\n\
             time         median {}, 99 % {}, slowest {}",
            output::bytes(self.image.bytes),
            self.image.layers,
            output::bytes(self.origin.bytes_sent),
            self.origin.counted_by,
            self.nodes.len(),
            output::bytes(alone),
            output::bytes(self.origin.registration_bytes),
            output::seconds(self.seconds.p50),
            output::seconds(self.seconds.p99),
            output::seconds(self.seconds.max),
        );
        if self.origin.lost_with_root_bytes > 0 {
            text += &format!("\nsent again   {}", output::bytes(self.origin.lost_with_root_bytes));
        }
        match &self.dir {
            Some(dir) => text += &format!("\nfiles        {}", dir.display()),
            None => text += "\nfiles        removed; keep them with --keep",
        }
        text
    }

    fn problems(&self) -> Option<String> {
        let lines: Vec<_> = self
            .nodes
            .iter()
            .filter(|node| !node.verified)
            .map(|node| format!("{}: NOT VERIFIED: {}", node.node.name, output::one_line(&node.problem)))
            .collect();
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}

/// `0: n1  1: n4, origin`: per stripe the upstreams in the order of use; in one tree only the names.
fn parents(upstreams: &[UpstreamView]) -> String {
    let mut stripes: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for upstream in upstreams {
        let names = stripes.entry(upstream.stripe).or_default();
        if names.last() != Some(&upstream.node.as_str()) {
            names.push(if upstream.is_origin() { ORIGIN } else { &upstream.node });
        }
    }
    stripes.into_values().map(|names| names.join(",")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(digest: &str, start: u64, bytes: u64) -> BlobRead {
        BlobRead { digest: digest.into(), start, bytes }
    }

    /// Catches a count of lost bytes that takes overlapping, nested or repeated reads for different bytes.
    #[test]
    fn bytes_sent_twice_are_counted_once_more() {
        let before = OriginLog { requests: 1, reads: vec![read("a", 0, 20)] };
        let mut after = OriginLog { requests: 7, ..before.clone() };
        after.reads.extend([
            read("a", 0, 10),
            read("a", 10, 10),
            read("b", 0, 10),
            read("a", 5, 10),
            read("a", 0, 1),
            read("c", 0, 0),
        ]);
        let report = OriginReport::from_log(&before, &after);
        assert_eq!((report.bytes_sent, report.lost_with_root_bytes), (41, 11));
        assert_eq!((report.registration_bytes, report.requests), (20, 6));
    }

    /// Catches percentiles that are off by one: of two nodes, the median is the faster one and 99 % the slower.
    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(SecondsReport::new(vec![2.0, 1.0]), SecondsReport { p50: 1.0, p99: 2.0, max: 2.0 });
        assert_eq!(SecondsReport::new(vec![]), SecondsReport::default());
        let hundred = SecondsReport::new((1..=200).map(f64::from).collect());
        assert_eq!(hundred, SecondsReport { p50: 100.0, p99: 198.0, max: 200.0 });
    }

    /// Catches a report wider than a terminal, and JSON whose names are not those that scripts rely on.
    #[test]
    fn the_report_fits_and_keeps_its_names() {
        let upstreams = vec![
            UpstreamView { stripe: 0, node: "n10".into(), bytes: 1 },
            UpstreamView { stripe: 1, node: ORIGIN.into(), bytes: 1 },
        ];
        let node = NodeView {
            name: "n20".into(),
            upstreams,
            levels: vec![2, 0],
            bytes_live: 999 << 20,
            ..NodeView::default()
        };
        let report = Report {
            nodes: vec![NodeReport { node, verified: false, problem: "why".into() }],
            image: ImageReport { bytes: 1 << 28, ..ImageReport::default() },
            ..Report::default()
        };
        let text = report.text();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("n10 origin") && text.contains("NOT VERIFIED: why"), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        for path in [
            "/image/bytes",
            "/origin/bytes_sent",
            "/origin/requests",
            "/origin/registration_bytes",
            "/origin/lost_with_root_bytes",
            "/seconds/p50",
            "/seconds/p99",
            "/seconds/max",
            "/nodes/0/name",
            "/nodes/0/seconds",
            "/nodes/0/bytes_received",
            "/nodes/0/bytes_refetched",
            "/nodes/0/bytes_live",
            "/nodes/0/bytes_from_store",
            "/nodes/0/bytes_copied",
            "/nodes/0/mover",
            "/nodes/0/verified",
            "/nodes/0/upstreams/0",
            "/nodes/0/levels/0",
        ] {
            assert!(json.pointer(path).is_some(), "{path} is missing");
        }
    }
}
