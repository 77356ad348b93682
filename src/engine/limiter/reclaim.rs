//! Reclaiming slots once no worker uses the old snapshot.
//!
//! Pending migrations are completed, and the slots of buckets that no longer exist are freed. Two
//! kinds of slots are *retained* instead, until their buckets are full:
//!
//! * Buckets of removed keys. A key that disappears and comes back (a bad export, a mistaken
//!   delete) does not get a new quota.
//! * Old slots of a rate change that become full later than the new ones. Under a smaller limit a
//!   bucket is soon full, and no longer shows what was spent under the larger one.

use std::sync::PoisonError;

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::buckets::{Buckets, Migration};
use crate::limiter::charge::Limiter;
use crate::limiter::limit_id::LimitId;
use crate::limiter::slot_set::SlotSet;
use crate::limiter::slots::BucketRef;

/// Maximum number of retained buckets: the larger of this and the number in use. Buckets evicted
/// beyond it count as full early.
const MIN_RETAINED: usize = 1 << 16;

/// What a committed allocation leaves to [`SlotAllocator::reclaim`].
#[must_use]
pub struct PendingReclaim {
    /// Slots that the new snapshot shares with the old one, or took from the retained buckets.
    pub(super) reused: SlotSet,
    /// The number of slots that the new snapshot has in addition.
    pub(super) new_slots: u64,
    /// The target slot of each migration, and the migration.
    pub(super) migrations: Vec<(u32, Migration)>,
}

impl SlotAllocator {
    /// Finishes a reload. No worker may use the old snapshot any more; `old` lists its buckets and
    /// the ids of their limits.
    pub fn reclaim(
        &mut self,
        limiter: &Limiter,
        pending: PendingReclaim,
        old: impl Iterator<Item = (BucketRef, impl FnOnce() -> LimitId)>,
        now: u64,
    ) {
        let buckets = &limiter.buckets;
        let PendingReclaim { reused, new_slots, migrations } = pending;
        for (slot, _) in &migrations {
            buckets.complete_migration(*slot, now);
        }
        buckets.migrations.write().unwrap_or_else(PoisonError::into_inner).clear();

        let assigned = reused.len() + new_slots;
        let done = self.release_migrated(buckets, reused, &migrations);
        self.retained.retain(|bucket| !done.contains(bucket.slot));
        self.retain_old(buckets, old, done, assigned, now);
        self.release_full(buckets, now);
    }

    /// Releases the old slots of the migrations, except those that become full later than their new
    /// slots. Returns `done` with the released slots added.
    fn release_migrated(
        &mut self,
        buckets: &Buckets,
        mut done: SlotSet,
        migrations: &[(u32, Migration)],
    ) -> SlotSet {
        let slots = &buckets.slots;
        for (new_slot, Migration { old_slot, .. }) in migrations {
            // An old slot may have been migrated to several new ones. One that is full no earlier
            // is enough.
            let is_covered = !slots.load(*old_slot).is_full_later_than(slots.load(*new_slot));
            if is_covered && done.insert(*old_slot) {
                self.release(buckets, *old_slot);
            }
        }
        for (_, Migration { old_slot, .. }) in migrations {
            if !done.contains(*old_slot) {
                slots.store(*old_slot, slots.load(*old_slot).without_flags());
            }
        }
        done
    }

    /// Retains or releases each bucket of the old snapshot that is not in `done`. `assigned` is the
    /// number of slots of the new snapshot.
    fn retain_old(
        &mut self,
        buckets: &Buckets,
        old: impl Iterator<Item = (BucketRef, impl FnOnce() -> LimitId)>,
        mut done: SlotSet,
        assigned: u64,
        now: u64,
    ) {
        // A slot that is in use, but neither assigned nor retained, belongs to the old snapshot.
        // The count ends the loop early: often there are none, in a snapshot of a million keys.
        let mut left = self.in_use().saturating_sub(self.retained.len() as u64 + assigned);
        for (bucket, id) in old {
            if left == 0 {
                break;
            }
            // All rows of a key list the same buckets.
            if done.insert(bucket.slot) {
                if buckets.slots.load(bucket.slot).is_full(now) {
                    self.release(buckets, bucket.slot);
                } else {
                    self.retained.insert(id(), bucket);
                }
                left -= 1;
            }
        }
    }

    /// Releases the retained buckets that are full and, if too many are left, those that will be
    /// full soonest.
    fn release_full(&mut self, buckets: &Buckets, now: u64) {
        let live = self.in_use().saturating_sub(self.retained.len() as u64) as usize;
        let debt = |bucket: &BucketRef| buckets.slots.load(bucket.slot).balance(bucket.rate, now, 0).reset;
        let mut debts: Vec<u64> =
            self.retained.iter().map(|(_, bucket)| debt(&bucket)).filter(|debt| *debt > 0).collect();
        let surplus = debts.len().saturating_sub(live.max(MIN_RETAINED));
        let max_released_debt = match surplus.checked_sub(1) {
            Some(last) => *debts.select_nth_unstable(last).1,
            None => 0,
        };
        let mut released = Vec::new();
        self.retained.retain(|bucket| {
            let is_retained = debt(bucket) > max_released_debt;
            if !is_retained {
                released.push(bucket.slot);
            }
            is_retained
        });
        for slot in released {
            self.release(buckets, slot);
        }
    }
}
