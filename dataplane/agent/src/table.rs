//! The functions that this node is told to hold, and which command is the latest for each: the control side's whole state.
//!
//! Pure: no clock, no channel, no disk. Owned by `Control`; others see copies of its rows.
//!
//! LIFECYCLE of a row: `Opening` (the image's file is being opened; the newest plan waits here) → `Running` (the worker has it) →
//! gone (`Drop`). `Failed` may take the place of either; a newer assignment starts over. Of dropped functions the version stays, so
//! that a command that was overtaken by the drop is ignored.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use faasnet_api::{FunctionId, ImageId};
use faasnet_store::StoredImage;
use tracing::{Span, debug_span};

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
    /// Bytes came or went between the last two reports.
    pub(crate) moved: bool,
    /// Reads by this host's own runtime; counted by the mirror.
    pub(crate) uses: Arc<AtomicU64>,
    /// From the assignment until all of the image is here, or will not be.
    pub(crate) arrival: Option<Span>,
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

/// What an opened image is for.
#[derive(Debug)]
pub(crate) enum Use {
    /// An assignment waited for it, and is complete now.
    Assign(Box<Assignment>),
    /// The worker has its assignment already and lacks only the file.
    Open(Arc<StoredImage>),
    /// Nothing: it is not wanted any more, or not held.
    Nothing,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: BTreeMap<FunctionId, Row>,
    tombstones: VecDeque<(FunctionId, Version)>,
}

impl Row {
    /// Something of the image was given out on this host: to a runtime, or to a person. A member without uses is idle.
    pub(crate) fn note_use(&self) {
        self.uses.fetch_add(1, Ordering::Relaxed);
    }

    /// What the row amounts to, in the worker's words.
    pub(crate) fn state(&self) -> ReportState {
        match (&self.phase, &self.report) {
            (Phase::Failed(reason), _) => ReportState::Failed(reason.clone()),
            (_, Some(report)) => report.state.clone(),
            (_, None) => ReportState::Waiting,
        }
    }

    /// Whether something moves, for this node or for its children, or is about to.
    pub(crate) fn is_active(&self) -> bool {
        self.moved || matches!(self.state(), ReportState::Waiting | ReportState::Fetching)
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
        let old = self.rows.remove(&function);
        let uses = old.as_ref().map(|row| row.uses.clone()).unwrap_or_default();
        let old = old.filter(|row| row.image == assignment.image);
        let was_opening = old.as_ref().is_some_and(|row| matches!(row.phase, Phase::Opening(_)));
        let was_running = old.as_ref().is_some_and(|row| matches!(row.phase, Phase::Running));
        // A failed attempt leaves nothing: neither its report nor a file that may have had the error.
        let old = old.filter(|row| !matches!(row.phase, Phase::Failed(_)));
        let image = assignment.image;
        let (stored, report, arrival) = old
            .map(|row| (row.stored, row.report, row.arrival))
            .unwrap_or_else(|| (None, None, Some(debug_span!("arrival", tenant, function = name, %image))));
        assignment.stored.clone_from(&stored);
        // What the store is at may be a look-up that finds nothing; a descriptor in hand is always worth an opening.
        let (phase, decision) = if was_running && (stored.is_some() || !has_descriptor) {
            (Phase::Running, Decision::Send(Box::new(assignment)))
        } else if was_opening && !has_descriptor {
            (Phase::Opening(Box::new(assignment)), Decision::Wait)
        } else {
            (Phase::Opening(Box::new(assignment)), Decision::Open)
        };
        let row = Row { tenant, name, image, version, phase, stored, report, moved: false, uses, arrival };
        self.rows.insert(function, row);
        decision
    }

    /// The store has opened `image`, or does not know it (`None`).
    pub(crate) fn opened(&mut self, function: FunctionId, image: ImageId, stored: Option<Arc<StoredImage>>) -> Use {
        let Some(row) = self.rows.get_mut(&function).filter(|row| row.image == image) else { return Use::Nothing };
        match &mut row.phase {
            // A failure is the controller's to answer; the next assignment starts over.
            Phase::Failed(_) => Use::Nothing,
            Phase::Running => {
                row.stored = row.stored.take().or(stored);
                row.stored.clone().map_or(Use::Nothing, Use::Open)
            }
            Phase::Opening(assignment) => {
                row.stored = row.stored.take().or(stored);
                let assignment = Assignment { stored: row.stored.clone(), ..(**assignment).clone() };
                row.phase = Phase::Running;
                Use::Assign(Box::new(assignment))
            }
        }
    }

    /// The image cannot be held; false when nobody wants it any more.
    pub(crate) fn failed(&mut self, function: FunctionId, image: ImageId, reason: String) -> bool {
        let Some(row) = self.rows.get_mut(&function).filter(|row| row.image == image) else { return false };
        row.phase = Phase::Failed(reason);
        row.stored = None;
        row.arrival = None;
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
            let Some(row) = self.rows.get_mut(&report.function).filter(|row| row.image == report.image) else {
                continue;
            };
            let version = Version { term: report.term, epoch: report.epoch };
            if matches!(report.state, ReportState::Failed(_)) && version < row.version {
                // The failure that the newer assignment is to mend.
                continue;
            }
            row.moved = row.report.as_ref().is_some_and(|last| bytes_moved(last) != bytes_moved(&report));
            if matches!(report.state, ReportState::Complete | ReportState::Failed(_)) {
                row.arrival = None;
            }
            row.report = Some(report);
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

fn bytes_moved(report: &FunctionReport) -> u64 {
    report.bytes_received + report.bytes_live + report.bytes_from_store
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::{layout, report};
    use crate::worker::mailbox::{StripePlan, Target};
    use faasnet_api::NodeId;

    const IMAGE: ImageId = ImageId([1; 32]);

    fn function() -> FunctionId {
        FunctionId::new("acme", "resize")
    }

    fn assignment(epoch: u64, image: ImageId) -> Assignment {
        let plan = StripePlan { upstream: Target::Origin, fallbacks: vec![], children: vec![] };
        let ticket = crate::test_support::ticket_for(NodeId([7; 16]), function(), image);
        Assignment { function: function(), image, term: 1, epoch, ticket, stripes: vec![plan], stored: None }
    }

    fn assign(table: &mut Table, epoch: u64, image: ImageId, has_descriptor: bool) -> Decision {
        table.assign("acme".into(), "resize".into(), assignment(epoch, image), has_descriptor)
    }

    /// Catches an older plan that wins because the store took its time, and a plan that is sent twice.
    #[test]
    fn the_newest_plan_is_used_when_the_image_is_open() {
        let mut table = Table::default();
        assert!(matches!(assign(&mut table, 1, IMAGE, false), Decision::Open));
        assert!(matches!(assign(&mut table, 3, IMAGE, false), Decision::Wait));
        assert!(matches!(assign(&mut table, 2, IMAGE, false), Decision::Ignore));
        let Use::Assign(assignment) = table.opened(function(), IMAGE, None) else { panic!() };
        assert_eq!(assignment.epoch, 3);
        assert!(matches!(table.opened(function(), IMAGE, None), Use::Nothing));
        assert!(matches!(assign(&mut table, 4, IMAGE, false), Decision::Send(_)));
    }

    /// Catches a node that becomes root while the store looks for its image in vain, and whose descriptor gets lost.
    #[test]
    fn a_descriptor_is_never_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (_, descriptor) = layout(&folder.path().join("layout"), &[1000]);
        let store = faasnet_store::Store::open(&folder.path().join("store"), None).unwrap();
        let image = descriptor.id();
        let mut table = Table::default();
        assert!(matches!(assign(&mut table, 1, image, false), Decision::Open));
        assert!(matches!(assign(&mut table, 2, image, true), Decision::Open));
        let Use::Assign(assignment) = table.opened(function(), image, None) else { panic!() };
        assert!(assignment.stored.is_none() && assignment.epoch == 2);
        let stored = store.open_image("acme", descriptor).unwrap();
        assert!(matches!(table.opened(function(), image, Some(stored)), Use::Open(_)));
        let Decision::Send(assignment) = assign(&mut table, 3, image, true) else { panic!() };
        assert!(assignment.stored.is_some());
    }

    /// Catches the file of one image that ends up in the assignment of another, when a function is updated.
    #[test]
    fn an_update_does_not_take_the_old_image() {
        let mut table = Table::default();
        assign(&mut table, 1, IMAGE, false);
        let new = ImageId([2; 32]);
        assert!(matches!(assign(&mut table, 2, new, false), Decision::Open));
        assert!(matches!(table.opened(function(), IMAGE, None), Use::Nothing));
        assert!(!table.failed(function(), IMAGE, "of the old image".into()));
        let Use::Assign(assignment) = table.opened(function(), new, None) else { panic!() };
        assert_eq!((assignment.image, assignment.epoch), (new, 2));
    }

    /// Catches a failure that sticks to the next attempt, or that a late answer of the store wipes out.
    #[test]
    fn a_newer_assignment_starts_over_after_a_failure() {
        let mut table = Table::default();
        assign(&mut table, 1, IMAGE, true);
        assert!(table.failed(function(), IMAGE, "disk full".into()));
        assert!(matches!(table.opened(function(), IMAGE, None), Use::Nothing));
        assert_eq!(table.get(function()).unwrap().state(), ReportState::Failed("disk full".into()));
        assert!(matches!(assign(&mut table, 2, IMAGE, true), Decision::Open));
        let failed = ReportState::Failed("disk full".into());
        table.report(vec![report(function(), IMAGE, 1, failed)]);
        assert_eq!(table.get(function()).unwrap().state(), ReportState::Waiting);
    }

    /// Catches a node that stops beating fast while its children still take from it.
    #[test]
    fn serving_children_counts_as_activity() {
        let mut table = Table::default();
        assign(&mut table, 1, IMAGE, false);
        assert!(table.is_active());
        let complete =
            |bytes_live| FunctionReport { bytes_live, ..report(function(), IMAGE, 1, ReportState::Complete) };
        table.report(vec![complete(0)]);
        assert!(!table.is_active());
        table.report(vec![complete(9)]);
        assert!(table.is_active());
        table.report(vec![complete(9)]);
        assert!(!table.is_active());
    }

    /// Catches a dropped function that an overtaken command brings back, and tombstones without end.
    #[test]
    fn a_drop_outlives_older_assignments() {
        let mut table = Table::default();
        assert!(table.drop_function(function(), Version { term: 1, epoch: 5 }).is_none());
        assert!(matches!(assign(&mut table, 4, IMAGE, true), Decision::Ignore));
        assert!(matches!(assign(&mut table, 6, IMAGE, true), Decision::Open));
        assert!(table.drop_function(function(), Version { term: 1, epoch: 5 }).is_none());
        assert!(table.get(function()).is_some());
        assert!(table.drop_function(function(), Version { term: 2, epoch: 0 }).is_some());
        for n in 0..2 * MAX_TOMBSTONES as u64 {
            table.drop_function(FunctionId::new("acme", &n.to_string()), Version { term: 2, epoch: n });
        }
        assert_eq!(table.tombstones.len(), MAX_TOMBSTONES);
    }
}
