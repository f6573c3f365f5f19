//! nginx: the origin of every system over HTTP, and relays with `proxy_cache` and its lock.
//!
//! Without slices a second reader waits for the whole file; with them, for one slice, and looks for it every 500 ms at the most (that is
//! how nginx waits for the lock of a cache entry).

use std::net::SocketAddrV4;
use std::path::Path;

use super::relay::{self, PORT, Shape};
use super::stage::Stage;
use super::{BLOB, Delivery, Job, Settings};
use crate::error::Result;
use crate::network::Host;

/// The origin's link is what counts, so there is little to try.
pub(super) const ORIGIN_SWEEP: &[Settings] = &[Settings(&[("sendfile_max_chunk", "2m")])];

/// Without slices and with ones of 4 MiB readers wait much longer; with 128 KiB requests cost more than they gain.
pub(super) const RELAY_SWEEP: &[Settings] = &[
    Settings(&[("slice", "512k"), ("proxy_buffers", "16 64k")]),
    Settings(&[("slice", "256k"), ("proxy_buffers", "16 64k")]),
    Settings(&[("slice", "1m"), ("proxy_buffers", "16 256k")]),
];

/// Every host reads the origin.
pub(super) fn origin(settings: &Settings, job: &Job<'_>) -> Result<Delivery> {
    let mut stage = Stage::new(job);
    start_origin(&mut stage, job, settings.get("sendfile_max_chunk"))?;
    job.network.agents().iter().try_for_each(|host| relay::client(&mut stage, host, job.network.origin()))?;
    stage.race()
}

/// Relays between the origin and the hosts.
pub(super) fn relays(settings: &Settings, job: &Job<'_>, shape: Shape) -> Result<Delivery> {
    let mut stage = Stage::new(job);
    start_origin(&mut stage, job, "2m")?;
    relay::lay_out(&mut stage, job, shape, |stage, host, upstream| {
        let folder = stage.folder(host, "nginx")?;
        start(stage, host, &configuration(&folder, &caching(&folder, settings, upstream)))
    })?;
    stage.race()
}

/// An nginx on the origin's host that serves the file.
pub(super) fn start_origin(stage: &mut Stage<'_>, job: &Job<'_>, max_chunk: &str) -> Result<()> {
    let host = job.network.origin();
    let folder = stage.folder(host, "nginx")?;
    let server = format!(
        "sendfile_max_chunk {max_chunk};
        server {{
            listen 0.0.0.0:{PORT};
            location = /{BLOB} {{ alias {}; }}
        }}",
        job.blob.display()
    );
    start(stage, host, &configuration(&folder, &server))?;
    stage.wait_listening(host, PORT)
}

fn start(stage: &mut Stage<'_>, host: &Host, configuration: &str) -> Result<()> {
    let folder = stage.folder(host, "nginx")?;
    let file = folder.join("nginx.conf");
    Stage::write(&file, configuration)?;
    let prefix = folder.into_os_string();
    let arguments = ["-p".into(), prefix, "-c".into(), file.into(), "-e".into(), "error.log".into()];
    stage.daemon(host, "nginx", arguments)
}

fn configuration(folder: &Path, server: &str) -> String {
    let folder = folder.display();
    format!(
        "daemon off;
user root;
worker_processes 1;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
        access_log off;
        sendfile on;
        tcp_nopush on;
        client_body_temp_path {folder}/body;
        proxy_temp_path {folder}/temp;
        fastcgi_temp_path {folder}/fastcgi;
        uwsgi_temp_path {folder}/uwsgi;
        scgi_temp_path {folder}/scgi;
        {server}
}}
"
    )
}

fn caching(folder: &Path, settings: &Settings, upstream: SocketAddrV4) -> String {
    let (slice, buffers) = (settings.get("slice"), settings.get("proxy_buffers"));
    let slices = match slice {
        "0" => "proxy_cache_key $uri;".to_owned(),
        slice => format!(
            "slice {slice};
                proxy_cache_key $uri$slice_range;
                proxy_set_header Range $slice_range;"
        ),
    };
    let buffer = buffers.rsplit(' ').next().unwrap_or(buffers);
    format!(
        "proxy_cache_path {}/cache levels=1 keys_zone=lab:4m max_size=200g use_temp_path=off;
        upstream parent {{ server {upstream}; keepalive 8; }}
        server {{
            listen 0.0.0.0:{PORT};
            location / {{
                {slices}
                proxy_pass http://parent;
                proxy_http_version 1.1;
                proxy_set_header Connection \"\";
                proxy_buffer_size {buffer};
                proxy_buffers {buffers};
                proxy_busy_buffers_size {buffer};
                proxy_cache lab;
                proxy_cache_valid 200 206 1h;
                proxy_cache_lock on;
                proxy_cache_lock_age 1h;
                proxy_cache_lock_timeout 1h;
                proxy_read_timeout 1h;
            }}
        }}",
        folder.display()
    )
}
