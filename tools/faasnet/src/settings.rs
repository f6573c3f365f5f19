//! Puts a daemon's settings together: flags over environment over file over defaults.
//!
//! Flags and environment are one layer (clap resolves them); both become TOML, so that the daemon's own `Config` type stays the
//! only place that knows which settings exist and what they default to.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use clap::{Arg, Command};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::output;

/// Settings of which only one may be set: a flag for one removes the other that came from the file.
const ALTERNATIVES: [[&str; 2]; 1] = [["cluster_secret", "cluster_secret_file"]];

/// Settings of both daemons whose flags are options of every command.
const COMMON: [(&str, &str); 4] = [
    ("cluster_secret", "none; never printed"),
    ("cluster_secret_file", "none"),
    ("tls_cert", "none"),
    ("tls_key", "none"),
];

/// Reads the file if there is one, lays `flags` (whose unset fields must not serialize) over it and makes the typed configuration.
pub fn load<Config: DeserializeOwned>(file: Option<&Path>, flags: &impl Serialize) -> Result<Config> {
    let mut settings = file.map(read::<Config>).transpose()?.unwrap_or_default();
    overlay(&mut settings, toml::Table::try_from(flags).context("a flag's value cannot be a setting")?);
    let text = toml::to_string(&settings).context("the settings cannot be put together")?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        // The file alone was fine.
        let (_, name) = culprit(&text, &error);
        anyhow!("{name}: {}; look at its flag or FAASNET_* variable, or run with --print-config alone", error.message())
    })
}

/// The configuration as TOML, for `--print-config`; settings that are not set follow as comments, with what `flags` says of them. As JSON
/// they are null.
pub fn print(json: bool, config: &impl Serialize, flags: &Command) -> Result<()> {
    let table = toml::Table::try_from(config).context("the settings cannot be printed")?;
    let ids = flags.get_arguments().map(|flag| (flag.get_id().as_str(), default_of(flag)));
    // These are options of every command.
    let common = COMMON.iter().map(|(name, default)| (*name, (*default).to_owned()));
    let unset: Vec<(&str, String)> = ids.chain(common).filter(|(name, _)| !table.contains_key(*name)).collect();
    if json {
        let mut all = serde_json::to_value(&table).context("the settings cannot be printed")?;
        unset.iter().for_each(|(name, _)| all[*name] = serde_json::Value::Null);
        return output::json(&all);
    }
    output::line(toml::to_string(config).context("the settings cannot be printed")?.trim_end())?;
    unset.iter().try_for_each(|(name, default)| output::line(format!("# {name} =  (default: {default})")))
}

/// What a flag's help says about its default.
fn default_of(flag: &Arg) -> String {
    let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let default = help.split_once("[default: ").and_then(|(_, rest)| rest.split_once(']'));
    default.map_or_else(|| "none".into(), |(default, _)| default.to_owned())
}

fn read<Config: DeserializeOwned>(file: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("cannot read the settings in {}; is --config right?", file.display()))?;
    let table: toml::Table = text.parse().map_err(|error| {
        let (line, _) = culprit(&text, &error);
        anyhow!("{} line {line} is not TOML: {}; correct it", file.display(), error.message())
    })?;
    // Flags come later; a wrong value is told while its line is known.
    toml::from_str::<Config>(&text).map(|_| table).map_err(|error| {
        let (line, name) = culprit(&text, &error);
        anyhow!(
            "{} line {line}: {name}: {}; correct it, or run with --print-config alone to see all settings",
            file.display(),
            error.message()
        )
    })
}

/// The line that `error` is about, from 1, and the setting there.
fn culprit<'a>(text: &'a str, error: &toml::de::Error) -> (usize, &'a str) {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let line = text.get(..start).unwrap_or_default().matches('\n').count();
    let name = text.lines().nth(line).and_then(|line| line.split('=').next()).unwrap_or_default();
    (line + 1, name.trim())
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
        let wrong = error("name = 'x'\nbeats = 'often'");
        assert!(wrong.contains("line 2: beats:") && wrong.contains("expected u64"), "{wrong}");
        let missing = load::<Sample>(Some(Path::new("/no/such.toml")), &Sample::default()).unwrap_err();
        assert!(format!("{missing:#}").contains("/no/such.toml"));
    }
}
