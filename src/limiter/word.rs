//! A bucket in one 64-bit word: the tick at which it will be full again.
//!
//! The debt (`full_at - now`) over the limit's period is the cost that has not been refilled yet, so level and time
//! are one number, and the remainder of every refill is carried in it exactly. A bucket that is full by now holds
//! no information: a word of zero, a bucket never used and a bucket long refilled are the same thing.
//!
//! Three bits of the word are not time:
//!
//! * `LOCKED`: a charge of several limits is deciding; wait for it.
//! * `INHERITS`: the limit's rate was changed by a reload; the balance is still in the slot of the old rate.
//! * `SUPERSEDED`: the reverse: a newer snapshot has taken the balance over, and this word is frozen.

use crate::limiter::rate::{Rate, TICKS_PER_MILLISECOND};

/// A bucket's word, as loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

const SUPERSEDED: u64 = 1 << 63;
const INHERITS: u64 = 1 << 62;
const LOCKED: u64 = 1 << 61;
const TIME: u64 = LOCKED - 1;

/// What a limit has left, and when it will have more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Cost that could be spent right now.
    pub remaining: u32,
    /// Ticks until the cost that was asked for could be spent; 0 where it could be at once.
    pub retry_after: u64,
    /// Ticks until the bucket is full.
    pub reset: u64,
}

impl Balance {
    /// `ticks` in milliseconds, rounded up; `u32::MAX` stands for that long or longer.
    #[inline]
    pub fn milliseconds(ticks: u64) -> u32 {
        u32::try_from(ticks.saturating_add(TICKS_PER_MILLISECOND - 1) / TICKS_PER_MILLISECOND)
            .unwrap_or(u32::MAX)
    }
}

/// Whether a cost fits into a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// It does, and this is the word that has it charged.
    Admitted(Word),
    /// It does not.
    Refused,
}

impl Word {
    /// A bucket that is full and always was.
    pub(super) const FULL: Self = Self(0);
    /// A bucket whose balance is still in another slot.
    pub(super) const INHERITS: Self = Self(INHERITS);

    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    /// Nothing but time: the common case, told by one comparison.
    pub(super) fn is_plain(self) -> bool {
        self.0 <= TIME
    }

    pub(super) fn is_locked(self) -> bool {
        self.0 & LOCKED != 0
    }

    pub(super) fn inherits(self) -> bool {
        self.0 & INHERITS != 0
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

    /// The reverse: what the word said when it was frozen, and goes on from.
    pub(super) fn resumed(self) -> Self {
        Self(self.0 & TIME)
    }

    /// A bucket that is full `debt` ticks after `now`.
    pub(super) fn with_debt(debt: u64, now: u64) -> Self {
        Self(now.saturating_add(debt).min(TIME))
    }

    /// The tick at which the bucket is full.
    fn full_at(self) -> u64 {
        self.0 & TIME
    }

    /// Ticks of refill that are still to come.
    fn debt(self, now: u64) -> u64 {
        self.full_at().saturating_sub(now)
    }

    /// Whether nothing would be forgotten if this bucket were.
    pub(super) fn is_full(self, now: u64) -> bool {
        self.debt(now) == 0
    }

    /// Whether this bucket is full later than another: as long as it is not, neither is the other.
    pub(super) fn outlasts(self, other: Self) -> bool {
        self.full_at() > other.full_at()
    }

    /// Of two words under one rate, the one that has less left.
    pub(super) fn emptier(self, other: Self) -> Self {
        if other.outlasts(self) { other } else { self }
    }

    /// Tries to charge `cost` at `now`.
    #[inline]
    pub(super) fn fit(self, rate: Rate, now: u64, cost: u32) -> Fit {
        let debt = self.debt(now).saturating_add(u64::from(cost).saturating_mul(rate.period().get()));
        let full_at = now.saturating_add(debt);
        // After nine years of uptime the time no longer fits: too little is admitted then, never too much.
        if debt > rate.capacity() || full_at > TIME {
            return Fit::Refused;
        }
        Fit::Admitted(Self(full_at))
    }

    /// Gives `cost` back, up to the burst.
    pub(super) fn refunded(self, rate: Rate, now: u64, cost: u32) -> Self {
        let back = u64::from(cost).saturating_mul(rate.period().get());
        Self::with_debt(self.debt(now).saturating_sub(back), now)
    }

    /// What is left at `now`, and how long `cost` would have to wait. `cost` must not be over the burst.
    #[inline]
    pub(super) fn balance(self, rate: Rate, now: u64, cost: u32) -> Balance {
        let debt = self.debt(now);
        let level = rate.capacity().saturating_sub(debt);
        let wanted = u64::from(cost).saturating_mul(rate.period().get());
        Balance {
            // A level is at most the capacity, so the quotient is at most the burst.
            remaining: (level / rate.period()) as u32,
            retry_after: wanted.saturating_sub(level),
            reset: debt,
        }
    }

    /// The same bucket under another rate: the level stays what it was, clamped to the new burst, and its fraction is
    /// rounded down. That goes for a full bucket too: if it stayed full under a larger burst, changing a limit down and up
    /// again would refill it.
    pub(super) fn under(self, old: Rate, new: Rate, now: u64) -> Self {
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
        Rate::new(count, SECOND, burst).expect("in range")
    }

    fn spend(word: Word, rate: Rate, now: u64, cost: u32) -> Word {
        match word.fit(rate, now, cost) {
            Fit::Admitted(next) => next,
            Fit::Refused => panic!("{cost} does not fit"),
        }
    }

    #[test]
    fn the_burst_is_there_at_once_and_not_one_more() {
        let rate = rate(10, 5);
        let mut word = Word::FULL;
        for spent in 0..5 {
            assert_eq!(word.balance(rate, 77, 1).remaining, 5 - spent);
            word = spend(word, rate, 77, 1);
        }
        assert_eq!(word.fit(rate, 77, 1), Fit::Refused);
        assert_eq!(word.balance(rate, 77, 1).retry_after, rate.period().get());
        assert_eq!(word.balance(rate, 77, 5).retry_after, rate.capacity());
        assert_eq!(word.balance(rate, 77, 5).reset, rate.capacity());
    }

    #[test]
    fn a_refill_is_admitted_to_the_tick() {
        let rate = rate(10, 1);
        let word = spend(Word::FULL, rate, 1_000, 1);
        let ready = 1_000 + rate.period().get();
        assert_eq!(word.fit(rate, ready - 1, 1), Fit::Refused);
        assert_ne!(word.fit(rate, ready, 1), Fit::Refused);
    }

    #[test]
    fn a_clock_that_lags_behind_another_thread_gains_nothing() {
        let rate = rate(10, 3);
        let word = spend(Word::FULL, rate, 1_000_000, 1);
        assert_eq!(spend(word, rate, 999_000, 1).full_at(), 1_000_000 + 2 * rate.period().get());
    }

    #[test]
    fn a_changed_rate_neither_refills_nor_resets() {
        let (old, now) = (rate(10, 100), 1 << 40);
        let spent = spend(Word::FULL, old, now, 70);
        let left = |new: Rate| spent.under(old, new, now).balance(new, now, 1).remaining;
        assert_eq!(left(rate(1_000, 100)), 30, "faster");
        assert_eq!(left(rate(1, 100)), 30, "slower");
        assert_eq!(left(rate(10, 1_000)), 30, "larger");
        assert_eq!(left(rate(10, 20)), 20, "smaller: clamped");
        let unused = |new: Rate| Word::FULL.under(old, new, now).balance(new, now, 1).remaining;
        assert_eq!((unused(rate(1, 3)), unused(rate(1, 200))), (3, 100), "a full bucket too");
    }

    #[test]
    fn milliseconds_are_rounded_up_and_saturate() {
        assert_eq!(Balance::milliseconds(0), 0);
        assert_eq!(Balance::milliseconds(1), 1);
        assert_eq!(Balance::milliseconds(TICKS_PER_MILLISECOND), 1);
        assert_eq!(Balance::milliseconds(TICKS_PER_MILLISECOND + 1), 2);
        assert_eq!(Balance::milliseconds(u64::MAX), u32::MAX);
    }
}
