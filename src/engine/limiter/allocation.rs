//! Assigning slots to the buckets of a new snapshot.
//!
//! A bucket is one slot under one rule, or under rules that read its word in the same way: windows
//! of one period, or credits, whatever their counts. A limit can have several buckets, one for each
//! rule: an owner's limit, if the owner's keys are on plans that define it differently. If the wanted
//! rules are exactly the existing ones, each bucket continues by itself. Otherwise every wanted
//! bucket starts with the lowest balance of all existing ones.
//!
//! Buckets of former rules are not part of this comparison, but their balances count: they are
//! [retained](super::reclaim) because they may be the lowest.

use std::sync::PoisonError;

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::buckets::{Buckets, Migration};
use crate::limiter::charge::Limiter;
use crate::limiter::limit_id::LimitId;
use crate::limiter::reclaim::PendingReclaim;
use crate::limiter::retained::RetainedBucket;
use crate::limiter::rule::Rule;
use crate::limiter::slot_set::SlotSet;
use crate::limiter::slots::BucketRef;
use crate::limiter::word::Word;
use crate::sync::CHUNK_SLOTS;

/// The slots of a snapshot that is being built. [`commit`](Self::commit) makes them final; dropping
/// the allocation releases them.
pub struct Allocation<'a> {
    allocator: &'a mut SlotAllocator,
    buckets: &'a Buckets,
    /// The latest time of the limiter in nanoseconds when the allocation began.
    began: u64,
    /// Slots that the new snapshot shares with the previous one, or takes from the retained
    /// buckets.
    reused: SlotSet,
    new_slots: Vec<u32>,
    /// The target slot of each migration, and the migration.
    migrations: Vec<(u32, Migration)>,
    /// Whether [`assign_contiguous`](Self::assign_contiguous) has assigned all slots of the
    /// allocator.
    is_contiguous: bool,
    is_committed: bool,
}

impl SlotAllocator {
    /// Begins the allocation of slots for a new snapshot.
    pub fn begin<'a>(&'a mut self, limiter: &'a Limiter) -> Allocation<'a> {
        // Most slots are reused, so the set gets its full size at once.
        let reused = SlotSet::with_capacity(self.next);
        Allocation {
            allocator: self,
            buckets: &limiter.buckets,
            began: limiter.latest_time(),
            reused,
            new_slots: Vec::new(),
            migrations: Vec::new(),
            is_contiguous: false,
            is_committed: false,
        }
    }
}

impl Allocation<'_> {
    /// Assigns a slot to the only bucket of the limit `id`, whose rule is `rule`. `previous` is the
    /// limit's bucket in the snapshot in use. Each limit of a snapshot must be assigned once.
    ///
    /// Returns `None` if all 2^32 slots are in use.
    pub fn assign(
        &mut self,
        id: impl FnOnce() -> LimitId,
        previous: Option<BucketRef>,
        rule: Rule,
    ) -> Option<u32> {
        if let Some(previous) = previous.filter(|previous| previous.rule.shares_words_with(rule)) {
            return Some(self.reuse(previous));
        }
        let retained = self.retained(id);
        if previous.is_none()
            && let [only] = *current(retained)
            && only.rule.shares_words_with(rule)
        {
            return Some(self.reuse(only));
        }
        let existing = all_balances(previous.as_slice(), retained);
        self.migrate(&existing, rule)
    }

    /// Assigns a slot to each bucket of the limit `id`, which has one for each of `rules`. No two of
    /// them may share words. The order of `previous`, `rules` and the result is not significant.
    ///
    /// Returns `None` if all 2^32 slots are in use.
    pub(crate) fn assign_all(
        &mut self,
        id: LimitId,
        previous: &[BucketRef],
        rules: &[Rule],
    ) -> Option<Vec<BucketRef>> {
        let find = |existing: &[BucketRef], rule: Rule| {
            existing.iter().find(|bucket| bucket.rule.shares_words_with(rule)).map(|bucket| bucket.slot)
        };
        let retained = self.retained(|| id);
        let unchanged: Vec<BucketRef> =
            if previous.is_empty() { current(retained) } else { previous.to_vec() };
        let has_rules = unchanged.len() == rules.len();
        let slots: Option<Vec<u32>> =
            has_rules.then(|| rules.iter().map(|rule| find(&unchanged, *rule)).collect()).flatten();
        if let Some(slots) = slots {
            let buckets = slots.into_iter().zip(rules).map(|(slot, rule)| BucketRef { slot, rule: *rule });
            return Some(buckets.inspect(|bucket| _ = self.reuse(*bucket)).collect());
        }
        let existing = all_balances(previous, self.retained(|| id));
        rules
            .iter()
            .map(|rule| Some(BucketRef { slot: self.migrate(&existing, *rule)?, rule: *rule }))
            .collect()
    }

    /// Assigns the slots `0..count` at once, except those in `unused`. This is possible only while
    /// no bucket exists, because then the ids of the limits do not matter.
    ///
    /// Returns `None` if a slot has been assigned before, or a bucket is retained.
    pub(crate) fn assign_contiguous(&mut self, count: u32, unused: impl Iterator<Item = u32>) -> Option<()> {
        let SlotAllocator { next, free, retained } = &mut *self.allocator;
        if *next > 0 || !retained.is_empty() {
            return None;
        }
        // A new chunk holds full buckets, so no state needs to be stored.
        (0..count)
            .step_by(CHUNK_SLOTS)
            .chain(count.checked_sub(1))
            .for_each(|slot| self.buckets.slots.ensure(slot));
        free.extend(unused);
        *next = count.into();
        self.is_contiguous = true;
        Some(())
    }

    /// Makes the allocation final. Call this immediately before publishing the new snapshot.
    pub fn commit(mut self) -> PendingReclaim {
        self.is_committed = true;
        let mut migrations = self.buckets.migrations.write().unwrap_or_else(PoisonError::into_inner);
        for (slot, migration) in &self.migrations {
            migrations.entry(*slot).or_default().push(*migration);
        }
        drop(migrations);
        PendingReclaim {
            reused: std::mem::take(&mut self.reused),
            new_slots: self.new_slots.len() as u64,
            migrations: std::mem::take(&mut self.migrations),
        }
    }

    fn reuse(&mut self, bucket: BucketRef) -> u32 {
        self.reused.insert(bucket.slot);
        bucket.slot
    }

    /// Takes a slot under `rule` that starts with the lowest balance of the `existing` ones.
    fn migrate(&mut self, existing: &[BucketRef], rule: Rule) -> Option<u32> {
        if existing.is_empty() {
            return self.take_unspent(rule);
        }
        let slot = self.take(Word::MIGRATING)?;
        let migration =
            |old: &BucketRef| Migration { old_slot: old.slot, old_rule: old.rule, new_rule: rule };
        self.migrations.extend(existing.iter().map(|old| (slot, migration(old))));
        Some(slot)
    }

    /// The retained buckets of a limit. They stay retained until the allocation is reclaimed.
    fn retained(&self, id: impl FnOnce() -> LimitId) -> &[RetainedBucket] {
        // An id costs a hash, and usually no bucket is retained.
        if self.allocator.retained.is_empty() { &[] } else { self.allocator.retained.get(&id()) }
    }

    /// Takes a slot of which nothing has been spent under `rule`.
    fn take_unspent(&mut self, rule: Rule) -> Option<u32> {
        // A bucket that is full since a time long past would soon wrap around.
        self.take(match rule {
            Rule::Bucket { rate, .. } => Word::with_value(rate.tick(self.began)),
            Rule::Window { .. } | Rule::Credits { .. } => Word::UNSPENT,
        })
    }

    fn take(&mut self, word: Word) -> Option<u32> {
        let slot = self.allocator.take(self.buckets, word)?;
        self.new_slots.push(slot);
        Some(slot)
    }
}

/// The retained buckets of the rules that the limit had when its keys were removed.
fn current(retained: &[RetainedBucket]) -> Vec<BucketRef> {
    retained.iter().filter(|bucket| !bucket.is_former).map(RetainedBucket::bucket).collect()
}

fn all_balances(previous: &[BucketRef], retained: &[RetainedBucket]) -> Vec<BucketRef> {
    previous.iter().copied().chain(retained.iter().map(RetainedBucket::bucket)).collect()
}

impl Drop for Allocation<'_> {
    fn drop(&mut self) {
        if self.is_committed {
            return;
        }
        if self.is_contiguous {
            (self.allocator.next, self.allocator.free) = (0, Vec::new());
        }
        for slot in self.new_slots.drain(..) {
            self.allocator.release(self.buckets, slot);
        }
    }
}
