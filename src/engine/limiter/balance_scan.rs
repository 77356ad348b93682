//! Collecting the balances to save, and restoring them in the next process.

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::charge::Limiter;
use crate::limiter::limit_id::LimitId;
use crate::limiter::persist::SavedLimit;
use crate::limiter::rule::Rule;
use crate::limiter::slot_set::SlotSet;
use crate::limiter::slots::BucketRef;
use crate::limiter::word::Word;
use crate::now::Now;

/// The limits of which something had been spent when they were scanned.
#[must_use]
pub struct BalanceScan<'l> {
    limiter: &'l Limiter,
    limits: Vec<(LimitId, Rule, Word)>,
}

impl BalanceScan<'_> {
    /// The scanned balances at `now`, which must be read after the scan and must not be earlier than
    /// any charge so far. A bucket that was charged during the scan may become full later than was
    /// possible at the start of the scan.
    pub fn at(&self, now: Now) -> impl ExactSizeIterator<Item = SavedLimit> {
        self.limits.iter().map(move |(id, rule, word)| {
            let balance = rule.at(now, &self.limiter.buckets.calendar).saved(*word);
            SavedLimit { id: *id, rule: *rule, balance }
        })
    }
}

impl SlotAllocator {
    /// Scans everything that a restart would otherwise forget: the limits of which something is
    /// spent at `now`, both those in `live`, which lists the buckets of the snapshot in use, and the
    /// retained ones. No reload may be between commit and reclaim.
    pub fn scan_balances<'l>(
        &self,
        limiter: &'l Limiter,
        live: impl Iterator<Item = (BucketRef, impl FnOnce() -> LimitId)>,
        now: Now,
    ) -> BalanceScan<'l> {
        let buckets = &limiter.buckets;
        let mut seen = SlotSet::default();
        let mut limits = Vec::new();
        let spent_word = |bucket: BucketRef| {
            let (word, rule) = buckets.read(bucket, now);
            if !rule.is_unspent(word) {
                return Some(word);
            }
            // Renewed before it wraps around. If it is charged meanwhile, it need not be: a locked word
            // must not be replaced.
            if rule.is_old(word) && word.is_unflagged() {
                buckets.slots.compare_exchange(bucket.slot, word, rule.unspent());
            }
            None
        };
        for (bucket, id) in live {
            if seen.insert(bucket.slot)
                && let Some(word) = spent_word(bucket)
            {
                limits.push((id(), bucket.rule, word));
            }
        }
        let retained = self.retained.iter();
        limits.extend(retained.filter_map(|(id, bucket)| Some((id, bucket.rule, spent_word(bucket)?))));
        BalanceScan { limiter, limits }
    }

    /// Restores the balances of an earlier process, refilled for `elapsed` nanoseconds, as retained
    /// buckets: the first snapshot finds them as if their keys had been away. Call this before the
    /// first snapshot.
    ///
    /// Returns the number of limits of which something is still spent.
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
        for SavedLimit { id, rule, balance } in saved {
            let at = rule.at(now, &buckets.calendar);
            let Some(word) = at.restored(balance, elapsed).filter(|word| !at.is_unspent(*word)) else {
                continue;
            };
            let Some(slot) = self.take(buckets, word) else { break };
            self.retained.insert(id, BucketRef { slot, rule });
        }
        self.retained.len()
    }
}
