//! What clients ask for.

use std::collections::BTreeSet;

use faasnet_api::{FunctionId, NodeId, v1};
use faasnet_tree::{FunctionTrees, Policy};

use super::State;
use super::function::{Function, registry_of};
use super::io::{Answer, Ask, NewFunction, Now, Output, Refusal, RequestId};
use super::names::function_name;
use super::records::Key;

/// How many names an error message lists.
const NAMES_LISTED: usize = 20;

impl State {
    pub(super) fn asked(&mut self, now: Now, request: RequestId, ask: Ask) {
        let answer = match ask {
            Ask::Create(new) => {
                let holder = new.holder.map(|session| (FunctionId::new(&new.tenant, &new.name), session));
                let created = self.create(*new).map(Answer::Created);
                if let (Ok(_), Some((id, session))) = (&created, holder) {
                    self.hold(now, id, session);
                }
                created
            }
            Ask::Remove(remove) => self.remove(now, &remove).map(|()| Answer::Removed),
            Ask::Update(new) => self.update(now, &new).map(Answer::Created),
            Ask::FindImage { session, reference } => Ok(Answer::Image(self.find_image(session, &reference))),
            Ask::GetFunction(get) => self.function(&get).map(Answer::Function),
            Ask::ListFunctions => Ok(Answer::Functions(self.functions.values().map(Function::info).collect())),
            Ask::Provision(provision) => match self.provision(now, request, &provision) {
                // Answered by progress.
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Ask::Scale(scale) => match self.scale(now, request, &scale) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Ask::Drain(drain) => match self.drain(now, request, &drain) {
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Ask::Release(release) => self.release(now, &release).map(Answer::Released),
            Ask::SetSecret(new) => self.set_secret(now, *new),
            Ask::RemoveSecret { tenant, registry } => self.remove_secret(now, &tenant, &registry),
            Ask::ListSecrets => Ok(self.list_secrets()),
            Ask::FindLogin { tenant, reference } => {
                Ok(Answer::Login(self.secrets.of_image(&tenant, &reference).cloned()))
            }
            Ask::ListKeys => Ok(self.list_keys()),
            Ask::RotateKeys { seed } => self.rotate_keys(now, seed),
            Ask::RevokeKey { key_id, seed } => self.revoke_key(now, &key_id, seed),
            Ask::GetTree(get) => self.tree(&get).map(Answer::Tree),
            Ask::Count => Ok(Answer::Counts(self.counts())),
            Ask::GetTerm => Ok(Answer::Term(self.term)),
            Ask::ListNodes => Ok(Answer::Nodes(v1::ListNodesReply {
                nodes: self.nodes.values().map(|node| node.info(now)).collect(),
                term: self.term,
            })),
        };
        self.emit(Output::Answer { request, answer });
    }

    pub(super) fn find_function(&self, tenant: &str, name: &str) -> Result<FunctionId, Refusal> {
        let id = FunctionId::new(tenant, name);
        if self.functions.contains_key(&id) {
            return Ok(id);
        }
        let names = self.functions.values().filter(|function| function.tenant == tenant);
        let names = listed(names.map(|function| function.name.clone()).collect());
        Err(Refusal::not_found(format!("tenant {tenant:?} has no function {name:?}; it has: {names}")))
    }

    pub(super) fn named(&self, tenant: &str, function: &str) -> Result<FunctionId, Refusal> {
        let (tenant, function) = function_name(tenant, function)?;
        self.find_function(&tenant, &function)
    }

    fn create(&mut self, new: NewFunction) -> Result<v1::FunctionInfo, Refusal> {
        let id = FunctionId::new(&new.tenant, &new.name);
        let (policy, note) = match new.policy {
            Policy::Twin if !new.descriptor.origin().ranges() => (
                Policy::Complete,
                "policy complete instead of twin: the origin answers no range requests, so one root has to read it in order",
            ),
            asked => (asked, ""),
        };
        if let Some(function) = self.functions.get(&id) {
            if function.image == new.descriptor.id() {
                let (has, memory_mib) = (function.trees.policy(), function.memory_mib);
                if (has, memory_mib) == (policy, new.memory_mib) {
                    return Ok(function.info());
                }
                return Err(Refusal::already_exists(format!(
                    "function {:?} of tenant {:?} exists with policy {has} and {memory_mib} MiB; remove it first or use another name",
                    new.name, new.tenant
                )));
            }
            return Err(Refusal::already_exists(format!(
                "function {:?} of tenant {:?} exists with another image ({}, from {}); remove it first or use another name",
                new.name, new.tenant, function.image, function.reference
            )));
        }
        let function = Function {
            id,
            tenant: new.tenant,
            name: new.name,
            reference: new.descriptor.reference().into(),
            registry: registry_of(&new.descriptor),
            image: new.descriptor.id(),
            image_names: faasnet_origin::image_names(&new.descriptor),
            image_bytes: new.descriptor.geometry().image_bytes(),
            blobs: new.descriptor.entries().len() as u32,
            descriptor: new.descriptor.encode(),
            memory_mib: new.memory_mib,
            note: note.into(),
            count: None,
            wanted: Default::default(),
            trees: FunctionTrees::new(policy),
            // Agents that missed the end of a function of the same name hold its epochs.
            epoch: self.retired_epoch,
            riders: Default::default(),
            most_present: 0,
            moving_ms: None,
            leases: Default::default(),
            donors: vec![None; policy.stripes().into()],
            next: None,
        };
        let info = function.info();
        self.name_images(&function);
        self.functions.insert(id, function);
        for key in [Key::Descriptor(id), Key::Function(id), Key::Order(id)] {
            self.emit(Output::Store(key));
        }
        self.note_withheld(id);
        Ok(info)
    }

    fn remove(&mut self, now: Now, remove: &v1::RemoveFunctionRequest) -> Result<(), Refusal> {
        let id = self.named(&remove.tenant, &remove.function)?;
        self.fail_watches(id);
        if let Some(function) = self.functions.get_mut(&id) {
            function.count = None;
            // Emptied first: nobody needs a new plan on the way to none.
            function.trees = FunctionTrees::new(function.trees.policy());
            function.riders.clear();
            let members: Vec<NodeId> = function.wanted.keys().copied().collect();
            self.unwant(now, id, &members, false);
        }
        if let Some(function) = self.functions.remove(&id) {
            self.forget_images(id, &function.image_names);
            self.retired_epoch = self.retired_epoch.max(function.epoch);
        }
        for key in [Key::Descriptor(id), Key::NextDescriptor(id), Key::Function(id), Key::Order(id)] {
            self.emit(Output::Store(key));
        }
        Ok(())
    }

    fn provision(&mut self, now: Now, request: RequestId, provision: &v1::ProvisionRequest) -> Result<(), Refusal> {
        let id = self.named(&provision.tenant, &provision.function)?;
        let by_count = provision.nodes.is_empty();
        if !by_count {
            let nodes = self.resolve(&provision.nodes)?;
            nodes.iter().try_for_each(|node| self.check_room(id, *node))?;
            self.take_up_next(now, id, None);
            let list: Vec<NodeId> = nodes.iter().copied().collect();
            self.want(now, id, &list);
            self.watch(request, id, nodes, false);
            return Ok(());
        }
        if provision.count == 0 {
            return Err(Refusal::invalid("say on how many nodes (count) or on which (nodes) the function shall be"));
        }
        self.place(now, id, provision.count, true)?;
        self.take_up_next(now, id, None);
        let failed = |function: &Function| {
            let failed = function.wanted.iter().filter(|(_, member)| member.failed && member.leaving.is_none());
            failed.map(|(node, _)| *node).collect::<Vec<_>>()
        };
        if let Some(failed) = self.functions.get(&id).map(failed) {
            self.want(now, id, &failed);
        }
        if let Some(function) = self.functions.get_mut(&id) {
            function.count = Some(provision.count);
            let nodes = function.wanted.keys().copied().collect();
            self.emit(Output::Store(Key::Function(id)));
            self.watch(request, id, nodes, true);
        }
        Ok(())
    }

    fn release(&mut self, now: Now, release: &v1::ReleaseRequest) -> Result<u32, Refusal> {
        let id = self.named(&release.tenant, &release.function)?;
        let nodes = match release.nodes.is_empty() {
            true => {
                self.functions.get(&id).map(|function| function.wanted.keys().copied().collect()).unwrap_or_default()
            }
            false => self.resolve(&release.nodes)?,
        };
        let nodes: Vec<NodeId> = nodes.into_iter().collect();
        if let Some(function) = self.functions.get_mut(&id) {
            // What is released on purpose is not to be replaced.
            let released = nodes.iter().filter(|node| function.stays(node)).count() as u32;
            let left = function.count.map(|count| count.saturating_sub(released));
            function.count = left.filter(|left| *left > 0);
            self.emit(Output::Store(Key::Function(id)));
        }
        Ok(self.unwant(now, id, &nodes, release.discard))
    }

    fn function(&self, get: &v1::GetFunctionRequest) -> Result<v1::FunctionInfo, Refusal> {
        let id = self.named(&get.tenant, &get.function)?;
        self.functions.get(&id).map(Function::info).ok_or_else(|| Refusal::not_found("the function is gone"))
    }

    fn tree(&self, get: &v1::GetTreeRequest) -> Result<v1::GetTreeReply, Refusal> {
        let id = self.named(&get.tenant, &get.function)?;
        let Some(function) = self.functions.get(&id) else { return Err(Refusal::not_found("the function is gone")) };
        let edge = |edge: faasnet_tree::Edge<NodeId>| v1::TreeEdge {
            node_id: edge.node.to_vec(),
            parent: edge.parent.map(NodeId::to_vec).unwrap_or_default(),
        };
        let rider = move |stripe: u8| {
            move |rider: &NodeId| faasnet_tree::Edge { stripe, node: *rider, parent: function.parent(stripe, rider) }
        };
        let edges = |stripe: u8| function.trees.edges(stripe).chain(function.riders.keys().map(rider(stripe)));
        let stripes = 0..function.trees.stripes();
        Ok(v1::GetTreeReply {
            function: Some(function.info()),
            term: self.term,
            epoch: function.epoch,
            trees: stripes.map(|stripe| v1::Tree { edges: edges(stripe).map(edge).collect() }).collect(),
            nodes: function.wanted.keys().map(|node| self.node_progress(function, *node)).collect(),
        })
    }

    /// The nodes that names or hexadecimal ids mean.
    fn resolve(&self, names: &[String]) -> Result<BTreeSet<NodeId>, Refusal> {
        names.iter().map(|name| self.resolve_node(name)).collect()
    }

    /// The node that a name or a hexadecimal id means.
    pub(super) fn resolve_node(&self, name: &str) -> Result<NodeId, Refusal> {
        if let Some(id) = name.parse().ok().filter(|id| self.nodes.contains_key(id)) {
            return Ok(id);
        }
        let called = self.names.get(name).and_then(|id| self.nodes.get(id));
        if let Some(node) = called.filter(|node| node.name == name && !node.is_dead()) {
            return Ok(node.id);
        }
        let named: Vec<_> = self.nodes.values().filter(|node| node.name == name).collect();
        self.resolve_one(name, &named)
    }

    fn resolve_one(&self, name: &str, named: &[&super::node::Node]) -> Result<NodeId, Refusal> {
        // A host whose store was emptied comes back under the same name with a new id: the one that is there is meant.
        let there: Vec<_> = named.iter().filter(|node| !node.is_dead()).collect();
        match (named, there.as_slice()) {
            (_, [node]) => Ok(node.id),
            ([node], []) => Ok(node.id),
            ([], _) => {
                let known = listed(self.nodes.values().map(|node| node.name.clone()).collect());
                Err(Refusal::not_found(format!("no node is named {name:?}; known nodes: {known}")))
            }
            _ => {
                let ids = listed(named.iter().map(|node| node.id.to_string()).collect());
                Err(Refusal::invalid(format!("{} nodes are named {name:?}; use one of their ids: {ids}", named.len())))
            }
        }
    }
}

/// At most [`NAMES_LISTED`] names, sorted.
fn listed(mut names: Vec<String>) -> String {
    if names.is_empty() {
        return "none".into();
    }
    names.sort_unstable();
    let more = names.len().saturating_sub(NAMES_LISTED);
    names.truncate(NAMES_LISTED);
    let names = names.join(", ");
    if more == 0 { names } else { format!("{names} and {more} more") }
}
