//! Tickets: the expiring permission of one node to fetch one function's image.
//!
//! A ticket is a keyed BLAKE3 over what it permits, made by the controller and checked by every parent, both of which hold the
//! cluster secret. Whoever has the secret can make tickets; signed tickets that are bound to a node's key replace this one.

use std::fmt;

use crate::ids::{FunctionId, ImageId, NodeId};

/// Clocks of hosts may differ by this much.
pub const SKEW_SECONDS: u64 = 60;
/// How long a ticket lasts.
pub const LIFETIME_SECONDS: u64 = 24 * 3600;
/// Encoded length: expiry (8 bytes, little-endian) and authentication code (32 bytes).
pub const TICKET_BYTES: usize = 40;

/// The secret that controller and agents share, stretched into separate keys for separate uses.
#[derive(Clone)]
pub struct ClusterSecret {
    ticket_key: [u8; 32],
    token: String,
}

impl ClusterSecret {
    /// Derives the keys. Use at least 16 random bytes.
    pub fn new(secret: &[u8]) -> Self {
        Self {
            ticket_key: blake3::derive_key("faasnet 2026 ticket", secret),
            token: blake3::Hash::from_bytes(blake3::derive_key("faasnet 2026 rpc token", secret)).to_string(),
        }
    }

    /// The bearer token of gRPC calls.
    pub fn rpc_token(&self) -> &str {
        &self.token
    }

    /// Whether `token` is the bearer token; takes the same time for every wrong one.
    pub fn accepts_rpc_token(&self, token: &str) -> bool {
        // Comparing hashes leaks nothing about the position of the first difference.
        blake3::hash(token.as_bytes()) == blake3::hash(self.token.as_bytes())
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

/// A ticket as it travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ticket([u8; TICKET_BYTES]);

/// Why a ticket is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Its authentication code does not fit what is asked for.
    #[error("the ticket was not issued for this node, function and image")]
    Forged,
    /// It was valid once.
    #[error("the ticket has expired")]
    Expired,
}

impl Ticket {
    /// Issues a ticket that lasts [`LIFETIME_SECONDS`] from `now` (seconds since the Unix epoch).
    pub fn issue(secret: &ClusterSecret, node: NodeId, function: FunctionId, image: ImageId, now: u64) -> Self {
        let expires = now + LIFETIME_SECONDS;
        let mut bytes = [0; TICKET_BYTES];
        bytes[..8].copy_from_slice(&expires.to_le_bytes());
        bytes[8..].copy_from_slice(code(secret, node, function, image, expires).as_bytes());
        Self(bytes)
    }

    /// Checks that the ticket permits `node` to fetch `image` of `function` at `now` (seconds since the Unix epoch).
    pub fn check(
        &self,
        secret: &ClusterSecret,
        node: NodeId,
        function: FunctionId,
        image: ImageId,
        now: u64,
    ) -> Result<(), TicketError> {
        let (expires, got) = self.0.split_at(8);
        let expires = u64::from_le_bytes(expires.try_into().unwrap_or_default());
        let got = blake3::Hash::from_slice(got).map_err(|_| TicketError::Forged)?;
        // `blake3::Hash` compares in constant time.
        if got != code(secret, node, function, image, expires) {
            return Err(TicketError::Forged);
        }
        if now > expires.saturating_add(SKEW_SECONDS) {
            return Err(TicketError::Expired);
        }
        Ok(())
    }

    /// The bytes that travel.
    pub fn as_bytes(&self) -> &[u8; TICKET_BYTES] {
        &self.0
    }

    /// A ticket from bytes of a wire; [`Ticket::check`] tells whether it is worth anything.
    pub fn from_bytes(bytes: [u8; TICKET_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

fn code(secret: &ClusterSecret, node: NodeId, function: FunctionId, image: ImageId, expires: u64) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(&secret.ticket_key);
    hasher.update(node.as_bytes());
    hasher.update(function.as_bytes());
    hasher.update(image.as_bytes());
    hasher.update(&expires.to_le_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a ticket that is worth something to another node, for another function or image, changed, or too late.
    #[test]
    fn a_ticket_permits_exactly_one_thing() {
        let secret = ClusterSecret::new(b"0123456789abcdef");
        let (node, function, image) = (NodeId([1; 16]), FunctionId([2; 16]), ImageId([3; 32]));
        let ticket = Ticket::issue(&secret, node, function, image, 1_000);
        assert_eq!(ticket.check(&secret, node, function, image, 1_000), Ok(()));
        let forged = Err(TicketError::Forged);
        assert_eq!(ticket.check(&secret, NodeId([9; 16]), function, image, 1_000), forged);
        assert_eq!(ticket.check(&secret, node, FunctionId([9; 16]), image, 1_000), forged);
        assert_eq!(ticket.check(&secret, node, function, ImageId([9; 32]), 1_000), forged);
        assert_eq!(ticket.check(&ClusterSecret::new(b"another"), node, function, image, 1_000), forged);
        let late = 1_000 + LIFETIME_SECONDS + SKEW_SECONDS + 1;
        assert_eq!(ticket.check(&secret, node, function, image, late), Err(TicketError::Expired));
        let mut longer = *ticket.as_bytes();
        longer[7] = 1;
        assert_eq!(Ticket::from_bytes(longer).check(&secret, node, function, image, 1_000), forged);
    }
}
