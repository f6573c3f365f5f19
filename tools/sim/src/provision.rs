//! Who gets which function when, and the topologies that need no controller.

use faasnet_api::NodeId;
use faasnet_relay::plan::{StripePlan, Target};
use faasnet_tree::{FunctionTrees, Policy};

use crate::agenda::{MICROSECOND, MILLISECOND};
use crate::cluster::{Cluster, Event};
use crate::control::{Message, Order};
use crate::function::Assignment;
use crate::io::Directory;
use crate::network::Host;
use crate::plan::Topology;
use crate::random::Random;

impl Cluster {
    /// A wave of provisions: its share of the nodes of every function.
    pub(crate) fn provision(&mut self, wave: usize) {
        let waves = self.plan.waves.map_or(1, |(waves, _)| waves.max(1));
        self.provisions_left -= 1;
        for function in 0..self.specs.len() {
            let all = self.hosts_of(function);
            let share = all.len().div_ceil(waves);
            let hosts: Vec<Host> = all.into_iter().skip(wave * share).take(share).collect();
            for host in &hosts {
                self.wanted.insert((*host, function), self.net.now());
                if self.nodes[*host].process != crate::node::Process::Gone {
                    self.outstanding.insert((*host, function));
                }
            }
            match self.plan.topology {
                Topology::Trees(_) => {
                    let way = self.plan.latency_us * MICROSECOND;
                    self.net.agenda.after(way, Event::Hear(Message::Provision(function, hosts)));
                }
                _ => self.assign_fixed(function, hosts),
            }
        }
    }

    /// Functions are dealt out so that every node has nearly as many as any other.
    fn hosts_of(&self, function: usize) -> Vec<Host> {
        let (nodes, per_function) = (self.plan.nodes, self.plan.nodes_per_function.min(self.plan.nodes));
        (0..per_function).map(|place| (function * per_function + place) % nodes.max(1)).collect()
    }

    fn assign_fixed(&mut self, function: usize, mut hosts: Vec<Host>) {
        if let Topology::Layers(_) = self.plan.topology {
            Random::new(self.plan.seed + function as u64, "layer").shuffle(&mut hosts);
        }
        let plans = match self.plan.topology {
            Topology::Chain => self.chain(&hosts),
            Topology::Layers(_) => self.tree(&hosts),
            _ => hosts.iter().map(|_| plan(None, Vec::new()).named(&self.directory)).collect(),
        };
        for (host, plan) in hosts.into_iter().zip(plans) {
            let assignment = Assignment {
                version: (1, 1),
                ticket: Vec::new(),
                has_descriptor: plan.upstream == Target::Origin,
                stripes: vec![plan],
            };
            let order = Order::Assign(function, assignment);
            self.net.agenda.after(MILLISECOND, Event::Order { host, order });
        }
    }

    fn chain(&self, hosts: &[Host]) -> Vec<StripePlan> {
        let child = |place: usize| hosts.get(place + 1).map(|host| self.directory.id(*host)).into_iter().collect();
        let parent = |place: usize| place.checked_sub(1).map(|above| hosts[above]);
        (0..hosts.len()).map(|place| plan(parent(place), child(place)).named(&self.directory)).collect()
    }

    fn tree(&self, hosts: &[Host]) -> Vec<StripePlan> {
        let mut trees = FunctionTrees::new(Policy::Complete);
        for host in hosts {
            // Ignored: hosts are listed once.
            let _ = trees.insert(*host);
        }
        let plan_of = |host: &Host| {
            let children = trees.children(0, host).map(|child| self.directory.id(child)).collect();
            plan(trees.parent(0, host), children).named(&self.directory)
        };
        hosts.iter().map(plan_of).collect()
    }
}

/// A plan whose parent has no name yet.
struct Unnamed {
    parent: Option<Host>,
    children: Vec<NodeId>,
}

impl Unnamed {
    fn named(self, directory: &Directory) -> StripePlan {
        let upstream =
            self.parent.map_or(Target::Origin, |host| Target::Node(directory.id(host), Directory::address(host)));
        StripePlan { upstream, fallbacks: Vec::new(), children: self.children }
    }
}

fn plan(parent: Option<Host>, children: Vec<NodeId>) -> Unnamed {
    Unnamed { parent, children }
}
