//! The worker's buffers: slots of equal size in one anonymous mapping, made and touched once.
//!
//! Owned by one worker (not `Send`). A slot is leased for writing ([`LeaseMut`]), frozen ([`Lease`]) and then shared; the last holder
//! returns it. Nothing is allocated after [`Arena::new`].

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::SetupError;

/// Bytes before the payload in every slot: a page, so that a frame's header can lie directly before a page-aligned payload.
pub const HEADROOM_BYTES: usize = 4096;

/// A set of equal buffers; clones share it.
#[derive(Clone)]
pub struct Arena {
    shared: Rc<Shared>,
}

impl Arena {
    /// Maps and touches `slots` buffers of [`HEADROOM_BYTES`] + `payload_bytes` each (rounded up to whole pages).
    pub fn new(slots: usize, payload_bytes: usize) -> Result<Self, SetupError> {
        Self::make(slots, payload_bytes, false)
    }

    /// The same on huge pages, as far as the kernel has them ([`Arena::huge_bytes`] tells). Transparent ones of anonymous memory: buffers
    /// are read, written and sent from, never spliced, so neither reserved pages (which files cannot be written from) nor a memory
    /// file is needed.
    pub fn on_huge_pages(slots: usize, payload_bytes: usize) -> Result<Self, SetupError> {
        Self::make(slots, payload_bytes, true)
    }

    fn make(slots: usize, payload_bytes: usize, huge: bool) -> Result<Self, SetupError> {
        let size_error = SetupError::ArenaSize { slots, payload_bytes };
        let sizes = payload_bytes
            .checked_next_multiple_of(HEADROOM_BYTES)
            .and_then(|payload| payload.checked_add(HEADROOM_BYTES))
            .and_then(|slot| Some((slot, slot.checked_mul(slots)?)));
        let Some((slot_bytes, bytes)) = sizes else { return Err(size_error) };
        if slots == 0 || payload_bytes == 0 || u32::try_from(slots).is_err() || isize::try_from(bytes).is_err() {
            return Err(size_error);
        }
        let map = if huge { map_huge(bytes) } else { map(bytes) }?;
        let shared = Shared {
            map,
            slot_bytes,
            holders: (0..slots).map(|_| Cell::new(0)).collect(),
            // Reversed, so that the first slots are taken first.
            free: RefCell::new((0..slots as u32).rev().collect()),
        };
        Ok(Self { shared: Rc::new(shared) })
    }

    /// Leases a slot; `None` when all are out.
    pub fn take(&self) -> Option<LeaseMut> {
        let slot = self.shared.free.borrow_mut().pop()?;
        debug_assert_eq!(self.shared.holders[slot as usize].get(), 0, "a free slot has a holder");
        self.shared.holders[slot as usize].set(1);
        Some(LeaseMut { lease: Lease { shared: Rc::clone(&self.shared), slot } })
    }

    /// How many slots can be taken now.
    pub fn free(&self) -> usize {
        self.shared.free.borrow().len()
    }

    /// How many slots there are.
    pub fn slots(&self) -> usize {
        self.shared.holders.len()
    }

    /// How much of the mapping lies on huge pages now; 0 when the kernel does not tell.
    pub fn huge_bytes(&self) -> usize {
        let (start, len) = self.mapping();
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        huge_bytes_at(&text, start as usize).min(len)
    }

    /// Bytes of one slot, headroom included.
    pub fn slot_bytes(&self) -> usize {
        self.shared.slot_bytes
    }

    /// The whole mapping, to be registered with a ring.
    pub(crate) fn mapping(&self) -> (*mut u8, usize) {
        (self.shared.map.as_mut_ptr(), self.shared.map.len())
    }

    /// Whether `lease` is one of this arena's slots.
    pub(crate) fn owns(&self, lease: &Lease) -> bool {
        Rc::ptr_eq(&self.shared, &lease.shared)
    }
}

/// A slot with one holder, who may write. Its content is whatever the last holder left.
pub struct LeaseMut {
    lease: Lease,
}

impl LeaseMut {
    /// Ends the writing; the slot can now be shared.
    pub fn freeze(self) -> Lease {
        self.lease
    }

    pub(crate) fn as_lease(&self) -> &Lease {
        &self.lease
    }
}

impl Deref for LeaseMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.lease
    }
}

impl DerefMut for LeaseMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is owned by `shared`, which this lease keeps alive, and was initialised (zeroed) by the kernel. A
        // `LeaseMut` is the slot's only holder (it cannot be cloned), slots do not overlap, and the slice ends with this borrow.
        unsafe { std::slice::from_raw_parts_mut(self.lease.start(), self.lease.shared.slot_bytes) }
    }
}

/// A slot that nobody writes any more; clones share it, the last one returns it.
pub struct Lease {
    shared: Rc<Shared>,
    slot: u32,
}

impl Lease {
    fn start(&self) -> *mut u8 {
        // `slot` is below the number of slots, so this stays inside the mapping.
        self.shared.map.as_mut_ptr().wrapping_add(self.slot as usize * self.shared.slot_bytes)
    }

    fn holders(&self) -> &Cell<u32> {
        &self.shared.holders[self.slot as usize]
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.holders().set(self.holders().get() + 1);
        Self { shared: Rc::clone(&self.shared), slot: self.slot }
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as in `LeaseMut::deref_mut`; a `Lease` exists only after `freeze` (or borrowed inside its `LeaseMut`), so nobody
        // writes to the slot while the slice lives.
        unsafe { std::slice::from_raw_parts(self.start(), self.shared.slot_bytes) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let left = self.holders().get() - 1;
        self.holders().set(left);
        if left == 0 {
            self.shared.free.borrow_mut().push(self.slot);
        }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arena({} of {} free)", self.free(), self.slots())
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease(slot {})", self.slot)
    }
}

impl fmt::Debug for LeaseMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeaseMut(slot {})", self.lease.slot)
    }
}

struct Shared {
    /// Raw, because leases of different slots are written at the same time. Every lease, and so every operation in the kernel, keeps it.
    map: MmapRaw,
    slot_bytes: usize,
    holders: Box<[Cell<u32>]>,
    free: RefCell<Vec<u32>>,
}

/// Fresh pages are dear in virtual machines: populated once, here.
fn map(bytes: usize) -> Result<MmapRaw, SetupError> {
    let mapped = MmapOptions::new().len(bytes).populate().map_anon();
    mapped.map(MmapRaw::from).map_err(|source| SetupError::Memory { bytes, source })
}

/// Whole huge pages, or the kernel would not align the mapping to them.
fn map_huge(bytes: usize) -> Result<MmapRaw, SetupError> {
    let failed = |source| SetupError::Memory { bytes, source };
    let rounded =
        bytes.checked_next_multiple_of(HUGE_PAGE_BYTES).ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
    let mut mapped = MmapOptions::new().len(rounded).map_anon().map_err(failed)?;
    // Ignored: a kernel without them gives ordinary pages, which `huge_bytes` tells.
    let _ = mapped.advise(Advice::HugePage);
    if mapped.advise(Advice::PopulateWrite).is_err() {
        // Linux before 5.14: touched by hand.
        mapped.iter_mut().step_by(HEADROOM_BYTES).for_each(|byte| *byte = 0);
    }
    Ok(MmapRaw::from(mapped))
}

/// Of x86-64, and of arm64 with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// What `smaps` says about huge pages of the mapping that contains `address`.
fn huge_bytes_at(smaps: &str, address: usize) -> usize {
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    let ours = smaps.lines().skip_while(|line| !range(line).is_some_and(|range| range.contains(&address)));
    let counted =
        ours.skip(1).take_while(|line| range(line).is_none()).find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = counted.and_then(|text| text.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<usize>().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a slot that leaks, returns too early, or overlaps its neighbour.
    #[test]
    fn every_slot_comes_back_once() {
        let arena = Arena::new(3, 5000).unwrap();
        assert_eq!(arena.slot_bytes(), HEADROOM_BYTES + 8192);
        let mut leases: Vec<LeaseMut> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!((leases.len(), arena.free()), (3, 0));
        for (value, lease) in leases.iter_mut().enumerate() {
            assert_eq!(lease.as_ptr() as usize % HEADROOM_BYTES, 0);
            lease.fill(value as u8 + 1);
        }
        let frozen: Vec<Lease> = leases.into_iter().map(LeaseMut::freeze).collect();
        for (value, lease) in frozen.iter().enumerate() {
            assert!(lease.iter().all(|&byte| byte == value as u8 + 1));
        }
        let copies = frozen.clone();
        drop(frozen);
        assert_eq!(arena.free(), 0, "clones still hold the slots");
        drop(copies);
        assert_eq!(arena.free(), arena.slots());
    }

    /// Catches a mapping that ends while a lease still points into it.
    #[test]
    fn a_lease_outlives_its_arena() {
        let arena = Arena::new(1, 4096).unwrap();
        let mut lease = arena.take().unwrap();
        drop(arena);
        lease.fill(9);
        assert!(lease.freeze().iter().all(|&byte| byte == 9));
    }

    /// Catches a count that belongs to a neighbouring mapping, and buffers on huge pages that cannot be written.
    #[test]
    fn huge_pages_are_counted_for_this_mapping_only() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nAnonHugePages:      2048 kB\n\
                     3000-5000 rw-p 00000000 00:00 0 \nSize: 8 kB\nAnonHugePages:      4096 kB\n";
        assert_eq!([0x1000, 0x2fff, 0x3000, 0x5000].map(|at| huge_bytes_at(smaps, at) >> 10), [2048, 2048, 4096, 0]);
        let arena = Arena::on_huge_pages(9, 256 << 10).unwrap();
        assert!(arena.huge_bytes() <= arena.mapping().1);
        let leases: Vec<LeaseMut> = std::iter::from_fn(|| arena.take()).collect();
        assert_eq!(leases.len(), 9);
        for mut lease in leases {
            lease.fill(7);
            assert!(lease.freeze().iter().all(|&byte| byte == 7));
        }
    }

    /// Catches an overflow or an empty mapping for absurd settings.
    #[test]
    fn absurd_sizes_are_refused() {
        for (slots, payload) in [(0, 1), (1, 0), (usize::MAX, 4096), (2, usize::MAX), (1 << 40, 1 << 20)] {
            assert!(matches!(Arena::new(slots, payload), Err(SetupError::ArenaSize { .. })));
        }
    }
}
