//! Limits that outlive snapshots: one atomic word for each, integer arithmetic, time passed as an
//! argument.
//!
//! A limit is a token bucket, a quota for each calendar window, or credits ([`rule`]). The algorithm
//! of a token bucket is GCRA, the generic cell rate algorithm: the only thing it stores is its
//! theoretical arrival time, the tick at which it will be full again ([`bucket`]).
//!
//! # Requests
//!
//! * [`Limiter`] charges all limits of a key or none, debits them down to their floors, and refunds
//!   them ([`charge`]).
//! * [`Charge`] is one limit to charge. [`Outcome`] is the result, and names the limit that decided
//!   it ([`outcome`]). Shadow limits are charged and reported, but never refuse.
//! * [`Rule`] is what one limit admits, checked for range. It reads and changes the limit's word
//!   ([`word`], [`bucket`], [`window`], [`credits`]).
//! * The words live in an array that grows and never moves, so a charge takes no lock ([`slots`]).
//!   A charge of several limits locks the words themselves ([`lock`]).
//!
//! # Reloads
//!
//! * The balance of a limit under one rule is called a bucket here, of whatever kind it is. It has
//!   one slot. [`SlotAllocator`] decides which slot each bucket has, and changes only during a reload
//!   ([`allocator`]). A reload gets the slots for its new snapshot from an [`Allocation`]
//!   ([`allocation`]) and, once no worker uses the old snapshot,
//!   [reclaims](SlotAllocator::reclaim) the slots that are no longer used ([`reclaim`]).
//! * A limit whose rule changes gets a new bucket, unless both rules read words in the same way. Its
//!   balance is migrated by the first thread that needs it ([`buckets`]).
//! * A bucket that has lost its key is retained until nothing of its limit is spent ([`retained`]).
//! * [`LimitId`] identifies a limit: its buckets are found by it once their slot numbers are gone
//!   ([`limit_id`]).
//!
//! # Operators
//!
//! * An operator can reset the balances of a key, and set the calendar back ([`reset`]).
//!
//! # Restarts
//!
//! [`persist`] is the file that carries balances to the next process; [`balance_scan`] collects and
//! restores them. To a limit of which something is spent, a restart does the same as a time without
//! its keys.
//!
//! # Guarantees
//!
//! Over any interval t, the admitted cost of a token bucket is at most burst + rate × t, that of a
//! calendar quota at most its count in each window, and that of credits at most what was granted,
//! regardless of the number of threads and reloads. A cost that fits is never refused, and a refusal
//! charges nothing. A refunded cost counts as not admitted. A debit admits nothing, and stops at the
//! limit's floor. A [reset](SlotAllocator::reset) begins a new interval.
//!
//! Neither a change of the rule nor removing and re-adding a key refills a limit: what was spent under
//! a rate is remembered until it has been refilled at that rate, what was spent in a window until
//! the window is over, and what was spent of credits for ever. If a limit has had several rates,
//! each admits no more than its own burst plus what the fastest of them refills; taken together,
//! they admit no more than the largest burst plus what all of them refill. There is one exception,
//! for bounded memory: if more token buckets are retained than buckets are in use, those that would
//! be full soonest are forgotten early. A limit that becomes one of another kind starts unspent: the
//! kinds have nothing in common that could be carried over.
//!
//! The same holds across a restart: balances are saved when the daemon stops, and refilled for the
//! time that it was down. If the daemon cannot save (kill -9, a crash, a power cut), a limit
//! continues from the last save and may admit again what it has admitted since: at most burst +
//! rate × the time since then for each such end of a token bucket. That time is at most
//! `save_interval` and the time that two saves take. Across boots, the elapsed time is taken from the
//! calendar clock, which is trusted.
//!
//! Rounding happens in two places, both towards admitting less: at rates that have no exact period
//! ([`rate`]), and when a level is converted to another rate.

mod allocation;
mod allocator;
mod balance;
mod balance_scan;
mod bucket;
mod buckets;
mod calendar;
mod charge;
mod clock_reading;
mod credits;
mod latest_time;
mod limit_id;
mod lock;
mod outcome;
pub mod persist;
mod rate;
mod reclaim;
mod renew;
mod reset;
mod retained;
mod rule;
mod rule_bytes;
mod slot_set;
mod slots;
#[cfg(test)]
mod tests;
mod window;
mod word;

pub use allocation::Allocation;
pub use allocator::SlotAllocator;
pub use balance::{Balance, NEVER};
pub use balance_scan::BalanceScan;
pub use calendar::{Period, UnknownPeriodError};
pub use charge::{Bucket, Limiter};
pub use clock_reading::ClockReading;
pub use credits::MAX_CREDITS;
pub use limit_id::LimitId;
pub(crate) use outcome::SingleOutcome;
pub use outcome::{
    Charge, ChargeReport, DecidingLimit, LimitBalance, LimitBalances, MAX_CHARGES, Outcome, ShadowRefusals,
};
pub use rate::{MAX_BURST, Rate, RateError};
pub use reclaim::PendingReclaim;
pub use reset::LimitBuckets;
pub use rule::{Rule, RuleError, RuleKind, SavedBalance};
pub use rule_bytes::RULE_BYTES;
pub use slots::BucketRef;
pub use window::MAX_WINDOW_COUNT;
