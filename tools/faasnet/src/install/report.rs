//! What an installation or its removal did, for people and programs; and how to take it back.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use super::change::{self, Edit, Plan, Shown};
use super::check::Check;
use super::host::Host;
use super::names::Mirror;
use super::record::Record;
use super::{Runtime, put_back_record};
use crate::output;

/// What was done.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    action: &'static str,
    runtime: Runtime,
    mirror: Option<Mirror>,
    dry_run: bool,
    /// Whether files changed, or would have.
    pub(super) changed: bool,
    /// Which, and how.
    pub(super) files: Vec<Shown>,
    /// What the user has to know.
    pub(super) notes: Vec<String>,
    /// What the user has to do.
    pub(super) next: Vec<String>,
    /// Whether the mirror answers.
    #[serde(skip_serializing_if = "is_unset")]
    pub(super) check: Check,
    /// Whether the runtime pulls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pull: Option<Check>,
    /// Where the runtime looks for hosts, if that is a folder.
    #[serde(skip)]
    pub(super) folder: Option<PathBuf>,
    /// How to take it back.
    #[serde(skip)]
    pub(super) undo: Option<Undo>,
}

/// What it takes to undo an installation that has just been made.
#[derive(Debug)]
pub(super) struct Undo {
    /// The files.
    pub(super) edits: Vec<Edit>,
    /// The folders that were made.
    pub(super) folders: Vec<PathBuf>,
    /// The record before it.
    pub(super) earlier: Option<Record>,
}

impl Report {
    /// Of a plan.
    pub(super) fn of(
        host: &Host,
        runtime: Runtime,
        mirror: &Mirror,
        action: &'static str,
        plan: &Plan,
        dry_run: bool,
    ) -> Result<Self> {
        let changed = !plan.edits.is_empty();
        Ok(Self {
            action,
            runtime,
            mirror: Some(mirror.clone()),
            dry_run,
            changed,
            files: plan.edits.iter().map(|edit| edit.show(host)).collect::<Result<_>>()?,
            notes: plan.notes.clone(),
            next: if changed && !dry_run { plan.next.clone() } else { Vec::new() },
            check: Check::default(),
            pull: None,
            folder: plan.folder.clone(),
            undo: None,
        })
    }

    /// Of the removal of what is not there.
    pub(super) fn nothing(host: &Host, runtime: Runtime, record: &Path) -> Self {
        let place = host.place(record).unwrap_or_else(|_| record.to_owned());
        Self {
            action: "uninstall",
            runtime,
            mirror: None,
            dry_run: false,
            changed: false,
            files: Vec::new(),
            notes: vec![format!("nothing was installed for {runtime} (there is no {})", place.display())],
            next: Vec::new(),
            check: Check::default(),
            pull: None,
            folder: None,
            undo: None,
        }
    }

    /// Takes the installation back; whether there was anything to take back.
    pub(super) fn take_back(&mut self, host: &Host) -> Result<bool> {
        let Some(undo) = self.undo.take() else { return Ok(false) };
        change::take_back_all(host, &undo.edits, &[])?;
        put_back_record(host, self.runtime, undo.earlier.as_ref(), &undo.folders)?;
        Ok(true)
    }

    /// Prints it.
    pub(super) fn print(&self, json: bool) -> Result<()> {
        if json {
            return output::json(self);
        }
        for file in &self.files {
            output::line(file.diff.trim_end())?;
        }
        let Self { runtime, .. } = self;
        let done = match (self.changed, self.dry_run, self.action) {
            (false, ..) => format!("{runtime}: nothing to change"),
            (true, true, _) => format!("{runtime}: this would change; nothing was done"),
            (true, false, "install") => format!("{runtime}: installed"),
            (true, false, _) => format!("{runtime}: removed"),
        };
        output::line(done)?;
        for file in self.files.iter().filter(|_| !self.dry_run) {
            let backup =
                file.backup.as_ref().map(|backup| format!(", before: {}", backup.display())).unwrap_or_default();
            output::line(format!("  {} {}{backup}", file.action, file.path.display()))?;
        }
        let checks = [Some(&self.check), self.pull.as_ref()].into_iter().flatten().filter(|check| !is_unset(check));
        for check in checks {
            let mark = match check.ok {
                Some(true) => "ok",
                Some(false) => "warning",
                None => "not checked",
            };
            output::line(format!("  {mark}: {}", check.what))?;
        }
        self.notes.iter().try_for_each(|note| output::line(format!("  note: {note}")))?;
        self.next.iter().try_for_each(|next| output::line(format!("  next: {next}")))
    }
}

fn is_unset(check: &Check) -> bool {
    check.what.is_empty()
}
