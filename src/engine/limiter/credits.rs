//! Credits: the value of a word is the sum of what has been spent. Nothing refills it.
//!
//! What has been granted is stated by the source. So a larger grant tops up, and a smaller one takes
//! away.

use crate::limiter::balance::{Balance, NEVER};
use crate::limiter::word::{VALUE_MASK, Word};

/// The largest grant: balances and sums of grants and overdrafts stay in range.
pub const MAX_CREDITS: u64 = 1 << 53;

/// The largest sum that was ever spent: less than a grant with its overdraft, and a word holds it
/// with the largest cost added.
pub(super) const MAX_SPENT: u64 = 1 << 60;

const _: () =
    assert!(MAX_CREDITS + (u32::MAX as u64) < MAX_SPENT && MAX_SPENT + (u32::MAX as u64) < VALUE_MASK);

/// Credits, with what has been granted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Credits {
    pub(super) granted: u64,
    /// How far a debit can bring the balance below zero.
    pub(super) overdraft: u32,
}

impl Credits {
    /// The word after charging `cost`; `None` if it does not fit.
    pub(super) fn charge(&self, word: Word, cost: u32) -> Option<Word> {
        let spent = word.value() + u64::from(cost);
        (spent <= self.granted).then(|| Word::with_value(spent))
    }

    /// The word after charging as much of `cost` as fits above the floor, and how much that is.
    pub(super) fn debit(&self, word: Word, cost: u32) -> (Word, u32) {
        let spent = word.value();
        // A smaller grant than before may have been exceeded already.
        let floor = (self.granted + u64::from(self.overdraft)).max(spent);
        let after = (spent + u64::from(cost)).min(floor);
        (Word::with_value(after), (after - spent) as u32)
    }

    /// The word after returning as much of `cost` as was spent, and how much that is.
    pub(super) fn refund(&self, word: Word, cost: u32) -> (Word, u32) {
        let spent = word.value();
        let after = spent.saturating_sub(cost.into());
        (Word::with_value(after), (spent - after) as u32)
    }

    /// The balance, with the time until `cost` fits.
    pub(super) fn balance(&self, word: Word, cost: u32) -> Balance {
        let spent = word.value();
        let available = self.granted.cast_signed() - spent.cast_signed();
        Balance { available, retry_after: if available < i64::from(cost) { NEVER } else { 0 }, reset: NEVER }
    }
}
