//! The current time, as an argument.
//!
//! `verify`, `snapshot` and `limiter` take a [`Now`] and never read a clock themselves. The
//! daemon's clock is the one place that reads the system's clocks.

/// The largest [`Now::ticks`]: 61 bits, the room that a bucket's word has for a time. Nine years
/// after the clock's origin the ticks stop there, and buckets no longer refill until a restart: the
/// limiter admits too little then, never too much.
pub const MAX_TICKS: u64 = (1 << 61) - 1;

/// The largest [`Now::unix`]: one less than `u32::MAX`, which marks a key that never expires.
pub const MAX_UNIX: u32 = u32::MAX - 1;

/// A moment on the two clocks that verifying a key needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Now {
    /// Limiter ticks ([`TICKS_PER_NANOSECOND`](crate::limiter::TICKS_PER_NANOSECOND)) since just
    /// before the clock's origin: `1..=`[`MAX_TICKS`]. They never step back, and continue while the
    /// machine is suspended.
    pub ticks: u64,
    /// Seconds since 1970 in UTC: `0..=`[`MAX_UNIX`]. They step when the system's clock is set.
    pub unix: u32,
}
