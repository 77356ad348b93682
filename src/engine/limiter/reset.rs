//! What an operator does to balances: shows them, resets them, and sets the calendar back.
//!
//! All of it takes the slot allocator, which a reload holds until its slots are reclaimed. So no
//! balance is between two slots, and the snapshot in use stays the same meanwhile. Requests continue:
//! a reset locks the words that it changes, as a charge of several limits does.

use arrayvec::ArrayVec;

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::balance::Balance;
use crate::limiter::buckets::Buckets;
use crate::limiter::charge::Limiter;
use crate::limiter::limit_id::LimitId;
use crate::limiter::lock::LockedBuckets;
use crate::limiter::outcome::{Charge, MAX_CHARGES};
use crate::limiter::retained::RetainedBucket;
use crate::limiter::rule::{RuleAt, RuleKind};
use crate::limiter::slot_set::SlotSet;
use crate::limiter::slots::BucketRef;
use crate::limiter::word::Word;
use crate::now::Now;

/// A limit of the snapshot in use, with all its balances.
#[derive(Clone, Copy, Debug)]
pub struct LimitBuckets<'s> {
    /// Its id.
    pub id: LimitId,
    /// The bucket that the key is charged on.
    pub bucket: BucketRef,
    /// All buckets of the limit, if it is an owner's: one for each rule.
    pub shared: &'s [BucketRef],
}

impl SlotAllocator {
    /// The balances of the first [`MAX_CHARGES`] of `limits`, in their order. `None` if a newer
    /// snapshot has superseded one of them.
    pub fn balances(
        &self,
        limiter: &Limiter,
        limits: &[LimitBuckets<'_>],
        now: Now,
    ) -> Option<ArrayVec<Balance, MAX_CHARGES>> {
        read_and_change(&limiter.buckets, limits, now, |_, word| word)
    }

    /// Makes the first [`MAX_CHARGES`] of `limits` unspent: buckets are full, and of windows and
    /// credits nothing is spent. This includes what is remembered of their former rules. Returns the
    /// balances before, in the order of the limits.
    ///
    /// `None` if a newer snapshot has superseded one of them: reset the limits of that snapshot.
    pub fn reset(
        &mut self,
        limiter: &Limiter,
        limits: &[LimitBuckets<'_>],
        now: Now,
    ) -> Option<ArrayVec<Balance, MAX_CHARGES>> {
        let buckets = &limiter.buckets;
        let before = read_and_change(buckets, limits, now, |rule, _| rule.unspent())?;
        for LimitBuckets { id, bucket, shared } in limits.iter().take(MAX_CHARGES) {
            for other in shared.iter().filter(|other| other.slot != bucket.slot) {
                let other = LimitBuckets { id: *id, bucket: *other, shared: &[] };
                read_and_change(buckets, &[other], now, |rule, _| rule.unspent())?;
            }
            // No request charges a retained bucket.
            for RetainedBucket { slot, rule, .. } in self.retained.get(id) {
                let now = buckets.latest_time.advance_to(now);
                buckets.slots.store(*slot, rule.at(now, &buckets.calendar).unspent());
            }
        }
        limiter.count_reset();
        Some(before)
    }

    /// Sets the calendar back to `now`: the windows of that time are in use again. What was spent in
    /// a later window counts as spent in the window of `now`, so that nothing is refilled. `live`
    /// lists the buckets of the snapshot in use. Returns the number of balances that were in a later
    /// window.
    ///
    /// A thread that still uses a later time moves the calendar forward again.
    pub fn set_calendar_back(
        &mut self,
        limiter: &Limiter,
        live: impl Iterator<Item = impl AsRef<[BucketRef]>>,
        now: Now,
    ) -> usize {
        let buckets = &limiter.buckets;
        buckets.calendar.set_back(now.unix);
        let mut seen = SlotSet::default();
        let mut moved = 0;
        let mut set_back_all = |limit: &[BucketRef]| {
            let windows = limit.iter().filter(|bucket| bucket.rule.kind() == RuleKind::Window);
            moved +=
                windows.filter(|bucket| seen.insert(bucket.slot) && set_back(buckets, **bucket, now)).count();
        };
        live.for_each(|limit| set_back_all(limit.as_ref()));
        self.retained.buckets().for_each(|bucket| set_back_all(&[bucket]));
        limiter.count_reset();
        moved
    }
}

/// The balances of `limits`, before `change` has changed their words: all at once, or none.
fn read_and_change(
    buckets: &Buckets,
    limits: &[LimitBuckets<'_>],
    now: Now,
    change: impl Fn(&RuleAt<'_>, Word) -> Word,
) -> Option<ArrayVec<Balance, MAX_CHARGES>> {
    let charge = |BucketRef { slot, rule }| Charge { slot, rule, cost: 0, shadow: false };
    let charges: ArrayVec<Charge, MAX_CHARGES> =
        limits.iter().take(MAX_CHARGES).map(|limit| charge(limit.bucket)).collect();
    let mut balances: ArrayVec<Balance, MAX_CHARGES> = charges.iter().map(|_| Balance::default()).collect();
    let mut locked = LockedBuckets::new(buckets);
    buckets.lock_all(&charges, now, &mut locked)?;
    let now = buckets.latest_time.advance_to(now);
    for bucket in locked.buckets() {
        let rule = charges[bucket.position].rule.at(now, &buckets.calendar);
        balances[bucket.position] = rule.balance(bucket.word, 0);
        bucket.word = change(&rule, bucket.word);
    }
    Some(balances)
}

/// Moves what was spent in a later window to the window of `now`. Returns whether there was any.
fn set_back(buckets: &Buckets, bucket: BucketRef, now: Now) -> bool {
    // A charge that has locked the word may still use the later calendar, so this waits for it. A
    // charge that locks it afterwards uses the new one.
    while let Some(word) = buckets.wait_unlocked(bucket.slot, now) {
        let Some(changed) = bucket.rule.at(now, &buckets.calendar).set_back(word) else { return false };
        if buckets.slots.compare_exchange(bucket.slot, word, changed) {
            return true;
        }
    }
    false
}
