//! BitTorrent by libtorrent, by a script of ours: the origin seeds, every host is told of all others at the start, as our own nodes are.

use std::ffi::OsString;

use super::bittorrent::{self, PORT};
use super::program::PYTHON;
use super::stage::Stage;
use super::{Delivery, Job, Settings};
use crate::error::Result;

/// How much is checked and passed on as one, to how many a client gives at the same time (-1: to all who ask), how much it asks for ahead.
/// Super-seeding lets the origin send hardly more than one image, and takes longer by half and more.
pub(super) const SWEEP: &[Settings] = &[
    Settings(&[("hashed KiB", "128"), ("unchoke_slots_limit", "4"), ("max_out_request_queue", "16")]),
    Settings(&[("hashed KiB", "256"), ("unchoke_slots_limit", "-1"), ("max_out_request_queue", "500")]),
    Settings(&[("hashed KiB", "256"), ("unchoke_slots_limit", "8"), ("max_out_request_queue", "16")]),
];
const SCRIPT: &str = include_str!("libtorrent_client.py");

/// One swarm.
pub(super) fn swarm(settings: &Settings, job: &Job<'_>) -> Result<Delivery> {
    let mut stage = Stage::new(job);
    let torrent = bittorrent::describe(job, settings, None)?.path;
    // A script called libtorrent.py would import itself.
    let script = job.folder.join("libtorrent_client.py");
    Stage::write(&script, SCRIPT)?;
    let everybody: Vec<_> =
        [job.network.origin()].into_iter().chain(job.network.agents()).map(|host| host.address.to_string()).collect();
    let arguments = |role: &str, host: &crate::Host, folder: &std::path::Path| -> Vec<OsString> {
        let own = [script.as_os_str(), role.as_ref(), torrent.as_ref(), folder.as_ref()].map(OsString::from);
        let address = [host.address.to_string(), PORT.to_string(), everybody.join(",")].map(OsString::from);
        let swept = settings.0.iter().filter(|(name, _)| *name != bittorrent::HASHED_KIB);
        let swept = swept.map(|(name, value)| format!("{name}={value}").into());
        own.into_iter().chain(address).chain(swept).collect()
    };
    let origin = job.network.origin();
    stage.daemon(origin, PYTHON, arguments("seed", origin, bittorrent::source(job)))?;
    stage.wait_listening(origin, PORT)?;
    for host in job.network.agents() {
        let folder = stage.target(host)?;
        let command = [PYTHON.into()].into_iter().chain(arguments("fetch", host, &folder));
        stage.client(host, r#"exec "$@""#, command)?;
    }
    job.network.agents().iter().try_for_each(|host| stage.wait_listening(host, PORT))?;
    stage.race()
}
