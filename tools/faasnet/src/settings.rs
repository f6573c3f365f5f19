//! Puts a daemon's settings together: flags over environment over file over defaults.
//!
//! Flags and environment are one layer (clap resolves them); both become TOML, so that the daemon's own `Config` type stays the
//! only place that knows which settings exist and what they default to.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Settings of which only one may be set: a flag for one removes the other that came from the file.
const ALTERNATIVES: [[&str; 2]; 1] = [["cluster_secret", "cluster_secret_file"]];

/// Reads the file if there is one, lays `flags` (whose unset fields must not serialize) over it and makes the typed configuration.
pub fn load<Config: DeserializeOwned>(file: Option<&Path>, flags: &impl Serialize) -> Result<Config> {
    let mut settings = file.map(read).transpose()?.unwrap_or_default();
    overlay(&mut settings, toml::Table::try_from(flags).context("a flag's value cannot be a setting")?);
    let text = toml::to_string(&settings).context("the settings cannot be put together")?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let place = file.map_or_else(|| "a flag or FAASNET_* variable".into(), |file| file.display().to_string());
        anyhow!("{}; look at {place}, or run with --print-config on an empty file to see all settings", error.message())
    })
}

/// The configuration as TOML, for `--print-config`.
pub fn print(config: &impl Serialize) -> Result<()> {
    crate::output::line(toml::to_string(config).context("the settings cannot be printed")?.trim_end())
}

fn read(file: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the settings in {}; is --config right?", file.display()))?;
    text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        anyhow!("{} line {line} is not TOML: {}; correct it", file.display(), error.message())
    })
}

fn overlay(settings: &mut toml::Table, flags: toml::Table) {
    for (name, value) in flags {
        for pair in ALTERNATIVES.iter().filter(|pair| pair.contains(&name.as_str())) {
            pair.iter().for_each(|other| drop(settings.remove(*other)));
        }
        settings.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize, Default)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        beats: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cluster_secret: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cluster_secret_file: Option<String>,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    /// Catches a file that wins over a flag, or a flag that was not given and still replaces the file's value.
    #[test]
    fn flags_win_over_the_file_and_only_where_given() {
        let file = file("name = 'file'\nbeats = 3\ncluster_secret = 'x'");
        let flags = Sample { name: Some("flag".into()), cluster_secret_file: Some("f".into()), ..Sample::default() };
        let merged: Sample = load(Some(file.path()), &flags).unwrap();
        let expected = Sample { beats: Some(3), ..flags };
        assert_eq!(merged, expected);
    }

    /// Catches errors of the three common mistakes that do not name the culprit.
    #[test]
    fn mistakes_are_named() {
        let error =
            |text: &str| format!("{:#}", load::<Sample>(Some(file(text).path()), &Sample::default()).unwrap_err());
        assert!(error("nmae = 'x'").contains("nmae"));
        assert!(error("beats = 1\nname = ").contains("line 2"));
        assert!(error("beats = 'often'").contains("expected u64"), "{}", error("beats = 'often'"));
        let missing = load::<Sample>(Some(Path::new("/no/such.toml")), &Sample::default()).unwrap_err();
        assert!(format!("{missing:#}").contains("/no/such.toml"));
    }
}
