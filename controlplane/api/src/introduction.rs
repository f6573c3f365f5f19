//! What an agent signs with its node key when it attaches: the controller's nonce, and what must not be said in another node's name.
//!
//! Ids and public keys are no secrets (every ticket shows them), so naming a key proves nothing.

use crate::ids::NodeId;

const CONTEXT: &[u8] = b"faasnet attach 1";

/// See the module's documentation.
#[derive(Debug, Clone, Copy)]
pub struct Introduction<'a> {
    /// What the controller said on this stream.
    pub nonce: &'a [u8],
    /// Who attaches.
    pub node: NodeId,
    /// At which start of the agent.
    pub incarnation: u64,
    /// Where other nodes are sent, as it is written in `Attached`.
    pub data_address: &'a str,
}

impl Introduction<'_> {
    /// The bytes that are signed. The nonce goes with its length, so that no two introductions give the same bytes.
    pub fn message(&self) -> Vec<u8> {
        let nonce_bytes = (self.nonce.len() as u64).to_le_bytes();
        let incarnation = self.incarnation.to_le_bytes();
        let parts: [&[u8]; 6] =
            [CONTEXT, &nonce_bytes, self.nonce, &self.node.0, &incarnation, self.data_address.as_bytes()];
        parts.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a part that the signature does not cover.
    #[test]
    fn every_part_is_covered() {
        let said =
            Introduction { nonce: &[1, 2], node: NodeId([1; 16]), incarnation: 3, data_address: "10.0.0.1:7410" };
        let others = [
            Introduction { nonce: &[1, 3], ..said },
            Introduction { nonce: &[1], ..said },
            Introduction { node: NodeId([2; 16]), ..said },
            Introduction { incarnation: 4, ..said },
            Introduction { data_address: "10.0.0.1:7411", ..said },
        ];
        assert!(others.iter().all(|other| other.message() != said.message()));
    }
}
