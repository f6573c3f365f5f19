//! `faasnet drain`: empties a node and waits until it holds and feeds nothing.

use anyhow::{Result, bail};
use faasnet_api::v1;
use serde::Serialize;
use tokio_stream::StreamExt;

use crate::cli::{DrainArgs, Global};
use crate::client;
use crate::output;
use crate::view::HostView;

/// What `drain --json` prints.
#[derive(Debug, Serialize)]
struct Drained {
    node: HostView,
}

/// `faasnet drain`.
pub async fn run(global: &Global, args: DrainArgs) -> Result<()> {
    let mut control = global.connect().await?;
    let request = v1::DrainRequest { node: args.node.clone(), undo: args.undo };
    let mut stream = control.drain(request).await.map_err(client::explain)?.into_inner();
    let mut told = Vec::new();
    while let Some(message) = stream.next().await {
        let message = message.map_err(client::explain)?;
        let lines: Vec<String> = message.functions.iter().map(line).collect();
        // One line per change: a drain may wait for long.
        for line in lines.iter().filter(|line| !global.json && !told.contains(*line)) {
            output::line(line)?;
        }
        told = lines;
        if message.done {
            let node = HostView::from(&message.node.unwrap_or_default());
            return match (global.json, args.undo) {
                (true, _) => output::json(&Drained { node }),
                (false, true) => output::line(format!("{} takes functions again", node.name)),
                (false, false) => output::line(format!(
                    "{} is empty; `faasnet drain {} --undo` lets it take functions again",
                    node.name, args.node
                )),
            };
        }
    }
    bail!("the controller ended the answer before the node was empty; ask again")
}

fn line(function: &v1::DrainedFunction) -> String {
    let why = if function.waits_for.is_empty() { "about to go" } else { &function.waits_for };
    format!("{}/{}: {why}", function.tenant, function.function)
}
