//! What the agents say about themselves, asked from inside their hosts: works without a controller.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use super::cluster::{self, LabCluster};
use crate::admin::HeldStall;
use crate::view::NodeView;

/// The latest answers of all agents. Seconds count from when the watch began, for all alike: an agent itself counts from its own assignment,
/// and from its restart when it was restarted.
#[derive(Debug)]
pub struct Watch {
    /// In the order of the hosts.
    pub nodes: Vec<NodeView>,
    /// Per host, the longest stall of each stripe.
    pub stalls: Vec<Vec<StripeStall>>,
    began: SystemTime,
    names: HashMap<String, String>,
}

/// The longest time in which one stripe of a node got nothing new, between its first block and its last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StripeStall {
    /// Which stripe.
    pub stripe: usize,
    /// When it began, since the start of provisioning.
    pub at: f64,
    /// How long it lasted.
    pub seconds: f64,
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
        let nodes: Vec<_> = cluster.network.agents().iter().map(node).collect();
        Ok(Self { stalls: vec![Vec::new(); nodes.len()], nodes, began: SystemTime::now(), names })
    }

    /// Seconds count from now.
    pub fn begin(&mut self) {
        self.began = SystemTime::now();
    }

    /// Asks the agents with these numbers again; one that does not answer keeps its last answer.
    pub async fn look(&mut self, cluster: &LabCluster, which: impl Iterator<Item = usize>) {
        let ask = |index: usize| async move {
            (index, cluster::held(cluster.network.agents()[index].namespace.clone()).await)
        };
        for (index, held) in join_all(which.map(ask)).await {
            let Some(held) = held else { continue };
            let node = &mut self.nodes[index];
            let done = node.is_complete().then_some(node.seconds);
            let assigned = assigned_after(self.began, held.assigned_at_us);
            merge(&mut self.stalls[index], &held.stalls, assigned);
            held.refresh(node, &self.names);
            // Who was complete once was done then, also if it was restarted since.
            node.seconds = match done.filter(|_| node.is_complete()) {
                Some(seconds) => seconds,
                None => assigned + node.seconds,
            };
        }
    }
}

/// When an agent got its (latest first) assignment, in seconds after `began`.
fn assigned_after(began: SystemTime, assigned_at_us: u64) -> f64 {
    let began = began.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
    match assigned_at_us {
        // Its worker has said nothing yet.
        0 => 0.0,
        // The host's clock has no reason to go back, but may.
        at => at.saturating_sub(began) as f64 / 1e6,
    }
}

/// Takes over what is longer: an agent that was restarted knows nothing of its stalls before.
fn merge(known: &mut Vec<StripeStall>, told: &[HeldStall], assigned: f64) {
    for stall in told {
        let fresh = StripeStall {
            stripe: stall.stripe,
            at: assigned + stall.from_us as f64 / 1e6,
            seconds: stall.longest_us as f64 / 1e6,
        };
        match known.iter_mut().find(|known| known.stripe == fresh.stripe) {
            Some(known) if known.seconds >= fresh.seconds => {}
            Some(known) => *known = fresh,
            None => known.push(fresh),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Catches a restarted agent whose time begins at its restart.
    #[test]
    fn all_nodes_have_one_clock() {
        let began = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let at = |seconds: f64| 1_700_000_000_000_000 + (seconds * 1e6) as u64;
        assert_eq!(assigned_after(began, at(0.25)), 0.25);
        assert_eq!(assigned_after(began, at(4.5)), 4.5);
        assert_eq!((assigned_after(began, 0), assigned_after(began, 5)), (0.0, 0.0));
    }

    /// Catches a stall in one tree that hides behind the other tree, or is forgotten with a restart.
    #[test]
    fn each_stripe_keeps_its_longest_stall() {
        let told = |stripe, from_us, longest_us| HeldStall { stripe, from_us, longest_us };
        let mut known = Vec::new();
        merge(&mut known, &[told(0, 1_000_000, 40_000), told(1, 2_000_000, 700_000)], 0.5);
        merge(&mut known, &[told(0, 1_000_000, 50_000), told(1, 0, 0)], 4.0);
        assert_eq!(known.len(), 2);
        assert_eq!(known[1], StripeStall { stripe: 1, at: 2.5, seconds: 0.7 });
        assert_eq!((known[0].at, known[0].seconds), (5.0, 0.05));
    }
}
