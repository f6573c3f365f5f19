//! What a node may be called: one rule for the agent that takes a name and the controller that is told it.

use crate::ids::NodeId;

/// The longest name, as the longest host name of Linux.
const NODE_NAME_BYTES_MAX: usize = 64;
/// The rule, for messages.
pub const NODE_NAME_RULE: &str =
    "1 to 64 letters, digits, '.', '_' and '-', but not 32 hexadecimal digits, which would be an id";

/// Whether a node may be called so. A name that reads like an id would be taken for the node that has that id.
pub fn is_node_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NODE_NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(inner) && name.parse::<NodeId>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a node that goes by another's id, forges a line in the log, or makes every list of nodes too long to be sent.
    #[test]
    fn a_node_is_called_by_a_name() {
        for name in ["n1", "ip-10-0-0-1.eu-west-1.compute.internal", "Host_7", &"a".repeat(64)] {
            assert!(is_node_name(name), "{name:?}");
        }
        for name in ["", "a\nb", "a b", "ä", "0123456789abcdef0123456789abcdef", &"a".repeat(65)] {
            assert!(!is_node_name(name), "{name:?}");
        }
    }
}
