//! Charging and refunding: all the limits of a key, or none.
//!
//! A single limit is charged with one compare-and-swap. Several limits are locked in slot order,
//! which rules out deadlock, then decided on values that no other thread can change, and then
//! written back.
//!
//! Charging one limit after the other and undoing the charges when a later limit refuses would be
//! wrong in both directions. For a moment, other threads would be refused a cost that was never
//! admitted; and a bucket that became full in that moment would be given the cost twice.

use crate::limiter::buckets::Buckets;
use crate::limiter::lock::LockedBucket;
use crate::limiter::outcome::{Charge, ChargeReport, MAX_CHARGES, Outcome, ReportBuilder, SingleOutcome};
use crate::limiter::rate::Rate;
use crate::limiter::slots::compare_exchange;
use crate::limiter::state::BucketState;
use crate::sync::{AtomicU64, Ordering, prefetch};

/// All token buckets, shared by all workers.
pub struct Limiter {
    pub(super) buckets: Buckets,
}

/// A bucket whose slot has been looked up. The address of a slot never changes.
#[derive(Clone, Copy)]
pub struct Bucket<'l> {
    slot: u32,
    word: &'l AtomicU64,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

impl Limiter {
    /// A limiter without buckets. A [`SlotAllocator`](crate::limiter::SlotAllocator) creates them.
    pub fn new() -> Self {
        Self { buckets: Buckets::new() }
    }

    /// Charges `cost` to every limit in `charges` at tick `now`, or to none of them. A shadow limit
    /// that has no room for the cost is skipped and reported. A cost of 0 charges nothing and
    /// reports the balance.
    ///
    /// No two limits may have the same slot. More than [`MAX_CHARGES`] limits are refused, unless
    /// the cost is 0: reading balances locks nothing, so it has no such bound.
    pub fn charge(&self, charges: &[Charge], now: u64, cost: u32) -> Outcome {
        match charges {
            _ if cost == 0 => self.peek(charges, self.buckets.latest_tick.advance(now)),
            [Charge { slot, rate, shadow: false }] => match self.bucket(*slot) {
                Some(bucket) => self.charge_single(bucket, *rate, now, cost).into(),
                None => Outcome::Superseded,
            },
            many => self.charge_all(many, self.buckets.latest_tick.advance(now), cost),
        }
    }

    /// Returns `cost` to every limit in `charges`, including shadow limits, up to their bursts; or
    /// to none of them ([`Outcome::Superseded`]), because the caller will retry and must not refund
    /// a limit twice. [`Outcome::Admitted`] names the enforced limit with the least remaining. More
    /// than [`MAX_CHARGES`] limits are not refunded: [`Outcome::Refused`], with an empty report.
    ///
    /// The limiter cannot check that the cost was charged before. That is the caller's
    /// responsibility.
    pub fn refund(&self, charges: &[Charge], now: u64, cost: u32) -> Outcome {
        if charges.len() > MAX_CHARGES {
            return Outcome::Refused(ChargeReport::default());
        }
        let now = self.buckets.latest_tick.advance(now);
        let Some(mut locked) = self.buckets.lock_all(charges, now) else {
            return Outcome::Superseded;
        };
        let mut report = ReportBuilder::new(true);
        for bucket in locked.buckets() {
            let Charge { rate, shadow, .. } = charges[bucket.position];
            bucket.state = bucket.state.refund(rate, now, cost);
            if !shadow {
                report.add_enforced(bucket.position, bucket.state.balance(rate, now, 0));
            }
        }
        report.outcome()
    }

    /// The latest tick of any charge, refund or peek. An unchanged tick does not prove that no
    /// charge has happened: all requests of a batch are charged at the same tick.
    pub fn latest_tick(&self) -> u64 {
        self.buckets.latest_tick.advance(0)
    }

    /// Looks up the bucket in `slot` and prefetches it for a charge that will follow. Returns
    /// `None` if the slot has never been allocated.
    #[inline]
    pub fn bucket(&self, slot: u32) -> Option<Bucket<'_>> {
        let word = self.buckets.slots.get(slot)?;
        prefetch(word);
        Some(Bucket { slot, word })
    }

    fn peek(&self, charges: &[Charge], now: u64) -> Outcome {
        let mut report = ReportBuilder::new(true);
        for (position, charge) in charges.iter().enumerate().filter(|(_, charge)| !charge.shadow) {
            let Some(state) = self.buckets.wait_unlocked(charge.slot, now) else {
                return Outcome::Superseded;
            };
            report.add_enforced(position, state.balance(charge.rate, now, 0));
        }
        report.outcome()
    }

    /// The fast path of [`charge`](Self::charge): a key with one limit, which is enforced, and a
    /// cost that is not 0.
    #[inline(always)]
    pub(crate) fn charge_single(&self, bucket: Bucket<'_>, rate: Rate, now: u64, cost: u32) -> SingleOutcome {
        let mut now = self.buckets.latest_tick.advance(now);
        let Bucket { slot, word } = bucket;
        loop {
            let state = BucketState::from_bits(word.load(Ordering::Acquire));
            if !state.is_unflagged() {
                match self.buckets.wait_unlocked(slot, now) {
                    Some(_) => continue,
                    None => return SingleOutcome::Superseded,
                }
            }
            match state.try_charge(rate, now, cost) {
                Some(next) if compare_exchange(word, state, next) => {
                    return SingleOutcome::Admitted(next.balance(rate, now, 0));
                }
                Some(_) => {}
                None => {
                    let latest = self.buckets.latest_tick.advance(now);
                    if latest == now {
                        return refuse_single(state, rate, now, cost);
                    }
                    now = latest;
                }
            }
        }
    }

    fn charge_all(&self, charges: &[Charge], mut now: u64, cost: u32) -> Outcome {
        if charges.len() > MAX_CHARGES {
            return Outcome::Refused(ChargeReport::default());
        }
        let Some(mut locked) = self.buckets.lock_all(charges, now) else {
            return Outcome::Superseded;
        };
        let try_charge = |bucket: &LockedBucket, now: u64| {
            bucket.state.try_charge(charges[bucket.position].rate, now, cost)
        };
        if locked.buckets().iter().any(|bucket| try_charge(bucket, now).is_none()) {
            // One of these buckets may have been charged at a later tick than `now`. While they are
            // locked, that cannot happen again.
            now = self.buckets.latest_tick.advance(now);
        }
        let refuses =
            |bucket: &LockedBucket| !charges[bucket.position].shadow && try_charge(bucket, now).is_none();
        let is_refused = locked.buckets().iter().any(refuses);
        let mut report = ReportBuilder::new(!is_refused);
        for bucket in locked.buckets() {
            let Charge { rate, shadow, .. } = charges[bucket.position];
            match try_charge(bucket, now) {
                Some(next) if !is_refused => bucket.state = next,
                None if shadow => report.add_shadow_refusal(bucket.position),
                _ => {}
            }
            if !shadow {
                let wanted = if is_refused { cost } else { 0 };
                report.add_enforced(bucket.position, bucket.state.balance(rate, now, wanted));
            }
        }
        let over_burst = |bucket: &&LockedBucket| {
            let Charge { rate, shadow, .. } = charges[bucket.position];
            !shadow && cost > rate.burst()
        };
        match locked.buckets().iter().filter(over_burst).min_by_key(|bucket| bucket.position) {
            Some(bucket) => {
                let balance = bucket.state.balance(charges[bucket.position].rate, now, 0);
                report.exceeds_burst(bucket.position, balance)
            }
            None => report.outcome(),
        }
    }
}

/// The outcome for a key's only limit when `cost` does not fit.
#[inline]
fn refuse_single(state: BucketState, rate: Rate, now: u64, cost: u32) -> SingleOutcome {
    if cost > rate.burst() {
        SingleOutcome::ExceedsBurst(state.balance(rate, now, 0))
    } else {
        SingleOutcome::Refused(state.balance(rate, now, cost))
    }
}
