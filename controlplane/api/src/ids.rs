//! Identifiers of nodes, tenants, functions, images and keys: fixed-size bytes, printed as hexadecimal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A byte string or text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} has {expected} bytes ({digits} hexadecimal digits); got {got}", digits = expected * 2)]
pub struct IdError {
    kind: &'static str,
    expected: usize,
    got: String,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The bytes as protobuf carries them.
            pub fn to_vec(self) -> Vec<u8> {
                self.0.to_vec()
            }

            /// The first eight hexadecimal digits, for tables and logs.
            pub fn short(&self) -> String {
                hex(&self.0[..4])
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;
            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                bytes.try_into().map(Self).map_err(|_| IdError {
                    kind: $kind,
                    expected: $bytes,
                    got: format!("{} bytes", bytes.len()),
                })
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut id = [0; $bytes];
                match unhex(text, &mut id) {
                    true => Ok(Self(id)),
                    false => Err(IdError { kind: $kind, expected: $bytes, got: format!("{text:?}") }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }
    };
}

id!(
    /// A host's agent. Random, made once, kept in the agent's store.
    NodeId, 16, "a node id"
);
id!(
    /// A tenant's function: derived from both names, so that it needs no allocation.
    FunctionId, 16, "a function id"
);
id!(
    /// BLAKE3 over the encoded descriptor of an image.
    ImageId, 32, "an image id"
);

id!(
    /// A tenant: derived from its name.
    TenantId, 16, "a tenant id"
);
id!(
    /// An Ed25519 public key (RFC 8032).
    PublicKey, 32, "a public key"
);
id!(
    /// Which key signed a ticket: derived from the public key.
    KeyId, 8, "a key id"
);

impl TenantId {
    /// The id of `tenant`.
    pub fn new(tenant: &str) -> Self {
        Self(derived("faasnet 2026 tenant id", tenant.as_bytes()))
    }
}

impl PublicKey {
    /// The short name of this key.
    pub fn id(&self) -> KeyId {
        KeyId(derived("faasnet 2026 key id", &self.0))
    }
}

impl FunctionId {
    /// The id of `function` of `tenant`.
    pub fn new(tenant: &str, function: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("faasnet 2026 function id");
        hasher.update(&(tenant.len() as u64).to_le_bytes());
        hasher.update(tenant.as_bytes());
        hasher.update(function.as_bytes());
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        Self(id)
    }
}

fn derived<const N: usize>(context: &str, bytes: &[u8]) -> [u8; N] {
    let mut id = [0; N];
    blake3::Hasher::new_derive_key(context).update(bytes).finalize_xof().fill(&mut id);
    id
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str, out: &mut [u8]) -> bool {
    text.len() == out.len() * 2
        && text.is_ascii()
        && out.iter_mut().zip(text.as_bytes().chunks_exact(2)).all(|(byte, digits)| {
            std::str::from_utf8(digits)
                .ok()
                .filter(|digits| !digits.starts_with('+'))
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                .map(|value| *byte = value)
                .is_some()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an id that does not survive being printed and read.
    #[test]
    fn ids_round_trip_through_text_and_bytes() {
        let id = FunctionId::new("acme", "resize");
        assert_eq!(id.to_string().parse::<FunctionId>(), Ok(id));
        assert_eq!(FunctionId::try_from(&id.to_vec()[..]), Ok(id));
        assert!("+0".repeat(16).parse::<FunctionId>().is_err());
        assert!("é".repeat(16).parse::<NodeId>().is_err());
        assert!("".parse::<ImageId>().is_err());
    }

    /// Catches two tenants whose names run together into the same id.
    #[test]
    fn names_do_not_run_together() {
        assert_ne!(FunctionId::new("ab", "c"), FunctionId::new("a", "bc"));
    }
}
