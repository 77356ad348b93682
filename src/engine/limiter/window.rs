//! Calendar windows: the value of a word is the start of a window, and what has been spent in it.
//!
//! A charge in a later window starts from nothing. A word from another window than the current one
//! continues if the current one is [no later one](calendar::Window::is_later_than): the time zone has
//! changed.

use crate::limiter::balance::Balance;
use crate::limiter::calendar::{self, Calendar, Period};
use crate::limiter::rate::NANOSECONDS_PER_MILLISECOND;
use crate::limiter::word::Word;
use crate::now::Now;

/// Bits of the spent amount. The rest of the value is the start.
const SPENT_BITS: u32 = 38;

const SPENT_MASK: u64 = (1 << SPENT_BITS) - 1;

/// The largest count of a window together with its overdraft.
pub const MAX_WINDOW_COUNT: u64 = SPENT_MASK;

/// A calendar window at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window<'c> {
    pub(super) count: u64,
    pub(super) period: Period,
    /// How far a debit can bring the balance below zero.
    pub(super) overdraft: u32,
    pub(super) current: calendar::Window,
    pub(super) now: Now,
    pub(super) calendar: &'c Calendar,
}

impl Window<'_> {
    /// The start of the window that the word is used in, and what has been spent in it.
    fn start_and_spent(&self, word: Word) -> (u32, u64) {
        let (start, spent) = split(word);
        if self.current.is_later_than(start) { (self.current.start, 0) } else { (start, spent) }
    }

    pub(super) fn spent(&self, word: Word) -> u64 {
        self.start_and_spent(word).1
    }

    /// Nanoseconds until the word starts anew.
    pub(super) fn ends_in(&self, word: Word) -> u64 {
        let (start, _) = self.start_and_spent(word);
        let is_current = start == self.current.start;
        let end = if is_current { self.current.end } else { self.calendar.end_of_use(self.period, start) };
        let now = u64::from(self.now.unix) * 1_000 + u64::from(self.now.millisecond);
        (u64::from(end) * 1_000).saturating_sub(now) * NANOSECONDS_PER_MILLISECOND
    }

    /// The word with the spent amount that `change` returns, and how much it changed.
    fn change(&self, word: Word, change: impl FnOnce(u64) -> u64) -> (Word, u64) {
        let (start, spent) = self.start_and_spent(word);
        let changed = change(spent);
        (join(start, changed), changed.abs_diff(spent))
    }

    /// The word after charging `cost`; `None` if it does not fit.
    pub(super) fn charge(&self, word: Word, cost: u32) -> Option<Word> {
        let spent = self.spent(word) + u64::from(cost);
        (spent <= self.count).then(|| self.change(word, |_| spent).0)
    }

    /// The word after charging as much of `cost` as fits above the floor, and how much that is.
    pub(super) fn debit(&self, word: Word, cost: u32) -> (Word, u32) {
        let floor = self.count + u64::from(self.overdraft);
        // A smaller limit than before may have been exceeded already.
        let (word, charged) = self.change(word, |spent| (spent + u64::from(cost)).min(floor.max(spent)));
        (word, charged as u32)
    }

    /// The word after returning as much of `cost` as was spent in this window, and how much that is.
    pub(super) fn refund(&self, word: Word, cost: u32) -> (Word, u32) {
        let (word, refunded) = self.change(word, |spent| spent.saturating_sub(cost.into()));
        (word, refunded as u32)
    }

    /// The balance, with the time until `cost` fits. `cost` must not be over the count.
    pub(super) fn balance(&self, word: Word, cost: u32) -> Balance {
        let spent = self.spent(word);
        let available = self.count.cast_signed() - spent.cast_signed();
        Balance {
            available,
            retry_after: if available < i64::from(cost) { self.ends_in(word) } else { 0 },
            reset: if spent > 0 { self.ends_in(word) } else { 0 },
        }
    }

    /// The word with what was spent in a later window than the current one, as spent in the current
    /// one. `None`: it is not from a later window.
    pub(super) fn set_back(&self, word: Word) -> Option<Word> {
        let (start, spent) = split(word);
        (start > self.current.start).then(|| join(self.current.start, spent))
    }

    /// The word of the same limit in another period. What was spent in a window that is not over
    /// counts in the new one, or else a change of the period, back and forth, would refill it.
    pub(super) fn convert(&self, word: Word, new: &Self) -> Word {
        join(new.current.start, self.spent(word))
    }
}

/// The start and the spent amount in a word.
pub(super) fn split(word: Word) -> (u32, u64) {
    ((word.value() >> SPENT_BITS) as u32, word.value() & SPENT_MASK)
}

/// The word with this start and spent amount.
pub(super) fn join(start: u32, spent: u64) -> Word {
    Word::with_value(u64::from(start) << SPENT_BITS | spent.min(SPENT_MASK))
}
