//! What a limit admits: a rate, a count in each calendar window, or credits.
//!
//! Every kind keeps its state in one [word](super::word):
//!
//! * [`bucket`](super::bucket): refills at a rate;
//! * [`window`](super::window): starts anew with each hour, day, week or month;
//! * [`credits`](super::credits): is never refilled, but topped up by a larger grant.

use crate::limiter::balance::{Balance, NEVER};
use crate::limiter::bucket::Bucket;
use crate::limiter::calendar::{Calendar, MAX_START, Period};
use crate::limiter::credits::{Credits, MAX_CREDITS, MAX_SPENT};
use crate::limiter::rate::{Rate, RateError};
use crate::limiter::window::{MAX_WINDOW_COUNT, Window, join, split};
use crate::limiter::word::Word;
use crate::now::Now;

/// What a limit admits, checked for range so that no arithmetic on it can overflow.
///
/// `overdraft` is how far a debit can bring the balance below zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// A token bucket.
    #[allow(missing_docs, reason = "the fields are those of the limit")]
    Bucket { rate: Rate, overdraft: u32 },
    /// `count` in each calendar window.
    #[allow(missing_docs, reason = "the fields are those of the limit")]
    Window { count: u64, period: Period, overdraft: u32 },
    /// `granted` in total.
    #[allow(missing_docs, reason = "the fields are those of the limit")]
    Credits { granted: u64, overdraft: u32 },
}

// A policy stores one for each limit.
const _: () = assert!(size_of::<Rule>() == 24);

/// The kind of a limit. Limits of different kinds have different balances, even if they have the
/// same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleKind {
    /// [`Rule::Bucket`].
    Bucket,
    /// [`Rule::Window`].
    Window,
    /// [`Rule::Credits`].
    Credits,
}

/// Why a rule is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The rate of a bucket is out of range.
    #[error(transparent)]
    Rate(#[from] RateError),
    /// A window with a count of 0, or one that a word cannot hold.
    #[error("a calendar quota must be 1 to {MAX_WINDOW_COUNT}, its overdraft included")]
    Count,
    /// A grant that a word cannot hold.
    #[error("credits must be at most {MAX_CREDITS}")]
    Credits,
}

impl Rule {
    /// One unit in four and a half years: a placeholder for charges that are never used.
    pub const SLOWEST: Self = Self::Bucket { rate: Rate::SLOWEST, overdraft: 0 };

    /// A token bucket.
    ///
    /// # Errors
    /// If it takes more than 4.5 years to refill the overdraft.
    pub fn bucket(rate: Rate, overdraft: u32) -> Result<Self, RuleError> {
        Ok(Self::Bucket { rate: rate.with_room_for(overdraft)?, overdraft })
    }

    /// A quota of `count` in each window.
    ///
    /// # Errors
    /// If the count is 0 or too large.
    pub fn window(count: u64, period: Period, overdraft: u32) -> Result<Self, RuleError> {
        let is_in_range = count > 0 && count.saturating_add(overdraft.into()) <= MAX_WINDOW_COUNT;
        if is_in_range { Ok(Self::Window { count, period, overdraft }) } else { Err(RuleError::Count) }
    }

    /// Credits of `granted` in total. A grant of 0 admits nothing.
    ///
    /// # Errors
    /// If it is too large.
    pub fn credits(granted: u64, overdraft: u32) -> Result<Self, RuleError> {
        if granted > MAX_CREDITS { Err(RuleError::Credits) } else { Ok(Self::Credits { granted, overdraft }) }
    }

    /// The kind.
    pub fn kind(self) -> RuleKind {
        match self {
            Self::Bucket { .. } => RuleKind::Bucket,
            Self::Window { .. } => RuleKind::Window,
            Self::Credits { .. } => RuleKind::Credits,
        }
    }

    /// The burst, the count of a window, or the credits granted.
    pub fn limit(self) -> u64 {
        match self {
            Self::Bucket { rate, .. } => rate.burst().into(),
            Self::Window { count, .. } => count,
            Self::Credits { granted, .. } => granted,
        }
    }

    /// How far a debit can bring the balance below zero.
    pub fn overdraft(self) -> u32 {
        match self {
            Self::Bucket { overdraft, .. }
            | Self::Window { overdraft, .. }
            | Self::Credits { overdraft, .. } => overdraft,
        }
    }

    /// Whether this rule never admits a request that `other` refuses, apart from credits that are
    /// topped up. Overdrafts have to be equal: with a lower one, a limit admits requests earlier after
    /// a debit; with a higher one, debits spend more.
    pub(crate) fn is_as_strict_as(self, other: Self) -> bool {
        let is_same_or_less = match (self, other) {
            (Self::Bucket { rate, .. }, Self::Bucket { rate: other, .. }) => {
                let nanoseconds = |rate: Rate, scale: Rate| {
                    u128::from(rate.period().get()) * u128::from(scale.scale().get())
                };
                rate.burst() <= other.burst() && nanoseconds(rate, other) >= nanoseconds(other, rate)
            }
            (Self::Window { count, period, .. }, Self::Window { count: other, period: same, .. }) => {
                period == same && count <= other
            }
            (Self::Credits { .. }, Self::Credits { .. }) => true,
            _ => false,
        };
        is_same_or_less && self.overdraft() == other.overdraft()
    }

    /// A saved balance of this rule: `spent` is a debt in ticks if the rule is that of a bucket,
    /// `start` the start of a window. `None` if a value is out of range. More may be spent of a
    /// window or of credits than the rule admits, because it may have been lowered.
    pub(super) fn balance(self, spent: u64, start: u32) -> Option<SavedBalance> {
        match self {
            Self::Bucket { rate, overdraft } => {
                let floor = rate.capacity() + u64::from(overdraft) * rate.period().get();
                (spent <= floor && start == 0).then_some(SavedBalance::Bucket { debt: spent })
            }
            Self::Window { .. } => {
                let is_in_range = spent <= MAX_WINDOW_COUNT && start <= MAX_START;
                is_in_range.then_some(SavedBalance::Window { start, spent })
            }
            Self::Credits { .. } => {
                (spent <= MAX_SPENT && start == 0).then_some(SavedBalance::Credits { spent })
            }
        }
    }

    /// Whether a word means the same under both rules. Then a limit whose rule changes from one to
    /// the other keeps its slot.
    pub(crate) fn shares_words_with(self, other: Self) -> bool {
        match (self, other) {
            (Self::Bucket { .. }, Self::Bucket { .. }) => self == other,
            (Self::Window { period, .. }, Self::Window { period: other, .. }) => period == other,
            (Self::Credits { .. }, Self::Credits { .. }) => true,
            _ => false,
        }
    }

    /// The rule at a moment.
    pub(super) fn at(self, now: Now, calendar: &Calendar) -> RuleAt<'_> {
        match self {
            Self::Bucket { rate, overdraft } => RuleAt::Bucket(Bucket::new(rate, overdraft, now.nanoseconds)),
            Self::Window { count, period, overdraft } => {
                let current = calendar.window(period, now.unix);
                RuleAt::Window(Window { count, period, overdraft, current, now, calendar })
            }
            Self::Credits { granted, overdraft } => RuleAt::Credits(Credits { granted, overdraft }),
        }
    }
}

/// Why a cost does not fit, from the least to the most severe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Misfit {
    /// It would fit later.
    Wait,
    /// It fits only if more credits are granted.
    OutOfCredit,
    /// It never fits: it is over the burst, or over the count of a window.
    ExceedsLimit,
}

/// A rule at a moment: what a word is read with.
#[derive(Clone, Copy, Debug)]
pub(super) enum RuleAt<'c> {
    Bucket(Bucket),
    Window(Window<'c>),
    Credits(Credits),
}

impl RuleAt<'_> {
    /// The word after charging `cost`. A cost of 0 always fits.
    pub(super) fn charge(&self, word: Word, cost: u32) -> Result<Word, Misfit> {
        if cost == 0 {
            return Ok(word);
        }
        let charged = match self {
            Self::Bucket(bucket) => bucket.charge(word, cost),
            Self::Window(window) => window.charge(word, cost),
            Self::Credits(credits) => credits.charge(word, cost),
        };
        charged.ok_or_else(|| match self {
            Self::Bucket(bucket) if cost <= bucket.rate.burst() => Misfit::Wait,
            Self::Window(window) if u64::from(cost) <= window.count => Misfit::Wait,
            Self::Bucket(_) | Self::Window(_) => Misfit::ExceedsLimit,
            Self::Credits(_) => Misfit::OutOfCredit,
        })
    }

    /// The word after charging as much of `cost` as fits above the floor, and how much that is.
    pub(super) fn debit(&self, word: Word, cost: u32) -> (Word, u32) {
        match self {
            _ if cost == 0 => (word, 0),
            Self::Bucket(bucket) => bucket.debit(word, cost),
            Self::Window(window) => window.debit(word, cost),
            Self::Credits(credits) => credits.debit(word, cost),
        }
    }

    /// The word after returning as much of `cost` as is spent, and how much that is.
    pub(super) fn refund(&self, word: Word, cost: u32) -> (Word, u32) {
        match self {
            _ if cost == 0 => (word, 0),
            Self::Bucket(bucket) => bucket.refund(word, cost),
            Self::Window(window) => window.refund(word, cost),
            Self::Credits(credits) => credits.refund(word, cost),
        }
    }

    /// The balance, with the time until `cost` fits: none for a cost of 0. `cost` must not be over
    /// the limit.
    pub(super) fn balance(&self, word: Word, cost: u32) -> Balance {
        let balance = match self {
            Self::Bucket(bucket) => bucket.balance(word, cost),
            Self::Window(window) => window.balance(word, cost),
            Self::Credits(credits) => credits.balance(word, cost),
        };
        // An overdrawn limit that is not asked for anything has nothing to wait for.
        Balance { retry_after: if cost == 0 { 0 } else { balance.retry_after }, ..balance }
    }

    /// Whether nothing is spent, so that the word need not be remembered.
    pub(super) fn is_unspent(&self, word: Word) -> bool {
        match self {
            Self::Bucket(bucket) => bucket.is_full(word),
            Self::Window(window) => window.spent(word) == 0,
            Self::Credits(_) => word.value() == 0,
        }
    }

    /// The word of the same limit, without having wrapped around.
    pub(super) fn unwrapped(&self, word: Word) -> Word {
        match self {
            Self::Bucket(bucket) => bucket.unwrapped(word),
            Self::Window(_) | Self::Credits(_) => word,
        }
    }

    /// Whether an unspent word should be replaced, because its time is long past.
    pub(super) fn is_old(&self, word: Word) -> bool {
        matches!(self, Self::Bucket(bucket) if bucket.is_old(word))
    }

    /// A word of which nothing has been spent.
    pub(super) fn unspent(&self) -> Word {
        match self {
            Self::Bucket(bucket) => bucket.with_debt(0),
            Self::Window(_) | Self::Credits(_) => Word::UNSPENT,
        }
    }

    /// The word with what was spent in a later window than the current one, as spent in the current
    /// one. `None`: it is not from a later window.
    pub(super) fn set_back(&self, word: Word) -> Option<Word> {
        match self {
            Self::Window(window) => window.set_back(word),
            Self::Bucket(_) | Self::Credits(_) => None,
        }
    }

    /// Nanoseconds until nothing is spent any more.
    pub(super) fn unspent_in(&self, word: Word) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.full_in(word),
            Self::Window(window) if window.spent(word) > 0 => window.ends_in(word),
            Self::Credits(_) if word.value() > 0 => NEVER,
            Self::Window(_) | Self::Credits(_) => 0,
        }
    }

    /// The word of the same limit under the rule `new`, which has to be of the same kind.
    pub(super) fn convert(&self, word: Word, new: &Self) -> Word {
        match (self, new) {
            (Self::Bucket(old), Self::Bucket(new)) => old.convert(word, new),
            (Self::Window(old), Self::Window(new)) => old.convert(word, new),
            (Self::Credits(_), Self::Credits(_)) => word.without_flags(),
            // Different kinds have different identities, unless a file of balances states otherwise.
            _ => new.unspent(),
        }
    }

    /// The one of two words of this limit of which more is spent.
    pub(super) fn lower(&self, one: Word, other: Word) -> Word {
        match self {
            Self::Bucket(bucket) => bucket.lower(one, other),
            Self::Window(window) if window.spent(other) > window.spent(one) => other,
            Self::Credits(_) if other.value() > one.value() => other,
            Self::Window(_) | Self::Credits(_) => one,
        }
    }

    /// The word with a saved balance after `elapsed` nanoseconds; `None` if the balance is that of
    /// another kind.
    pub(super) fn restored(&self, balance: SavedBalance, elapsed: u64) -> Option<Word> {
        match (self, balance) {
            (Self::Bucket(bucket), SavedBalance::Bucket { debt }) => Some(bucket.restored(debt, elapsed)),
            (Self::Window(_), SavedBalance::Window { start, spent }) => Some(join(start, spent)),
            (Self::Credits(_), SavedBalance::Credits { spent }) => Some(Word::with_value(spent)),
            _ => None,
        }
    }

    /// What a file of balances states about the word.
    pub(super) fn saved(&self, word: Word) -> SavedBalance {
        match self {
            Self::Bucket(bucket) => SavedBalance::Bucket { debt: bucket.saved_debt(word) },
            Self::Window(_) => {
                let (start, spent) = split(word);
                SavedBalance::Window { start, spent }
            }
            Self::Credits(_) => SavedBalance::Credits { spent: word.value() },
        }
    }
}

/// What has been spent of a limit, as a file of balances states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedBalance {
    /// Ticks until a bucket is full, at the time that the file states.
    #[allow(missing_docs, reason = "described above")]
    Bucket { debt: u64 },
    /// What was spent in the window that started at `start`, in quarters of an hour since 1970.
    #[allow(missing_docs, reason = "described above")]
    Window { start: u32, spent: u64 },
    /// What was spent of credits in total.
    #[allow(missing_docs, reason = "described above")]
    Credits { spent: u64 },
}
