//! varnish relays that pass on a file while it arrives (`beresp.do_stream`) and keep it in memory.

use std::net::SocketAddrV4;

use super::nginx;
use super::relay::{self, PORT, Shape};
use super::stage::Stage;
use super::{Delivery, Job, Settings};
use crate::error::Result;
use crate::network::Host;

/// How much memory is taken at once for what arrives, and in how many groups threads are. On these links they differ by less than runs do.
pub(super) const SWEEP: &[Settings] = &[
    Settings(&[("fetch_chunksize", "128k"), ("thread_pools", "1")]),
    Settings(&[("fetch_chunksize", "16k"), ("thread_pools", "1")]),
    Settings(&[("fetch_chunksize", "1m"), ("thread_pools", "2")]),
];
/// For headers and the store's own book-keeping, beside the file.
const SPARE_BYTES: u64 = 64 << 20;

/// Relays between an nginx as the origin and the hosts.
pub(super) fn relays(settings: &Settings, job: &Job<'_>, shape: Shape) -> Result<Delivery> {
    let mut stage = Stage::new(job);
    nginx::start_origin(&mut stage, job, "2m")?;
    relay::lay_out(&mut stage, job, shape, |stage, host, upstream| start(stage, host, settings, job.bytes, upstream))?;
    stage.race()
}

fn start(stage: &mut Stage<'_>, host: &Host, settings: &Settings, bytes: u64, upstream: SocketAddrV4) -> Result<()> {
    let folder = stage.folder(host, "varnish")?;
    let file = folder.join("relay.vcl");
    Stage::write(&file, &vcl(upstream))?;
    let mut arguments: Vec<_> = ["-F", "-j", "none", "-T", "none"].map(Into::into).into();
    arguments.extend(["-n".into(), folder.join("work").into_os_string(), "-f".into(), file.into_os_string()]);
    arguments.extend(["-a".into(), format!("0.0.0.0:{PORT}").into()]);
    arguments.extend(["-s".into(), format!("malloc,{}", bytes + SPARE_BYTES).into()]);
    // Compiled quickly: it is run once. A small log, nobody reads it. No compression, the bytes do not shrink.
    let fixed = ["thread_pool_min=10", "vsl_space=1M", "http_gzip_support=off"].map(str::to_owned);
    let swept = settings.0.iter().map(|(name, value)| format!("{name}={value}"));
    arguments.extend(fixed.into_iter().chain(swept).flat_map(|parameter| ["-p".into(), parameter.into()]));
    stage.daemon(host, "varnishd", arguments)
}

/// The host's name is no part of the key: clients and relays below call this relay by different ones.
fn vcl(upstream: SocketAddrV4) -> String {
    format!(
        "vcl 4.1;
backend parent {{
    .host = \"{}\";
    .port = \"{}\";
    .first_byte_timeout = 600s;
    .between_bytes_timeout = 600s;
}}
sub vcl_recv {{ return (hash); }}
sub vcl_hash {{ hash_data(req.url); return (lookup); }}
sub vcl_backend_response {{
    set beresp.do_stream = true;
    set beresp.ttl = 1h;
}}
",
        upstream.ip(),
        upstream.port()
    )
}
