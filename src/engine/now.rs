//! The current time, as an argument.
//!
//! `verify`, `snapshot` and `limiter` take a [`Now`] and never read a clock themselves. The
//! daemon's clock is the one place that reads the system's clocks.

/// The largest [`Now::unix`]: one less than `u32::MAX`, which marks a key that never expires.
pub const MAX_UNIX: u32 = u32::MAX - 1;

/// A moment on the two clocks that verifying a key needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Now {
    /// Nanoseconds since just before the clock's origin, at least 1. They never step back, and
    /// continue while the machine is suspended.
    pub nanoseconds: u64,
    /// Seconds since 1970 in UTC: `0..=`[`MAX_UNIX`]. They step when the system's clock is set.
    pub unix: u32,
    /// Milliseconds of the second `unix`.
    pub millisecond: u16,
}

impl Now {
    /// The same moment with other nanoseconds.
    #[must_use]
    pub fn with_nanoseconds(self, nanoseconds: u64) -> Self {
        Self { nanoseconds, ..self }
    }
}
