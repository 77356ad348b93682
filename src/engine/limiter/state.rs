//! The state of a bucket in one 64-bit word: its theoretical arrival time (GCRA), and three flags.
//!
//! The theoretical arrival time is the tick at which the bucket will be full again. The time until
//! then, the *debt*, divided by the limit's period is the cost that has not been refilled yet.
//! Level and time are thus one number, and it carries the fraction of every refill exactly. A time
//! in the past means a full bucket, so a word of 0, a bucket that was never used and a bucket that
//! has refilled are the same.
//!
//! The flags:
//!
//! * `LOCKED`: a charge of several limits is in progress. Wait until it ends.
//! * `MIGRATING`: a reload changed the limit's rate, and the balance is still in the slot of the
//!   old rate.
//! * `SUPERSEDED`: the old slot of a migration. The balance has moved to the slot of the new rate,
//!   and this word is frozen.

use crate::limiter::balance::Balance;
use crate::limiter::rate::Rate;

/// The state of a bucket, as loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BucketState(u64);

const SUPERSEDED: u64 = 1 << 63;
const MIGRATING: u64 = 1 << 62;
const LOCKED: u64 = 1 << 61;

/// The bits of the theoretical arrival time.
const TIME_MASK: u64 = LOCKED - 1;

impl BucketState {
    /// A bucket that is full.
    pub(super) const FULL: Self = Self(0);
    /// A bucket whose balance is still in another slot.
    pub(super) const MIGRATING: Self = Self(MIGRATING);

    /// The state that [`bits`](Self::bits) has returned.
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// A bucket that will be full `debt` ticks after `now`.
    pub(super) fn with_debt(debt: u64, now: u64) -> Self {
        Self(now.saturating_add(debt).min(TIME_MASK))
    }

    /// Whether no flag is set. This is the common case, and takes one comparison.
    pub(super) fn is_unflagged(self) -> bool {
        self.0 <= TIME_MASK
    }

    pub(super) fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    pub(super) fn is_migrating(self) -> bool {
        self.0 & MIGRATING != 0
    }

    pub(super) fn is_superseded(self) -> bool {
        self.0 & SUPERSEDED != 0
    }

    pub(super) fn locked(self) -> Self {
        Self(self.0 | LOCKED)
    }

    pub(super) fn superseded(self) -> Self {
        Self(self.0 | SUPERSEDED)
    }

    /// This state without its flags: a superseded bucket continues from the balance at which it was
    /// frozen.
    pub(super) fn without_flags(self) -> Self {
        Self(self.0 & TIME_MASK)
    }

    /// The tick at which the bucket is full: its theoretical arrival time.
    fn full_at(self) -> u64 {
        self.0 & TIME_MASK
    }

    /// Ticks until the bucket is full.
    fn debt(self, now: u64) -> u64 {
        self.full_at().saturating_sub(now)
    }

    /// Whether the bucket is full, and so need not be remembered.
    pub(super) fn is_full(self, now: u64) -> bool {
        self.debt(now) == 0
    }

    /// Whether this bucket becomes full later than `other`.
    pub(super) fn is_full_later_than(self, other: Self) -> bool {
        self.full_at() > other.full_at()
    }

    /// The one of two states at the same rate that has the lower level.
    pub(super) fn lower_level(self, other: Self) -> Self {
        if other.is_full_later_than(self) { other } else { self }
    }

    /// The state after charging `cost` at `now`; `None` if the cost does not fit.
    #[inline]
    pub(super) fn try_charge(self, rate: Rate, now: u64, cost: u32) -> Option<Self> {
        let debt = self.debt(now).saturating_add(u64::from(cost).saturating_mul(rate.period().get()));
        let full_at = now.saturating_add(debt);
        // After nine years of uptime the time no longer fits its bits. From then on the limiter
        // admits too little, never too much.
        if debt > rate.capacity() || full_at > TIME_MASK {
            return None;
        }
        Some(Self(full_at))
    }

    /// The state after returning `cost`, up to the burst.
    pub(super) fn refund(self, rate: Rate, now: u64, cost: u32) -> Self {
        let refunded = u64::from(cost).saturating_mul(rate.period().get());
        Self::with_debt(self.debt(now).saturating_sub(refunded), now)
    }

    /// The balance at `now`, with the time until `cost` fits. `cost` must not be over the burst.
    #[inline]
    pub(super) fn balance(self, rate: Rate, now: u64, cost: u32) -> Balance {
        let debt = self.debt(now);
        let level = rate.capacity().saturating_sub(debt);
        let wanted = u64::from(cost).saturating_mul(rate.period().get());
        Balance {
            // The level is at most the capacity, so the quotient is at most the burst.
            remaining: (level / rate.period()) as u32,
            retry_after: wanted.saturating_sub(level),
            reset: debt,
        }
    }

    /// The state of the same bucket at another rate. The level stays the same: its fraction is
    /// rounded down, and it is clamped to the new burst.
    ///
    /// A full bucket keeps its level too. If it were full under a larger burst, lowering a limit
    /// and raising it again would refill the bucket.
    pub(super) fn convert(self, old: Rate, new: Rate, now: u64) -> Self {
        let level = u128::from(old.capacity().saturating_sub(self.debt(now)));
        let level = level * u128::from(new.period().get()) / u128::from(old.period().get());
        let level = u64::try_from(level).unwrap_or(u64::MAX).min(new.capacity());
        Self::with_debt(new.capacity() - level, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(count: u64, burst: u64) -> Rate {
        Rate::new(count, SECOND, burst).expect("the rate is in range")
    }

    fn charge(state: BucketState, rate: Rate, now: u64, cost: u32) -> BucketState {
        state.try_charge(rate, now, cost).expect("the cost fits")
    }

    #[test]
    fn full_bucket_admits_its_burst_and_no_more() {
        let rate = rate(10, 5);
        let mut state = BucketState::FULL;
        for spent in 0..5 {
            assert_eq!(state.balance(rate, 77, 1).remaining, 5 - spent);
            state = charge(state, rate, 77, 1);
        }
        assert_eq!(state.try_charge(rate, 77, 1), None);
        assert_eq!(state.balance(rate, 77, 1).retry_after, rate.period().get());
        assert_eq!(state.balance(rate, 77, 5).retry_after, rate.capacity());
        assert_eq!(state.balance(rate, 77, 5).reset, rate.capacity());
    }

    #[test]
    fn refilled_unit_is_admitted_at_the_exact_tick() {
        let rate = rate(10, 1);
        let state = charge(BucketState::FULL, rate, 1_000, 1);
        let ready = 1_000 + rate.period().get();
        assert_eq!(state.try_charge(rate, ready - 1, 1), None);
        assert!(state.try_charge(rate, ready, 1).is_some());
    }

    #[test]
    fn charge_at_an_earlier_tick_gains_nothing() {
        let rate = rate(10, 3);
        let state = charge(BucketState::FULL, rate, 1_000_000, 1);
        assert_eq!(charge(state, rate, 999_000, 1).full_at(), 1_000_000 + 2 * rate.period().get());
    }

    /// The time that a cost takes to refill exceeds 64 bits long before the cost exceeds 32.
    #[test]
    fn cost_whose_time_overflows_is_refused() {
        let rate = Rate::from_period(1 << 58, 4).expect("the longest capacity");
        for cost in [5, 63, 64, 65, 1 << 20, u32::MAX] {
            assert_eq!(BucketState::FULL.try_charge(rate, 1, cost), None, "{cost}");
            assert_eq!(charge(BucketState::FULL, rate, 1, 3).try_charge(rate, 1, cost), None, "{cost}");
        }
    }

    #[test]
    fn time_beyond_its_bits_is_refused() {
        let rate = rate(1, 10);
        let last = TIME_MASK - rate.capacity();
        assert_eq!(charge(BucketState::FULL, rate, last, 10).full_at(), TIME_MASK);
        assert_eq!(BucketState::FULL.try_charge(rate, last + 1, 10), None);
        assert!(charge(BucketState::FULL, rate, last + 1, 9).is_unflagged());
        for now in [TIME_MASK, u64::MAX] {
            assert_eq!(BucketState::FULL.try_charge(rate, now, 1), None, "{now}");
        }
    }

    #[test]
    fn changed_rate_keeps_the_level() {
        let (old, now) = (rate(10, 100), 1 << 40);
        let spent = charge(BucketState::FULL, old, now, 70);
        let remaining = |new: Rate| spent.convert(old, new, now).balance(new, now, 1).remaining;
        assert_eq!(remaining(rate(1_000, 100)), 30, "faster");
        assert_eq!(remaining(rate(1, 100)), 30, "slower");
        assert_eq!(remaining(rate(10, 1_000)), 30, "larger burst");
        assert_eq!(remaining(rate(10, 20)), 20, "smaller burst: clamped");
        let unused = |new: Rate| BucketState::FULL.convert(old, new, now).balance(new, now, 1).remaining;
        assert_eq!((unused(rate(1, 3)), unused(rate(1, 200))), (3, 100), "a full bucket");
    }
}
