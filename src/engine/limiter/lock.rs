//! Locking several buckets, for a charge that must decide on all of them at once.

use crate::limiter::buckets::Buckets;
use crate::limiter::outcome::{Charge, MAX_CHARGES};
use crate::limiter::slots::Slots;
use crate::limiter::state::BucketState;

/// The locked buckets of one charge. Dropping it stores their states and so unlocks them.
pub(super) struct LockedBuckets<'a> {
    slots: &'a Slots,
    buckets: [LockedBucket; MAX_CHARGES],
    len: usize,
}

/// A bucket that no other thread can change.
#[derive(Clone, Copy)]
pub(super) struct LockedBucket {
    /// Position of its limit in the list of charges.
    pub(super) position: usize,
    slot: u32,
    /// The state to store when the bucket is unlocked.
    pub(super) state: BucketState,
}

impl LockedBucket {
    const EMPTY: Self = Self { position: 0, slot: 0, state: BucketState::FULL };
}

impl LockedBuckets<'_> {
    pub(super) fn buckets(&mut self) -> &mut [LockedBucket] {
        &mut self.buckets[..self.len]
    }

    fn push(&mut self, bucket: LockedBucket) {
        self.buckets[self.len] = bucket;
        self.len += 1;
    }
}

impl Drop for LockedBuckets<'_> {
    fn drop(&mut self) {
        for bucket in &self.buckets[..self.len] {
            self.slots.store(bucket.slot, bucket.state);
        }
    }
}

impl Buckets {
    /// Locks the buckets of all `charges`: at most [`MAX_CHARGES`], no two with the same slot.
    /// Returns `None` if a newer snapshot has superseded one of them.
    ///
    /// Buckets are locked in slot order, regardless of the order of the charges. Two threads that
    /// want the same buckets could otherwise wait for each other forever.
    pub(super) fn lock_all(&self, charges: &[Charge], now: u64) -> Option<LockedBuckets<'_>> {
        let mut order: [usize; MAX_CHARGES] = std::array::from_fn(|position| position);
        let order = order.get_mut(..charges.len())?;
        order.sort_unstable_by_key(|position| charges[*position].slot);
        let mut locked =
            LockedBuckets { slots: &self.slots, buckets: [LockedBucket::EMPTY; MAX_CHARGES], len: 0 };
        for position in order {
            let slot = charges[*position].slot;
            locked.push(LockedBucket { position: *position, slot, state: self.lock(slot, now)? });
        }
        Some(locked)
    }

    /// Waits until `slot` is unlocked, and locks it. Returns `None` if a newer snapshot has
    /// superseded it.
    fn lock(&self, slot: u32, now: u64) -> Option<BucketState> {
        loop {
            let state = self.wait_unlocked(slot, now)?;
            if self.slots.compare_exchange(slot, state, state.locked()) {
                return Some(state);
            }
        }
    }
}
