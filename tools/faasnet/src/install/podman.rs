//! Podman (and skopeo, Buildah, CRI-O): a drop-in file of our own in `/etc/containers/registries.conf.d`.
//!
//! A `[[registry]]` in a later file replaces one of the same name whole, so a registry that somebody has configured is never named here.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::change::{Edit, Plan};
use super::host::Host;
use super::names::{Mirror, Registry};
use super::record::Record;

const MAIN: &str = "/etc/containers/registries.conf";
const FOLDER: &str = "/etc/containers/registries.conf.d";
const OWN: &str = "50-faasnet.conf";

/// What to change so that podman asks `mirror` first for `registries` and for those of an earlier installation.
pub(super) fn install(host: &Host, mirror: &Mirror, registries: &[Registry], record: &Record) -> Result<Plan> {
    let mut plan = Plan::default();
    let mut wanted = record.registries.clone();
    match registries {
        [] if wanted.is_empty() => {
            plan.notes.push("podman asks a mirror only for registries that are named: this is docker.io; name others with --registry".into());
            wanted.push(Registry::docker_hub());
        }
        _ => wanted.extend_from_slice(registries),
    }
    wanted.sort();
    wanted.dedup();
    refuse_conflicts(host, mirror, &wanted)?;
    let path = own();
    let before = host.read(&path)?;
    let after = text(mirror, &wanted);
    let edited = before.as_ref().is_some_and(|before| {
        *before != after && !record.files.iter().any(|file| file.path == path && file.is_untouched(before))
    });
    if edited {
        bail!(
            "{} was not written by this installation, or was edited since; `faasnet uninstall podman` puts it aside, or delete it. \
             Nothing was changed",
            path.display()
        );
    }
    plan.edits.extend(Edit::of(&path, before, Some(after)));
    plan.registries = wanted;
    plan.notes.push("skopeo, Buildah and CRI-O read the same file".into());
    Ok(plan)
}

/// What to change so that our file is gone. One that somebody has edited is put aside, since podman reads it whole or not at all.
pub(super) fn set_aside(host: &Host, path: &Path, text: String, plan: &mut Plan) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".bak");
    let aside = PathBuf::from(aside);
    plan.notes.push(format!("{} was edited by hand; it is kept as {}", path.display(), aside.display()));
    plan.edits.extend(Edit::of(&aside, host.read(&aside)?, Some(text.clone())));
    plan.edits.extend(Edit::of(path, Some(text), None));
    Ok(())
}

fn own() -> PathBuf {
    Path::new(FOLDER).join(OWN)
}

fn text(mirror: &Mirror, registries: &[Registry]) -> String {
    let mut text = String::from(
        "# Written by `faasnet install podman`; `faasnet uninstall podman` removes it.\n\
         # The agent of this node is asked first. What it does not hold comes from the registry itself.\n",
    );
    for registry in registries {
        let plain = if registry.plain { "insecure = true\n" } else { "" };
        text += &format!("\n[[registry]]\nlocation = \"{registry}\"\n{plain}\n[[registry.mirror]]\n");
        let (location, plain) = (location(mirror, registry), mirror.is_plain());
        text += &format!("location = \"{location}\"\ninsecure = {plain}\n");
    }
    text
}

/// What podman asks in place of `registry`. A part of a name has no colon: the mirror takes a port behind `_`.
fn location(mirror: &Mirror, registry: &Registry) -> String {
    format!("{}/{}", mirror.authority(), registry.to_string().replace(':', "_"))
}

/// Looks whether somebody has configured one of our registries, or whether the main file is of the old form, which mixes with nothing.
fn refuse_conflicts(host: &Host, mirror: &Mirror, registries: &[Registry]) -> Result<()> {
    let names = host.list(Path::new(FOLDER))?;
    let others = names.iter().filter(|name| name.ends_with(".conf") && *name != OWN);
    let files = std::iter::once(PathBuf::from(MAIN)).chain(others.map(|name| Path::new(FOLDER).join(name)));
    for file in files {
        let Some(text) = host.read(&file)? else { continue };
        let file = file.display();
        let document: toml::Table =
            text.parse().with_context(|| format!("{file} is not TOML; correct it first, nothing was changed"))?;
        if document.contains_key("registries") {
            bail!(
                "{file} has the old form ([registries.…]), which podman does not mix with ours; bring it to version 2, see \
                   containers-registries.conf(5). Nothing was changed"
            );
        }
        for table in document.get("registry").and_then(toml::Value::as_array).into_iter().flatten() {
            let name = ["prefix", "location"].iter().find_map(|key| table.get(key)?.as_str());
            if let Some(registry) = registries.iter().find(|registry| Some(registry.host.as_str()) == name) {
                bail!(
                    "{file} configures {registry} already, and a second entry would replace it; add to that one: \
                     [[registry.mirror]] location = \"{}\" insecure = {}. Nothing was changed",
                    location(mirror, registry),
                    mirror.is_plain()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(main: &str) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path()).unwrap();
        host.write(Path::new(MAIN), main, None).unwrap();
        (dir, host)
    }

    fn planned(host: &Host, registries: &[&str]) -> Result<Plan> {
        let mirror: Mirror = "http://127.0.0.1:7412".parse().unwrap();
        let registries: Vec<Registry> = registries.iter().map(|registry| registry.parse().unwrap()).collect();
        install(host, &mirror, &registries, &Record::new(mirror.clone()))
    }

    /// Catches an entry that podman does not read as a mirror in front of the registry.
    #[test]
    fn each_registry_has_the_mirror_in_front() {
        let (_dir, host) = setting("unqualified-search-registries = ['docker.io']\n");
        let plan = planned(&host, &["quay.io", "http://r.example:5000"]).unwrap();
        let text = plan.edits[0].after.clone().unwrap();
        let value: toml::Table = text.parse().unwrap();
        let first = &value["registry"][0];
        assert_eq!(first["location"].as_str(), Some("quay.io"));
        assert_eq!(first["mirror"][0]["location"].as_str(), Some("127.0.0.1:7412/quay.io"));
        assert_eq!(first["mirror"][0]["insecure"].as_bool(), Some(true));
        assert_eq!(value["registry"][1]["insecure"].as_bool(), Some(true));
        assert_eq!(value["registry"][1]["mirror"][0]["location"].as_str(), Some("127.0.0.1:7412/r.example_5000"));
        assert!(planned(&host, &[]).unwrap().notes[0].contains("docker.io"));
    }

    /// Catches a registry's own settings that our file would shadow, and a main file after which podman would refuse to start.
    #[test]
    fn what_would_break_pulls_is_refused() {
        let error = |main: &str| {
            let (_dir, host) = setting(main);
            format!("{:#}", planned(&host, &["r.example"]).unwrap_err())
        };
        assert!(error("[[registry]]\nlocation = 'r.example'\ninsecure = true\n").contains("add to that one"));
        assert!(error("[[registry]]\nprefix = 'r.example'\nlocation = 'other'\n").contains("add to that one"));
        assert!(error("[registries.search]\nregistries = ['docker.io']\n").contains("version 2"));
        assert!(error("[[registry\n").contains("nothing was changed"));
    }
}
