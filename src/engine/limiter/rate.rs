//! The arithmetic of a limit: how long one unit of cost takes to refill, and how much can be spent
//! at once.
//!
//! All arithmetic is on integers. Time is counted in *ticks* of an eighth of a nanosecond. A rate
//! that does not divide a second (3/s, 7/min) is therefore wrong by at most one part in 800 at the
//! fastest accepted rate, and by less than one part in a million below 10,000/s. The period is
//! rounded up: the limiter errs towards admitting less, never more.

use std::num::NonZeroU64;

/// Ticks in a nanosecond: the resolution of the limiter.
pub const TICKS_PER_NANOSECOND: u64 = 8;

/// Ticks in a millisecond, the unit of the times in an answer.
pub const TICKS_PER_MILLISECOND: u64 = 1_000_000 * TICKS_PER_NANOSECOND;

/// The shortest accepted period, 100 ns. Ten million units a second is more than one daemon can
/// answer, and at this period the rounding error stays below 0.13 %.
pub const MIN_PERIOD_TICKS: u64 = 100 * TICKS_PER_NANOSECOND;

/// The longest time from empty to full: 2^60 ticks, or four and a half years. A bucket has 61 bits
/// for the tick at which it is full, and that tick includes the uptime of the daemon.
pub const MAX_CAPACITY_TICKS: u64 = 1 << 60;

/// The largest burst: an answer carries `limit` and `remaining` as 32-bit numbers.
pub const MAX_BURST: u64 = u32::MAX as u64;

/// The rate and the burst of a token bucket, checked for range so that no arithmetic on them can
/// overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    period: NonZeroU64,
    burst: u32,
}

/// Why a rate is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    /// The count or the time is zero.
    #[error("the rate must admit at least 1 in a time longer than zero")]
    Zero,
    /// The burst is zero, so the bucket could never admit anything.
    #[error("the burst must be at least 1")]
    ZeroBurst,
    /// The burst is over [`MAX_BURST`].
    #[error("the burst must be at most {MAX_BURST}")]
    BurstTooLarge,
    /// The period is below [`MIN_PERIOD_TICKS`].
    #[error("the rate must be at most 10000000 a second")]
    TooFast,
    /// The time from empty to full is over [`MAX_CAPACITY_TICKS`].
    #[error("burst / rate must be at most 4.5 years: the bucket would refill more slowly than it can count")]
    TooSlow,
}

impl Rate {
    /// One unit in four and a half years: a placeholder for charges that are never used.
    pub const SLOWEST: Self =
        Self { period: NonZeroU64::MIN.saturating_add(MAX_CAPACITY_TICKS - 1), burst: 1 };

    /// `count` units per `per_nanoseconds`, at most `burst` at once.
    ///
    /// # Errors
    /// When the values are out of the range that a bucket can count; see [`RateError`].
    pub fn new(count: u64, per_nanoseconds: u64, burst: u64) -> Result<Self, RateError> {
        if count == 0 || per_nanoseconds == 0 {
            return Err(RateError::Zero);
        }
        if burst == 0 {
            return Err(RateError::ZeroBurst);
        }
        let burst = u32::try_from(burst).map_err(|_| RateError::BurstTooLarge)?;
        let ticks = u128::from(per_nanoseconds) * u128::from(TICKS_PER_NANOSECOND);
        let period = u64::try_from(ticks.div_ceil(u128::from(count))).map_err(|_| RateError::TooSlow)?;
        Self::from_period(period, burst)
    }

    /// One unit per `period` ticks, at most `burst` at once: the inverse of
    /// [`period`](Self::period) and [`burst`](Self::burst).
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn from_period(period: u64, burst: u32) -> Result<Self, RateError> {
        if burst == 0 {
            return Err(RateError::ZeroBurst);
        }
        if period < MIN_PERIOD_TICKS {
            return Err(RateError::TooFast);
        }
        match period.checked_mul(u64::from(burst)) {
            Some(capacity) if capacity <= MAX_CAPACITY_TICKS => {}
            _ => return Err(RateError::TooSlow),
        }
        let period = NonZeroU64::new(period).ok_or(RateError::Zero)?;
        Ok(Self { period, burst })
    }

    /// Ticks that one unit of cost takes to refill.
    pub fn period(self) -> NonZeroU64 {
        self.period
    }

    /// The maximum that can be spent at once.
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// Ticks from empty to full.
    pub fn capacity(self) -> u64 {
        self.period.get() * u64::from(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const DAY: u64 = 86_400 * SECOND;

    #[test]
    fn long_quota_is_exact() {
        for (count, per) in [(10_000, DAY), (1_000_000, 30 * DAY), (100, SECOND), (1_000, 3_600 * SECOND)] {
            let rate = Rate::new(count, per, count).expect("the rate is in range");
            assert_eq!(rate.capacity(), per * TICKS_PER_NANOSECOND, "{count} per {per} ns");
        }
    }

    #[test]
    fn period_is_rounded_up() {
        let rate = Rate::new(3, SECOND, 1).expect("the rate is in range");
        assert_eq!(rate.period().get(), (SECOND * TICKS_PER_NANOSECOND) / 3 + 1);
    }

    #[test]
    fn rate_is_rebuilt_from_its_period() {
        let rate = Rate::new(7, 60 * SECOND, 20).expect("the rate is in range");
        assert_eq!(Rate::from_period(rate.period().get(), rate.burst()), Ok(rate));
        assert_eq!(Rate::from_period(0, 1), Err(RateError::TooFast));
        assert_eq!(Rate::from_period(MIN_PERIOD_TICKS, 0), Err(RateError::ZeroBurst));
        assert_eq!(Rate::from_period(MIN_PERIOD_TICKS - 1, 1), Err(RateError::TooFast));
        assert_eq!(Rate::from_period(MAX_CAPACITY_TICKS, 2), Err(RateError::TooSlow));
        assert_eq!(Rate::from_period(u64::MAX, u32::MAX), Err(RateError::TooSlow));
    }

    #[test]
    fn rate_out_of_range_is_refused() {
        assert_eq!(Rate::new(0, SECOND, 1), Err(RateError::Zero));
        assert_eq!(Rate::new(1, 0, 1), Err(RateError::Zero));
        assert_eq!(Rate::new(1, SECOND, 0), Err(RateError::ZeroBurst));
        assert_eq!(Rate::new(1, SECOND, 1 << 32), Err(RateError::BurstTooLarge));
        assert!(Rate::new(10_000_000, SECOND, 1).is_ok());
        // The rounded period is checked: 10,000,001 a second rounds to ten million.
        assert_eq!(Rate::new(10_020_000, SECOND, 1), Err(RateError::TooFast));
        assert!(Rate::new(1, 365 * DAY, 4).is_ok());
        assert_eq!(Rate::new(1, 365 * DAY, 5), Err(RateError::TooSlow));
        assert_eq!(Rate::new(1, u64::MAX, 1), Err(RateError::TooSlow));
    }
}
