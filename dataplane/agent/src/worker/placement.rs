//! On which worker each function lives.
//!
//! Owned by the control side's hold on the workers. Pure: decides, moves nothing. A function stays where it is while it lives; functions
//! of one image share a worker, so that the image's file and map have one owner.

use std::collections::HashMap;

use faasnet_api::{FunctionId, ImageId};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Placement {
    workers: usize,
    places: HashMap<FunctionId, Place>,
}

#[derive(Debug)]
struct Place {
    worker: usize,
    image: ImageId,
    /// Blocks are still missing, as far as is known.
    fetching: bool,
    /// The worker was told to drop it and has not answered.
    dropping: bool,
}

/// Where an assignment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) worker: usize,
    /// The worker that has to let the function go first: its new image lives elsewhere.
    pub(super) left: Option<usize>,
}

impl Placement {
    pub(super) fn new(workers: usize) -> Self {
        Self { workers: workers.max(1), places: HashMap::new() }
    }

    /// The worker for a function and its image: where it is; else where the image is; else the one with the fewest images that are still
    /// being received, and of these the one with the fewest functions.
    pub(super) fn assign(&mut self, function: FunctionId, image: ImageId) -> Placed {
        let home = self.places.iter().find(|(other, place)| **other != function && place.image == image);
        let home = home.map(|(_, place)| place.worker);
        let old = self.places.get(&function).map(|place| (place.worker, place.image));
        let worker = match old {
            Some((worker, held)) if held == image => worker,
            Some((worker, _)) => home.unwrap_or(worker),
            None => home.unwrap_or_else(|| self.least_loaded()),
        };
        let fetching = self.places.get(&function).is_none_or(|place| place.fetching || place.image != image);
        self.places.insert(function, Place { worker, image, fetching, dropping: false });
        Placed { worker, left: old.map(|(left, _)| left).filter(|left| *left != worker) }
    }

    /// Where a function lives.
    pub(super) fn worker_of(&self, function: FunctionId) -> Option<usize> {
        self.places.get(&function).map(|place| place.worker)
    }

    /// The function's image is complete or has failed: it costs its worker little from here on.
    pub(super) fn settled(&mut self, function: FunctionId, image: ImageId) {
        if let Some(place) = self.places.get_mut(&function).filter(|place| place.image == image) {
            place.fetching = false;
        }
    }

    /// The function's worker is told to drop it.
    pub(super) fn dropping(&mut self, function: FunctionId) {
        if let Some(place) = self.places.get_mut(&function) {
            place.dropping = true;
        }
    }

    /// A worker dropped a function; `true` if it lives nowhere from here on: it may have been assigned anew meanwhile.
    pub(super) fn dropped(&mut self, function: FunctionId) -> bool {
        let gone = self.places.get(&function).is_some_and(|place| place.dropping);
        if gone {
            self.places.remove(&function);
        }
        gone
    }

    fn least_loaded(&self) -> usize {
        let load = |worker: usize| {
            let here = self.places.values().filter(|place| place.worker == worker);
            (here.clone().filter(|place| place.fetching).count(), here.count())
        };
        (0..self.workers).min_by_key(|worker| load(*worker)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(n: usize) -> FunctionId {
        FunctionId::new("t", &n.to_string())
    }

    fn image(n: u8) -> ImageId {
        ImageId([n; 32])
    }

    /// Catches functions that pile up on one worker, and one that wanders when its plan changes.
    #[test]
    fn functions_are_spread_and_stay() {
        let mut placement = Placement::new(3);
        let places: Vec<_> = (0..7).map(|n| placement.assign(function(n), image(n as u8)).worker).collect();
        assert_eq!(places, [0, 1, 2, 0, 1, 2, 0]);
        placement.settled(function(4), image(4));
        assert_eq!(placement.assign(function(7), image(7)).worker, 1, "a complete image weighs less");
        assert_eq!(placement.assign(function(6), image(6)), Placed { worker: 0, left: None });
        assert_eq!(placement.assign(function(5), image(50)), Placed { worker: 2, left: None }, "an update stays");
    }

    /// Catches one image that two workers write.
    #[test]
    fn functions_of_one_image_live_together() {
        let mut placement = Placement::new(2);
        assert_eq!(placement.assign(function(0), image(0)).worker, 0);
        assert_eq!(placement.assign(function(1), image(1)).worker, 1);
        assert_eq!(placement.assign(function(2), image(1)).worker, 1);
        assert_eq!(
            placement.assign(function(2), image(0)),
            Placed { worker: 0, left: Some(1) },
            "its new image is there"
        );
        assert_eq!(placement.worker_of(function(2)), Some(0));
    }

    /// Catches a late answer to a drop that makes a function homeless which was assigned again meanwhile.
    #[test]
    fn a_function_assigned_again_is_not_forgotten() {
        let mut placement = Placement::new(2);
        placement.assign(function(0), image(0));
        placement.dropping(function(0));
        placement.assign(function(0), image(0));
        assert!(!placement.dropped(function(0)));
        placement.dropping(function(0));
        assert!(placement.dropped(function(0)));
        assert_eq!(placement.worker_of(function(0)), None);
    }
}
