//! What lets this node ask others, and judge who asks it: its own key, and the controller's keys.
//!
//! Used by both who serve (the worker and the origin feed) and by who asks. Keys change while the agent runs; every check takes the
//! latest.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use faasnet_api::keys::random_bytes;
use faasnet_api::{KeySet, NodeId, SigningKey, TicketError};
use faasnet_relay::wire::{Challenge, Hello};
use tokio::sync::watch;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Trust {
    key: Arc<SigningKey>,
    controllers: watch::Receiver<KeySet>,
}

impl Trust {
    /// Of a node with this key, which accepts tickets signed with the controller's keys.
    pub fn new(key: Arc<SigningKey>, controllers: watch::Receiver<KeySet>) -> Self {
        Self { key, controllers }
    }

    /// What a connection that `node` accepted is told first.
    pub(crate) fn challenge(node: NodeId) -> Challenge {
        Challenge { node, nonce: random_bytes() }
    }

    /// Signs what this node says in answer to a challenge.
    pub(crate) fn sign(&self, mut hello: Hello, challenge: &Challenge) -> Hello {
        hello.proof = self.key.sign(&hello.message(challenge));
        hello
    }

    /// What can be told without looking at a signature: whether the ticket claims what its bearer asks for.
    pub(crate) fn check_claims(hello: &Hello) -> Result<(), TicketError> {
        hello.ticket.permits(hello.node, hello.function, hello.image, unix_seconds())
    }

    /// Whether the controller signed the ticket, and its bearer is the one that it was issued to, here and now. Two signatures: less than
    /// a tenth of a millisecond.
    pub(crate) fn check_signatures(&self, hello: &Hello, challenge: &Challenge) -> Result<(), TicketError> {
        self.controllers.borrow().check(&hello.ticket, unix_seconds())?;
        if hello.ticket.claims().node_key.verifies(&hello.message(challenge), &hello.proof) {
            return Ok(());
        }
        Err(TicketError::NotHolder)
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{NODE, claims, controller_key, hello, node_key, trust};
    use faasnet_api::{ImageId, KeyId, PublicKey, Ticket, TicketKey};

    const PARENT: NodeId = NodeId([9; 16]);

    fn check(trust: &Trust, hello: &Hello, challenge: &Challenge) -> Result<(), TicketError> {
        Trust::check_claims(hello)?;
        trust.check_signatures(hello, challenge)
    }

    /// Catches a ticket that is worth something in other hands, and a `Hello` that can be said twice, to another parent, or altered.
    #[test]
    fn only_the_holder_passes_and_only_once() {
        let (trust, challenge) = (trust(), Trust::challenge(PARENT));
        let good = trust.sign(hello(ImageId([3; 32])), &challenge);
        assert_eq!(check(&trust, &good, &challenge), Ok(()));
        let not_holder = Err(TicketError::NotHolder);
        assert_eq!(check(&trust, &good, &Trust::challenge(PARENT)), not_holder, "replayed");
        assert_eq!(check(&trust, &good, &Challenge { node: NODE, ..challenge }), not_holder, "shown to another parent");
        let changed = Hello { epoch: good.epoch + 1, ..good };
        assert_eq!(check(&trust, &changed, &challenge), not_holder, "altered");
        let thief = Trust::new(Arc::new(SigningKey::from_seed([66; 32])), watch::channel(KeySet::default()).1);
        assert_eq!(check(&trust, &thief.sign(good, &challenge), &challenge), not_holder, "copied");
    }

    /// Catches a ticket for something else, one that the thief wrote the own key into, and one of a key that is not known (any more).
    #[test]
    fn forged_and_foreign_tickets_are_refused() {
        let challenge = Trust::challenge(PARENT);
        let good = hello(ImageId([3; 32]));
        let refused = |hello: Hello| check(&trust(), &trust().sign(hello, &challenge), &challenge).unwrap_err();
        assert_eq!(refused(Hello { image: ImageId([4; 32]), ..good }), TicketError::Another("image"));
        assert_eq!(refused(Hello { node: PARENT, ..good }), TicketError::Another("node"));
        let claims = claims(ImageId([3; 32]));
        let own = SigningKey::from_seed([66; 32]);
        let signature: [u8; 64] = good.ticket.signed_part().1.try_into().unwrap();
        let rewritten = faasnet_api::Claims { node_key: own.public(), key: controller_key().public().id(), ..claims };
        assert_eq!(refused(Hello { ticket: Ticket::new(&rewritten, signature), ..good }), TicketError::Forged);
        let ticket = own.issue(claims);
        assert_eq!(refused(Hello { ticket, ..good }), TicketError::UnknownKey(own.public().id()));
    }

    /// Catches a node that goes on with keys that it knew at its start.
    #[test]
    fn the_latest_keys_count() {
        let (keys, known) = watch::channel(KeySet::default());
        let trust = Trust::new(Arc::new(node_key()), known);
        let challenge = Trust::challenge(PARENT);
        let hello = trust.sign(hello(ImageId([3; 32])), &challenge);
        assert!(matches!(check(&trust, &hello, &challenge), Err(TicketError::UnknownKey(KeyId(_)))));
        let public: PublicKey = controller_key().public();
        keys.send_replace(KeySet::new([TicketKey { public, valid_until: u64::MAX }]));
        assert_eq!(check(&trust, &hello, &challenge), Ok(()));
    }
}
