//! Token buckets that outlive snapshots: one atomic word each, integer arithmetic, time as an argument.
//!
//! * [`Rate`] is a limit's arithmetic, range-checked ([`rate`]).
//! * A [`Word`](word::Word) is a bucket's whole state: the tick at which it will be full ([`word`]).
//! * [`Slots`](slots::Slots) is where the words live: they never move, so a worker charges without a lock ([`slots`]).
//! * [`Limiter::charge`] charges all the limits of a key, or none ([`charge`]).
//! * [`Ledger`] decides which bucket has which slot, across reloads ([`ledger`]); only a reload uses it.
//!
//! Promise 4: over any interval t, admitted cost <= burst + rate x t, whatever the number of threads and reloads;
//! no false refusal below the burst; a refusal charges nothing.

mod charge;
mod ledger;
mod rate;
mod slots;
#[cfg(test)]
mod tests;
mod word;

pub use charge::{Charge, Charged, Limiter, MAX_CHARGES, Outcome};
pub use ledger::{Claim, Ledger, Slot};
pub use rate::{
    MAX_BURST, MAX_CAPACITY_TICKS, MIN_PERIOD_TICKS, Rate, RateError, TICKS_PER_MILLISECOND,
    TICKS_PER_NANOSECOND,
};
pub use word::Balance;
