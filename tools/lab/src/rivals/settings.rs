//! One combination of a system's own settings: names and values as its manual has them.

use std::fmt;

/// Settings that a run is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings(pub(super) &'static [(&'static str, &'static str)]);

impl Settings {
    /// The value of `name`; asking for one that the system's sweep does not set is a mistake of this crate.
    pub(super) fn get(&self, name: &str) -> &'static str {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value).unwrap_or_else(|| panic!("no setting is called {name}: {self}"))
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|(name, value)| format!("{name} {value}")).collect();
        f.write_str(&all.join(", "))
    }
}
