//! The slot allocator: which slots are in use, which are free, and which buckets are retained.
//!
//! A bucket belongs to a limit of a key or of an owner ([`LimitId`](crate::limiter::LimitId)), and
//! has one rule. A reload changes the buckets in two steps:
//!
//! 1. It *assigns* a slot to each bucket of the new snapshot
//!    ([`Allocation`](crate::limiter::Allocation)): the slot from the previous snapshot if the rule
//!    is unchanged, a new slot with a pending migration if the rule has changed, and a full bucket
//!    if it is new. Workers do not notice before the new snapshot is published, and dropping the
//!    allocation undoes it.
//! 2. Once no worker uses the old snapshot, it *reclaims* the slots that are no longer used
//!    ([`reclaim`](SlotAllocator::reclaim)).

use crate::limiter::buckets::Buckets;
use crate::limiter::retained::RetainedBuckets;
use crate::limiter::word::Word;

/// The slots of one limiter. Only reloads change it.
#[derive(Default)]
pub struct SlotAllocator {
    /// The first slot that has never been assigned.
    pub(super) next: u64,
    pub(super) free: Vec<u32>,
    pub(super) retained: RetainedBuckets,
}

impl SlotAllocator {
    /// An allocator for a limiter without buckets.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of slots that are in use, retained buckets included.
    pub fn in_use(&self) -> u64 {
        self.next - self.free.len() as u64
    }

    /// The number of retained buckets: those of removed keys and of former rates that are not full
    /// yet.
    pub fn retained(&self) -> usize {
        self.retained.len()
    }

    /// Takes a free slot and stores `word` in it. Returns `None` if all 2^32 slots are in use.
    pub(super) fn take(&mut self, buckets: &Buckets, word: Word) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u32::try_from(self.next).ok()?;
                buckets.slots.ensure(slot);
                self.next += 1;
                slot
            }
        };
        buckets.slots.store(slot, word);
        Some(slot)
    }

    pub(super) fn release(&mut self, buckets: &Buckets, slot: u32) {
        buckets.slots.store(slot, Word::UNSPENT);
        self.free.push(slot);
    }
}
