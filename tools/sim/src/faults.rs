//! What goes wrong in a run, and when: chosen by the seed before it begins, so that nothing in the run can change it.

use faasnet_relay::plan::{StripePlan, Target, acquaintances};

use crate::agenda::{MICROSECOND, MILLISECOND, SECOND, Time};
use crate::cluster::{Cluster, Event, FIRST_PROVISION};
use crate::control::Message;
use crate::io::Directory;
use crate::network::{Host, NetEvent};
use crate::node::Process;
use crate::random::Random;

/// Something that goes wrong, or right again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// The process ends; its kernel says so to everybody.
    Kill(Host),
    /// The host ends; nobody is told.
    PowerOff(Host),
    Restart(Host),
    StandStill(Host),
    GoOn(Host),
    ControllerGoes,
    ControllerComes,
    OriginGoes,
    OriginComes,
    /// A ring of so many nodes attach to each other at the same moment.
    Cross(usize),
    /// Everybody whom a node would turn to dies at once.
    Orphan,
}

/// After the last fault the run goes on for so long, so that what it broke can show.
const AFTERMATH: Time = 4 * SECOND;

impl Cluster {
    pub(crate) fn schedule_faults(&mut self) {
        let faults = self.plan.faults;
        let mut random = Random::new(self.plan.seed, "faults");
        let horizon = (self.plan.bound_seconds() * SECOND as f64) as u64 + SECOND / 10;
        let when = |random: &mut Random| FIRST_PROVISION + random.below(horizon);
        let share = |share: f64| (self.plan.nodes as f64 * share).round() as usize;
        let mut hosts: Vec<Host> = (0..self.plan.nodes).collect();
        random.shuffle(&mut hosts);
        // One node is spared: somebody has to be there to be provisioned.
        hosts.pop();
        let mut victims = hosts.into_iter();
        let mut planned = Vec::new();
        for host in victims.by_ref().take(share(faults.deaths)) {
            let death = if random.chance(0.5) { Fault::Kill(host) } else { Fault::PowerOff(host) };
            planned.push((when(&mut random), death));
        }
        for host in victims.by_ref().take(share(faults.restarts)) {
            let at = when(&mut random);
            let death = if random.chance(0.7) { Fault::Kill(host) } else { Fault::PowerOff(host) };
            planned.push((at, death));
            planned.push((at + random.between(100, 3_000) * MILLISECOND, Fault::Restart(host)));
        }
        for host in victims.take(share(faults.stops)) {
            let at = when(&mut random);
            planned.push((at, Fault::StandStill(host)));
            planned.push((at + random.between(100, 6_000) * MILLISECOND, Fault::GoOn(host)));
        }
        for _ in 0..faults.crossings {
            planned.push((when(&mut random), Fault::Cross(random.between(2, 4) as usize)));
        }
        for _ in 0..faults.orphans {
            planned.push((when(&mut random), Fault::Orphan));
        }
        let absences = [
            (faults.controller_away, Fault::ControllerGoes, Fault::ControllerComes),
            (faults.origin_away, Fault::OriginGoes, Fault::OriginComes),
        ];
        for (away, goes, comes) in absences {
            if let Some((from, seconds)) = away {
                let at = FIRST_PROVISION + (from * SECOND as f64) as Time;
                planned.extend([(at, goes), (at + (seconds * SECOND as f64) as Time, comes)]);
            }
        }
        let last = planned.iter().map(|(at, _)| *at + AFTERMATH).max().unwrap_or(0);
        // A plain death needs no aftermath: whoever is hit by it is not complete yet.
        let only_deaths =
            planned.iter().all(|(_, fault)| matches!(fault, Fault::Kill(_) | Fault::PowerOff(_) | Fault::Orphan));
        self.settled_at = self.settled_at.max(if only_deaths { 0 } else { last });
        for (at, fault) in planned {
            self.net.agenda.at(at, Event::Fault(fault));
        }
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(host) => self.kill(host, false),
            Fault::PowerOff(host) => self.kill(host, true),
            Fault::Restart(host) => self.restart(host),
            Fault::StandStill(host) => {
                if self.nodes[host].is_running() {
                    self.nodes[host].process = Process::Standing;
                }
            }
            Fault::GoOn(host) => {
                if self.nodes[host].process == Process::Standing {
                    self.wake(host);
                }
            }
            Fault::ControllerGoes => {
                self.control.go();
                for host in 0..self.nodes.len() {
                    if self.nodes[host].session.is_some() {
                        self.lose_session(host);
                    }
                }
            }
            Fault::ControllerComes => {
                if let Err(error) = self.control.come(self.net.now()) {
                    self.tally.violate(format!("the controller cannot start again: {error:#}"));
                }
            }
            Fault::OriginGoes => self.feed.is_away = true,
            Fault::OriginComes => {
                self.feed.is_away = false;
                for conn in self.feed.conns() {
                    self.net.drained.push(conn);
                }
            }
            Fault::Cross(ring) => self.cross(ring),
            Fault::Orphan => self.orphan(),
        }
    }

    fn kill(&mut self, host: Host, power: bool) {
        if self.nodes[host].process == Process::Gone {
            return;
        }
        self.nodes[host].harmed = true;
        self.outstanding.retain(|(other, _)| *other != host);
        if power {
            self.net.cut(host);
        }
        for conn in self.net.conns_of(host) {
            if self.net.conn(conn).child.host == host {
                self.net.close_child(conn);
            }
            if self.net.conn(conn).parent == host {
                self.net.close_parent(conn);
            }
        }
        let session = self.nodes[host].session;
        self.nodes[host].die();
        if let Some(session) = session.filter(|_| !power) {
            let way = self.plan.latency_us * MICROSECOND;
            self.net.agenda.after(way, Event::Hear(Message::Detached(session)));
        }
    }

    /// The process comes back, on a host that has power again; connections that it does not know are reset.
    fn restart(&mut self, host: Host) {
        if self.nodes[host].process != Process::Gone {
            return;
        }
        if !self.net.has_power(host) {
            self.net.restore(host);
            for file in self.nodes[host].files.values_mut() {
                // After a crash of the host every marked block is hashed again; what was not written out is missing.
                file.marked = file.written.clone();
            }
            for conn in self.net.conns_forgotten_by(host) {
                let way = self.net.way(conn);
                self.net.agenda.after(way, NetEvent::ParentSees(conn).into());
                self.net.agenda.after(way, NetEvent::ChildSees(conn).into());
            }
        }
        for (function, file) in &self.nodes[host].files {
            let unwritten = file.marked.iter().find(|block| !file.written.contains(*block));
            if let Some(block) = unwritten {
                let text = format!("node {host}: block {} of function {function} is marked but not on disk", block.0);
                self.tally.violate(text);
            }
        }
        self.start_process(host, MILLISECOND);
        let wanted: Vec<_> = self.wanted.keys().copied().filter(|(other, _)| *other == host).collect();
        self.outstanding.extend(wanted);
    }

    /// Kills all neighbours of a node that its plan names, in every stripe.
    fn orphan(&mut self) {
        let mut hosts: Vec<Host> = (0..self.nodes.len()).filter(|host| self.nodes[*host].is_fetching(0)).collect();
        self.random.shuffle(&mut hosts);
        let plans = |host: &Host| self.nodes[*host].functions.get(&0).map(|function| function.plans.clone());
        let orphan = hosts.iter().filter_map(plans).find(|plans| !plans.iter().any(StripePlan::names_origin));
        for target in acquaintances(&orphan.unwrap_or_default(), usize::MAX) {
            if let Target::Node(id, _) = target
                && let Some(host) = self.directory.host(id)
            {
                self.kill(host, false);
            }
        }
    }

    /// Tells nodes that stand next to each other in a random ring to receive one from the next.
    fn cross(&mut self, ring: usize) {
        let mut hosts: Vec<Host> = (0..self.nodes.len()).filter(|host| self.nodes[*host].is_fetching(0)).collect();
        self.random.shuffle(&mut hosts);
        hosts.truncate(ring);
        let Some(first) = hosts.first() else { return };
        let stripes = self.nodes[*first].functions.get(&0).map_or(1, |function| function.plans.len());
        let stripe = self.random.below(stripes as u64) as usize;
        let reads_origin =
            |host: &Host| self.nodes[*host].plan_of(0, stripe).is_none_or(|plan| plan.upstream == Target::Origin);
        if hosts.len() < 2 || hosts.iter().any(reads_origin) {
            return;
        }
        for (index, host) in hosts.iter().enumerate() {
            let next = hosts[(index + 1) % hosts.len()];
            let upstream = Target::Node(self.directory.id(next), Directory::address(next));
            let Some(plan) = self.nodes[*host].plan_of(0, stripe).cloned() else { continue };
            let fallbacks = std::iter::once(plan.upstream).chain(plan.fallbacks).collect();
            let crossed = StripePlan { upstream, fallbacks, children: plan.children };
            self.on_node(*host, |parts, io| {
                if let Some(function) = parts.functions.get_mut(&0) {
                    function.cross(stripe, crossed, io);
                }
            });
        }
    }
}
