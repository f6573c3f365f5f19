//! Numbered places for what is in flight, with a generation in every number so that an old one is never mistaken for its successor.

/// Places for `T`s; a key is used once and never again (until a place has been reused 2³² times).
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

struct Place<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slab<T> {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { places: Vec::with_capacity(capacity), free: Vec::with_capacity(capacity) }
    }

    pub(crate) fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, value: None });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[index as usize];
        debug_assert!(place.value.is_none(), "a free place is taken");
        place.value = Some(value);
        u64::from(place.generation) << 32 | u64::from(index)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let place = self.places.get_mut(key as u32 as usize)?;
        if u64::from(place.generation) == key >> 32 { place.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<T> {
        self.get_mut(key)?;
        let index = key as u32;
        let place = &mut self.places[index as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        place.value.take()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    /// What is there, in no particular order, with its keys.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.places.iter_mut().enumerate().filter_map(|(index, place)| {
            let key = u64::from(place.generation) << 32 | index as u64;
            place.value.as_mut().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a completion of something finished that is taken for its successor's.
    #[test]
    fn old_keys_find_nothing() {
        let mut slab = Slab::with_capacity(1);
        let old = slab.insert('a');
        assert_eq!(slab.remove(old), Some('a'));
        let new = slab.insert('b');
        assert_eq!(new as u32, old as u32, "the place is reused");
        assert!(slab.get_mut(old).is_none() && slab.remove(old).is_none());
        assert_eq!(slab.iter_mut().map(|(key, value)| (key, *value)).collect::<Vec<_>>(), [(new, 'b')]);
        assert_eq!(slab.remove(new), Some('b'));
        assert!(slab.is_empty());
        assert_eq!(slab.remove(u64::MAX), None);
    }
}
