//! Reclaiming slots once no worker uses the old snapshot.
//!
//! Pending migrations are completed, and the slots of buckets that no longer exist are freed. Two
//! kinds of slots are *retained* instead, until their buckets are full:
//!
//! * Buckets of removed keys. A key that disappears and comes back (a bad export, a mistaken
//!   delete) does not get a new quota.
//! * Old slots of a rule change that become full later than the new ones. Under a smaller limit a
//!   bucket is soon full, and no longer shows what was spent under the larger one.
//!
//! Credits of which something has been spent are retained for ever, because nothing refills them.

use std::sync::PoisonError;

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::buckets::{Buckets, Migration};
use crate::limiter::charge::Limiter;
use crate::limiter::limit_id::LimitId;
use crate::limiter::rule::{Rule, RuleKind};
use crate::limiter::slot_set::SlotSet;
use crate::limiter::slots::BucketRef;
use crate::now::Now;

/// Maximum number of retained token buckets: the larger of this and the number in use. Buckets that
/// are evicted beyond it count as full early.
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
        now: Now,
    ) {
        let buckets = &limiter.buckets;
        let PendingReclaim { reused, new_slots, migrations } = pending;
        for (slot, _) in &migrations {
            buckets.complete_migration(*slot, now);
        }
        buckets.migrations.write().unwrap_or_else(PoisonError::into_inner).clear();

        let assigned = reused.len() + new_slots;
        let done = self.release_migrated(buckets, reused, &migrations, now);
        self.retained.retain(|bucket| !done.contains(bucket.slot));
        self.retain_old(buckets, old, done, assigned, now);
        self.release_unspent(buckets, now);
    }

    /// Releases the old slots of the migrations, except those that become full later than their new
    /// slots. Returns `done` with the released slots added.
    fn release_migrated(
        &mut self,
        buckets: &Buckets,
        mut done: SlotSet,
        migrations: &[(u32, Migration)],
        now: Now,
    ) -> SlotSet {
        let slots = &buckets.slots;
        for (new_slot, Migration { old_slot, old_rule, new_rule }) in migrations {
            // An old slot may have been migrated to several new ones. One that is full no earlier
            // is enough.
            let unspent_in = |slot: &u32, rule: &Rule| {
                let (word, rule) = buckets.read(BucketRef { slot: *slot, rule: *rule }, now);
                rule.unspent_in(word)
            };
            let is_covered = unspent_in(old_slot, old_rule) <= unspent_in(new_slot, new_rule);
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
        now: Now,
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
                let (word, rule) = buckets.read(bucket, now);
                if rule.is_unspent(word) {
                    self.release(buckets, bucket.slot);
                } else {
                    self.retained.insert(id(), bucket);
                }
                left -= 1;
            }
        }
    }

    /// Releases the retained buckets that are full and, if too many are left, those that will be
    /// full soonest. Windows that are not over, and credits, are retained in any number.
    fn release_unspent(&mut self, buckets: &Buckets, now: Now) {
        let live = self.in_use().saturating_sub(self.retained.len() as u64) as usize;
        let unspent_in = |bucket: &BucketRef| {
            let (word, rule) = buckets.read(*bucket, now);
            rule.unspent_in(word)
        };
        let is_token_bucket = |bucket: &BucketRef| bucket.rule.kind() == RuleKind::Bucket;
        let token_buckets = self.retained.iter().map(|(_, bucket)| bucket).filter(is_token_bucket);
        let mut waits: Vec<u64> =
            token_buckets.map(|bucket| unspent_in(&bucket)).filter(|wait| *wait > 0).collect();
        let surplus = waits.len().saturating_sub(live.max(MIN_RETAINED));
        let longest_released = match surplus.checked_sub(1) {
            Some(last) => *waits.select_nth_unstable(last).1,
            None => 0,
        };
        // Of buckets that will be full at the same time, no more than the surplus are released.
        let sooner = waits.iter().filter(|wait| **wait < longest_released).count();
        let mut longest_left = surplus.saturating_sub(sooner);
        let mut released = Vec::new();
        self.retained.retain(|bucket| {
            let wait = unspent_in(bucket);
            let mut is_retained = wait > 0;
            if is_retained && is_token_bucket(bucket) {
                let is_surplus = wait == longest_released && longest_left > 0;
                longest_left -= usize::from(is_surplus);
                is_retained = wait >= longest_released && !is_surplus;
            }
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
    use crate::limiter::calendar::Period;
    use crate::limiter::persist::SavedLimit;
    use crate::limiter::rule::SavedBalance;
    use crate::sync::{CHUNK_SLOTS, MAX_CHUNKS};

    const RULE: Rule = Rule::SLOWEST;

    fn now() -> Now {
        Now { nanoseconds: 1, ..Now::default() }
    }

    fn saved(number: u64, debt: u64) -> SavedLimit {
        SavedLimit { id: id(number), rule: RULE, balance: SavedBalance::Bucket { debt } }
    }

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
        let saved = (1..=count).map(|debt| saved(debt, debt));
        allocator.restore(&limiter, saved, 0, now());
        let mut allocation = allocator.begin(&limiter);
        for number in 0..live {
            assert!(allocation.assign(|| id(u64::MAX - number), None, RULE).is_some());
        }
        let pending = allocation.commit();
        allocator.reclaim(&limiter, pending, no_buckets(), now());
        assert_eq!(allocator.in_use(), allocator.retained() as u64 + live);
        let scan = allocator.scan_balances(&limiter, no_buckets(), now());
        let mut debts: Vec<u64> = scan
            .at(now())
            .map(|limit| match limit.balance {
                SavedBalance::Bucket { debt } => debt,
                other => panic!("{other:?}"),
            })
            .collect();
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
    fn of_buckets_that_are_full_at_the_same_time_no_more_than_the_surplus_are_forgotten() {
        if !HAS_ROOM {
            return;
        }
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        // Three are full sooner than the others.
        let saved = (0..MIN_RETAINED as u64 + 5).map(|number| saved(number, if number < 3 { 9 } else { 10 }));
        allocator.restore(&limiter, saved, 0, now());
        let pending = allocator.begin(&limiter).commit();
        allocator.reclaim(&limiter, pending, no_buckets(), now());
        assert_eq!(allocator.retained(), MIN_RETAINED);
        let forgotten = (0..3).filter(|number| allocator.retained.get(&id(*number)).is_empty());
        assert_eq!(forgotten.count(), 3);
    }

    #[test]
    fn bucket_of_the_old_snapshot_is_reclaimed_whatever_is_retained() {
        if !HAS_ROOM {
            return;
        }
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let saved = (1..=3).map(|number| saved(number, 100));
        assert_eq!(allocator.restore(&limiter, saved, 0, now()), 3);
        let mut allocation = allocator.begin(&limiter);
        let old = [10, 11, 12, 13].map(|number| {
            let slot = allocation.assign(|| id(number), None, RULE).expect("a free slot");
            BucketRef { slot, rule: RULE }
        });
        let pending = allocation.commit();
        allocator.reclaim(&limiter, pending, no_buckets(), now());
        let mut allocation = allocator.begin(&limiter);
        for (number, previous) in (10..13).zip(old) {
            assert_eq!(allocation.assign(|| id(number), Some(previous), RULE), Some(previous.slot));
        }
        for number in 20..23 {
            assert!(allocation.assign(|| id(number), None, RULE).is_some());
        }
        let pending = allocation.commit();
        let listed = old.into_iter().zip(10..).map(|(bucket, number)| (bucket, move || id(number)));
        allocator.reclaim(&limiter, pending, listed, now());
        assert_eq!((allocator.in_use(), allocator.retained()), (9, 3));
    }

    #[test]
    fn windows_and_credits_are_retained_in_any_number() {
        if !HAS_ROOM {
            return;
        }
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let window = Rule::window(9, Period::Month(1), 0).expect("in range");
        let credits = Rule::credits(9, 0).expect("in range");
        let counted = [
            SavedLimit {
                id: id(u64::MAX),
                rule: window,
                balance: SavedBalance::Window { start: 0, spent: 1 },
            },
            SavedLimit { id: id(u64::MAX - 1), rule: credits, balance: SavedBalance::Credits { spent: 1 } },
        ];
        let surplus = MIN_RETAINED as u64 + 3;
        let saved = (1..=surplus).map(|debt| saved(debt, debt));
        allocator.restore(&limiter, saved.chain(counted), 0, now());
        let pending = allocator.begin(&limiter).commit();
        allocator.reclaim(&limiter, pending, no_buckets(), now());
        assert_eq!(allocator.retained(), MIN_RETAINED + counted.len());
        let scan = allocator.scan_balances(&limiter, no_buckets(), now());
        let is_counted = |limit: &SavedLimit| limit.rule.kind() != RuleKind::Bucket;
        assert_eq!(scan.at(now()).filter(is_counted).count(), counted.len());
    }
}
