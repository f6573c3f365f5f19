//! BitTorrent by aria2: the origin seeds, every host is a client, opentracker on the origin's host tells them of each other.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::bittorrent::{self, PORT, Torrent};
use super::stage::Stage;
use super::{Delivery, Job, Settings};
use crate::LabError;
use crate::error::Result;
use crate::network::Host;

/// How much is checked and passed on as one, and to how many a client talks (0: to all). Larger units wait longer before they can be given.
pub(super) const SWEEP: &[Settings] = &[
    Settings(&[("hashed KiB", "256"), ("bt-max-peers", "0")]),
    Settings(&[("hashed KiB", "128"), ("bt-max-peers", "0")]),
    Settings(&[("hashed KiB", "256"), ("bt-max-peers", "8")]),
];
const TRACKER_PORT: u16 = 6969;
/// The hook says that the host has everything; aria2 goes on to give it to others.
const CLIENT: &str = r#"read go; exec aria2c "$@""#;
const HOOK: &str = "#!/bin/sh\necho done\n";
/// Nothing that a short transfer on a local network does not need; the file is not allocated twice.
const QUIET: [&str; 9] = [
    "--no-conf",
    "--enable-dht=false",
    "--bt-enable-lpd=false",
    "--file-allocation=none",
    "--disk-cache=0",
    "--seed-ratio=0",
    "--summary-interval=0",
    "--console-log-level=error",
    "--show-console-readout=false",
];

/// One swarm.
pub(super) fn swarm(settings: &Settings, job: &Job<'_>) -> Result<Delivery> {
    let mut stage = Stage::new(job);
    let origin = job.network.origin();
    let tracker = format!("http://{}:{TRACKER_PORT}/announce", origin.address);
    let Torrent { path: torrent, id } = bittorrent::describe(job, settings, Some(&tracker))?;
    start_tracker(&mut stage, origin, &id)?;
    let hook = hook(job.folder)?;
    let seeder = ["--bt-seed-unverified=true".into()];
    stage.daemon(origin, "aria2c", arguments(settings, bittorrent::source(job), &torrent).chain(seeder))?;
    stage.wait_listening(origin, PORT)?;
    for host in job.network.agents() {
        let target = stage.target(host)?;
        let notice = [joined("--on-bt-download-complete=", &hook)];
        stage.client(host, CLIENT, arguments(settings, &target, &torrent).chain(notice))?;
    }
    stage.race()
}

/// opentracker refuses to be root, and whatever is not on its list.
fn start_tracker(stage: &mut Stage<'_>, host: &Host, torrent: &str) -> Result<()> {
    let folder = stage.folder(host, "tracker")?;
    Stage::write(&folder.join("allowed"), &format!("{torrent}\n"))?;
    let (address, port) = (host.address.to_string(), TRACKER_PORT.to_string());
    let arguments = ["-i", &address, "-p", &port, "-u", "nobody", "-w", "allowed", "-d"].map(OsString::from);
    stage.daemon(host, "opentracker", arguments.into_iter().chain([folder.into_os_string()]))?;
    stage.wait_listening(host, TRACKER_PORT)
}

fn arguments(settings: &Settings, folder: &Path, torrent: &Path) -> impl Iterator<Item = OsString> {
    let swept = format!("--bt-max-peers={}", settings.get("bt-max-peers"));
    let own = [swept.into(), format!("--listen-port={PORT}").into(), joined("--dir=", folder), torrent.into()];
    QUIET.into_iter().map(OsString::from).chain(own)
}

fn joined(option: &str, path: &Path) -> OsString {
    let mut text = OsString::from(option);
    text.push(path);
    text
}

fn hook(folder: &Path) -> Result<std::path::PathBuf> {
    let path = folder.join("hook");
    let made = std::fs::write(&path, HOOK)
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)));
    made.map_err(LabError::io(format!("cannot write {}", path.display())))?;
    Ok(path)
}
