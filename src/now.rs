//! A moment, as the deciding half of keyward sees it: two numbers that someone else read from a clock.
//!
//! `verify`, `snapshot` and `limiter` take a [`Now`] as an argument and never read a clock.

/// The largest [`Now::ticks`]: 61 bits, what a bucket's word has room for. Nine years after the clock's
/// origin the ticks stop there, and buckets no longer refill until a restart: too little is admitted, never
/// too much.
pub const MAX_TICKS: u64 = (1 << 61) - 1;

/// The largest [`Now::unix`]: one less than `u32::MAX`, which as a key's end means that it has none.
pub const MAX_UNIX: u32 = u32::MAX - 1;

/// A moment on both of the clocks that a verify needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Now {
    /// Limiter ticks ([`TICKS_PER_NANOSECOND`](crate::limiter::TICKS_PER_NANOSECOND)) since just before the
    /// clock's origin: `1..=`[`MAX_TICKS`]. They neither step back nor stop while the machine is suspended.
    pub ticks: u64,
    /// Seconds since 1970 in UTC, `0..=`[`MAX_UNIX`]; they step when someone sets the system's clock.
    pub unix: u32,
}
