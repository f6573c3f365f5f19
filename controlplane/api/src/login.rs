//! The messages that hold a password, as they are printed: without it.

use std::fmt;

use crate::v1::{Login, SetSecretRequest};

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(…)")
    }
}

impl fmt::Debug for SetSecretRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetSecretRequest")
            .field("tenant", &self.tenant)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    /// Catches a password in whatever prints a message.
    #[test]
    fn passwords_are_not_printed() {
        let login = Login { username: "me".into(), password: "s3cret".into() };
        let read = v1::ReadImage { login: Some(login.clone()), ..Default::default() };
        let assign = v1::Assign { login: Some(login), ..Default::default() };
        let set = SetSecretRequest { password: "s3cret".into(), ..Default::default() };
        assert!(!format!("{read:?}{assign:?}{set:?}").contains("s3cret"));
    }
}
