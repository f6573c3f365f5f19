//! Ed25519 keys: the controller's, which sign tickets, and the nodes', which prove who shows one.
//!
//! Signing is deterministic (RFC 8032), so that whoever is given a seed is a pure function of it.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::ids::{KeyId, PublicKey};
use crate::ticket::{Claims, SIGNATURE_BYTES, SKEW_SECONDS, Ticket, TicketError};

/// The most keys that a set holds: the one in use, the next, and previous ones whose tickets have not expired.
pub const MAX_KEYS: usize = 16;
/// Bytes that a private key is made of.
pub const SEED_BYTES: usize = 32;

const TICKET_CONTEXT: &[u8] = b"faasnet ticket 1";

/// A private key.
pub struct SigningKey {
    seed: [u8; SEED_BYTES],
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// A key that tickets may be signed with, as agents know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketKey {
    /// The key.
    pub public: PublicKey,
    /// After this time (seconds since the Unix epoch) it proves nothing; [`u64::MAX`] while it is in use.
    pub valid_until: u64,
}

/// The keys whose tickets are accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeySet {
    keys: Vec<(KeyId, TicketKey)>,
}

impl SigningKey {
    /// The key that `seed` gives.
    pub fn from_seed(seed: [u8; SEED_BYTES]) -> Self {
        // Every 32 bytes are a seed (RFC 8032, 5.1.5): the only way to fail is to be out of memory.
        #[allow(clippy::expect_used)]
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).expect("32 bytes make an Ed25519 key");
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Self { seed, pair, public: PublicKey(public) }
    }

    /// A new key from the system's randomness.
    pub fn random() -> Self {
        Self::from_seed(random_bytes())
    }

    /// What it was made of; secret.
    pub fn seed(&self) -> &[u8; SEED_BYTES] {
        &self.seed
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }

    /// Signs claims; `claims.key` is set to this key.
    pub fn issue(&self, claims: Claims) -> Ticket {
        let claims = Claims { key: self.public.id(), ..claims };
        Ticket::new(&claims, self.sign(&ticket_message(&claims.to_bytes())))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {:?})", self.public)
    }
}

impl PublicKey {
    /// Whether `signature` is this key's for `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl KeySet {
    /// A set of these keys, at most [`MAX_KEYS`]; more are left out.
    pub fn new(keys: impl IntoIterator<Item = TicketKey>) -> Self {
        Self { keys: keys.into_iter().take(MAX_KEYS).map(|key| (key.public.id(), key)).collect() }
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = TicketKey> + '_ {
        self.keys.iter().map(|(_, key)| *key)
    }

    /// Whether no key is known.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a ticket was signed by one of these keys. Costs tens of microseconds; compare its claims first.
    pub fn check(&self, ticket: &Ticket, now: u64) -> Result<(), TicketError> {
        let id = ticket.claims().key;
        let valid = |key: &TicketKey| now <= key.valid_until.saturating_add(SKEW_SECONDS);
        let key = self.keys.iter().find(|(known, key)| *known == id && valid(key));
        let (_, key) = key.ok_or(TicketError::UnknownKey(id))?;
        let (claims, signature) = ticket.signed_part();
        if key.public.verifies(&ticket_message(claims), signature) { Ok(()) } else { Err(TicketError::Forged) }
    }
}

/// Bytes that nobody can foresee.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The generator is seeded from the kernel at its first use and fails only where the kernel has no randomness at all.
    #[allow(clippy::expect_used)]
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random bytes");
    bytes
}

fn ticket_message(claims: &[u8]) -> Vec<u8> {
    [TICKET_CONTEXT, claims].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{FunctionId, ImageId, NodeId, TenantId};
    use crate::ticket::TICKET_BYTES;
    use proptest::prelude::*;

    fn ticket(key: &SigningKey) -> Ticket {
        key.issue(Claims {
            expires: 1_000,
            key: KeyId([0; 8]),
            node: NodeId([1; 16]),
            node_key: PublicKey([5; 32]),
            tenant: TenantId::new("acme"),
            function: FunctionId([2; 16]),
            image: ImageId([3; 32]),
        })
    }

    fn set(key: &SigningKey, valid_until: u64) -> KeySet {
        KeySet::new([TicketKey { public: key.public(), valid_until }])
    }

    /// Catches a signature that another implementation would not accept: the first vector of RFC 8032, 7.1.
    #[test]
    fn signatures_are_those_of_the_standard() {
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let seed: PublicKey = seed.parse().unwrap();
        let key = SigningKey::from_seed(seed.0);
        assert_eq!(key.public().to_string(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let signature = key.sign(b"");
        assert_eq!(signature[..4], [0xe5, 0x56, 0x43, 0x00]);
        assert!(key.public().verifies(b"", &signature) && !key.public().verifies(b"x", &signature));
    }

    /// Catches a ticket of a stranger's, a revoked or an outlived key that is accepted, and one of a previous key that is not.
    #[test]
    fn only_known_keys_count_and_only_in_their_time() {
        let (key, other) = (SigningKey::from_seed([1; 32]), SigningKey::from_seed([2; 32]));
        let ticket = ticket(&key);
        let unknown = Err(TicketError::UnknownKey(key.public().id()));
        assert_eq!(set(&key, u64::MAX).check(&ticket, 5), Ok(()));
        assert_eq!(set(&key, 5).check(&ticket, 5 + SKEW_SECONDS), Ok(()));
        assert_eq!(set(&key, 5).check(&ticket, 6 + SKEW_SECONDS), unknown);
        assert_eq!(set(&other, u64::MAX).check(&ticket, 5), unknown);
        assert_eq!(KeySet::default().check(&ticket, 5), unknown);
        let both = [&other, &key].map(|key| TicketKey { public: key.public(), valid_until: u64::MAX });
        assert_eq!(KeySet::new(both).check(&ticket, 5), Ok(()));
        // Another key's signature under this key's name.
        let forged = Ticket::new(&ticket.claims(), other.sign(&ticket_message(&ticket.claims().to_bytes())));
        assert_eq!(set(&key, u64::MAX).check(&forged, 5), Err(TicketError::Forged));
    }

    proptest! {
        /// Catches any bit of a ticket, in any claim or in the signature, that can be altered without losing its worth.
        #[test]
        fn no_bit_can_be_altered(bit in 0..TICKET_BYTES * 8) {
            let key = SigningKey::from_seed([1; 32]);
            let mut bytes = *ticket(&key).as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(set(&key, u64::MAX).check(&Ticket::from_bytes(bytes), 5).is_err());
        }
    }
}
