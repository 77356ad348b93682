//! Token buckets that outlive snapshots.

mod rate;

pub use rate::{
    MAX_BURST, MAX_CAPACITY_TICKS, MIN_PERIOD_TICKS, Rate, RateError, TICKS_PER_MILLISECOND,
    TICKS_PER_NANOSECOND,
};
