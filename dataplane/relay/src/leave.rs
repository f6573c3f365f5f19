//! Leave to read the origin, for a node that has nobody else left: when to ask for it, what the answer is worth, what to do without one.
//!
//! Owned by the upstream side of one stripe, whose plan does not name the origin. It counts from the last sign that bytes come, or will.
//!
//! LIFECYCLE: fed → stranded (nothing came for a while and everybody known has failed: the controller is asked, again and again) → given for
//! a time, or, unanswered for long, a last round through everybody known and then the origin. Whoever reads goes on asking and looks back
//! to the plan now and then: with a controller or a parent there again it is theirs to end. A sign of life or a new plan begins it anew.

use std::time::Duration;

use faasnet_api::NodeId;

use crate::plan::{Patience, Target};
use crate::upstream::Now;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Leave {
    /// The last sign that bytes come or will.
    fed: Option<Now>,
    asked: Option<Now>,
    /// Since when questions have been without an answer.
    unanswered: Option<Now>,
    /// When the plan was last looked back to while the origin was read, and how often.
    looked: Option<(Now, usize)>,
    standing: Standing,
}

#[derive(Debug, Default)]
enum Standing {
    #[default]
    None,
    /// The controller's word, for a time.
    Given { since: Now, until: Now },
    /// Nobody answered: whoever is still to be tried before the origin.
    LastRound(Vec<Target>),
}

/// How often the controller is asked.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// How often a reader of the origin tries a node of its plan. One that lets us in and has nothing costs the stream a short break.
const LOOK_BACK_EVERY: Duration = Duration::from_secs(5);

impl Leave {
    /// Begins anew: the plan has changed.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Bytes come, or will. Leave that is in use (`from_origin`) is kept: what it brought is no reason to give it up.
    pub(crate) fn fed(&mut self, now: Now, from_origin: bool) {
        self.fed = Some(now);
        if !from_origin {
            *self = Self { fed: self.fed, ..Self::default() };
        }
    }

    /// Whether nothing has come for so long that a node should worry.
    pub(crate) fn is_hungry(&mut self, now: Now, patience: &Patience) -> bool {
        now.saturating_sub(*self.fed.get_or_insert(now)) >= patience.stranded
    }

    /// The controller's answer; false when it says no.
    pub(crate) fn answered(&mut self, now: Now, lease: Duration) -> bool {
        self.unanswered = None;
        let given = !lease.is_zero();
        self.standing = if given { Standing::Given { since: now, until: now + lease } } else { Standing::None };
        given
    }

    /// Whether the controller is to be asked now: by a `stranded` node, or by one that `reads` the origin and wants to go on.
    pub(crate) fn asks(&mut self, now: Now, stranded: bool, reads: bool) -> bool {
        let due = match self.standing {
            // Answers are seconds away at most; half of the time is early enough.
            Standing::Given { since, until } => reads && now >= since + (until - since) / 2,
            // Nobody has said yes yet: as soon as the controller is there it decides.
            Standing::LastRound(_) => reads,
            Standing::None => stranded,
        };
        let asks = due && self.asked.is_none_or(|asked| now >= asked + ASK_EVERY);
        if asks {
            self.asked = Some(now);
            self.unanswered.get_or_insert(now);
        }
        asks
    }

    /// Whether the controller has been silent for longer than `me` waits; then [`Leave::begin_last_round`] is due.
    pub(crate) fn is_without_answer(&self, now: Now, me: NodeId, patience: &Patience) -> bool {
        matches!(self.standing, Standing::None)
            && self.unanswered.is_some_and(|since| now >= since + patience.unanswered_by(me))
    }

    /// Tries `known` once more, then the origin.
    pub(crate) fn begin_last_round(&mut self, known: Vec<Target>) {
        let mut once = Vec::new();
        for target in known {
            if !once.contains(&target) {
                once.push(target);
            }
        }
        once.reverse();
        self.standing = Standing::LastRound(once);
    }

    /// A lease that ended before it was used is worth nothing; one that is used lasts until somebody says no.
    pub(crate) fn expire(&mut self, now: Now, reads: bool) {
        if matches!(self.standing, Standing::Given { until, .. } if !reads && now >= until) {
            self.standing = Standing::None;
        }
    }

    /// Which node of the plan, by number, a reader of the origin tries now, if any: each in its turn, the planned upstream first.
    pub(crate) fn looks_back(&mut self, now: Now) -> Option<usize> {
        let (last, looks) = self.looked.get_or_insert((now, 0));
        if now < *last + LOOK_BACK_EVERY {
            return None;
        }
        (*last, *looks) = (now, *looks + 1);
        Some(*looks - 1)
    }

    /// Whether the origin may be read, at the latest after a last round.
    pub(crate) fn is_given(&self) -> bool {
        !matches!(self.standing, Standing::None)
    }

    /// Whom to try with it.
    pub(crate) fn next_target(&mut self) -> Target {
        match &mut self.standing {
            Standing::LastRound(known) => known.pop().unwrap_or(Target::Origin),
            _ => Target::Origin,
        }
    }
}
