//! The baseline without trees: every host reads the whole image from the origin, over one connection each.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasnet_lab::http;
use futures_util::future::try_join_all;
use tokio::process::{Child, Command};

use super::ReadArgs;
use super::cluster::LabCluster;
use crate::demo::verify;
use crate::view::NodeView;

/// Readers share the origin's link: a single one may wait long between two reads.
const PATIENCE: Duration = Duration::from_secs(30);

/// What every host reads.
#[derive(Debug, Clone)]
pub struct Reads {
    /// Digest and size of each blob.
    pub blobs: Vec<(String, u64)>,
    repository: String,
}

impl Reads {
    /// The blobs of the layout's first image.
    pub fn of(layout: &Path) -> Result<Self> {
        let json = |path: PathBuf| -> Result<serde_json::Value> {
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
        };
        let index = json(layout.join("index.json"))?;
        let digest = index["manifests"][0]["digest"].as_str().context("the layout's index names no image")?;
        let manifest = json(layout.join("blobs").join(digest.replace(':', "/")))?;
        let layers = manifest["layers"]
            .as_array()
            .context("the layout's first entry is no image manifest; direct reads need one")?;
        let blob = |blob: &serde_json::Value| Some((blob["digest"].as_str()?.to_owned(), blob["size"].as_u64()?));
        let blobs: Option<Vec<_>> = std::iter::once(&manifest["config"]).chain(layers).map(blob).collect();
        let mut blobs = blobs.context("the image's manifest is damaged")?;
        blobs.sort();
        blobs.dedup();
        Ok(Self { blobs, repository: crate::registry::default_name(layout) })
    }

    /// Bytes of all blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|(_, size)| size).sum()
    }

    fn path(&self, digest: &str) -> String {
        format!("/v2/{}/blobs/{digest}", self.repository)
    }
}

/// Starts a reader on every host; the processes wait for a byte on standard input before they connect.
pub fn start(cluster: &LabCluster, reads: &Reads) -> Result<Vec<Child>> {
    let exe = std::env::current_exe().context("cannot find this program's own file")?;
    let start = |(index, host): (usize, &faasnet_lab::Host)| {
        let mut command: Command = super::cluster::enter_command(&host.namespace);
        command.arg(&exe).args(["lab", "read", "--server", &cluster.registry_address().to_string(), "--out"]);
        command.arg(cluster.store(index)).args(reads.blobs.iter().map(|(digest, _)| reads.path(digest)));
        command.stdin(Stdio::piped()).kill_on_drop(true).spawn().context("cannot start a reader")
    };
    cluster.network.agents().iter().enumerate().map(start).collect()
}

/// Lets the readers go and waits for all; one row per host.
pub async fn finish(cluster: &LabCluster, reads: &Reads, readers: Vec<Child>) -> Result<Vec<NodeView>> {
    let begin = Instant::now();
    let one = |(index, mut reader): (usize, Child)| async move {
        // Closing its input lets it begin.
        drop(reader.stdin.take());
        let status = reader.wait().await.context("cannot wait for a reader")?;
        let name = cluster.network.agents()[index].name.clone();
        ensure!(status.success(), "the reader on {name} failed ({status})");
        Ok::<_, anyhow::Error>(NodeView {
            name,
            state: "complete".into(),
            alive: true,
            seconds: begin.elapsed().as_secs_f64(),
            bytes_total: reads.bytes(),
            bytes_present: reads.bytes(),
            bytes_received: reads.bytes(),
            mover: "direct".into(),
            ..NodeView::default()
        })
    };
    try_join_all(readers.into_iter().enumerate().map(one)).await
}

/// What is wrong with what a host has read; empty when nothing is.
pub fn verify(store: &Path, reads: &Reads) -> String {
    let check = |(digest, _): &(String, u64)| -> Result<()> {
        let path = store.join(digest.replace(':', "-"));
        let got = verify::digest_of_reader(File::open(&path)?)?;
        ensure!(got == *digest, "{} hashes to {got}", path.display());
        Ok(())
    };
    reads.blobs.iter().try_for_each(check).map_or_else(|error| format!("{error:#}"), |()| String::new())
}

/// `faasnet lab read`: waits until standard input ends, then reads.
pub fn read(args: &ReadArgs) -> Result<()> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    // Ignored: an input that cannot be read means the same as one that ended.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    for path in &args.paths {
        let digest = path.rsplit('/').next().unwrap_or_default();
        let mut file = File::create(args.out.join(digest.replace(':', "-"))).context("cannot write a blob")?;
        let status = http::fetch(args.server, path, PATIENCE, |bytes| file.write_all(bytes));
        let status = status.with_context(|| format!("cannot read {path} from {}", args.server))?;
        ensure!(status == 200, "{} answers {status} for {path}", args.server);
    }
    Ok(())
}
