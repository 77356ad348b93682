//! The balance of a bucket, as answers report it.

use crate::limiter::rate::TICKS_PER_MILLISECOND;

/// What a limit has left, and when it will have more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Cost that fits now.
    pub remaining: u32,
    /// Ticks until the requested cost fits; 0 if it fits now.
    pub retry_after: u64,
    /// Ticks until the bucket is full.
    pub reset: u64,
}

impl Balance {
    /// Converts `ticks` to milliseconds, rounded up. `u32::MAX` means that long or longer.
    #[inline]
    pub fn milliseconds(ticks: u64) -> u32 {
        u32::try_from(ticks.saturating_add(TICKS_PER_MILLISECOND - 1) / TICKS_PER_MILLISECOND)
            .unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_round_up_and_saturate() {
        assert_eq!(Balance::milliseconds(0), 0);
        assert_eq!(Balance::milliseconds(1), 1);
        assert_eq!(Balance::milliseconds(TICKS_PER_MILLISECOND), 1);
        assert_eq!(Balance::milliseconds(TICKS_PER_MILLISECOND + 1), 2);
        assert_eq!(Balance::milliseconds(u64::MAX), u32::MAX);
    }
}
