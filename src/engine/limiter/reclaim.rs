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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::persist::SavedBucket;
    use crate::limiter::rate::Rate;
    use crate::sync::{CHUNK_SLOTS, MAX_CHUNKS};

    const RATE: Rate = Rate::SLOWEST;

    /// tests/schedules and tests/fuzz compile the limiter with fewer slots, and with locks that exist
    /// only within an exploration.
    const HAS_ROOM: bool = CHUNK_SLOTS * MAX_CHUNKS > 3 * MIN_RETAINED;

    fn id(number: u64) -> LimitId {
        LimitId(u128::from(number).to_le_bytes())
    }

    fn no_buckets() -> impl Iterator<Item = (BucketRef, fn() -> LimitId)> {
        std::iter::empty()
    }

    /// The debts that are retained of the debts 1 to `count`, after a reload to `live` other buckets.
    fn retained(count: u64, live: u64) -> Vec<u64> {
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let saved = (1..=count).map(|debt| SavedBucket { id: id(debt), rate: RATE, debt });
        allocator.restore(&limiter, saved, 0, 1);
        let mut allocation = allocator.begin(&limiter);
        for number in 0..live {
            assert!(allocation.assign(|| id(u64::MAX - number), None, RATE).is_some());
        }
        let pending = allocation.commit();
        allocator.reclaim(&limiter, pending, no_buckets(), 1);
        assert_eq!(allocator.in_use(), allocator.retained() as u64 + live);
        let scan = allocator.scan_balances(&limiter, no_buckets(), 1);
        let mut debts: Vec<u64> = scan.at(1).map(|bucket| bucket.debt).collect();
        debts.sort_unstable();
        debts
    }

    #[test]
    fn retained_buckets_beyond_the_limit_that_are_full_soonest_are_forgotten() {
        if !HAS_ROOM {
            return;
        }
        let limit = MIN_RETAINED as u64;
        assert_eq!(retained(limit, 5), (1..=limit).collect::<Vec<_>>());
        assert_eq!(retained(limit + 3, 5), (4..=limit + 3).collect::<Vec<_>>());
        assert_eq!(retained(limit + 3, limit + 1), (3..=limit + 3).collect::<Vec<_>>(), "more are in use");
    }

    #[test]
    fn bucket_of_the_old_snapshot_is_reclaimed_whatever_is_retained() {
        if !HAS_ROOM {
            return;
        }
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let saved = (1..=3).map(|number| SavedBucket { id: id(number), rate: RATE, debt: 100 });
        assert_eq!(allocator.restore(&limiter, saved, 0, 1), 3);
        let mut allocation = allocator.begin(&limiter);
        let old = [10, 11, 12, 13].map(|number| {
            let slot = allocation.assign(|| id(number), None, RATE).expect("a free slot");
            BucketRef { slot, rate: RATE }
        });
        let pending = allocation.commit();
        allocator.reclaim(&limiter, pending, no_buckets(), 1);
        let mut allocation = allocator.begin(&limiter);
        for (number, previous) in (10..13).zip(old) {
            assert_eq!(allocation.assign(|| id(number), Some(previous), RATE), Some(previous.slot));
        }
        for number in 20..23 {
            assert!(allocation.assign(|| id(number), None, RATE).is_some());
        }
        let pending = allocation.commit();
        let listed = old.into_iter().zip(10..).map(|(bucket, number)| (bucket, move || id(number)));
        allocator.reclaim(&limiter, pending, listed, 1);
        assert_eq!((allocator.in_use(), allocator.retained()), (9, 3));
    }
}
