//! The difference that one change made to the trees, and the log from which it is worked out.

/// One node's upstream in one stripe's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge<K> {
    /// Which tree.
    pub stripe: u8,
    /// The node that receives.
    pub node: K,
    /// From whom; `None`: the node is the root and reads the origin.
    pub parent: Option<K>,
}

/// What an `insert`, `remove`, `demote` or `exchange` changed: exactly the edges after it minus those before it, and the reverse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<K> {
    /// Edges that are there now and were not before.
    pub changed: Vec<Edge<K>>,
    /// Edges that were there before and are not any more.
    pub freed: Vec<Edge<K>>,
}

impl<K> Default for Plan<K> {
    fn default() -> Self {
        Self { changed: Vec::new(), freed: Vec::new() }
    }
}

/// Remembers who stood at the places that an operation may touch, and under whom. It speaks of places and not of nodes, so that neither
/// noting nor comparing has to look up where a node stands. An operation touches a bounded number of places: a linear search is the
/// fastest look-up. Used again by the next operation, so that none allocates.
#[derive(Debug, Clone)]
pub(crate) struct ChangeLog<K> {
    places: Vec<Place>,
    before: Vec<Stand<K>>,
}

/// A place of one stripe's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    stripe: u32,
    place: u32,
}

/// Who stands at a place, and under whom; `None`: nobody.
pub(crate) type Stand<K> = Option<(K, Option<K>)>;

impl<K: Copy + Eq> ChangeLog<K> {
    pub(crate) fn new() -> Self {
        Self { places: Vec::with_capacity(32), before: Vec::with_capacity(32) }
    }

    /// Notes who stands at a place before its first change. Later notes of the same place change nothing.
    pub(crate) fn note(&mut self, stripe: u8, place: u32, stand: impl FnOnce() -> Stand<K>) {
        let place = Place { stripe: stripe.into(), place };
        if !self.places.contains(&place) {
            self.places.push(place);
            self.before.push(stand());
        }
    }

    /// The difference between what was noted and what `now` says; the log is empty again.
    pub(crate) fn finish(&mut self, now: impl Fn(u8, u32) -> Stand<K>) -> Plan<K> {
        let noted = self.places.len();
        let mut plan = Plan::default();
        for (Place { stripe, place }, before) in self.places.drain(..).zip(self.before.drain(..)) {
            let stripe = stripe as u8;
            let after = now(stripe, place);
            if before == after {
                continue;
            }
            for (list, stand) in [(&mut plan.freed, before), (&mut plan.changed, after)] {
                if let Some((node, parent)) = stand {
                    if list.capacity() == 0 {
                        list.reserve_exact(noted);
                    }
                    list.push(Edge { stripe, node, parent });
                }
            }
        }
        // Who moved to another place under the same parent has the same edge as before.
        let Plan { changed, freed } = &mut plan;
        changed.retain(|edge| match freed.iter().position(|before| before == edge) {
            Some(same) => {
                freed.swap_remove(same);
                false
            }
            None => true,
        });
        plan
    }
}
