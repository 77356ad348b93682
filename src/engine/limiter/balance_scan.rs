//! Collecting the balances to save, and restoring them in the next process.

use crate::limiter::allocator::SlotAllocator;
use crate::limiter::charge::Limiter;
use crate::limiter::limit_id::LimitId;
use crate::limiter::persist::SavedBucket;
use crate::limiter::rate::Rate;
use crate::limiter::slot_set::SlotSet;
use crate::limiter::slots::BucketRef;
use crate::limiter::state::BucketState;

/// The buckets that were not full when they were scanned.
#[must_use]
pub struct BalanceScan {
    buckets: Vec<(LimitId, Rate, BucketState)>,
}

impl BalanceScan {
    /// The scanned balances at tick `now`, which must be read after the scan and must not be
    /// earlier than any charge so far. A bucket that was charged during the scan may become full
    /// later than was possible at the start of the scan.
    pub fn at(&self, now: u64) -> impl ExactSizeIterator<Item = SavedBucket> {
        self.buckets.iter().map(move |(id, rate, state)| SavedBucket {
            id: *id,
            rate: *rate,
            debt: state.balance(*rate, now, 0).reset.min(rate.capacity()),
        })
    }
}

impl SlotAllocator {
    /// Scans everything that a restart would otherwise forget: the buckets that are not full at
    /// `now`, both those in `live`, which lists the buckets of the snapshot in use, and the
    /// retained ones. No reload may be between commit and reclaim.
    pub fn scan_balances(
        &self,
        limiter: &Limiter,
        live: impl Iterator<Item = (BucketRef, impl FnOnce() -> LimitId)>,
        now: u64,
    ) -> BalanceScan {
        let slots = &limiter.buckets.slots;
        let mut seen = SlotSet::default();
        let mut buckets = Vec::new();
        for (BucketRef { slot, rate }, id) in live {
            if !seen.insert(slot) {
                continue;
            }
            let state = slots.load(slot);
            if !state.is_full(now) {
                buckets.push((id(), rate, state));
            }
        }
        let retained = self.retained.iter();
        buckets.extend(retained.map(|(id, BucketRef { slot, rate })| (id, rate, slots.load(slot))));
        BalanceScan { buckets }
    }

    /// Restores the buckets of an earlier process, refilled for `elapsed` ticks, as retained
    /// buckets: the first snapshot finds them as if their keys had been away. Call this before the
    /// first snapshot.
    ///
    /// Returns the number of buckets that are not full again.
    pub fn restore(
        &mut self,
        limiter: &Limiter,
        saved: impl IntoIterator<Item = SavedBucket>,
        elapsed: u64,
        now: u64,
    ) -> usize {
        // No charge may happen at an earlier tick than the restored balances.
        let now = limiter.buckets.latest_tick.advance(now);
        for SavedBucket { id, rate, debt } in saved {
            let Some(debt) = debt.checked_sub(elapsed).filter(|debt| *debt > 0) else { continue };
            let Some(slot) = self.take(&limiter.buckets, BucketState::with_debt(debt, now)) else { break };
            self.retained.insert(id, BucketRef { slot, rate });
        }
        self.retained.len()
    }
}
