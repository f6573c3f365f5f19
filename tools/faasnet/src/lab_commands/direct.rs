//! The baseline without trees: every host reads the whole image from the origin, over one connection each.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use faasnet_lab::http;
use futures_util::future::try_join_all;
use tokio::process::{Child, Command};

use super::ReadArgs;
use super::cluster::LabCluster;
use super::image;
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
    pub async fn of(layout: &Path) -> Result<Self> {
        let blobs = image::summary(layout).await?.blobs.into_iter().map(|blob| (blob.digest, blob.bytes)).collect();
        Ok(Self { blobs, repository: crate::registry::default_name(layout) })
    }

    /// Bytes of all blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|(_, size)| size).sum()
    }

    /// What lies of them in a host's folder.
    fn bytes_in(&self, store: &Path) -> u64 {
        let length =
            |(digest, _): &(String, u64)| store.join(file_name(digest)).metadata().map_or(0, |file| file.len());
        self.blobs.iter().map(length).sum()
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
        let (seconds, bytes) = (begin.elapsed().as_secs_f64(), reads.bytes_in(&cluster.store(index)));
        ensure!(status.success(), "the reader on {name} failed ({status})");
        Ok::<_, anyhow::Error>(NodeView {
            name,
            state: "complete".into(),
            alive: true,
            seconds,
            bytes_total: reads.bytes(),
            bytes_present: bytes,
            bytes_received: bytes,
            mover: "direct".into(),
            ..NodeView::default()
        })
    };
    try_join_all(readers.into_iter().enumerate().map(one)).await
}

/// What is wrong with what a host has read; empty when nothing is.
pub fn verify(store: &Path, reads: &Reads) -> String {
    let check = |(digest, _): &(String, u64)| -> Result<()> {
        let path = store.join(file_name(digest));
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
        let mut file = File::create(args.out.join(file_name(digest))).context("cannot write a blob")?;
        let status = http::fetch(args.server, path, PATIENCE, |bytes| file.write_all(bytes));
        let status = status.with_context(|| format!("cannot read {path} from {}", args.server))?;
        ensure!(status == 200, "{} answers {status} for {path}", args.server);
    }
    Ok(())
}

/// What a blob is called on a host.
fn file_name(digest: &str) -> String {
    digest.replace(':', "-")
}
