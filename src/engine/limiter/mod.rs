//! Token buckets that outlive snapshots: one atomic word per bucket, integer arithmetic, time
//! passed as an argument.
//!
//! The algorithm is GCRA, the generic cell rate algorithm: the only thing a bucket stores is its
//! theoretical arrival time, the tick at which it will be full again ([`state`]).
//!
//! # Requests
//!
//! * [`Limiter`] charges all limits of a key or none, and refunds them ([`charge`]).
//! * [`Charge`] is one limit to charge. [`Outcome`] is the result, and names the limit that decided
//!   it ([`outcome`]). Shadow limits are charged and reported, but never refuse.
//! * [`Rate`] is the arithmetic of one limit, checked for range ([`rate`]).
//! * The words live in an array that grows and never moves, so a charge takes no lock ([`slots`]).
//!   A charge of several limits locks the words themselves ([`lock`]).
//!
//! # Reloads
//!
//! * A bucket is one slot at one rate. [`SlotAllocator`] decides which slot each bucket has, and
//!   changes only during a reload ([`allocator`]). A reload gets the slots for its new snapshot
//!   from an [`Allocation`] ([`allocation`]) and, once no worker uses the old snapshot,
//!   [reclaims](SlotAllocator::reclaim) the slots that are no longer used ([`reclaim`]).
//! * A limit whose rate changes gets a new bucket. Its balance is migrated by the first thread that
//!   needs it ([`buckets`]).
//! * A bucket that has lost its key is retained until it is full ([`retained`]).
//! * [`LimitId`] identifies a limit: its buckets are found by it once their slot numbers are gone
//!   ([`limit_id`]).
//!
//! # Restarts
//!
//! [`persist`] is the file that carries balances to the next process; [`balance_scan`] collects and
//! restores them.
//!
//! # Guarantees
//!
//! Over any interval t, the admitted cost of a bucket is at most burst + rate × t, regardless of
//! the number of threads and reloads. A cost that fits is never refused, and a refusal charges
//! nothing. A refunded cost counts as not admitted.
//!
//! Neither a rate change nor removing and re-adding a key refills its bucket: what was spent under
//! a rate is remembered until it has been refilled at that rate. If a limit has had several rates,
//! each admits no more than its own burst plus what the fastest of them refills; taken together,
//! they admit no more than the largest burst plus what all of them refill. There is one exception,
//! for bounded memory: if more buckets are retained than are in use, those that would be full
//! soonest are forgotten early.
//!
//! The same holds across a restart: balances are saved when the daemon stops, and refilled for the
//! time that it was down. If the daemon cannot save (kill -9, a crash, a power cut), a bucket
//! continues from the last save and may admit again what it has admitted since: at most burst +
//! rate × `save_interval` for each such end. Across boots, the elapsed time is taken from the
//! calendar clock, which is trusted.
//!
//! Rounding happens in two places, both towards admitting less: when a rate is converted to a
//! period, and when a level is converted to another rate.

mod allocation;
mod allocator;
mod balance;
mod balance_scan;
mod buckets;
mod charge;
mod clock_reading;
mod latest_tick;
mod limit_id;
mod lock;
mod outcome;
pub mod persist;
mod rate;
mod reclaim;
mod retained;
mod slot_set;
mod slots;
mod state;
#[cfg(test)]
mod tests;

pub use allocation::Allocation;
pub use allocator::SlotAllocator;
pub use balance::Balance;
pub use balance_scan::BalanceScan;
pub use charge::{Bucket, Limiter};
pub use clock_reading::ClockReading;
pub use limit_id::LimitId;
pub(crate) use outcome::SingleOutcome;
pub use outcome::{Charge, ChargeReport, DecidingLimit, MAX_CHARGES, Outcome};
pub use rate::{
    MAX_BURST, MAX_CAPACITY_TICKS, MIN_PERIOD_TICKS, Rate, RateError, TICKS_PER_MILLISECOND,
    TICKS_PER_NANOSECOND,
};
pub use reclaim::PendingReclaim;
pub use slots::BucketRef;
