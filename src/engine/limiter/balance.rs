//! The balance of a limit, as answers report it.

use crate::limiter::rate::NANOSECONDS_PER_MILLISECOND;

/// A time that never comes.
pub const NEVER: u64 = u64::MAX;

/// What a limit has left, and when it will have more. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Cost that fits now. Below zero if a debit has overdrawn the limit.
    pub available: i64,
    /// Time until the cost that was refused fits; 0 if none was, or waiting does not help. A cost of 0
    /// fits even if the limit is overdrawn.
    pub retry_after: u64,
    /// Time until nothing counts as spent any more: until a bucket is full, or a window ends.
    /// [`NEVER`] for credits.
    pub reset: u64,
}

impl Balance {
    /// Cost that fits now, as the fixed part of an answer states it.
    #[inline]
    pub fn remaining(&self) -> u32 {
        u32::try_from(self.available.max(0)).unwrap_or(u32::MAX)
    }

    /// Converts nanoseconds to milliseconds, rounded up. `u32::MAX` means that long or longer.
    #[inline]
    pub fn milliseconds(nanoseconds: u64) -> u32 {
        let rounded_up = nanoseconds.saturating_add(NANOSECONDS_PER_MILLISECOND - 1);
        u32::try_from(rounded_up / NANOSECONDS_PER_MILLISECOND).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_are_rounded_up_and_saturate() {
        let table = [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2), (NEVER, u32::MAX)];
        for (nanoseconds, expected) in table {
            assert_eq!(Balance::milliseconds(nanoseconds), expected);
        }
        let longest = u64::from(u32::MAX) * NANOSECONDS_PER_MILLISECOND;
        assert_eq!([longest, longest + 1].map(Balance::milliseconds), [u32::MAX; 2]);
    }

    #[test]
    fn remaining_is_never_below_zero() {
        let remaining = |available| Balance { available, ..Balance::default() }.remaining();
        let table = [(i64::MIN, 0), (-1, 0), (0, 0), (7, 7), (1 << 32, u32::MAX), (i64::MAX, u32::MAX)];
        for (available, expected) in table {
            assert_eq!(remaining(available), expected);
        }
    }
}
