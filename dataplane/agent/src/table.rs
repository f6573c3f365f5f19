//! The functions that this node is told to hold, and which command is the latest for each: the control side's whole state.
//!
//! Pure: no clock, no channel, no disk. Owned by `Control`; others see copies of its rows.
//!
//! LIFECYCLE of a row: `Opening` (the image's file is being opened; the newest plan waits here) → `Running` (the worker has it) →
//! gone (`Drop`). `Failed` may take the place of either; a newer assignment starts over. Of dropped functions the version stays, so
//! that a command that was overtaken by the drop is ignored.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use faasnet_api::{FunctionId, ImageId};
use faasnet_store::StoredImage;

use crate::worker::mailbox::{Assignment, FunctionReport, ReportState};

/// Dropped functions that are remembered.
const MAX_TOMBSTONES: usize = 1024;

/// Version of a plan: terms first, then epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) term: u64,
    pub(crate) epoch: u64,
}

/// One function on this node.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) tenant: String,
    pub(crate) name: String,
    pub(crate) image: ImageId,
    pub(crate) version: Version,
    pub(crate) phase: Phase,
    /// The opened image, once its descriptor is known.
    pub(crate) stored: Option<Arc<StoredImage>>,
    /// The worker's last word about this image.
    pub(crate) report: Option<FunctionReport>,
}

/// Where a row stands; see the module's LIFECYCLE.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    /// The store is opening the image for this assignment.
    Opening(Box<Assignment>),
    /// The worker has the assignment.
    Running,
    /// The image cannot be held here.
    Failed(String),
}

/// What to do with an assignment.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Older than what is held: nothing.
    Ignore,
    /// The image is open (or its descriptor is unknown): hand the assignment to the worker.
    Send(Box<Assignment>),
    /// Have the store open the image, then call [`Table::opened`].
    Open,
    /// The store is at it already; the newest plan will be used.
    Wait,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: BTreeMap<FunctionId, Row>,
    tombstones: VecDeque<(FunctionId, Version)>,
}

impl Row {
    /// What the row amounts to, in the worker's words.
    pub(crate) fn state(&self) -> ReportState {
        match (&self.phase, &self.report) {
            (Phase::Failed(reason), _) => ReportState::Failed(reason.clone()),
            (_, Some(report)) => report.state.clone(),
            (_, None) => ReportState::Waiting,
        }
    }

    /// Whether something still moves, or is about to.
    pub(crate) fn is_active(&self) -> bool {
        matches!(self.state(), ReportState::Waiting | ReportState::Fetching)
    }

    /// Verified bytes on this node's disk.
    pub(crate) fn bytes_present(&self) -> u64 {
        self.stored.as_ref().map_or(0, |stored| stored.bytes_present())
    }

    /// Every block is verified and stored.
    pub(crate) fn is_complete(&self) -> bool {
        self.stored.as_ref().is_some_and(|stored| stored.is_complete())
    }
}

impl Table {
    /// Takes in an assignment that came with the image's descriptor or without. `stored` in it is ignored; what the row holds is used.
    pub(crate) fn assign(
        &mut self,
        tenant: String,
        name: String,
        mut assignment: Assignment,
        has_descriptor: bool,
    ) -> Decision {
        let function = assignment.function;
        let version = Version { term: assignment.term, epoch: assignment.epoch };
        if self.held_version(function).is_some_and(|held| version < held) {
            return Decision::Ignore;
        }
        self.tombstones.retain(|(dropped, _)| *dropped != function);
        let old = self.rows.remove(&function).filter(|row| row.image == assignment.image);
        let was_opening = old.as_ref().is_some_and(|row| matches!(row.phase, Phase::Opening(_)));
        let was_running = old.as_ref().is_some_and(|row| matches!(row.phase, Phase::Running));
        // A failed attempt leaves nothing: neither its report nor a file that may have had the error.
        let old = old.filter(|row| !matches!(row.phase, Phase::Failed(_)));
        let (stored, report) = old.map(|row| (row.stored, row.report)).unwrap_or_default();
        let image = assignment.image;
        assignment.stored.clone_from(&stored);
        let row = |phase| Row { tenant, name, image, version, phase, stored: stored.clone(), report };
        let (phase, decision) = match (was_opening, was_running && (stored.is_some() || !has_descriptor)) {
            (true, _) => (Phase::Opening(Box::new(assignment)), Decision::Wait),
            (false, true) => (Phase::Running, Decision::Send(Box::new(assignment))),
            (false, false) => (Phase::Opening(Box::new(assignment)), Decision::Open),
        };
        self.rows.insert(function, row(phase));
        decision
    }

    /// The store has opened `image` (or does not know it: `None`). Answers the assignment that waited for it, completed; `None` when
    /// nobody waits for this image any more.
    pub(crate) fn opened(
        &mut self,
        function: FunctionId,
        image: ImageId,
        stored: Option<Arc<StoredImage>>,
    ) -> Option<Box<Assignment>> {
        let row = self.rows.get_mut(&function).filter(|row| row.image == image)?;
        let Phase::Opening(assignment) = std::mem::replace(&mut row.phase, Phase::Running) else {
            // It waited for nothing: a descriptor came by the tree at the same time. The image is the same.
            row.stored = row.stored.take().or(stored);
            return None;
        };
        row.stored = row.stored.take().or(stored);
        Some(Box::new(Assignment { stored: row.stored.clone(), ..*assignment }))
    }

    /// The image cannot be held; false when nobody wants it any more.
    pub(crate) fn failed(&mut self, function: FunctionId, image: ImageId, reason: String) -> bool {
        let Some(row) = self.rows.get_mut(&function).filter(|row| row.image == image) else { return false };
        row.phase = Phase::Failed(reason);
        row.stored = None;
        true
    }

    /// The controller takes the function away. Answers the row that was held; `None` if the command is older than what is held, or
    /// there was none.
    pub(crate) fn drop_function(&mut self, function: FunctionId, version: Version) -> Option<Row> {
        if self.held_version(function).is_some_and(|held| version < held) {
            return None;
        }
        self.tombstones.retain(|(dropped, _)| *dropped != function);
        self.tombstones.push_back((function, version));
        if self.tombstones.len() > MAX_TOMBSTONES {
            self.tombstones.pop_front();
        }
        self.rows.remove(&function)
    }

    /// Takes in what the worker reports; rows that it does not mention keep their last report.
    pub(crate) fn report(&mut self, reports: Vec<FunctionReport>) {
        for report in reports {
            if let Some(row) = self.rows.get_mut(&report.function).filter(|row| row.image == report.image) {
                row.report = Some(report);
            }
        }
    }

    /// The row of `function`, if this node holds it.
    pub(crate) fn get(&self, function: FunctionId) -> Option<&Row> {
        self.rows.get(&function)
    }

    /// All rows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (FunctionId, &Row)> {
        self.rows.iter().map(|(function, row)| (*function, row))
    }

    /// Whether anything moves.
    pub(crate) fn is_active(&self) -> bool {
        self.rows.values().any(Row::is_active)
    }

    fn held_version(&self, function: FunctionId) -> Option<Version> {
        let dropped = || self.tombstones.iter().find(|(dropped, _)| *dropped == function).map(|(_, version)| *version);
        self.rows.get(&function).map(|row| row.version).or_else(dropped)
    }
}
