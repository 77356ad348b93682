//! Token buckets that outlive snapshots: one atomic word each, integer arithmetic, time as an argument.
//!
//! * [`Rate`] is a limit's arithmetic, range-checked ([`rate`]).
//! * A [`Word`](word::Word) is a bucket's whole state: the tick at which it will be full ([`word`]).
//! * [`Slots`](slots::Slots) is where the words live: they never move, so a worker charges without a lock ([`slots`]).
//! * [`Limiter::charge`] charges all the limits of a key, or none; shadow limits are charged and obeyed by nobody
//!   ([`charge`], [`hold`], [`outcome`]). [`Limiter::refund`] gives back.
//! * A [`BucketName`] is what a bucket is found again by, when its slot has gone ([`name`]).
//! * [`Ledger`] decides which bucket has which slot, across reloads ([`ledger`]); only a reload uses it. It remembers those
//!   that no snapshot has ([`parked`]).
//! * [`saved`] is the file that carries balances from one process to the next.
//!
//! Promise 4: over any interval t, admitted cost <= burst + rate x t, whatever the number of threads and reloads;
//! no false refusal below the burst; a refusal charges nothing. What is refunded counts as not admitted.
//!
//! However its rate changes and however long it is away, no bucket is filled by that: what was spent under a rate is remembered
//! until it is refilled at that rate. Of a name that has had several, no more is admitted under each than its burst and what the
//! fastest has refilled, and in turn no more than the largest burst and what all have refilled. Only where more buckets are away
//! than are in use are those forgotten early that would be refilled soonest.
//!
//! Across a restart the same holds: balances are saved when the daemon ends, and aged by the time that has passed. Where it
//! cannot save (kill -9, a crash, a power cut), a bucket goes on from the last save, and may admit once more what it
//! admitted since: at most burst + rate x `save_interval` for each such end. Across boots the calendar says how
//! much time has passed, and whoever sets it is believed.
//!
//! Numbers are rounded in two places, both towards admitting less: a rate's period when it is read, and a level when it is
//! carried over to another rate.

mod charge;
mod hold;
mod ledger;
mod name;
mod outcome;
mod parked;
mod rate;
pub mod saved;
mod slots;
#[cfg(test)]
mod tests;
mod word;

pub use charge::{Bucket, Limiter, MAX_CHARGES};
pub use ledger::{Claim, Ledger, Listing, Settlement, Slot};
pub use name::BucketName;
pub use outcome::{Charge, Charged, Named, Outcome, Single};
pub use rate::{
    MAX_BURST, MAX_CAPACITY_TICKS, MIN_PERIOD_TICKS, Rate, RateError, TICKS_PER_MILLISECOND,
    TICKS_PER_NANOSECOND,
};
pub use word::Balance;
