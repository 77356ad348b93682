//! The arithmetic of a token bucket's rate: how long one unit of cost takes to refill, and how much
//! can be spent at once.
//!
//! All arithmetic is on integers. A bucket counts time in *ticks*. How many ticks a nanosecond has,
//! the *scale*, depends on the rate: it is chosen so that one unit refills in a whole number of
//! ticks. Then no refill is ever rounded. For example, 3/s has three ticks in a nanosecond, and one
//! unit takes 10^9 ticks.
//!
//! A few rates would need more ticks than a bucket can count: 1234567/d has no small scale. Their
//! period is rounded up, and the scale is such that the error is below one part in a million. The
//! limiter errs towards admitting less, never more.

use std::num::{NonZeroU32, NonZeroU64};

/// Nanoseconds in a millisecond, the unit of the times in an answer.
pub(super) const NANOSECONDS_PER_MILLISECOND: u64 = 1_000_000;

/// The shortest accepted time for one unit. Ten million units a second is more than one daemon can
/// answer.
const MIN_NANOSECONDS: u64 = 100;

/// The longest time from empty to full: 2^57 nanoseconds, or four and a half years.
pub(super) const MAX_FILL_NANOSECONDS: u64 = 1 << 57;

/// The most ticks from empty to full. A bucket has 61 bits for a tick, and a difference of less than
/// 2^60 ticks is unambiguous.
pub(super) const MAX_CAPACITY: u64 = 1 << 59;

/// The most ticks from the floor to empty. A thread that has read the clock some time ago sees a
/// larger debt than there is; together with a capacity, this leaves a quarter of 2^60 for that.
pub(super) const MAX_OVERDRAFT_TICKS: u64 = 1 << 58;

/// The largest burst: an answer carries `limit` and `remaining` as 32-bit numbers.
pub const MAX_BURST: u64 = u32::MAX as u64;

/// The largest scale of a rate that is not rounded. A larger one would make the ticks wrap around
/// too soon (see [`bucket`](super::bucket)).
const MAX_EXACT_SCALE: u64 = 1 << 10;

/// The largest scale of all: that of the fastest rate, so that its period is at least
/// [`MIN_ROUNDED_PERIOD`].
const MAX_SCALE: u64 = 1 << 14;

/// The smallest scale of a rate that is rounded, if the burst leaves room for it.
const MIN_ROUNDED_SCALE: u64 = 8;

/// The shortest period of a rate that is rounded: an error of one tick is less than one part in a
/// million.
const MIN_ROUNDED_PERIOD: u64 = 1 << 20;

/// The rate and the burst of a token bucket, checked for range so that no arithmetic on them can
/// overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rate {
    period: NonZeroU64,
    burst: u32,
    scale: NonZeroU32,
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
    /// One unit refills in less than 100 ns.
    #[error("the rate must be at most 10000000 a second")]
    TooFast,
    /// The time from empty to full is over [`MAX_FILL_NANOSECONDS`].
    #[error("burst / rate must be at most 4.5 years: the bucket would refill more slowly than it can count")]
    TooSlow,
    /// The time from the floor to empty is over [`MAX_FILL_NANOSECONDS`].
    #[error(
        "overdraft / rate must be at most 4.5 years: the bucket would refill more slowly than it can count"
    )]
    OverdraftTooSlow,
}

impl Rate {
    /// One unit in four and a half years: a placeholder for charges that are never used.
    pub const SLOWEST: Self = Self {
        period: NonZeroU64::MIN.saturating_add(MAX_FILL_NANOSECONDS - 1),
        burst: 1,
        scale: NonZeroU32::MIN,
    };

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
        let (wide_count, wide_time) = (u128::from(count), u128::from(per_nanoseconds));
        if wide_count * u128::from(MIN_NANOSECONDS) > wide_time {
            return Err(RateError::TooFast);
        }
        if wide_time * u128::from(burst) > wide_count * u128::from(MAX_FILL_NANOSECONDS) {
            return Err(RateError::TooSlow);
        }
        let divisor = gcd(count, per_nanoseconds);
        let exact = (count / divisor <= MAX_EXACT_SCALE)
            .then(|| Self::with_scale(count / divisor, per_nanoseconds / divisor, burst));
        let rounded = |scale: u64| {
            let period = u64::try_from((wide_time * u128::from(scale)).div_ceil(wide_count)).ok()?;
            Self::with_scale(scale, period, burst)
        };
        let finest = || {
            let mut scale = MIN_ROUNDED_SCALE;
            // The shortest period is 100 ticks, so this doubles at most eleven times.
            while wide_time * u128::from(scale) < wide_count * u128::from(MIN_ROUNDED_PERIOD) {
                scale *= 2;
            }
            rounded(scale)
        };
        // A bucket that needs a scale of 1 takes so long to refill that its period is long enough.
        exact.flatten().or_else(finest).or_else(|| rounded(1)).ok_or(RateError::TooSlow)
    }

    /// A rate with this scale and period, if its capacity can be counted.
    fn with_scale(scale: u64, period: u64, burst: u32) -> Option<Self> {
        let capacity = period.checked_mul(u64::from(burst)).filter(|capacity| *capacity <= MAX_CAPACITY)?;
        // A period that was rounded up may be too long although the rate is not.
        let is_in_range = scale <= MAX_SCALE && capacity <= scale.saturating_mul(MAX_FILL_NANOSECONDS);
        let scale = NonZeroU32::new(u32::try_from(scale).ok().filter(|_| is_in_range)?)?;
        Some(Self { period: NonZeroU64::new(period)?, burst, scale })
    }

    /// The same rate, at a scale that leaves room for `overdraft`.
    ///
    /// # Errors
    /// If it takes more than 4.5 years to refill the overdraft.
    pub(super) fn with_room_for(self, overdraft: u32) -> Result<Self, RateError> {
        let ticks = |rate: Self| u128::from(rate.period.get()) * u128::from(overdraft);
        let longest = |rate: Self| u128::from(rate.scale.get()) * u128::from(MAX_FILL_NANOSECONDS);
        let mut rate = self;
        while ticks(rate) <= longest(rate) {
            if ticks(rate) <= u128::from(MAX_OVERDRAFT_TICKS) {
                return Ok(rate);
            }
            // The period stays so long, more than 2^25 ticks, that rounding it up makes no difference
            // of one part in a million.
            let (period, scale) = (u128::from(self.period.get()), rate.scale.get() / 2);
            let period = (period * u128::from(scale)).div_ceil(self.scale.get().into());
            let coarser =
                Self::with_scale(scale.into(), u64::try_from(period).unwrap_or(u64::MAX), self.burst);
            rate = coarser.ok_or(RateError::OverdraftTooSlow)?;
        }
        Err(RateError::OverdraftTooSlow)
    }

    /// One unit per `period` ticks, `scale` ticks a nanosecond, at most `burst` at once: the inverse
    /// of [`period`](Self::period), [`scale`](Self::scale) and [`burst`](Self::burst).
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn from_ticks(period: u64, scale: u32, burst: u32) -> Result<Self, RateError> {
        if burst == 0 {
            return Err(RateError::ZeroBurst);
        }
        if scale == 0 || period == 0 {
            return Err(RateError::Zero);
        }
        if period < u64::from(scale) * MIN_NANOSECONDS {
            return Err(RateError::TooFast);
        }
        let capacity = u128::from(period) * u128::from(burst);
        if capacity > u128::from(scale) * u128::from(MAX_FILL_NANOSECONDS) {
            return Err(RateError::TooSlow);
        }
        Self::with_scale(scale.into(), period, burst).ok_or(RateError::TooSlow)
    }

    /// Ticks that one unit of cost takes to refill.
    pub fn period(self) -> NonZeroU64 {
        self.period
    }

    /// Ticks in a nanosecond.
    pub fn scale(self) -> NonZeroU32 {
        self.scale
    }

    /// The maximum that can be spent at once.
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// Ticks from empty to full.
    #[inline]
    pub fn capacity(self) -> u64 {
        self.period.get() * u64::from(self.burst)
    }

    /// The tick at `nanoseconds`, as far as 64 bits hold it.
    #[inline]
    pub(super) fn tick(self, nanoseconds: u64) -> u64 {
        nanoseconds.wrapping_mul(self.scale.get().into())
    }

    /// The nanoseconds of `ticks`, rounded up.
    #[inline]
    pub(super) fn nanoseconds(self, ticks: u64) -> u64 {
        // Most rates divide a second, and a division takes as long as many other instructions.
        if self.scale.get() == 1 { ticks } else { ticks.div_ceil(self.scale.get().into()) }
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const DAY: u64 = 86_400 * SECOND;

    #[test]
    fn rates_that_people_write_are_exact() {
        for (count, per) in [
            (1, SECOND),
            (3, SECOND),
            (7, 60 * SECOND),
            (100, SECOND),
            (1_000, 3_600 * SECOND),
            (1_000, DAY),
            (30_000, SECOND),
            (999, DAY),
            (1_000_000, 30 * DAY),
            (10_000_000, SECOND),
        ] {
            for burst in [1, count] {
                let rate = Rate::new(count, per, burst).expect("in range");
                let (period, scale) = (u128::from(rate.period().get()), u128::from(rate.scale().get()));
                assert_eq!(period * u128::from(count), u128::from(per) * scale, "{count} in {per} ns");
            }
        }
    }

    #[test]
    fn other_rates_are_slower_by_less_than_one_part_in_a_million() {
        let mut rounded = 0;
        for count in [1, 3, 17, 1_021, 7_919, 104_729, 1_299_709, 9_999_991] {
            for per in [SECOND, 7 * SECOND, 60 * SECOND, DAY, 365 * DAY, SECOND - 1] {
                for burst in [1, 5, count, u64::from(u32::MAX)] {
                    let Ok(rate) = Rate::new(count, per, burst) else { continue };
                    let (period, scale) = (u128::from(rate.period().get()), u128::from(rate.scale().get()));
                    let (asked, is) = (u128::from(per) * scale, period * u128::from(count));
                    assert!(is >= asked, "{count} in {per} ns is faster");
                    assert!((is - asked) * 1_000_000 < asked, "{count} in {per} ns burst {burst}");
                    rounded += usize::from(is > asked);
                }
            }
        }
        assert!(rounded > 50, "{rounded}");
    }

    #[test]
    fn rates_that_a_bucket_cannot_count_are_refused() {
        let cases = [
            (0, SECOND, 1, RateError::Zero),
            (1, 0, 1, RateError::Zero),
            (1, SECOND, 0, RateError::ZeroBurst),
            (1, SECOND, 1 << 32, RateError::BurstTooLarge),
            (10_000_001, SECOND, 1, RateError::TooFast),
            (u64::MAX, 1, 1, RateError::TooFast),
            (1, MAX_FILL_NANOSECONDS + 1, 1, RateError::TooSlow),
            (1, DAY, 1_668, RateError::TooSlow),
            (1, u64::MAX, u64::from(u32::MAX), RateError::TooSlow),
        ];
        for (count, per, burst, expected) in cases {
            assert_eq!(Rate::new(count, per, burst), Err(expected), "{count} in {per} ns burst {burst}");
        }
        for (count, per, burst) in
            [(1, MAX_FILL_NANOSECONDS, 1), (10_000_000, SECOND, MAX_BURST), (1, DAY, 1_667), (1, SECOND, 1)]
        {
            let rate = Rate::new(count, per, burst).expect("in range");
            assert!(rate.capacity() <= MAX_CAPACITY);
            let again = Rate::from_ticks(rate.period().get(), rate.scale().get(), rate.burst());
            assert_eq!(again, Ok(rate));
        }
    }

    #[test]
    fn ticks_out_of_range_are_refused() {
        let table = [
            ((100, 1, 0), Err(RateError::ZeroBurst)),
            ((0, 1, 1), Err(RateError::Zero)),
            ((100, 0, 1), Err(RateError::Zero)),
            ((99, 1, 1), Err(RateError::TooFast)),
            ((799, 8, 1), Err(RateError::TooFast)),
            ((MAX_FILL_NANOSECONDS + 1, 1, 1), Err(RateError::TooSlow)),
            ((MAX_CAPACITY + 1, 8, 1), Err(RateError::TooSlow)),
            ((1 << 30, MAX_SCALE as u32 + 1, 1), Err(RateError::TooSlow)),
            ((u64::MAX, u32::MAX, u32::MAX), Err(RateError::TooSlow)),
        ];
        for ((period, scale, burst), expected) in table {
            assert_eq!(Rate::from_ticks(period, scale, burst), expected, "{period} {scale} {burst}");
        }
    }

    /// A rate that is accepted must be accepted again when it is read from a file.
    #[test]
    fn rounded_up_period_is_in_range() {
        // Seven units in the longest time: no scale is exact and has room for them.
        assert_eq!(Rate::new(7, MAX_FILL_NANOSECONDS, 7), Err(RateError::TooSlow));
        for (count, per, burst) in [(7, MAX_FILL_NANOSECONDS - 7, 7), (3, 1 << 56, 5), (9_999_991, SECOND, 3)]
        {
            let rate = Rate::new(count, per, burst).expect("in range");
            let again = Rate::from_ticks(rate.period().get(), rate.scale().get(), rate.burst());
            assert_eq!(again, Ok(rate), "{count} in {per} ns");
        }
    }

    #[test]
    fn rate_gets_a_coarser_scale_for_a_large_overdraft() {
        let exact = Rate::new(1_021, DAY, 1_021).expect("in range");
        assert_eq!(exact.scale().get(), 1_021);
        assert_eq!(exact.with_room_for(1_021), Ok(exact));
        let rate = exact.with_room_for(1_000_000).expect("it refills in 2.7 years");
        assert!(u128::from(rate.period().get()) * 1_000_000 <= MAX_OVERDRAFT_TICKS.into());
        let asked = u128::from(DAY) * u128::from(rate.scale().get());
        let is = u128::from(rate.period().get()) * 1_021;
        assert!(is >= asked && (is - asked) * 1_000_000 < asked, "{rate:?}");
        assert_eq!(rate.with_room_for(1_000_000), Ok(rate));
        assert_eq!(exact.with_room_for(2_000_000), Err(RateError::OverdraftTooSlow));
        assert_eq!(Rate::SLOWEST.with_room_for(1), Ok(Rate::SLOWEST));
        assert_eq!(Rate::SLOWEST.with_room_for(2), Err(RateError::OverdraftTooSlow));
    }

    #[test]
    fn slowest_rate_is_in_range() {
        let Rate { period, burst, scale } = Rate::SLOWEST;
        assert_eq!(Rate::from_ticks(period.get(), scale.get(), burst), Ok(Rate::SLOWEST));
    }
}
