//! Tickets: the expiring permission of one node to fetch one function's image.
//!
//! The controller signs what a ticket claims; whoever serves the image compares the claims with what is asked for ([`Ticket::permits`]),
//! checks the signature against the controller's keys (`KeySet::check`) and has the bearer prove that it holds the node's key.
//! This file knows the layout and the claims; signatures are `keys`' matter.

use std::fmt;

use crate::ids::{FunctionId, ImageId, KeyId, NodeId, PublicKey, TenantId};

/// Clocks of hosts may differ by this much.
pub const SKEW_SECONDS: u64 = 60;
/// How long a ticket lasts.
pub const LIFETIME_SECONDS: u64 = 24 * 3600;
/// Encoded length: the claims in their order, integers little-endian, then the signature.
pub const TICKET_BYTES: usize = CLAIMS_BYTES + SIGNATURE_BYTES;
/// Bytes of an Ed25519 signature.
pub const SIGNATURE_BYTES: usize = 64;
const CLAIMS_BYTES: usize = 8 + 8 + 16 + 32 + 16 + 16 + 32;

/// What a ticket says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// Seconds since the Unix epoch.
    pub expires: u64,
    /// The controller's key that signed it.
    pub key: KeyId,
    /// Who may fetch.
    pub node: NodeId,
    /// The key that the node has to prove it holds.
    pub node_key: PublicKey,
    /// Whose function it is.
    pub tenant: TenantId,
    /// Which function.
    pub function: FunctionId,
    /// Which image of it.
    pub image: ImageId,
}

/// A ticket as it travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ticket([u8; TICKET_BYTES]);

/// Why a ticket is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// It claims something else than is asked for.
    #[error("the ticket was issued for another {0}")]
    Another(&'static str),
    /// It was valid once.
    #[error("the ticket has expired; it is renewed when the controller is reached; compare the clocks of both hosts")]
    Expired,
    /// No key of that name is known here, or it was revoked.
    #[error("the ticket was signed with key {0:?}, which is unknown here or was revoked")]
    UnknownKey(KeyId),
    /// The signature does not fit.
    #[error("the ticket was not signed by the controller as it is")]
    Forged,
    /// Whoever shows the ticket does not hold the key of the node that it was issued to.
    #[error("the ticket is shown by somebody who does not hold the key of its node")]
    NotHolder,
}

impl Claims {
    /// The bytes that are signed.
    pub fn to_bytes(&self) -> [u8; CLAIMS_BYTES] {
        let parts: [&[u8]; 7] = [
            &self.expires.to_le_bytes(),
            &self.key.0,
            &self.node.0,
            &self.node_key.0,
            &self.tenant.0,
            &self.function.0,
            &self.image.0,
        ];
        let (mut bytes, mut at) = ([0; CLAIMS_BYTES], 0);
        for part in parts {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let mut rest = bytes;
        Self {
            expires: u64::from_le_bytes(take(&mut rest)),
            key: KeyId(take(&mut rest)),
            node: NodeId(take(&mut rest)),
            node_key: PublicKey(take(&mut rest)),
            tenant: TenantId(take(&mut rest)),
            function: FunctionId(take(&mut rest)),
            image: ImageId(take(&mut rest)),
        }
    }
}

impl Ticket {
    /// A ticket of claims and their signature.
    pub fn new(claims: &Claims, signature: [u8; SIGNATURE_BYTES]) -> Self {
        let mut bytes = [0; TICKET_BYTES];
        bytes[..CLAIMS_BYTES].copy_from_slice(&claims.to_bytes());
        bytes[CLAIMS_BYTES..].copy_from_slice(&signature);
        Self(bytes)
    }

    /// What it claims; worth nothing before the signature was checked.
    pub fn claims(&self) -> Claims {
        Claims::from_bytes(&self.0[..CLAIMS_BYTES])
    }

    /// The bytes that the signature covers, and the signature.
    pub fn signed_part(&self) -> (&[u8], &[u8]) {
        self.0.split_at(CLAIMS_BYTES)
    }

    /// Checks that the claims fit what is asked for at `now` (seconds since the Unix epoch). Costs next to nothing: to be done before
    /// any signature is looked at.
    pub fn permits(&self, node: NodeId, function: FunctionId, image: ImageId, now: u64) -> Result<(), TicketError> {
        let claims = self.claims();
        if claims.node != node {
            return Err(TicketError::Another("node"));
        }
        if claims.function != function {
            return Err(TicketError::Another("function"));
        }
        if claims.image != image {
            return Err(TicketError::Another("image"));
        }
        if now > claims.expires.saturating_add(SKEW_SECONDS) {
            return Err(TicketError::Expired);
        }
        Ok(())
    }

    /// Checks that it was issued for a function of `tenant`.
    pub fn is_of(&self, tenant: TenantId) -> Result<(), TicketError> {
        if self.claims().tenant == tenant { Ok(()) } else { Err(TicketError::Another("tenant")) }
    }

    /// The bytes that travel.
    pub fn as_bytes(&self) -> &[u8; TICKET_BYTES] {
        &self.0
    }

    /// A ticket from bytes of a wire; the checks tell whether it is worth anything.
    pub fn from_bytes(bytes: [u8; TICKET_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (part, after) = rest.split_at(N);
    *rest = after;
    let mut bytes = [0; N];
    bytes.copy_from_slice(part);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            expires: 1_000,
            key: KeyId([6; 8]),
            node: NodeId([1; 16]),
            node_key: PublicKey([5; 32]),
            tenant: TenantId::new("acme"),
            function: FunctionId([2; 16]),
            image: ImageId([3; 32]),
        }
    }

    /// Catches a claim that is lost or shifted on its way.
    #[test]
    fn claims_survive_the_way() {
        let ticket = Ticket::new(&claims(), [9; SIGNATURE_BYTES]);
        assert_eq!(Ticket::from_bytes(*ticket.as_bytes()).claims(), claims());
        assert_eq!(ticket.signed_part(), (&claims().to_bytes()[..], &[9; SIGNATURE_BYTES][..]));
    }

    /// Catches a ticket that is taken for another node, function, image or tenant, or too late, and one that is refused within the skew.
    #[test]
    fn a_ticket_permits_exactly_one_thing() {
        let Claims { node, function, image, expires, .. } = claims();
        let ticket = Ticket::new(&claims(), [0; SIGNATURE_BYTES]);
        let another = |what| Err(TicketError::Another(what));
        assert_eq!(ticket.permits(node, function, image, expires), Ok(()));
        assert_eq!(ticket.permits(node, function, image, expires + SKEW_SECONDS), Ok(()));
        assert_eq!(ticket.permits(node, function, image, expires + SKEW_SECONDS + 1), Err(TicketError::Expired));
        assert_eq!(ticket.permits(NodeId([9; 16]), function, image, 0), another("node"));
        assert_eq!(ticket.permits(node, FunctionId([9; 16]), image, 0), another("function"));
        assert_eq!(ticket.permits(node, function, ImageId([9; 32]), 0), another("image"));
        assert_eq!(ticket.is_of(TenantId::new("acme")), Ok(()));
        assert_eq!(ticket.is_of(TenantId::new("other")), another("tenant"));
    }
}
