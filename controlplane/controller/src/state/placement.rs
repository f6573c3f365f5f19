//! Placement: which nodes can take one more function, and which of them do.
//!
//! A node without functions is in the free pool; with its first function it becomes its tenant's. Nodes are filled one after another: among
//! the tenant's own nodes the one that is left with the least memory, and a free one only when none of them has room.

use std::collections::BTreeMap;

use faasnet_api::{FunctionId, NodeId};

use super::State;
use super::function::Function;
use super::io::{Now, Refusal};
use super::node::Node;
use super::settings::Settings;

/// Why a node cannot take a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Obstacle {
    NotLive,
    Draining,
    Quarantined,
    OtherTenant,
    Full,
    Memory,
}

/// What a function, or one that does not exist yet, asks of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need<'a> {
    pub(super) tenant: &'a str,
    pub(super) name: &'a str,
    pub(super) memory_mib: u32,
}

impl Function {
    fn need(&self) -> Need<'_> {
        Need { tenant: &self.tenant, name: &self.name, memory_mib: self.memory_mib }
    }
}

impl Node {
    /// It holds a function now; its first makes it the tenant's.
    pub(super) fn occupy(&mut self, id: FunctionId, tenant: &str, memory_mib: u32) {
        if self.functions.insert(id) {
            self.memory_used_mib += u64::from(memory_mib);
            self.tenant.get_or_insert_with(|| tenant.into());
        }
    }

    /// It holds a function no more; without any it is in the free pool.
    pub(super) fn vacate(&mut self, id: FunctionId, memory_mib: u32) {
        if self.functions.remove(&id) {
            self.memory_used_mib = self.memory_used_mib.saturating_sub(memory_mib.into());
        }
        if self.functions.is_empty() {
            self.tenant = None;
        }
    }

    /// What is left for functions; a node that does not know its memory has any amount.
    fn memory_left_mib(&self, settings: &Settings) -> u64 {
        match self.memory_mib {
            0 => u64::MAX,
            memory => {
                (memory.saturating_mul(settings.memory_percent.into()) / 100).saturating_sub(self.memory_used_mib)
            }
        }
    }

    /// What keeps it from taking one more function, its liveness aside.
    fn obstacle(&self, need: &Need<'_>, settings: &Settings) -> Option<Obstacle> {
        if self.draining {
            return Some(Obstacle::Draining);
        }
        if !self.is_trusted() {
            return Some(Obstacle::Quarantined);
        }
        if self.tenant.as_ref().is_some_and(|tenant| tenant != need.tenant) {
            return Some(Obstacle::OtherTenant);
        }
        if self.functions.len() >= settings.functions_per_node as usize {
            return Some(Obstacle::Full);
        }
        (self.memory_left_mib(settings) < need.memory_mib.into()).then_some(Obstacle::Memory)
    }
}

impl State {
    /// Whether `node` can take one more function; a dead one can be meant too.
    pub(super) fn check_room(&self, id: FunctionId, node: NodeId) -> Result<(), Refusal> {
        let (Some(known), Some(function)) = (self.nodes.get(&node), self.functions.get(&id)) else { return Ok(()) };
        if known.functions.contains(&id) && function.stays(&node) && known.is_trusted() {
            return Ok(());
        }
        self.check_need(known, &function.need())
    }

    /// The same for a function that it does not hold.
    pub(super) fn check_need(&self, known: &Node, need: &Need<'_>) -> Result<(), Refusal> {
        let Some(obstacle) = known.obstacle(need, &self.settings) else { return Ok(()) };
        let limit = self.settings.functions_per_node;
        let name = &known.name;
        Err(Refusal::precondition(match obstacle {
            Obstacle::Draining => {
                format!("node {name} is being drained; a drain of it with undo lets it take functions again")
            }
            Obstacle::Quarantined => format!(
                "node {name} is in quarantine ({}); a drain of it with undo trusts it again",
                known.blame.quarantine.as_deref().unwrap_or_default()
            ),
            Obstacle::OtherTenant => format!(
                "node {name} holds functions of tenant {:?}, and a node is one tenant's only; release those first or take another node",
                known.tenant.as_deref().unwrap_or_default()
            ),
            Obstacle::Memory => format!(
                "node {name} has {} MiB left of {} % of its {} MiB (memory_percent), and {} needs {} MiB; release another function first",
                known.memory_left_mib(&self.settings),
                self.settings.memory_percent,
                known.memory_mib,
                need.name,
                need.memory_mib
            ),
            Obstacle::Full | Obstacle::NotLive => format!(
                "node {name} holds {limit} functions, which is the limit (functions_per_node); release one of them first"
            ),
        }))
    }

    /// Brings a function that is provisioned by number to `count` members that are there. Those that are added stand in for lost ones,
    /// which are forgotten. `strict`: refuse, changing nothing, when there are not enough nodes; else take what there is.
    pub(super) fn place(&mut self, now: Now, id: FunctionId, count: u32, strict: bool) -> Result<Vec<NodeId>, Refusal> {
        let Some(function) = self.functions.get(&id) else { return Ok(Vec::new()) };
        let (serving, lost) = self.split_members(function);
        let missing = (count as usize).saturating_sub(serving);
        if missing == 0 {
            return Ok(Vec::new());
        }
        // Who is about to go has the image: taking it back moves nothing.
        let mut returning: Vec<NodeId> = self.can_return(function).collect();
        let short = missing.saturating_sub(returning.len());
        returning.truncate(missing);
        let mut obstacles: BTreeMap<Obstacle, usize> = BTreeMap::new();
        let (mut fitting, need) = (Vec::new(), function.need());
        for node in self.nodes.values().filter(|node| !function.wanted.contains_key(&node.id)) {
            let obstacle = if node.is_live() { node.obstacle(&need, &self.settings) } else { Some(Obstacle::NotLive) };
            match obstacle {
                Some(obstacle) => *obstacles.entry(obstacle).or_default() += 1,
                None => fitting.push((rank(node, &self.settings), node.id)),
            }
        }
        if strict && fitting.len() < short {
            return Err(self.no_capacity(function, count, serving + returning.len(), fitting.len(), &obstacles));
        }
        if fitting.len() > short {
            fitting.select_nth_unstable(short);
            fitting.truncate(short);
        }
        // So that the same state gives the same trees.
        fitting.sort_unstable();
        let added: Vec<NodeId> = returning.into_iter().chain(fitting.into_iter().map(|(_, node)| node)).collect();
        let replaced: Vec<NodeId> = lost.into_iter().take(added.len()).collect();
        if !added.is_empty() {
            self.unwant(now, id, &replaced, false);
            self.want(now, id, &added);
        }
        Ok(added)
    }

    /// Members on their way out that could as well stay.
    fn can_return<'a>(&'a self, function: &'a Function) -> impl Iterator<Item = NodeId> + 'a {
        let leaving = function.wanted.iter().filter(|(_, member)| member.leaving.is_some() && !member.failed);
        let usable =
            |id: &NodeId| self.nodes.get(id).is_some_and(|node| node.is_live() && node.is_trusted() && !node.draining);
        leaving.map(|(id, _)| *id).filter(usable)
    }

    /// How many members serve, and which are lost: dead or in quarantine. One where the image failed counts as there: an image that fails
    /// everywhere shall not be tried on every node of the cluster. One that is leaving is neither.
    pub(super) fn split_members(&self, function: &Function) -> (usize, Vec<NodeId>) {
        let (mut serving, mut lost) = (0, Vec::new());
        for (id, member) in function.wanted.iter().filter(|(_, member)| member.leaving.is_none()) {
            match self.nodes.get(id).is_some_and(|node| !node.is_dead() && node.is_trusted()) {
                true => serving += 1,
                false if member.leaving.is_none() => lost.push(*id),
                false => {}
            }
        }
        (serving, lost)
    }

    /// Closes the gap between the number of members asked for and the number there is.
    pub(super) fn reconcile(&mut self, now: Now) {
        let counted: Vec<(FunctionId, u32)> =
            self.functions.values().filter_map(|function| Some((function.id, function.count?))).collect();
        for (id, count) in counted {
            // Only strict placement refuses.
            let added = self.place(now, id, count, false).unwrap_or_default();
            self.widen_watches(id, &added);
        }
    }

    fn no_capacity(
        &self,
        function: &Function,
        count: u32,
        serving: usize,
        fitting: usize,
        obstacles: &BTreeMap<Obstacle, usize>,
    ) -> Refusal {
        let settings = &self.settings;
        let why = |(obstacle, nodes): (&Obstacle, &usize)| match obstacle {
            Obstacle::NotLive => format!("{nodes} are not live"),
            Obstacle::Draining => format!("{nodes} are being drained"),
            Obstacle::Quarantined => format!("{nodes} are in quarantine"),
            Obstacle::OtherTenant => format!("{nodes} hold functions of other tenants"),
            Obstacle::Full => {
                format!("{nodes} hold {} functions already (functions_per_node)", settings.functions_per_node)
            }
            Obstacle::Memory => format!(
                "{nodes} have less than {} MiB left (memory_percent = {})",
                function.memory_mib, settings.memory_percent
            ),
        };
        let why: Vec<String> = obstacles.iter().map(why).collect();
        let others =
            if why.is_empty() { "there are no others".into() } else { format!("of the others {}", why.join(", ")) };
        let asked = if count == 1 { "1 node is".into() } else { format!("{count} nodes are") };
        let next = match serving + fitting {
            0 => "Start more agents or release other functions".into(),
            most => format!("Start more agents, release other functions or ask for at most {most}"),
        };
        Refusal::precondition(format!(
            "{asked} asked for; {serving} have the function already and {fitting} more have room for it; {others}. {next}"
        ))
    }
}

/// Lower is taken first: the tenant's own nodes, the fullest of them in front.
fn rank(node: &Node, settings: &Settings) -> (bool, u64, std::cmp::Reverse<usize>) {
    (node.functions.is_empty(), node.memory_left_mib(settings), std::cmp::Reverse(node.functions.len()))
}
