//! Collecting the balances to save, and restoring them in the next process.
//!
//! The balances of a limit are saved together while something is spent of one of them, those that
//! are [retained](super::retained) of its former rules included. So the first snapshot of the next
//! process finds what a snapshot of this one would find after the keys had been away.

use std::collections::HashSet;

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::charge::Limiter;
use crate::limiter::limit_id::LimitId;
use crate::limiter::persist::SavedLimit;
use crate::limiter::retained::RetainedBucket;
use crate::limiter::rule::Rule;
use crate::limiter::slot_set::SlotSet;
use crate::limiter::slots::BucketRef;
use crate::limiter::word::Word;
use crate::now::Now;

/// The balances of the limits of which something had been spent when they were scanned.
#[must_use]
pub struct BalanceScan<'l> {
    limiter: &'l Limiter,
    balances: Vec<ScannedBalance>,
}

struct ScannedBalance {
    id: LimitId,
    rule: Rule,
    is_former: bool,
    word: Word,
}

impl BalanceScan<'_> {
    /// The scanned balances at `now`, which must be read after the scan and must not be earlier than
    /// any charge so far. A bucket that was charged during the scan may become full later than was
    /// possible at the start of the scan.
    pub fn at(&self, now: Now) -> impl ExactSizeIterator<Item = SavedLimit> {
        self.balances.iter().map(move |ScannedBalance { id, rule, is_former, word }| {
            let balance = rule.at(now, &self.limiter.buckets.calendar).saved(*word);
            SavedLimit { id: *id, rule: *rule, is_former: *is_former, balance }
        })
    }

    fn add(&mut self, id: LimitId, RetainedBucket { slot, is_former, rule }: RetainedBucket, now: Now) {
        let (word, at) = self.limiter.buckets.read(BucketRef { slot, rule }, now);
        // It may be full, and have wrapped around.
        let word = at.unwrapped(word);
        self.balances.push(ScannedBalance { id, rule, is_former, word });
    }
}

impl SlotAllocator {
    /// Scans everything that a restart would otherwise forget: the limits of which something is
    /// spent at `now`, both those in `live`, which lists the buckets of the snapshot in use, and the
    /// retained ones. No reload may be between commit and reclaim.
    ///
    /// `live` lists all buckets of a limit together.
    pub fn scan_balances<'l>(
        &self,
        limiter: &'l Limiter,
        live: impl Iterator<Item = (impl AsRef<[BucketRef]>, impl FnOnce() -> LimitId)>,
        now: Now,
    ) -> BalanceScan<'l> {
        let buckets = &limiter.buckets;
        let mut scan = BalanceScan { limiter, balances: Vec::new() };
        let mut seen = SlotSet::default();
        let mut saved_with_former: HashSet<LimitId> = HashSet::new();
        let is_any_spent =
            |retained: &[RetainedBucket]| buckets.renew(retained.iter().map(RetainedBucket::bucket), now);
        for (limit, id) in live {
            let limit = limit.as_ref();
            // All rows of a key list the same limits.
            if !limit.first().is_some_and(|first| seen.insert(first.slot)) {
                continue;
            }
            let is_spent = buckets.renew(limit.iter().copied(), now);
            // An id costs a hash, so it is computed only if it is needed.
            if !is_spent && !self.retained.has_former() {
                continue;
            }
            let id = id();
            let former = self.retained.get(&id);
            if is_spent || is_any_spent(former) {
                limit.iter().for_each(|bucket| scan.add(id, RetainedBucket::new(*bucket, false), now));
                if !former.is_empty() {
                    saved_with_former.insert(id);
                }
            }
        }
        for (id, retained) in self.retained.limits() {
            if is_any_spent(retained) || saved_with_former.contains(&id) {
                retained.iter().for_each(|bucket| scan.add(id, *bucket, now));
            }
        }
        scan
    }

    /// Restores the balances of an earlier process, refilled for `elapsed` nanoseconds, as retained
    /// buckets: the first snapshot finds them as if their keys had been away. Call this before the
    /// first snapshot.
    ///
    /// Returns the number of balances of the limits of which something is still spent.
    pub fn restore(
        &mut self,
        limiter: &Limiter,
        saved: impl IntoIterator<Item = SavedLimit>,
        elapsed: u64,
        now: Now,
    ) -> usize {
        let buckets = &limiter.buckets;
        // No charge may happen at an earlier time than the restored balances.
        let now = buckets.latest_time.advance_to(now);
        let mut unspent = Vec::new();
        let insert = |allocator: &mut Self, limit: &SavedLimit, word: Word| {
            let SavedLimit { id, rule, is_former, .. } = *limit;
            let Some(slot) = allocator.take(buckets, word) else { return };
            allocator.retained.insert(id, RetainedBucket { slot, is_former, rule });
        };
        for limit in saved {
            let at = limit.rule.at(now, &buckets.calendar);
            match at.restored(limit.balance, elapsed) {
                Some(word) if at.is_unspent(word) => unspent.push((limit, word)),
                Some(word) => insert(self, &limit, word),
                None => {}
            }
        }
        for (limit, word) in unspent {
            if !self.retained.get(&limit.id).is_empty() {
                insert(self, &limit, word);
            }
        }
        self.retained.len()
    }
}
