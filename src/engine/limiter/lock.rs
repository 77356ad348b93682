//! Locking several buckets, for a charge that must decide on all of them at once.

use arrayvec::ArrayVec;

use crate::limiter::buckets::{Buckets, Obstacle};
use crate::limiter::outcome::{Charge, MAX_CHARGES};
use crate::limiter::slots::Slots;
use crate::limiter::word::Word;
use crate::now::Now;

/// The locked buckets of one charge. Dropping it stores their words and so unlocks them.
pub(super) struct LockedBuckets<'a> {
    slots: &'a Slots,
    buckets: ArrayVec<LockedBucket, MAX_CHARGES>,
}

/// A bucket that no other thread can change.
#[derive(Clone, Copy)]
pub(super) struct LockedBucket {
    /// Position of its limit in the list of charges.
    pub(super) position: usize,
    slot: u32,
    /// The word to store when the bucket is unlocked.
    pub(super) word: Word,
}

impl<'a> LockedBuckets<'a> {
    /// No buckets, to be locked by [`Buckets::lock_all`].
    pub(super) fn new(buckets: &'a Buckets) -> Self {
        Self { slots: &buckets.slots, buckets: ArrayVec::new() }
    }

    pub(super) fn buckets(&mut self) -> &mut [LockedBucket] {
        &mut self.buckets
    }
}

impl LockedBuckets<'_> {
    /// Stores the words and so unlocks the buckets.
    fn unlock(&mut self) {
        for bucket in self.buckets.drain(..) {
            self.slots.store(bucket.slot, bucket.word);
        }
    }
}

impl Drop for LockedBuckets<'_> {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl Buckets {
    /// Locks the buckets of all `charges`: at most [`MAX_CHARGES`], no two with the same slot. Returns
    /// `None` if a newer snapshot has superseded one of them. Adds them to `locked`, which is passed in
    /// because it is too large to be moved.
    ///
    /// Buckets are locked in slot order, regardless of the order of the charges. Two threads that
    /// want the same buckets could otherwise wait for each other forever. So could a thread that
    /// migrates a balance, and waits for the old slot, while it has locked another one. Hence a
    /// migration that is found is completed without locks. No slot in use begins another one.
    pub(super) fn lock_all(
        &self,
        charges: &[Charge],
        now: Now,
        locked: &mut LockedBuckets<'_>,
    ) -> Option<()> {
        if charges.len() > MAX_CHARGES {
            return None;
        }
        loop {
            match self.lock_in_slot_order(charges, locked) {
                Ok(()) => return Some(()),
                Err(Obstacle::Superseded) => return None,
                Err(Obstacle::Migrating) => {
                    locked.unlock();
                    for charge in charges {
                        while self.slots.load(charge.slot).is_migrating() {
                            self.complete_migration(charge.slot, now);
                        }
                    }
                }
            }
        }
    }

    fn lock_in_slot_order(&self, charges: &[Charge], locked: &mut LockedBuckets<'_>) -> Result<(), Obstacle> {
        let mut lock = |position: usize| {
            let slot = charges[position].slot;
            locked.buckets.push(LockedBucket { position, slot, word: self.lock(slot)? });
            Ok(())
        };
        // The slots of a key usually ascend.
        if charges.is_sorted_by_key(|charge| charge.slot) {
            return (0..charges.len()).try_for_each(&mut lock);
        }
        let mut order: [usize; MAX_CHARGES] = std::array::from_fn(|position| position);
        let order = &mut order[..charges.len()];
        order.sort_unstable_by_key(|position| charges[*position].slot);
        order.iter().copied().try_for_each(lock)
    }

    /// Waits until `slot` is unlocked, and locks it.
    fn lock(&self, slot: u32) -> Result<Word, Obstacle> {
        loop {
            let word = self.wait(slot)?;
            if self.slots.compare_exchange(slot, word, word.locked()) {
                return Ok(word);
            }
        }
    }
}
