//! What the agents say about themselves, asked from inside their hosts: works without a controller.

use std::collections::HashMap;

use futures_util::future::join_all;

use super::cluster::{self, LabCluster};
use crate::view::NodeView;

/// The latest answers of all agents.
#[derive(Debug, Default)]
pub struct Watch {
    /// In the order of the hosts.
    pub nodes: Vec<NodeView>,
    names: HashMap<String, String>,
}

impl Watch {
    /// Before anything was assigned. Needs the controller, which knows the nodes' ids.
    pub async fn new(cluster: &LabCluster) -> anyhow::Result<Self> {
        let hosts = cluster.hosts().await?;
        let node = |host: &faasnet_lab::Host| NodeView {
            name: host.name.clone(),
            id: hosts.iter().find(|known| known.name == host.name).map(|known| known.id.clone()).unwrap_or_default(),
            state: "waiting".into(),
            alive: true,
            ..NodeView::default()
        };
        let names = hosts.iter().map(|host| (host.id.clone(), host.name.clone())).collect();
        Ok(Self { nodes: cluster.network.agents().iter().map(node).collect(), names })
    }

    /// Asks the agents with these numbers again; one that does not answer keeps its last answer.
    pub async fn look(&mut self, cluster: &LabCluster, which: impl Iterator<Item = usize>) {
        let ask = |index: usize| async move {
            (index, cluster::held(cluster.network.agents()[index].namespace.clone()).await)
        };
        for (index, held) in join_all(which.map(ask)).await {
            if let Some(held) = held {
                held.refresh(&mut self.nodes[index], &self.names);
            }
        }
    }
}
