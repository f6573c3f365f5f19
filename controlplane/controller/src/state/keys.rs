//! The keys that sign tickets, which node has which key, and the tickets themselves.
//!
//! LIFECYCLE of a key: next (told to all agents, so that nobody meets a ticket of a key that it does not know) → current (signs) → previous
//! (its tickets hold until the last of them expires) → gone. A revoked key is gone at once.

use faasnet_api::ticket::LIFETIME_SECONDS;
use faasnet_api::{
    Claims, FunctionId, KeyId, KeySet, NodeId, PublicKey, SigningKey, TenantId, Ticket, TicketKey, keys::MAX_KEYS, v1,
};
use serde::{Deserialize, Serialize};

use super::State;
use super::io::{Answer, Now, Output, Refusal};
use super::records::{Key, RestoreError, decode, encode};

/// How long a new key is only told before it signs: all agents that have a stream know it by then.
const PUBLISH_SECONDS: u64 = 3;
/// Beside the current and the next key.
const MAX_PREVIOUS: usize = MAX_KEYS - 2;
/// Bytes of a seed, as a store keeps it.
type Seed = [u8; 32];

#[derive(Debug)]
pub(super) struct Keyring {
    current: SigningKey,
    /// With the time (seconds since the Unix epoch) from which on it signs.
    next: Option<(SigningKey, u64)>,
    previous: Vec<TicketKey>,
}

#[derive(Serialize, Deserialize)]
struct KeyringRecord {
    current: Seed,
    next: Option<(Seed, u64)>,
    previous: Vec<([u8; 32], u64)>,
}

impl Keyring {
    pub(super) fn new(seed: Seed) -> Self {
        Self { current: SigningKey::from_seed(seed), next: None, previous: Vec::new() }
    }

    pub(super) fn restore(bytes: &[u8]) -> Result<Self, RestoreError> {
        let record: KeyringRecord = decode(Key::TicketKeys, bytes)?;
        let previous = record.previous.into_iter();
        Ok(Self {
            current: SigningKey::from_seed(record.current),
            next: record.next.map(|(seed, from)| (SigningKey::from_seed(seed), from)),
            previous: previous.map(|(key, valid_until)| TicketKey { public: PublicKey(key), valid_until }).collect(),
        })
    }

    pub(super) fn record(&self) -> Vec<u8> {
        encode(&KeyringRecord {
            current: *self.current.seed(),
            next: self.next.as_ref().map(|(key, from)| (*key.seed(), *from)),
            previous: self.previous.iter().map(|key| (key.public.0, key.valid_until)).collect(),
        })
    }

    /// Newest first, as agents are told them.
    fn keys(&self) -> impl Iterator<Item = TicketKey> + '_ {
        let in_use = self.next.iter().map(|(key, _)| key).chain([&self.current]);
        in_use.map(|key| TicketKey { public: key.public(), valid_until: u64::MAX }).chain(self.previous.iter().copied())
    }

    fn message(&self) -> v1::TicketKeys {
        let keys = self.keys().map(|key| v1::TicketKey {
            public_key: key.public.to_vec(),
            valid_until: if key.valid_until == u64::MAX { 0 } else { key.valid_until },
        });
        v1::TicketKeys { keys: keys.collect() }
    }

    fn rotate(&mut self, seed: Seed, now: u64) -> Result<(), Refusal> {
        if let Some((_, from)) = &self.next {
            return Err(Refusal::precondition(format!(
                "a rotation is under way already; the next key signs in {} s",
                from.saturating_sub(now)
            )));
        }
        if self.previous.len() >= MAX_PREVIOUS {
            return Err(Refusal::precondition(format!(
                "{MAX_PREVIOUS} previous keys still have valid tickets; wait until the oldest ends (`faasnet keys ls`) or revoke one"
            )));
        }
        self.next = Some((SigningKey::from_seed(seed), now + PUBLISH_SECONDS));
        Ok(())
    }

    /// Lets the next key sign when its time has come, and forgets keys whose tickets have all expired. Answers whether anything changed.
    fn advance(&mut self, now: u64) -> bool {
        let before = self.previous.len();
        self.previous.retain(|key| now <= key.valid_until);
        let due = self.next.take_if(|(_, from)| *from <= now);
        let promoted = due.is_some();
        if let Some((next, _)) = due {
            let old = std::mem::replace(&mut self.current, next);
            self.previous.insert(0, TicketKey { public: old.public(), valid_until: now + LIFETIME_SECONDS });
        }
        promoted || self.previous.len() != before
    }

    /// Forgets the key whose id begins so; another takes the place of the current one at once.
    fn revoke(&mut self, begins: &str, seed: Seed) -> Result<KeyId, Refusal> {
        let ids: Vec<KeyId> = self.keys().map(|key| key.public.id()).collect();
        let named: Vec<KeyId> = ids.into_iter().filter(|id| id.to_string().starts_with(begins)).collect();
        let id = match (begins.is_empty(), &named[..]) {
            (false, [id]) => *id,
            (false, [_, _, ..]) => {
                return Err(Refusal::invalid(format!("several keys begin with {begins:?}; write more of the id")));
            }
            _ => {
                return Err(Refusal::not_found(format!("no key begins with {begins:?}; `faasnet keys ls` lists them")));
            }
        };
        self.previous.retain(|key| key.public.id() != id);
        if self.current.public().id() == id {
            self.current = self.next.take().map_or_else(|| SigningKey::from_seed(seed), |(next, _)| next);
        } else if self.next.as_ref().is_some_and(|(next, _)| next.public().id() == id) {
            self.next = None;
        }
        Ok(id)
    }

    fn infos(&self) -> Vec<v1::KeyInfo> {
        let info = |key: PublicKey, state: &str, changes_at| v1::KeyInfo {
            key_id: key.id().to_string(),
            state: state.into(),
            changes_at,
        };
        let next = self.next.iter().map(|(key, from)| info(key.public(), "next", *from));
        let previous = self.previous.iter().map(|key| info(key.public, "previous", key.valid_until));
        next.chain([info(self.current.public(), "current", 0)]).chain(previous).collect()
    }
}

impl State {
    /// What agents check tickets with.
    pub(super) fn ticket_keys(&self) -> v1::TicketKeys {
        self.keyring.message()
    }

    /// The same, as a set.
    pub fn key_set(&self) -> KeySet {
        KeySet::new(self.keyring.keys())
    }

    pub(super) fn list_keys(&self) -> Answer {
        Answer::Keys(v1::ListKeysReply { keys: self.keyring.infos() })
    }

    pub(super) fn rotate_keys(&mut self, now: Now, seed: Seed) -> Result<Answer, Refusal> {
        self.keyring.rotate(seed, now.unix_s)?;
        self.note(format!("a new ticket key is told to all agents; it signs in {PUBLISH_SECONDS} s"));
        self.publish_keys();
        Ok(self.list_keys())
    }

    pub(super) fn revoke_key(&mut self, now: Now, begins: &str, seed: Seed) -> Result<Answer, Refusal> {
        let id = self.keyring.revoke(begins, seed)?;
        self.note(format!("ticket key {id} is revoked"));
        self.publish_keys();
        self.renew_where(now, |ticket| ticket.claims().key == id);
        Ok(self.list_keys())
    }

    /// A tick's part.
    pub(super) fn advance_keys(&mut self, now: Now) {
        if self.keyring.advance(now.unix_s) {
            self.note(format!("tickets are signed with key {} from now on", self.keyring.current.public().id()));
            self.publish_keys();
        }
    }

    fn publish_keys(&mut self) {
        self.emit(Output::Store(Key::TicketKeys));
        let sessions: Vec<_> = self.sessions.keys().copied().collect();
        for session in sessions {
            let keys = self.keyring.message();
            self.emit(Output::Send { session, command: v1::command::Command::TicketKeys(keys) });
        }
    }

    /// The ticket of a member: the one that it has while it is good for half a life more, else a new one.
    pub(super) fn ticket(&mut self, now: Now, id: FunctionId, node: NodeId) -> Option<Ticket> {
        let node_key = self.nodes.get(&node)?.key?;
        let function = self.functions.get_mut(&id)?;
        let (image, tenant) = (function.image, TenantId::new(&function.tenant));
        let member = function.wanted.get_mut(&node)?;
        let known = |key| self.keyring.keys().any(|known| known.public.id() == key);
        let good = |ticket: &Ticket| {
            let claims = ticket.claims();
            claims.node_key == node_key && claims.image == image && !is_old(ticket, now) && known(claims.key)
        };
        if member.ticket.is_none_or(|ticket| !good(&ticket)) {
            let expires = now.unix_s + LIFETIME_SECONDS;
            let key = self.keyring.current.public().id();
            let claims = Claims { expires, key, node, node_key, tenant, function: id, image };
            member.ticket = Some(self.keyring.current.issue(claims));
        }
        member.ticket
    }

    /// Sends new tickets to the members whose present one is such.
    pub(super) fn renew_where(&mut self, now: Now, such: impl Fn(&Ticket) -> bool) {
        let due: Vec<(FunctionId, NodeId)> = self
            .functions
            .values()
            .flat_map(|function| function.wanted.iter().map(|(node, member)| (function.id, *node, member)))
            .filter(|(_, _, member)| member.sent.is_some() && member.ticket.as_ref().is_some_and(&such))
            .map(|(function, node, _)| (function, node))
            .collect();
        for (function, node) in due {
            self.send_assign(now, function, node, true);
        }
    }
}

/// Half of its life is over.
pub(super) fn is_old(ticket: &Ticket, now: Now) -> bool {
    ticket.claims().expires < now.unix_s + LIFETIME_SECONDS / 2
}
