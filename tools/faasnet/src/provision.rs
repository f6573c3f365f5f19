//! `faasnet provision` and `faasnet release`: which nodes hold a function.

use anyhow::{Result, bail};
use faasnet_api::v1;
use serde::Serialize;
use tokio_stream::StreamExt;

use crate::cli::{Global, ProvisionArgs, ReleaseArgs, ScaleArgs};
use crate::client::{self, Control};
use crate::output;
use crate::progress::Display;
use crate::view::{self, NodeView};

/// What `provision --json` prints.
#[derive(Debug, Serialize)]
struct Provisioned<'a> {
    tenant: &'a str,
    function: &'a str,
    complete: usize,
    nodes: &'a [NodeView],
}

/// `faasnet provision`.
pub async fn run(global: &Global, args: ProvisionArgs) -> Result<()> {
    let mut control = global.connect().await?;
    let request = v1::ProvisionRequest {
        tenant: args.tenant.tenant,
        function: args.function,
        count: args.count.unwrap_or_default(),
        nodes: args.nodes,
    };
    let mut display = Display::new(global.json);
    let nodes = provision(&mut control, request.clone(), |nodes| display.update(nodes)).await?;
    drop(display);
    finish(global, &request.tenant, &request.function, &nodes)
}

/// Says who holds the function; an error when somebody who shall does not.
fn finish(global: &Global, tenant: &str, function: &str, nodes: &[NodeView]) -> Result<()> {
    // What a dead node has on its disk is of no use to anybody.
    let holds = |node: &&NodeView| node.is_complete() && node.alive;
    let complete = nodes.iter().filter(holds).count();
    if global.json {
        output::json(&Provisioned { tenant, function, complete, nodes })?;
    } else {
        output::line(format!("{complete} of {} nodes hold {}", nodes.len(), function))?;
    }
    let missing = nodes.iter().find(|node| !holds(node));
    match missing {
        None => Ok(()),
        Some(node) if !node.alive => bail!(
            "{} of {} nodes do not hold {function}: there is no sign of life from {}; see `faasnet nodes`",
            nodes.len() - complete,
            nodes.len(),
            node.name
        ),
        Some(node) => bail!(
            "{} of {} nodes do not hold {}: {} is {} ({}); see `faasnet tree {}`",
            nodes.len() - complete,
            nodes.len(),
            function,
            node.name,
            node.state,
            if node.error.is_empty() { "no reason given" } else { &node.error },
            function
        ),
    }
}

/// Provisions and waits until every node is complete or failed; `progress` sees each step. Returns the last step.
pub async fn provision(
    control: &mut Control,
    request: v1::ProvisionRequest,
    mut progress: impl FnMut(&[NodeView]) -> Result<()>,
) -> Result<Vec<NodeView>> {
    let names = client::node_names(control).await?;
    let stream = control.provision(request).await.map_err(client::explain)?.into_inner();
    follow(stream, names, |nodes, _| progress(nodes)).await
}

/// Waits for the end of a stream of progress; `progress` sees each step, with the number of nodes that are still to go.
async fn follow(
    mut stream: tonic::Streaming<v1::ProvisionProgress>,
    mut names: view::Names,
    mut progress: impl FnMut(&[NodeView], u32) -> Result<()>,
) -> Result<Vec<NodeView>> {
    while let Some(message) = stream.next().await {
        let message = message.map_err(client::explain)?;
        names.extend(message.nodes.iter().map(|node| (node.node_id.clone(), node.name.clone())));
        let nodes = NodeView::all(&message.nodes, &names);
        progress(&nodes, message.leaving)?;
        if message.done {
            return Ok(nodes);
        }
    }
    bail!("the controller ended the answer before the nodes were done; ask again, or look with `faasnet tree`")
}

/// `faasnet scale`.
pub async fn scale(global: &Global, args: ScaleArgs) -> Result<()> {
    let mut control = global.connect().await?;
    let names = client::node_names(&mut control).await?;
    let (tenant, function) = (args.tenant.tenant, args.function);
    let request = v1::ScaleRequest { tenant: tenant.clone(), function: function.clone(), count: args.count };
    let stream = control.scale(request).await.map_err(client::explain)?.into_inner();
    let (mut display, mut told) = (Display::new(global.json), 0);
    let nodes = follow(stream, names, |nodes, leaving| {
        display.update(nodes)?;
        match std::mem::replace(&mut told, leaving) {
            before if before == leaving || leaving == 0 || global.json => Ok(()),
            _ if leaving == 1 => output::line("1 node still feeds others before it goes"),
            _ => output::line(format!("{leaving} nodes still feed others before they go")),
        }
    })
    .await?;
    drop(display);
    finish(global, &tenant, &function, &nodes)
}

/// `faasnet release`.
pub async fn release(global: &Global, args: ReleaseArgs) -> Result<()> {
    let mut control = global.connect().await?;
    let (tenant, function) = (args.tenant.tenant, args.function);
    let request = v1::ReleaseRequest { tenant, function: function.clone(), nodes: args.nodes, discard: args.drop };
    let released = control.release(request).await.map_err(client::explain)?.into_inner().released;
    match global.json {
        true => output::json(&serde_json::json!({ "function": function, "released": released })),
        false => output::line(format!("released {released} nodes of {function}")),
    }
}
