//! Names of tenants, functions and nodes.

use faasnet_api::NodeId;

use super::io::Refusal;
use super::words::plain;

/// The tenant of calls that name none.
const DEFAULT_TENANT: &str = "default";
const NAME_BYTES_MAX: usize = 128;

/// The valid (tenant, function) that a caller means; an empty tenant is the tenant `default`.
pub fn function_name(tenant: &str, function: &str) -> Result<(String, String), Refusal> {
    let tenant = if tenant.is_empty() { DEFAULT_TENANT } else { tenant };
    for (kind, name) in [("tenant", tenant), ("function", function)] {
        if !is_name(name) {
            return Err(Refusal::invalid(format!(
                "{name:?} is not a {kind} name; use 1 to {NAME_BYTES_MAX} of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
            )));
        }
    }
    Ok((tenant.into(), function.into()))
}

/// Whether an agent may be called so. A name that reads like an id would be taken for the node that has that id.
pub(super) fn check_node_name(name: &str) -> Result<(), Refusal> {
    if is_node_name(name) {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "{:?} is not a node name; set the agent's name to 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' and '-', but not to 32 \
         hexadecimal digits, which are an id",
        plain(name, NAME_BYTES_MAX)
    )))
}

/// See [`check_node_name`].
pub(super) fn is_node_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(inner) && name.parse::<NodeId>().is_err()
}

fn is_name(name: &str) -> bool {
    let inner = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    name.len() <= NAME_BYTES_MAX
        && name.bytes().all(inner)
        && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a name that would not be safe in a path, a label or a terminal.
    #[test]
    fn only_plain_names_pass() {
        assert_eq!(function_name("", "resize.v2").unwrap(), ("default".into(), "resize.v2".into()));
        for name in ["", "-a", ".a", "A", "a/b", "a b", "ä", &"a".repeat(129)] {
            assert!(function_name("t", name).is_err(), "{name:?}");
        }
        assert!(function_name("t", &"a".repeat(128)).is_ok());
    }

    /// Catches a node that goes by another's id, forges a line in the log, or makes every list of nodes too long to be sent.
    #[test]
    fn a_node_is_called_by_a_name() {
        for name in ["n1", "ip-10-0-0-1.eu-west-1.compute.internal", "Host_7", &"a".repeat(128)] {
            assert!(check_node_name(name).is_ok(), "{name:?}");
        }
        for name in ["", "a\nb", "a b", "ä", &"0123456789abcdefABCDEF0123456789".to_lowercase(), &"a".repeat(3 << 20)]
        {
            let refusal = check_node_name(name).unwrap_err();
            assert!(refusal.message.len() < 500, "{} bytes", refusal.message.len());
        }
    }
}
