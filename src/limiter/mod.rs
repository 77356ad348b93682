//! Token buckets that outlive snapshots.

mod rate;

pub use rate::{MAX_BURST, Rate, RateError, TICKS_PER_MILLISECOND, TICKS_PER_NANOSECOND};
