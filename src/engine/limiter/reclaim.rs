//! Reclaiming slots once no worker uses the old snapshot.
//!
//! Pending migrations are completed, and the slots of buckets that no longer exist are freed. Two
//! kinds of slots are *retained* instead:
//!
//! * Buckets of removed keys, until all of the limit are full, those of former rules included. A key
//!   that disappears and comes back (a bad export, a mistaken delete) does not get a new quota.
//! * Old slots of a rule change that become full later than the new ones, until they are full. Under a
//!   smaller limit a bucket is soon full, and no longer shows what was spent under the larger one.
//!
//! Credits of which something has been spent are retained for ever, because nothing refills them.

use std::sync::PoisonError;

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::buckets::{Buckets, Migration};
use crate::limiter::charge::Limiter;
use crate::limiter::limit_id::LimitId;
use crate::limiter::retained::RetainedBucket;
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
    /// Finishes a reload. No worker may use the old snapshot any more; `old` lists its limits: all
    /// buckets of each, and its id.
    ///
    /// Returns the number of retained token buckets that count as full early, because there were too
    /// many.
    pub fn reclaim(
        &mut self,
        limiter: &Limiter,
        pending: PendingReclaim,
        old: impl Iterator<Item = (impl AsRef<[BucketRef]>, impl FnOnce() -> LimitId)>,
        now: Now,
    ) -> usize {
        let buckets = &limiter.buckets;
        let PendingReclaim { reused, new_slots, migrations } = pending;
        for (slot, _) in &migrations {
            buckets.complete_migration(*slot, now);
        }
        buckets.migrations.write().unwrap_or_else(PoisonError::into_inner).clear();

        let assigned = reused.len() + new_slots;
        let mut replaced = SlotSet::default();
        for (_, Migration { old_slot, .. }) in &migrations {
            replaced.insert(*old_slot);
        }
        let done = self.release_migrated(buckets, reused, &migrations, now);
        self.retained.retain(|_, bucket| !done.contains(bucket.slot));
        if !migrations.is_empty() {
            self.retained.mark_former(&replaced);
        }
        self.retain_old(buckets, old, (done, &replaced), assigned, now);
        self.release_unspent(buckets, now)
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

    /// Retains or releases each bucket of the old snapshot that is not in `done`; other rules have
    /// replaced those of the buckets in `replaced`. `assigned` is the number of slots of the new
    /// snapshot.
    fn retain_old(
        &mut self,
        buckets: &Buckets,
        old: impl Iterator<Item = (impl AsRef<[BucketRef]>, impl FnOnce() -> LimitId)>,
        (mut done, replaced): (SlotSet, &SlotSet),
        assigned: u64,
        now: Now,
    ) {
        // A slot that is in use, but neither assigned nor retained, belongs to the old snapshot.
        // The count ends the loop early: often there are none, in a snapshot of a million keys.
        let mut left = self.in_use().saturating_sub(self.retained.len() as u64 + assigned);
        let is_spent = |bucket: BucketRef| {
            let (word, rule) = buckets.read(bucket, now);
            !rule.is_unspent(word)
        };
        for (limit, id) in old {
            if left == 0 {
                break;
            }
            // All rows of a key list the same limits.
            let remaining: Vec<BucketRef> =
                limit.as_ref().iter().copied().filter(|bucket| done.insert(bucket.slot)).collect();
            if remaining.is_empty() {
                continue;
            }
            left = left.saturating_sub(remaining.len() as u64);
            let is_any_spent = remaining.iter().any(|bucket| is_spent(*bucket));
            // An id costs a hash, so it is computed only if it is needed.
            let id = (is_any_spent || self.retained.has_former()).then(id);
            let is_spent_of = |id: &LimitId| {
                is_any_spent || self.retained.get(id).iter().any(|former| is_spent(former.bucket()))
            };
            let retained_as = id.filter(is_spent_of);
            for bucket in remaining {
                match retained_as {
                    Some(id) => {
                        let is_former = replaced.contains(bucket.slot);
                        self.retained.insert(id, RetainedBucket::new(bucket, is_former));
                    }
                    None => self.release(buckets, bucket.slot),
                }
            }
        }
    }

    /// Releases the retained buckets of former rules that are full, those of limits of which all are
    /// full and, if too many token buckets are left, those of the limits that will be full soonest.
    /// Windows that are not over, and credits, are retained in any number. Returns the number of token
    /// buckets that are released although their limit is not full.
    fn release_unspent(&mut self, buckets: &Buckets, now: Now) -> usize {
        let live = self.in_use().saturating_sub(self.retained.len() as u64) as usize;
        let unspent_in = |bucket: &RetainedBucket| {
            let (word, rule) = buckets.read(bucket.bucket(), now);
            rule.unspent_in(word)
        };
        let all_unspent_in =
            |limit: &[RetainedBucket]| limit.iter().map(unspent_in).max().unwrap_or_default();
        let are_token_buckets =
            |limit: &[RetainedBucket]| limit.iter().all(|bucket| bucket.rule.kind() == RuleKind::Bucket);
        let mut released = Vec::new();
        self.retained.retain(|limit, bucket| {
            let wait = if bucket.is_former { unspent_in(bucket) } else { all_unspent_in(limit) };
            if wait == 0 {
                released.push(bucket.slot);
            }
            wait > 0
        });
        // Each bucket counts, and waits for all of its limit.
        let token_buckets =
            self.retained.limits().map(|(_, limit)| limit).filter(|limit| are_token_buckets(limit));
        let mut waits: Vec<u64> =
            token_buckets.flat_map(|limit| std::iter::repeat_n(all_unspent_in(limit), limit.len())).collect();
        let surplus = waits.len().saturating_sub(live.max(MIN_RETAINED));
        let mut evicted = 0;
        if let Some(last) = surplus.checked_sub(1) {
            let longest_released = *waits.select_nth_unstable(last).1;
            // Of limits that will be full at the same time, no more than the surplus are released.
            let sooner = waits.iter().filter(|wait| **wait < longest_released).count();
            let mut longest_left = surplus.saturating_sub(sooner);
            self.retained.retain_limits(|limit| {
                if !are_token_buckets(limit) {
                    return true;
                }
                let wait = all_unspent_in(limit);
                let is_surplus = wait == longest_released && longest_left > 0;
                if is_surplus {
                    longest_left = longest_left.saturating_sub(limit.len());
                }
                let is_retained = wait >= longest_released && !is_surplus;
                if !is_retained {
                    evicted += limit.len();
                    released.extend(limit.iter().map(|bucket| bucket.slot));
                }
                is_retained
            });
        }
        for slot in released {
            self.release(buckets, slot);
        }
        evicted
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
        let balance = SavedBalance::Bucket { debt };
        SavedLimit { id: id(number), rule: RULE, is_former: false, balance }
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
        let evicted = allocator.reclaim(&limiter, pending, no_buckets(), now());
        assert_eq!(evicted + allocator.retained(), count as usize);
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
    fn buckets_of_one_limit_are_forgotten_together() {
        if !HAS_ROOM {
            return;
        }
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        // A limit with two rules. One of its buckets is full soonest of all, the other latest.
        let slow = saved(u64::MAX, 1 << 20);
        let fast = SavedLimit { balance: SavedBalance::Bucket { debt: 1 }, ..slow };
        let others = (0..MIN_RETAINED as u64 + 3).map(|number| saved(number, 10 + number));
        allocator.restore(&limiter, others.chain([slow, fast]), 0, now());
        let pending = allocator.begin(&limiter).commit();
        assert_eq!(allocator.reclaim(&limiter, pending, no_buckets(), now()), 5);
        assert_eq!(allocator.retained.get(&slow.id).len(), 2);
        // It is that of another limit now.
        let soon = SavedLimit { id: id(u64::MAX - 1), ..fast };
        allocator.restore(&limiter, [soon, soon], 0, now());
        let pending = allocator.begin(&limiter).commit();
        assert_eq!(allocator.reclaim(&limiter, pending, no_buckets(), now()), 2);
        assert_eq!(allocator.retained(), MIN_RETAINED);
        assert!(allocator.retained.get(&soon.id).is_empty());
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
                is_former: false,
                balance: SavedBalance::Window { start: 0, spent: 1 },
            },
            SavedLimit {
                id: id(u64::MAX - 1),
                rule: credits,
                is_former: false,
                balance: SavedBalance::Credits { spent: 1 },
            },
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
