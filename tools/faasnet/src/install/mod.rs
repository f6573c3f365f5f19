//! `faasnet install` and `faasnet uninstall`: the drop-in files by which a container runtime asks this node's agent before the registry.
//!
//! One file per runtime says what to change (pure plans over texts); here they are shown, made, recorded, checked and taken back.

mod change;
mod check;
mod containerd;
mod docker;
mod host;
mod hosts_toml;
mod names;
mod podman;
mod record;
mod report;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cli::Global;
use change::{Edit, Plan};
use check::Check;
use host::Host;
use names::{Mirror, Registry};
use record::{Record, backup};
use report::Report;

/// A container runtime that can be told of a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Also nerdctl, ctr, and Kubernetes through the CRI plugin
    Containerd,
    /// Also skopeo, Buildah and CRI-O
    Podman,
    /// Images of Docker Hub only: Docker has no mirrors for other registries
    Docker,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Docker => "docker",
        })
    }
}

/// `faasnet install`
#[derive(Debug, Args)]
#[command(after_help = "\
The registry stays in the list behind the mirror: where no agent runs, or it does not know the image, the runtime pulls as before.
An existing file gets one entry more, nothing else in it changes, and its earlier content is kept beside it as FILE.before-faasnet.
A second run changes nothing. What would keep the runtime from starting or from its registry is refused before the first change.

Examples:
  faasnet install containerd                              all registries without settings of their own
  faasnet install containerd --registry registry.example --test-image registry.example/resize:1
  faasnet install podman --registry docker.io --registry quay.io --dry-run
  faasnet install docker --root ./rootfs                  while an image of a host is built")]
pub struct InstallArgs {
    /// Which runtime
    #[arg(value_enum)]
    pub runtime: Runtime,
    /// Only for images of this registry; repeat for more; http://HOST if it speaks no TLS [default: all (containerd), docker.io (podman, docker)]
    #[arg(long = "registry", value_name = "HOST")]
    pub registries: Vec<Registry>,
    /// Where the agent's registry mirror answers
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7412")]
    pub mirror: Mirror,
    /// Pull this image afterwards; if that fails, everything is put back (docker: only where the daemon has the mirror loaded already)
    #[arg(long, value_name = "REF")]
    pub test_image: Option<String>,
    /// Which files.
    #[command(flatten)]
    pub place: Place,
}

/// `faasnet uninstall`
#[derive(Debug, Args)]
#[command(after_help = "\
Files that nobody has edited since become what they were. In others our entry is removed and the rest stays.

Example:
  faasnet uninstall containerd --dry-run")]
pub struct UninstallArgs {
    /// Which runtime
    #[arg(value_enum)]
    pub runtime: Runtime,
    /// Which files.
    #[command(flatten)]
    pub place: Place,
}

/// Which files, and whether to change them.
#[derive(Debug, Args)]
pub struct Place {
    /// Show what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Change the files below this folder instead of the running host's
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
}

/// Runs `faasnet install`.
pub async fn install(global: &Global, args: InstallArgs) -> Result<()> {
    let host = Host::new(&args.place.root)?;
    let mut report = set_up(&host, &args)?;
    report.check = if args.place.dry_run {
        Check::not_done("nothing was changed, so nothing was checked")
    } else {
        check::mirror(&host, &args.mirror).await
    };
    if let Some(image) = args.test_image.as_deref().filter(|_| !args.place.dry_run) {
        let pull = check::pull(&host, args.runtime, &args.mirror, report.folder.as_deref(), image).await;
        if pull.ok == Some(false) {
            let outcome =
                if report.take_back(&host)? { "everything was put back as it was" } else { "nothing was changed" };
            bail!("{}; {outcome}. Can it be pulled without the mirror?", pull.what);
        }
        report.pull = Some(pull);
    }
    report.print(global.json)
}

/// Runs `faasnet uninstall`.
pub fn uninstall(global: &Global, args: &UninstallArgs) -> Result<()> {
    let host = Host::new(&args.place.root)?;
    take_down(&host, args.runtime, args.place.dry_run)?.print(global.json)
}

/// Makes the changes of an installation, unless it is a dry run.
fn set_up(host: &Host, args: &InstallArgs) -> Result<Report> {
    let (runtime, mirror) = (args.runtime, &args.mirror);
    let earlier = Record::load(host, runtime)?;
    if let Some(earlier) = earlier.as_ref().filter(|earlier| earlier.mirror != *mirror) {
        bail!(
            "{runtime} has the mirror {} already; run `faasnet uninstall {runtime}` first. Nothing was changed",
            earlier.mirror.url()
        );
    }
    let mut record = earlier.clone().unwrap_or_else(|| Record::new(mirror.clone()));
    let mut plan = match runtime {
        Runtime::Containerd => containerd::install(host, mirror, &args.registries, &record)?,
        Runtime::Podman => podman::install(host, mirror, &args.registries, &record)?,
        Runtime::Docker => docker::install(host, mirror, &args.registries)?,
    };
    for edit in &mut plan.edits {
        let after = edit.after.as_deref().unwrap_or_default();
        edit.keep_backup = record.touch(&edit.path, edit.before.as_deref(), after);
    }
    record.registries = std::mem::take(&mut plan.registries);
    record.registries.sort();
    record.registries.dedup();
    if earlier.is_none() {
        record.bystanders = std::mem::take(&mut plan.bystanders);
    }
    let mut report = Report::of(host, runtime, mirror, "install", &plan, args.place.dry_run)?;
    if args.place.dry_run || plan.edits.is_empty() {
        return Ok(report);
    }
    let mut folders = record.save(host, runtime)?;
    match change::make_all(host, &plan.edits) {
        Ok(made) => folders.extend(made),
        Err(error) => {
            put_back_record(host, runtime, earlier.as_ref(), &folders)?;
            return Err(error);
        }
    }
    record.folders.extend(folders.iter().cloned());
    record.save(host, runtime)?;
    report.undo = Some(report::Undo { edits: plan.edits, folders, earlier });
    Ok(report)
}

fn put_back_record(host: &Host, runtime: Runtime, earlier: Option<&Record>, folders: &[PathBuf]) -> Result<()> {
    match earlier {
        Some(earlier) => drop(earlier.save(host, runtime)?),
        None => host.remove(&record::path(runtime))?,
    }
    host.remove_empty(folders);
    Ok(())
}

/// Takes an installation back, unless it is a dry run.
fn take_down(host: &Host, runtime: Runtime, dry_run: bool) -> Result<Report> {
    let Some(record) = Record::load(host, runtime)? else {
        return Ok(Report::nothing(host, runtime, &record::path(runtime)));
    };
    let mut plan = Plan::default();
    // containerd would miss a folder that its configuration names, so the configuration goes first: the other way round than it came.
    for file in record.files.iter().rev() {
        plan_back(host, runtime, &record, file, &mut plan)?;
    }
    match runtime {
        Runtime::Containerd if plan.edits.iter().any(|edit| edit.path.ends_with("config.toml")) => {
            plan.next.push("systemctl restart containerd    (containers go on)".into());
        }
        Runtime::Docker if !plan.edits.is_empty() => plan.next.push("systemctl reload docker".into()),
        _ => {}
    }
    let report = Report::of(host, runtime, &record.mirror, "uninstall", &plan, dry_run)?;
    if dry_run {
        return Ok(report);
    }
    change::make_all(host, &plan.edits)?;
    for file in record.files.iter().filter(|file| file.existed) {
        drop_backup(host, &file.path)?;
    }
    host.remove(&record::path(runtime))?;
    // The folder of records is that runtime's whose installation came first; the last one to go removes it.
    host.remove_empty(&[record.folders, vec!["/etc/faasnet/installed".into(), "/etc/faasnet".into()]].concat());
    Ok(report)
}

/// What brings one file back, or takes our entry out of it.
fn plan_back(host: &Host, runtime: Runtime, record: &Record, file: &record::Touched, plan: &mut Plan) -> Result<()> {
    let path = &file.path;
    let Some(text) = host.read(path)? else {
        plan.notes.push(format!("{} is gone already", path.display()));
        return Ok(());
    };
    let keep_path =
        runtime == Runtime::Containerd && path.ends_with("config.toml") && containerd::has_newcomers(host, record)?;
    if keep_path {
        plan.notes
            .push(format!("config_path stays in {}: other registries have got settings there since", path.display()));
        return Ok(());
    }
    let untouched = file.is_untouched(&text);
    let before = if file.existed { host.read(&backup(path))? } else { None };
    if untouched && (!file.existed || before.is_some()) {
        plan.edits.extend(Edit::of(path, Some(text), before));
        return Ok(());
    }
    if runtime == Runtime::Podman {
        return podman::set_aside(host, path, text, plan);
    }
    let rest = match runtime {
        Runtime::Docker => docker::without(file, &text, &record.mirror)?,
        _ => containerd::without(file, &text, &record.mirror)?,
    };
    let kept =
        if before.is_some() { format!(" (from before us there is {})", backup(path).display()) } else { String::new() };
    plan.notes.push(format!("{} was edited by hand since; only our entry is removed{kept}", path.display()));
    plan.edits.extend(Edit::of(path, Some(text), rest));
    Ok(())
}

/// A backup is kept only while it holds something that the file does not.
fn drop_backup(host: &Host, path: &Path) -> Result<()> {
    let kept = backup(path);
    if host.read(&kept)? == host.read(path)? { host.remove(&kept) } else { Ok(()) }
}
