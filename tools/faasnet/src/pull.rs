//! `faasnet pull`: asks this node's agent for a function's image, waits, and writes it as an OCI layout.
//!
//! Everything that comes from the agent is checked against its digest; the layout appears under its name only when it is whole.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use faasnet_api::{Descriptor, Entry};
use futures_util::TryStreamExt;
use serde::Serialize;

use crate::admin::{Admin, Held};
use crate::cli::{Global, PullArgs};
use crate::{output, progress};

/// How often the agent is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A join that is answered by nothing for this long has failed: the controller is away or unknown.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);

/// What `pull --json` prints.
#[derive(Debug, Serialize)]
struct Pulled {
    tenant: String,
    function: String,
    out: PathBuf,
    image_id: String,
    manifest_digest: String,
    bytes: u64,
    blobs: usize,
    seconds: f64,
}

/// Runs the command.
pub async fn run(global: &Global, args: PullArgs) -> Result<()> {
    let started = Instant::now();
    let agent = Admin::new(&args.agent)?;
    let (tenant, function) = (args.tenant.tenant.as_str(), args.function.as_str());
    let held = wait_complete(&agent, global.json, tenant, function).await?;
    let image = held.image_id.parse().context("the agent named no image; is it of another version?")?;
    let encoded = agent.descriptor(tenant, function).await?;
    let descriptor =
        Descriptor::decode(&encoded, image).context("the agent's descriptor is damaged; look at its log")?;
    write(&agent, global.json, tenant, function, &descriptor, &args.out).await?;
    let pulled = Pulled {
        tenant: tenant.into(),
        function: function.into(),
        out: args.out.clone(),
        image_id: held.image_id,
        manifest_digest: descriptor.manifest_digest().into(),
        bytes: descriptor.geometry().image_bytes(),
        blobs: descriptor.entries().len(),
        seconds: started.elapsed().as_secs_f64(),
    };
    if global.json {
        return output::json(&pulled);
    }
    let (bytes, out) = (output::bytes(pulled.bytes), args.out.display());
    output::line(format!("{function}: {bytes} in {} blobs, each with its digest, in {out}", pulled.blobs))
}

/// Asks for the function if the node lacks it, and waits until the node holds all of it.
async fn wait_complete(agent: &Admin, json: bool, tenant: &str, function: &str) -> Result<Held> {
    let bar = progress::bar(json, function);
    let asked = Instant::now();
    let mut joined = false;
    loop {
        let held = match agent.held(tenant, function).await {
            // Perhaps the refusal of an earlier wish: it does not count against this one.
            Err(_) if !joined => None,
            held => held?,
        };
        match held {
            Some(held) if held.state == "complete" => {
                bar.finish_and_clear();
                return Ok(held);
            }
            Some(held) if held.state == "failed" => {
                bail!(
                    "this node cannot get {tenant}/{function}: {}; see the agent's log",
                    held.error.as_deref().unwrap_or("no reason given")
                )
            }
            Some(held) => {
                bar.set_length(held.bytes_total);
                bar.set_position(held.bytes_present);
            }
            None if !joined => {
                agent.join(tenant, function).await?;
                joined = true;
            }
            None => ensure!(
                asked.elapsed() < JOIN_DEADLINE,
                "the controller did not answer for {tenant}/{function} within {JOIN_DEADLINE:?}; is it reachable from this node?"
            ),
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn write(
    agent: &Admin,
    json: bool,
    tenant: &str,
    function: &str,
    descriptor: &Descriptor,
    out: &Path,
) -> Result<()> {
    let bar = progress::bar(json, "write");
    let provider = |entry: &Entry| {
        let digest = entry.digest.clone();
        async move {
            let response = agent.blob(tenant, function, &digest).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(response.bytes_stream().map_err(std::io::Error::other))
        }
    };
    faasnet_image::write_layout(out, descriptor, provider, |written, total| {
        bar.set_length(total);
        bar.set_position(written);
    })
    .await?;
    bar.finish_and_clear();
    Ok(())
}
