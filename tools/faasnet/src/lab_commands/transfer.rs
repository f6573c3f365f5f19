//! The transfer of one run: provisions, watches counters and agents, disturbs, until everybody who should holds the image.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use faasnet_api::v1;
use faasnet_lab::sampler::Sampler;

use super::cluster::{FUNCTION, LabCluster, TENANT};
use super::experiment::FIRST_AGENT;
use super::injector::{Injector, Moment};
use super::plan::Plan;
use super::watch::Watch;
use crate::client::{self, Control};
use crate::nodes;
use crate::view::TreeView;

/// Between two looks at the moment, at the agents, at the trees.
const TICK: Duration = Duration::from_millis(20);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const TREES_EVERY: Duration = Duration::from_millis(500);

/// A transfer under way.
pub struct Transfer {
    /// What the agents say.
    pub watch: Watch,
    /// What the interfaces say.
    pub sampler: Sampler,
    /// Each agent's processes, in their order: a restarted agent is a new one.
    pub pids: BTreeMap<usize, Vec<u32>>,
    /// The disturbances.
    pub injector: Injector,
    /// The trees as last heard of.
    pub trees: Vec<TreeView>,
    image_bytes: u64,
}

impl Transfer {
    /// Before anything was provisioned.
    pub async fn new(cluster: &LabCluster, plan: &Plan, image_bytes: u64) -> Result<Self> {
        let mut watch = Watch::new(cluster).await?;
        let sampler = Sampler::start(&cluster.network)?;
        watch.begin();
        let (pids, injector) = (BTreeMap::new(), Injector::new(plan));
        let mut transfer = Self { watch, sampler, pids, injector, trees: Vec::new(), image_bytes };
        transfer.note_processes(cluster);
        Ok(transfer)
    }

    /// Until every node that is expected to hold the image does, and nothing is left to disturb; false when `deadline` came first.
    pub async fn run(&mut self, cluster: &mut LabCluster, plan: &Plan, deadline: Instant) -> Result<bool> {
        let (mut looked, mut asked) = (Instant::now(), Instant::now());
        let mut joined = plan.early_hosts() == plan.hosts;
        while Instant::now() < deadline {
            self.disturb(cluster, plan.hosts).await;
            if self.injector.joins_due && !joined {
                joined = true;
                let mut control = cluster.control().await?;
                let asked = Instant::now();
                self.trees = provision(&mut control, cluster, plan.early_hosts()..plan.hosts).await?;
                self.injector.note_joins(asked.elapsed());
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                let complete = self.look(cluster).await && joined;
                if self.injector.is_done(complete) && complete {
                    return Ok(true);
                }
            }
            if asked.elapsed() >= TREES_EVERY && cluster.controller.is_some() {
                asked = Instant::now();
                if let Some(trees) = fresh_trees(cluster).await {
                    self.trees = trees;
                }
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(false)
    }

    async fn disturb(&mut self, cluster: &mut LabCluster, hosts: usize) {
        let held: Vec<u8> = (0..hosts).map(|node| self.percent(node)).collect();
        let moment = Moment { seconds: self.sampler.seconds(), held_percent: &held, trees: &self.trees };
        cluster.bury().into_iter().for_each(|node| self.injector.lose(node));
        self.injector.tick(cluster, &moment).await;
        self.note_processes(cluster);
    }

    /// Asks those that are not complete; whether all that should be are.
    async fn look(&mut self, cluster: &LabCluster) -> bool {
        let open = |node: &usize| !self.injector.silent[*node] && !self.watch.nodes[*node].is_complete();
        let open: Vec<usize> = (0..self.watch.nodes.len()).filter(open).collect();
        self.watch.look(cluster, open.into_iter()).await;
        let is_fine = |(node, expected): (usize, &bool)| !expected || self.watch.nodes[node].is_complete();
        self.injector.expected.iter().enumerate().all(is_fine)
    }

    /// Percent of the image that has reached the host, by its interface's counter: the daemons are not asked.
    fn percent(&self, node: usize) -> u8 {
        (self.sampler.received(FIRST_AGENT + node) * 100 / self.image_bytes.max(1)).min(100) as u8
    }

    fn note_processes(&mut self, cluster: &LabCluster) {
        for (index, pid) in cluster.pids() {
            let known = self.pids.entry(index).or_default();
            if !known.contains(&pid) {
                known.push(pid);
                self.sampler.watch(pid);
            }
        }
    }
}

/// Asks for the nodes in `which` and returns the trees that follow; the agents report the rest.
pub async fn provision(
    control: &mut Control,
    cluster: &LabCluster,
    which: impl Iterator<Item = usize>,
) -> Result<Vec<TreeView>> {
    let nodes = which.map(|index| cluster.network.agents()[index].name.clone()).collect();
    let request = v1::ProvisionRequest { tenant: TENANT.into(), function: FUNCTION.into(), count: 0, nodes };
    // The first answer means that the nodes are in the trees; progress is asked of the agents themselves.
    drop(control.provision(request).await.map_err(client::explain)?);
    Ok(nodes::trees(control, TENANT, FUNCTION).await?.trees)
}

/// The trees now, if the controller answers.
pub async fn fresh_trees(cluster: &LabCluster) -> Option<Vec<TreeView>> {
    let ask = async { nodes::trees(&mut cluster.control().await?, TENANT, FUNCTION).await };
    // A stopped controller does not answer; the last trees are good enough then.
    tokio::time::timeout(TREES_EVERY, ask).await.ok()?.ok().map(|trees| trees.trees)
}

/// Asks once more until what was received from nodes has been counted as sent by one, or two seconds are over.
pub async fn settle(cluster: &LabCluster, watch: &mut Watch) {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        watch.look(cluster, cluster.pids().into_iter().map(|(node, _)| node)).await;
        let upstreams = watch.nodes.iter().flat_map(|node| &node.upstreams);
        let received: u64 = upstreams.filter(|upstream| !upstream.is_origin()).map(|upstream| upstream.bytes).sum();
        let sent: u64 = watch.nodes.iter().map(|node| node.bytes_live + node.bytes_from_store).sum();
        if sent >= received || Instant::now() > deadline {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
