//! `faasnet nodes` and `faasnet tree`: what the controller knows, as tables and drawings.

use std::collections::HashMap;

use anyhow::Result;
use faasnet_api::v1;
use serde::Serialize;

use crate::cli::{Global, TreeArgs};
use crate::client::{self, Control};
use crate::output;
use crate::view::{self, FunctionView, HostView, NodeView, TreeView};

/// A function's trees and nodes.
#[derive(Debug, Clone, Serialize)]
pub struct FunctionTrees {
    /// The function.
    pub function: FunctionView,
    /// Version of the plan: terms first, then epochs.
    pub term: u64,
    /// See `term`.
    pub epoch: u64,
    /// One per stripe.
    pub trees: Vec<TreeView>,
    /// Every node that holds the function or shall hold it.
    pub nodes: Vec<NodeView>,
}

/// `faasnet nodes`.
pub async fn list(global: &Global) -> Result<()> {
    let hosts = hosts(&mut global.connect().await?).await?;
    if global.json {
        return output::json(&hosts);
    }
    if hosts.is_empty() {
        return output::line("no nodes yet; start one with `faasnet agent --controller URL`");
    }
    let rows = hosts.into_iter().map(|host| {
        let seen = match host.state.as_str() {
            // Not heard since the controller's start; what was stored before may be minutes old.
            "registered" => "-".into(),
            _ => format!("{} ago", output::seconds(host.last_seen_ms as f64 / 1e3)),
        };
        let state = host_state(&host);
        let pool = if host.tenant.is_empty() { "free".into() } else { host.tenant };
        vec![host.name, state, host.data_address, pool, host.functions.to_string(), seen, host.version]
    });
    let columns = ["node", "state", "data address", "tenant", ">functions", ">last seen", "version"];
    output::line(output::table(&columns, rows))
}

/// A node's state and what is special about it.
fn host_state(host: &HostView) -> String {
    let draining = host.draining.then(|| "draining".to_owned());
    let quarantine =
        (!host.quarantine.is_empty()).then(|| format!("quarantine: {}", output::one_line(&host.quarantine)));
    let pace = (!host.pace.is_empty()).then(|| host.pace.clone());
    let words = [draining, quarantine, pace].into_iter().flatten();
    std::iter::once(host.state.clone()).chain(words).collect::<Vec<_>>().join(", ")
}

/// The nodes that the controller knows, sorted by name.
pub async fn hosts(control: &mut Control) -> Result<Vec<HostView>> {
    let reply = control.list_nodes(v1::ListNodesRequest {}).await.map_err(client::explain)?.into_inner();
    let mut hosts: Vec<HostView> = reply.nodes.iter().map(HostView::from).collect();
    hosts.sort_by_key(|host| view::natural(&host.name));
    Ok(hosts)
}

/// `faasnet tree`.
pub async fn tree(global: &Global, args: TreeArgs) -> Result<()> {
    let trees = trees(&mut global.connect().await?, &args.tenant.tenant, &args.function).await?;
    if global.json {
        return output::json(&trees);
    }
    let function = &trees.function;
    output::line(format!(
        "{}/{}  {}  {}  term {} epoch {}",
        function.tenant,
        function.function,
        function.policy,
        output::bytes(function.image_bytes),
        trees.term,
        trees.epoch
    ))?;
    if trees.nodes.is_empty() {
        return output::line(format!("no nodes; put some in with `faasnet provision {} --count N`", args.function));
    }
    output::line(drawing(&trees))
}

/// Asks for a function's trees.
pub async fn trees(control: &mut Control, tenant: &str, function: &str) -> Result<FunctionTrees> {
    let names = client::node_names(control).await?;
    let request = v1::GetTreeRequest { tenant: tenant.to_owned(), function: function.to_owned() };
    let reply = control.get_tree(request).await.map_err(client::explain)?.into_inner();
    Ok(FunctionTrees {
        function: reply.function.as_ref().map(FunctionView::from).unwrap_or_default(),
        term: reply.term,
        epoch: reply.epoch,
        trees: TreeView::all(&reply.trees, &names),
        nodes: NodeView::all(&reply.nodes, &names),
    })
}

/// All trees of a function, one below the other.
pub fn drawing(trees: &FunctionTrees) -> String {
    let nodes: HashMap<&str, &NodeView> = trees.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
    let label = |name: &str| match nodes.get(name) {
        Some(node) => format!("{name}  {}", state(node)),
        None => name.to_owned(),
    };
    let tree = |tree: &TreeView| format!("stripe {}\n{}", tree.stripe, tree.draw(label).join("\n"));
    trees.trees.iter().map(tree).collect::<Vec<_>>().join("\n")
}

fn state(node: &NodeView) -> String {
    let gone = if node.alive { "" } else { ", no sign of life" };
    match node.state.as_str() {
        "fetching" => format!("fetching {} %{gone}", node.percent()),
        "failed" => format!("failed: {}{gone}", output::one_line(&node.error)),
        state => format!("{state}{gone}"),
    }
}
