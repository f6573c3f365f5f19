//! Names of tenants, functions and nodes.

use faasnet_api::{NODE_NAME_RULE, is_node_name};

use super::io::Refusal;
use super::words::plain;

/// The tenant of calls that name none.
pub(super) const DEFAULT_TENANT: &str = "default";
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

/// The valid tenant that a caller means.
pub(super) fn tenant_name(tenant: &str) -> Result<String, Refusal> {
    function_name(tenant, "any").map(|(tenant, _)| tenant)
}

/// Refuses what an agent may not be called.
pub(super) fn check_node_name(name: &str) -> Result<(), Refusal> {
    match is_node_name(name) {
        true => Ok(()),
        false => Err(Refusal::invalid(format!(
            "{:?} is not a node name; set the agent's name to {NODE_NAME_RULE}",
            plain(name, NAME_BYTES_MAX)
        ))),
    }
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

    /// Catches a refusal that is as long as what is refused.
    #[test]
    fn a_refusal_is_short() {
        assert!(check_node_name("n1").is_ok());
        let refusal = check_node_name(&"a".repeat(3 << 20)).unwrap_err();
        assert!(refusal.message.len() < 500, "{} bytes", refusal.message.len());
    }
}
