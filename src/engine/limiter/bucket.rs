//! Token buckets: the value of a word is the theoretical arrival time (GCRA).
//!
//! The theoretical arrival time is the tick at which the bucket will be full again. The time until
//! then, the *debt*, divided by the limit's period is the cost that has not been refilled yet. Level
//! and time are thus one number, and it carries the fraction of every refill exactly. A time in the
//! past means a full bucket.
//!
//! A debit can bring the level below zero, down to the floor: the debt is then larger than the
//! capacity.
//!
//! # Wrapping around
//!
//! A word holds the lower 61 bits of the tick. A debt is a difference of less than 2^60 ticks, so it
//! is exact. But a bucket that has not been used for about 2^61 ticks looks as if it were in debt,
//! for as long as it takes to refill: after 73 years at most rates, after 26 days at a scale of 1024,
//! and after one or two days at the rates of more than 7,600/s that are rounded. A debt that is too
//! large to be one shows that this has happened ([`Bucket::unwrapped`]). Old words
//! ([`Bucket::is_old`]) are [renewed](super::renew), at least every few hours, so it never happens.

use crate::limiter::balance::Balance;
use crate::limiter::rate::Rate;
use crate::limiter::word::{VALUE_BITS, Word};

/// A token bucket at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    pub(super) rate: Rate,
    /// How far a debit can bring the level below zero.
    pub(super) overdraft: u32,
    /// The current tick. It must not be earlier than that of any charge of the words that it is used
    /// with, or else a debt may look too large.
    pub(super) now: u64,
}

/// The signed difference of a theoretical arrival time and a tick.
#[inline]
fn ticks_between(word: Word, now: u64) -> i64 {
    // Shifting out the flags, and back, extends the sign of the 61-bit difference.
    const FLAGS: u32 = u64::BITS - VALUE_BITS;
    (word.bits().wrapping_sub(now) << FLAGS).cast_signed() >> FLAGS
}

/// Ticks until the bucket is full; too many if the word has wrapped around, or is from a later tick
/// than `now`.
#[inline]
fn debt(word: Word, now: u64) -> u64 {
    ticks_between(word, now).max(0).cast_unsigned()
}

/// The word after charging `cost` at `nanoseconds`, and its debt; `None` if the cost does not fit, or
/// the word has wrapped around.
#[inline]
pub(super) fn try_charge(word: Word, rate: Rate, nanoseconds: u64, cost: u32) -> Option<(Word, u64)> {
    let now = rate.tick(nanoseconds);
    if cost > rate.burst() {
        return None;
    }
    // The first is below 2^60, the second at most the capacity.
    let debt = debt(word, now) + u64::from(cost) * rate.period().get();
    (debt <= rate.capacity()).then(|| (Word::with_value(now.wrapping_add(debt)), debt))
}

/// The balance after a charge that has left the bucket with `debt`.
#[inline]
pub(super) fn balance_after_charge(debt: u64, rate: Rate) -> Balance {
    let level = rate.capacity() - debt;
    Balance {
        available: (level / rate.period()).cast_signed(),
        retry_after: 0,
        reset: rate.nanoseconds(debt),
    }
}

impl Bucket {
    pub(super) fn new(rate: Rate, overdraft: u32, nanoseconds: u64) -> Self {
        Self { rate, overdraft, now: rate.tick(nanoseconds) }
    }

    fn period(&self) -> u64 {
        self.rate.period().get()
    }

    /// The largest debt: that of a bucket at its floor.
    fn max_debt(&self) -> u64 {
        self.rate.capacity() + u64::from(self.overdraft) * self.period()
    }

    /// Ticks until the bucket is full.
    fn debt(&self, word: Word) -> u64 {
        // A larger debt is that of a word that has wrapped around: the bucket has been full for long.
        Some(debt(word, self.now)).filter(|debt| *debt <= self.max_debt()).unwrap_or(0)
    }

    /// A word that will be full in `debt` ticks.
    pub(super) fn with_debt(&self, debt: u64) -> Word {
        Word::with_value(self.now.wrapping_add(debt))
    }

    /// The word of the same bucket that [`try_charge`] understands: one that has wrapped around is
    /// replaced by one that is full now.
    pub(super) fn unwrapped(&self, word: Word) -> Word {
        if debt(word, self.now) > self.max_debt() { self.with_debt(0) } else { word }
    }

    /// Whether the word of a full bucket should be replaced: it will wrap around, or has done so.
    pub(super) fn is_old(&self, word: Word) -> bool {
        let ticks = ticks_between(word, self.now);
        ticks < -(1 << (VALUE_BITS - 3)) || ticks.max(0).cast_unsigned() > self.max_debt()
    }

    pub(super) fn is_full(&self, word: Word) -> bool {
        self.debt(word) == 0
    }

    /// Nanoseconds until the bucket is full.
    pub(super) fn full_in(&self, word: Word) -> u64 {
        self.rate.nanoseconds(self.debt(word))
    }

    /// Ticks until the bucket is full, to save. The word is that of a bucket that was not full when it
    /// was scanned, so a debt that is too large shows that `now` is earlier: nothing is forgotten.
    pub(super) fn saved_debt(&self, word: Word) -> u64 {
        debt(word, self.now).min(self.max_debt())
    }

    /// The word with a saved debt, refilled for `elapsed` nanoseconds.
    pub(super) fn restored(&self, debt: u64, elapsed: u64) -> Word {
        let refilled = elapsed.saturating_mul(self.rate.scale().get().into());
        self.with_debt(debt.min(self.max_debt()).saturating_sub(refilled))
    }

    /// The word after charging `cost`; `None` if it does not fit.
    pub(super) fn charge(&self, word: Word, cost: u32) -> Option<Word> {
        let cost = u64::from(cost).checked_mul(self.period())?;
        let debt = self.debt(word).checked_add(cost)?;
        (debt <= self.rate.capacity()).then(|| self.with_debt(debt))
    }

    /// The word after charging as much of `cost` as fits above the floor, and how much that is.
    pub(super) fn debit(&self, word: Word, cost: u32) -> (Word, u32) {
        let debt = self.debt(word);
        let room = (self.max_debt() - debt) / self.period();
        let charged = u32::try_from(room).unwrap_or(u32::MAX).min(cost);
        (self.with_debt(debt + u64::from(charged) * self.period()), charged)
    }

    /// The word after returning as much of `cost` as has not been refilled yet, and how much that
    /// is. The last unit may have been refilled in part.
    pub(super) fn refund(&self, word: Word, cost: u32) -> (Word, u32) {
        let debt = self.debt(word);
        let spent = debt.div_ceil(self.period());
        let refunded = u32::try_from(spent).unwrap_or(u32::MAX).min(cost);
        (self.with_debt(debt.saturating_sub(u64::from(refunded) * self.period())), refunded)
    }

    /// The balance, with the time until `cost` fits. `cost` must not be over the burst.
    pub(super) fn balance(&self, word: Word, cost: u32) -> Balance {
        let debt = self.debt(word);
        let (capacity, period) = (self.rate.capacity(), self.rate.period());
        // The level is rounded down, also if it is below zero.
        let available = match capacity.checked_sub(debt) {
            Some(level) => (level / period).cast_signed(),
            None => -(debt - capacity).div_ceil(period.get()).cast_signed(),
        };
        // All of them are at most 2^60.
        let missing = (debt + u64::from(cost) * period.get()).saturating_sub(capacity);
        Balance { available, retry_after: self.rate.nanoseconds(missing), reset: self.rate.nanoseconds(debt) }
    }

    /// The word of the same bucket at the rate of `new`. The level stays the same: its fraction is
    /// rounded down, and it is clamped to the new burst and the new floor.
    ///
    /// A full bucket keeps its level too. If it were full under a larger burst, lowering a limit
    /// and raising it again would refill the bucket.
    pub(super) fn convert(&self, word: Word, new: &Self) -> Word {
        let level = i128::from(self.rate.capacity()) - i128::from(self.debt(word));
        let level = (level * i128::from(new.period())).div_euclid(i128::from(self.period()));
        let debt = (i128::from(new.rate.capacity()) - level).clamp(0, new.max_debt().into());
        // It is in the range of a debt.
        new.with_debt(u64::try_from(debt).unwrap_or(u64::MAX))
    }

    /// The one of two words of this bucket that has the lower level.
    pub(super) fn lower(&self, one: Word, other: Word) -> Word {
        if self.debt(other) > self.debt(one) { other } else { one }
    }
}
