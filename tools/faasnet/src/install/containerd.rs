//! containerd: a `hosts.toml` per registry, and `config_path` in its `config.toml`, which makes the CRI plugin (Kubernetes) read them.
//!
//! What would keep containerd from starting or from reaching a registry is refused before anything is changed: entries of the old kind
//! beside `config_path`, certificates that a new `hosts.toml` would hide.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml_edit::{DocumentMut, Item, Table, value};

use super::change::{Edit, Plan};
use super::host::Host;
use super::hosts_toml::{self, Certificates};
use super::names::{Mirror, Registry};
use super::record::{Record, Touched};

const CONFIG: &str = "/etc/containerd/config.toml";
const CERTS: &str = "/etc/containerd/certs.d";
/// As containerd 2 has it when nothing is said.
const CERTS_AND_DOCKERS: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";
/// The registry of all that have no folder of their own.
const DEFAULT: &str = "_default";
/// The plugin that holds the registry's settings, by the version of the file.
const PLUGINS: [(i64, &str); 3] = [(1, "cri"), (2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.images")];

/// What to change so that containerd asks `mirror` first: for `registries`, or for all.
pub(super) fn install(host: &Host, mirror: &Mirror, registries: &[Registry], record: &Record) -> Result<Plan> {
    let mut plan = Plan { registries: record.registries.clone(), ..Plan::default() };
    plan.registries.extend_from_slice(registries);
    let (config, folders) = configure(host, &mut plan)?;
    let folder = PathBuf::from(folders.first().context("config_path in config.toml names no folder")?);
    let known: Vec<String> = host.list(&folder)?.into_iter().filter(|name| name != DEFAULT).collect();
    plan.bystanders = known.iter().filter(|name| !ours(record, &folder, name)).cloned().collect();
    if registries.is_empty() {
        hides_nothing(host, &folders)?;
        let path = folder.join(DEFAULT).join("hosts.toml");
        plan.edits.extend(hosts(host, &path, mirror, None, &Certificates::default())?);
        let untold: Vec<_> = plan.bystanders.iter().map(String::as_str).collect();
        if !untold.is_empty() {
            plan.notes.push(format!(
                "not asked through the mirror, since they have settings of their own in {}: {}; name them with --registry",
                folder.display(),
                untold.join(", ")
            ));
        }
    }
    for registry in registries {
        let name = folder_name(&known, registry);
        let certificates = certificates(host, &folders, &name)?;
        let path = folder.join(&name).join("hosts.toml");
        plan.edits.extend(hosts(host, &path, mirror, registry.server().as_deref(), &certificates)?);
    }
    if config.is_some() {
        plan.next.push(
            "systemctl restart containerd    (containers go on; the CRI plugin reads config_path at its start)".into(),
        );
    }
    plan.notes.push(format!("ctr reads the same with --hosts-dir {}", folder.display()));
    plan.edits.extend(config);
    plan.folder = Some(folder);
    Ok(plan)
}

/// How a file looks without our entry; `None` when nothing is left of what we made.
pub(super) fn without(touched: &Touched, text: &str, mirror: &Mirror) -> Result<Option<String>> {
    let shown = touched.path.display();
    if touched.path != Path::new(CONFIG) {
        let rest = hosts_toml::without_mirror(text, mirror).with_context(|| broken(&shown.to_string()))?;
        return Ok((touched.existed || !hosts_toml::says_nothing(&rest)).then_some(rest));
    }
    let mut config: DocumentMut = text.parse().with_context(|| broken(CONFIG))?;
    let keys = keys(&config)?;
    remove_path(config.as_table_mut(), &keys);
    let empty = !touched.existed && config.iter().all(|(key, _)| key == "version");
    Ok((!empty).then(|| config.to_string()))
}

/// Whether the folder that our `config_path` names has registries which were not there before us.
pub(super) fn has_newcomers(host: &Host, record: &Record) -> Result<bool> {
    let folder = Path::new(CERTS);
    let names = host.list(folder)?;
    let theirs = |name: &&String| !record.bystanders.contains(name) && !ours(record, folder, name);
    Ok(names.iter().any(|name| theirs(&name)))
}

fn ours(record: &Record, folder: &Path, name: &str) -> bool {
    let path = folder.join(name).join("hosts.toml");
    record.files.iter().any(|file| file.path == path && !file.existed)
}

/// The change of `config.toml`, if it needs one, and the folders that containerd will look into.
fn configure(host: &Host, plan: &mut Plan) -> Result<(Option<Edit>, Vec<String>)> {
    let path = Path::new(CONFIG);
    let Some(before) = host.read(path)? else {
        let after = format!(
            "# Written by `faasnet install containerd`; `faasnet uninstall containerd` removes it.\nversion = 2\n\n\
             [plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"{CERTS_AND_DOCKERS}\"\n"
        );
        return Ok((Edit::of(path, None, Some(after)), split(CERTS_AND_DOCKERS)));
    };
    let mut config: DocumentMut = before.parse().with_context(|| broken(CONFIG))?;
    let keys = keys(&config)?;
    let mut configured = checked(&config, CONFIG)?;
    for file in imports(host, &config)? {
        let text = host.read(&file)?.unwrap_or_default();
        let name = file.display().to_string();
        let imported: DocumentMut = text.parse().with_context(|| broken(&name))?;
        configured = checked(&imported, &name)?.or(configured);
    }
    if disables_cri(&config) {
        plan.notes.push(format!("{CONFIG} disables the CRI plugin: nerdctl and ctr can use the mirror, Kubernetes does not use this containerd"));
    }
    if let Some(configured) = configured {
        return Ok((None, split(&configured)));
    }
    let wanted = if keys[1] == PLUGINS[2].1 { CERTS_AND_DOCKERS } else { CERTS };
    set_path(config.as_table_mut(), &keys, wanted)?;
    Ok((Edit::of(path, Some(before), Some(config.to_string())), split(wanted)))
}

/// A registry's `hosts.toml` with our mirror in front.
fn hosts(
    host: &Host,
    path: &Path,
    mirror: &Mirror,
    server: Option<&str>,
    certificates: &Certificates,
) -> Result<Option<Edit>> {
    let before = host.read(path)?;
    let after = match before.as_deref().filter(|text| !text.is_empty()) {
        None => Some(hosts_toml::new_file(mirror, server, certificates)),
        Some(text) => hosts_toml::with_mirror(text, mirror)
            .with_context(|| format!("{} cannot be changed; correct it first. Nothing was changed", path.display()))?,
    };
    Ok(after.and_then(|after| Edit::of(path, before, Some(after))))
}

/// containerd looks for `host_port_` before `host:port`.
fn folder_name(known: &[String], registry: &Registry) -> String {
    let other = registry.host.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    other.filter(|name| known.contains(name)).unwrap_or_else(|| registry.host.clone())
}

fn certificates(host: &Host, folders: &[String], name: &str) -> Result<Certificates> {
    for folder in folders {
        let names = host.list(&Path::new(folder).join(name))?;
        if names.iter().any(|name| name == "hosts.toml") {
            break;
        }
        if !names.is_empty() {
            return Ok(Certificates::among(&format!("{folder}/{name}"), &names));
        }
    }
    Ok(Certificates::default())
}

/// A default for all registries ends the search in the first folder; what lies in a later one would no longer be found.
fn hides_nothing(host: &Host, folders: &[String]) -> Result<()> {
    for folder in folders.iter().skip(1) {
        let hidden = host.list(Path::new(folder))?;
        if !hidden.is_empty() {
            bail!(
                "{folder} has settings of {}, which a default for all registries would hide; name the registries with --registry. \
                 Nothing was changed",
                hidden.join(", ")
            );
        }
    }
    Ok(())
}

/// The keys of the table with `config_path`.
fn keys(config: &DocumentMut) -> Result<[&'static str; 3]> {
    let version = config.get("version").map_or(Some(1), Item::as_integer);
    let plugin = PLUGINS.iter().find(|(known, _)| Some(*known) == version);
    let (_, plugin) = plugin.with_context(|| {
        format!("{CONFIG} has a version other than 1, 2 and 3; add config_path by hand, see containerd's docs/hosts.md. Nothing was changed")
    })?;
    Ok(["plugins", plugin, "registry"])
}

/// `config_path` as a file sets it. Settings of the old kind are an error: with both the CRI plugin does not start.
fn checked(config: &DocumentMut, name: &str) -> Result<Option<String>> {
    let mut path = None;
    for (_, plugin) in PLUGINS {
        let registry = ["plugins", plugin, "registry"].iter().try_fold(config.as_item(), |item, key| item.get(key));
        let Some(registry) = registry else { continue };
        let filled = |item: &Item| item.as_table_like().is_some_and(|table| !table.is_empty());
        let tls = registry
            .get("configs")
            .and_then(Item::as_table_like)
            .is_some_and(|configs| configs.iter().any(|(_, config)| config.get("tls").is_some_and(filled)));
        if registry.get("mirrors").is_some_and(filled) || tls {
            bail!(
                "{name} has registry mirrors or certificates of the old kind ([plugins.\"{plugin}\".registry.mirrors] or .configs.….tls), \
                 with which containerd accepts no config_path; move them to {CERTS} first, see containerd's docs/hosts.md. Nothing was changed"
            );
        }
        let set = registry.get("config_path").and_then(Item::as_str).filter(|path| !path.is_empty());
        path = set.map(str::to_owned).or(path);
    }
    Ok(path)
}

/// Files that the configuration imports: paths, of which the last part may have one `*`.
fn imports(host: &Host, config: &DocumentMut) -> Result<Vec<PathBuf>> {
    let patterns = config.get("imports").and_then(Item::as_array).into_iter().flatten();
    let mut files = Vec::new();
    for pattern in patterns.filter_map(|pattern| pattern.as_str()) {
        let pattern = Path::new("/etc/containerd").join(pattern);
        let (Some(folder), Some(name)) = (pattern.parent(), pattern.file_name().and_then(|name| name.to_str())) else {
            continue;
        };
        match name.split_once('*') {
            None => files.push(pattern.clone()),
            Some((begin, end)) => {
                let names = host.list(folder)?;
                let fits = |name: &&String| {
                    name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
                };
                files.extend(names.iter().filter(fits).map(|name| folder.join(name)));
            }
        }
    }
    Ok(files)
}

fn disables_cri(config: &DocumentMut) -> bool {
    let disabled = config.get("disabled_plugins").and_then(Item::as_array).into_iter().flatten();
    disabled.filter_map(|plugin| plugin.as_str()).any(|plugin| PLUGINS.iter().any(|(_, cri)| *cri == plugin))
}

fn set_path(root: &mut Table, keys: &[&str], path: &str) -> Result<()> {
    let mut table = root;
    for (index, key) in keys.iter().enumerate() {
        let mut new = Table::new();
        // Only the innermost gets a header of its own.
        new.set_implicit(index + 1 < keys.len());
        let item = table.entry(key).or_insert(Item::Table(new));
        table = item.as_table_mut().with_context(|| {
            format!(
                "{CONFIG} writes {} in one line; add config_path = \"{path}\" to it by hand. Nothing was changed",
                keys.join(".")
            )
        })?;
    }
    // As its neighbours are indented.
    let indent =
        table.iter().next().and_then(|(key, _)| table.key(key)?.leaf_decor().prefix()?.as_str().map(last_line));
    let indent = indent.unwrap_or_else(|| "  ".into());
    let is_new = !table.contains_key("config_path");
    table["config_path"] = value(path);
    if let Some(mut key) = table.key_mut("config_path").filter(|_| is_new) {
        key.leaf_decor_mut().set_prefix(indent);
    }
    Ok(())
}

/// Removes `config_path` if it is ours, and the tables that are empty then.
fn remove_path(table: &mut Table, keys: &[&str]) {
    let Some((key, rest)) = keys.split_first() else {
        if table
            .get("config_path")
            .and_then(Item::as_str)
            .is_some_and(|path| [CERTS, CERTS_AND_DOCKERS].contains(&path))
        {
            table.remove("config_path");
        }
        return;
    };
    let Some(inner) = table.get_mut(key).and_then(Item::as_table_mut) else { return };
    let was_empty = inner.is_empty();
    remove_path(inner, rest);
    if inner.is_empty() && !was_empty {
        table.remove(key);
    }
}

fn last_line(prefix: &str) -> String {
    prefix.rsplit('\n').next().unwrap_or_default().to_owned()
}

fn split(path: &str) -> Vec<String> {
    path.split(':').filter(|path| !path.is_empty()).map(str::to_owned).collect()
}

fn broken(file: &str) -> String {
    format!("{file} is not TOML; correct it first, nothing was changed")
}
