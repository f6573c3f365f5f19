//! User names and passwords of private registries, by tenant: kept for the nodes that read those registries for a function of that tenant.
//!
//! They leave by `Assign` and `ReadImage` only, on streams of agents that proved who they are, never to a client, and never for a registry that
//! is read over plain HTTP, unless that is each node's own host. Pure.

use std::collections::BTreeMap;

use faasnet_api::{FunctionId, NodeId, v1};
use faasnet_origin::{Credentials, Reference, may_carry_password, registry_key};

use super::State;
use super::function::Function;
use super::io::{Answer, NewSecret, Now, Output, Refusal};
use super::names::tenant_name;
use super::records::{Key, RestoreError, decode, encode};

/// The longest host name, with a port.
const REGISTRY_BYTES_MAX: usize = 260;
/// The longest user name, and the longest password; tokens that stand for one are a few KiB.
const SECRET_BYTES_MAX: usize = 16 << 10;

/// By tenant and registry, in the spelling of [`registry_key`].
#[derive(Default)]
pub(super) struct Secrets(BTreeMap<(String, String), Credentials>);

/// One as it is stored.
type Record = (String, String, String, String);

impl Secrets {
    pub(super) fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        let records: Vec<Record> = decode(Key::Secrets, bytes)?;
        let secret = |(tenant, registry, username, password)| ((tenant, registry), Credentials { username, password });
        Ok(Self(records.into_iter().map(secret).collect()))
    }

    /// `None`: there is nothing to keep.
    pub(super) fn record(&self) -> Option<Vec<u8>> {
        let record = |((tenant, registry), credentials): (&(String, String), &Credentials)| {
            (tenant.clone(), registry.clone(), credentials.username.clone(), credentials.password.clone())
        };
        let records: Vec<Record> = self.0.iter().map(record).collect();
        (!records.is_empty()).then(|| encode(&records))
    }

    /// What a tenant's nodes are told of a registry.
    pub(super) fn of(&self, tenant: &str, registry: &str) -> Option<&Credentials> {
        self.0.get(&(tenant.to_owned(), registry_key(registry)))
    }

    /// The same of the registry that an image comes from.
    pub(super) fn of_image(&self, tenant: &str, reference: &str) -> Option<&Credentials> {
        match Reference::parse(reference).ok()? {
            Reference::Registry(reference) => self.of(tenant, &reference.registry),
            Reference::Layout { .. } => None,
        }
    }
}

impl State {
    pub(super) fn set_secret(&mut self, now: Now, new: NewSecret) -> Result<Answer, Refusal> {
        let (tenant, registry) = names(&new.tenant, &new.registry)?;
        let Credentials { username, password } = &new.credentials;
        if username.is_empty() || password.is_empty() || username.len().max(password.len()) > SECRET_BYTES_MAX {
            return Err(Refusal::invalid(format!(
                "a user name and a password have 1 to {SECRET_BYTES_MAX} bytes; give the password on standard input"
            )));
        }
        self.secrets.0.insert((tenant.clone(), registry.clone()), new.credentials);
        self.secret_changed(now, &tenant, &registry);
        Ok(Answer::Removed)
    }

    pub(super) fn remove_secret(&mut self, now: Now, tenant: &str, registry: &str) -> Result<Answer, Refusal> {
        let (tenant, registry) = names(tenant, registry)?;
        if self.secrets.0.remove(&(tenant.clone(), registry.clone())).is_none() {
            return Err(Refusal::not_found(format!(
                "tenant {tenant:?} has no secret of {registry:?}; `faasnet secret list` shows what there is"
            )));
        }
        self.secret_changed(now, &tenant, &registry);
        Ok(Answer::Removed)
    }

    pub(super) fn list_secrets(&self) -> Answer {
        let info = |((tenant, registry), credentials): (&(String, String), &Credentials)| v1::SecretInfo {
            tenant: tenant.clone(),
            registry: registry.clone(),
            username: credentials.username.clone(),
        };
        Answer::Secrets(v1::ListSecretsReply { secrets: self.secrets.0.iter().map(info).collect() })
    }

    /// What a node is told with its assignment: only one that may read the origin needs it.
    pub(super) fn login_for(&self, id: FunctionId, node: &NodeId) -> Option<v1::Login> {
        let reads = |function: &&Function| function.reads_origin(node) && may_carry_password(&function.registry);
        let function = self.functions.get(&id).filter(reads)?;
        let Credentials { username, password } = self.secrets.of(&function.tenant, &function.registry)?.clone();
        Some(v1::Login { username, password })
    }

    /// Says it once, where a password is kept that nodes are not told.
    pub(super) fn note_withheld(&mut self, id: FunctionId) {
        let Some(function) = self.functions.get(&id) else { return };
        let kept = self.secrets.of(&function.tenant, &function.registry).is_some();
        if kept && !may_carry_password(&function.registry) {
            self.note(format!(
                "function {}/{} is read from {}: nodes are not told the password that is kept of it, since it does not go over plain HTTP",
                function.tenant, function.name, function.registry
            ));
        }
    }

    /// Whoever was told of it, or should have been, is told anew; also who is on its way out. Where the image failed it is tried again.
    fn secret_changed(&mut self, now: Now, tenant: &str, registry: &str) {
        self.emit(Output::Store(Key::Secrets));
        let of_it = |function: &&Function| function.tenant == tenant && registry_key(&function.registry) == registry;
        let concerned: Vec<FunctionId> = self.functions.values().filter(of_it).map(|function| function.id).collect();
        concerned.iter().for_each(|id| self.note_withheld(*id));
        for id in concerned {
            let Some(function) = self.functions.get(&id) else { continue };
            let (placed, others): (Vec<NodeId>, Vec<NodeId>) =
                function.wanted.keys().partition(|node| function.has_place(node));
            // It may be for want of the right password.
            let failed = |node: &NodeId| function.wanted.get(node).is_some_and(|member| member.failed);
            let (failed, others): (Vec<NodeId>, Vec<NodeId>) = others.into_iter().partition(failed);
            placed.into_iter().for_each(|node| self.send_assign(now, id, node, true));
            others.into_iter().for_each(|node| self.repeat_assign(now, id, node));
            if !failed.is_empty() {
                self.want(now, id, &failed);
            }
        }
    }
}

fn names(tenant: &str, registry: &str) -> Result<(String, String), Refusal> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let key = registry_key(registry.trim());
    if key.is_empty() || key.len() > REGISTRY_BYTES_MAX || !key.bytes().all(plain) {
        return Err(Refusal::invalid(format!(
            "{registry:?} is not a registry; write its host, and its port if it is not the usual one, as in references: registry.example:5000"
        )));
    }
    Ok((tenant_name(tenant)?, key))
}
