//! The check after a run: every living node's disk is hashed, repeated bytes are counted, descriptors must be given back, and no file may
//! be left beside the image.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use faasnet_api::{BLOCK_BYTES, ImageId, v1};
use faasnet_lab::process;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};

use super::cluster::{FUNCTION, LabCluster, TENANT};
use crate::client;
use crate::demo::verify;
use crate::view::NodeView;

/// How long agents may take to close what a function had open, after it was taken from them.
const RELEASE_DEADLINE: Duration = Duration::from_secs(15);
/// Opened once by each process that needs it, for good.
const OPENED_ONCE: &str = "/dev/null";
/// Where an agent's store keeps what the controller last said; written for the first time when an image is assigned.
const LAST_WORD: &str = "last-word";

/// What was found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Audit {
    /// Nodes that were expected to hold the image.
    pub living: usize,
    /// Of them, those on whose disk every byte is right.
    pub verified: usize,
    /// Payload of blocks that were complete already, over all nodes.
    pub bytes_refetched: u64,
    /// What one block for every edge that was used would be.
    pub bytes_refetched_allowed: u64,
    /// The most blocks that any node fetched again, ÷ edges that it used; at most 1.
    pub most_refetched_per_edge: f64,
    /// Blocks that failed verification and were not taken.
    pub blocks_refused: u64,
    /// Whatever is wrong; must be empty.
    pub problems: Vec<String>,
}

impl Audit {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Counts what the nodes say; `living` are those that must hold the image.
    pub fn count(&mut self, nodes: &[NodeView], living: &[usize]) {
        self.living = living.len();
        for node in living.iter().map(|index| &nodes[*index]) {
            let allowed = node.upstreams.len() as u64 * u64::from(BLOCK_BYTES);
            self.bytes_refetched += node.bytes_refetched;
            self.bytes_refetched_allowed += allowed;
            let per_edge = node.bytes_refetched as f64 / allowed.max(1) as f64;
            self.most_refetched_per_edge = self.most_refetched_per_edge.max(per_edge);
            self.blocks_refused += node.blocks_refused;
            if node.bytes_refetched > allowed {
                let (name, bytes) = (&node.name, node.bytes_refetched);
                self.problems.push(format!("{name}: {bytes} bytes came twice; one block per edge would be {allowed}"));
            }
            if !node.is_complete() {
                let error = if node.error.is_empty() { "no reason given" } else { &node.error };
                self.problems.push(format!(
                    "{} is {} with {} of {} bytes ({error})",
                    node.name, node.state, node.bytes_present, node.bytes_total
                ));
            }
        }
    }

    /// Hashes the disks of `living`, as many at once as there are cores. Returns each one's problem, empty for none.
    pub async fn hash(
        &mut self,
        cluster: &LabCluster,
        living: &[usize],
        image: ImageId,
        bytes: u64,
    ) -> Result<BTreeMap<usize, String>> {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let check = |index: usize| {
            let store = cluster.store(index);
            async move {
                let checked = tokio::task::spawn_blocking(move || verify::image(&store, image)).await;
                let problem = match checked.context("the check of a node broke off")? {
                    Ok(verified) if verified.bytes == bytes => String::new(),
                    Ok(verified) => format!("its blobs have {} bytes, the image has {bytes}", verified.bytes),
                    Err(error) => format!("{error:#}"),
                };
                Ok::<_, anyhow::Error>((index, problem))
            }
        };
        let mut checks = stream::iter(living.iter().copied()).map(check).buffer_unordered(cores);
        let mut problems = BTreeMap::new();
        while let Some(checked) = checks.next().await {
            let (index, problem) = checked?;
            if problem.is_empty() {
                self.verified += 1;
            } else {
                self.problems.push(format!("{}: {problem}", cluster.network.agents()[index].name));
            }
            problems.insert(index, problem);
        }
        Ok(problems)
    }

    /// Takes the function from all nodes; what they have open must then be what they had open before, and their folders may hold only the
    /// image more.
    pub async fn release(&mut self, cluster: &LabCluster, before: &Baseline, image: ImageId) -> Result<()> {
        let mut control = cluster.control().await?;
        let request =
            v1::ReleaseRequest { tenant: TENANT.into(), function: FUNCTION.into(), ..v1::ReleaseRequest::default() };
        control.release(request).await.map_err(client::explain)?;
        let deadline = Instant::now() + RELEASE_DEADLINE;
        loop {
            let left: Vec<String> = before.leaks(cluster).into_iter().chain(before.strays(cluster, image)).collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.problems.extend(left);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// What agents had open and what lay in their folders before they were asked for anything, in the order of the hosts.
#[derive(Debug, Default)]
pub struct Baseline {
    descriptors: Vec<Vec<String>>,
    files: Vec<BTreeSet<PathBuf>>,
}

impl Baseline {
    /// Of agents that all run.
    pub fn new(cluster: &LabCluster) -> Self {
        let files = (0..cluster.agents.len()).map(|index| files(&cluster.own_store(index))).collect();
        let descriptors = cluster.pids().into_iter().map(|(_, pid)| process::descriptors(pid)).collect();
        Self { descriptors, files }
    }

    /// What living agents have open that they had not. An agent that was started again is held to the same as before.
    fn leaks(&self, cluster: &LabCluster) -> Vec<String> {
        let leak = |(index, pid): (usize, u32)| {
            // A root keeps its connections to the origin for the next image, for a minute and a half.
            let idle = process::connections(pid, cluster.registry_address());
            let more = added(self.descriptors.get(index)?, &process::descriptors(pid), idle);
            let name = &cluster.network.agents()[index].name;
            (!more.is_empty()).then(|| format!("{name} still has open after the release: {}", more.join(", ")))
        };
        cluster.pids().into_iter().filter_map(leak).collect()
    }

    /// Files of living agents that were not there and do not belong to `image`: half made ones, and images that nobody asked for. A killed
    /// agent may leave such; it removes them when it starts.
    fn strays(&self, cluster: &LabCluster, image: ImageId) -> Vec<String> {
        let stray = |(index, _): (usize, u32)| {
            let found = stray_files(self.files.get(index)?, &files(&cluster.own_store(index)), image);
            let name = &cluster.network.agents()[index].name;
            (!found.is_empty()).then(|| format!("{name} left files after the release: {}", found.join(", ")))
        };
        cluster.pids().into_iter().filter_map(stray).collect()
    }
}

/// All files below `folder`, relative to it.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        // Ignored: a folder that goes while we look holds nothing.
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ => found.extend(entry.path().strip_prefix(folder).map(Path::to_owned)),
            }
        }
    }
    found
}

fn stray_files(before: &BTreeSet<PathBuf>, after: &BTreeSet<PathBuf>, image: ImageId) -> Vec<String> {
    let own = Path::new("images").join(image.to_string());
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let is_kept = |path: &Path| path == Path::new(LAST_WORD) || (path.starts_with(&own) && !hidden(path));
    let is_stray = |path: &&PathBuf| !before.contains(*path) && !is_kept(path);
    after.iter().filter(is_stray).map(|path| path.display().to_string()).collect()
}

/// What `after` holds more often than `before`; so many sockets more are fine.
fn added(before: &[String], after: &[String], idle_sockets: usize) -> Vec<String> {
    let count = |kinds: &[String], kind: &str| kinds.iter().filter(|other| *other == kind).count();
    let spare = |kind: &str| if kind == "socket" { idle_sockets } else { 0 };
    let is_more = |kind: &&String| *kind != OPENED_ONCE && count(after, kind) > count(before, kind) + spare(kind);
    let tell = |kind: &String| format!("{kind} ({} → {})", count(before, kind), count(after, kind));
    let mut more: Vec<String> = after.iter().filter(is_more).map(tell).collect();
    more.dedup();
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a leak that hides behind descriptors of the same kind which were there before.
    #[test]
    fn more_of_a_kind_is_a_leak() {
        let kinds = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(added(&kinds("pipe socket socket"), &kinds("/dev/null pipe socket"), 0), [""; 0]);
        assert_eq!(added(&kinds("pipe socket"), &kinds("pipe socket socket socket"), 2), [""; 0]);
        let after = kinds("pipe pipe socket socket socket socket");
        assert_eq!(added(&kinds("pipe socket"), &after, 2), ["pipe (1 → 2)", "socket (1 → 4)"]);
    }

    /// Catches an audit that passes although a node failed, or although more came twice than a block per edge.
    #[test]
    fn incomplete_nodes_and_repeated_bytes_are_problems() {
        let node = |state: &str, refetched| NodeView {
            state: state.into(),
            bytes_refetched: refetched,
            ..NodeView::default()
        };
        let mut audit = Audit::default();
        audit.count(&[node("complete", 0), node("failed", 0)], &[0]);
        assert!(audit.is_clean());
        audit.count(&[node("complete", 1), node("failed", 0)], &[0, 1]);
        assert_eq!(audit.problems.len(), 2);
    }

    /// Catches a node that fetched much again and hides behind others that used many edges.
    #[test]
    fn every_node_answers_for_its_own_edges() {
        let edges = |count: usize| vec![crate::view::UpstreamView::default(); count];
        let node = |blocks: u64, count| NodeView {
            state: "complete".into(),
            bytes_refetched: blocks * u64::from(BLOCK_BYTES),
            upstreams: edges(count),
            ..NodeView::default()
        };
        let mut audit = Audit::default();
        audit.count(&[node(2, 2), node(0, 9)], &[0, 1]);
        assert!(audit.is_clean() && audit.most_refetched_per_edge == 1.0);
        audit.count(&[node(3, 2), node(0, 9)], &[0, 1]);
        assert!(!audit.is_clean());
    }

    /// Catches half-made files, files of other images and files beside the images that pass for the image.
    #[test]
    fn only_the_image_may_stay() {
        let image = ImageId([7; 32]);
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<BTreeSet<_>>();
        let own = format!("images/{image}/data");
        let half = format!("images/{image}/.map");
        let before = paths(&["node", "lock"]);
        assert_eq!(stray_files(&before, &paths(&["node", "lock", "last-word", &own]), image), [""; 0]);
        let after = paths(&["lock", &own, &half, "images/.new-x/data", "images/other/data", "core"]);
        assert_eq!(stray_files(&before, &after, image).len(), 4);
    }
}
