//! Clock readings that can be compared across processes: how long a daemon was down.

use crate::limiter::rate::MAX_FILL_NANOSECONDS;

/// The longest time that makes a difference: a bucket is full after it, even from its floor.
const LONGEST_NANOSECONDS: u64 = 2 * MAX_FILL_NANOSECONDS;

/// A reading of the system's clocks, taken when balances are saved and when they are restored.
///
/// There are two clocks, because a balance continues to refill while no daemon runs:
/// [`nanoseconds_since`](Self::nanoseconds_since) chooses between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The kernel's boot id; `None` if it is unknown.
    pub boot_id: Option<[u8; 16]>,
    /// CLOCK_BOOTTIME in nanoseconds, as the process sees it.
    pub boottime: u64,
    /// The offset in nanoseconds that the process's time namespace adds to the kernel's
    /// CLOCK_BOOTTIME; `None` if it is unknown.
    pub boottime_offset: Option<i64>,
    /// CLOCK_REALTIME in nanoseconds since 1970.
    pub realtime: u64,
}

impl ClockReading {
    /// Nanoseconds from `saved` to this reading, at most what fills any bucket from its floor.
    ///
    /// Within one boot, CLOCK_BOOTTIME decides, because it cannot be set. Across boots, or if a
    /// boot id is unknown, the calendar decides. If the calendar was set back, no time has passed:
    /// too little is refilled then, never too much.
    ///
    /// A time namespace shifts CLOCK_BOOTTIME, so two containers on one host may see different
    /// values. If an offset is unknown, the clock that shows less elapsed time decides.
    pub fn nanoseconds_since(&self, saved: &Self) -> u64 {
        let by_calendar = self.realtime.saturating_sub(saved.realtime);
        let nanoseconds = if self.boot_id.is_none() || self.boot_id != saved.boot_id {
            by_calendar
        } else if let (Some(now), Some(then)) = (self.kernel_boottime(), saved.kernel_boottime()) {
            u64::try_from(now.saturating_sub(then)).unwrap_or(0)
        } else {
            self.boottime.saturating_sub(saved.boottime).min(by_calendar)
        };
        nanoseconds.min(LONGEST_NANOSECONDS)
    }

    /// CLOCK_BOOTTIME in nanoseconds without the offset of the time namespace.
    fn kernel_boottime(&self) -> Option<i64> {
        i64::try_from(self.boottime).ok()?.checked_sub(self.boottime_offset?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn time_namespace_offset_does_not_count_as_elapsed_time() {
        let at = |boottime: u64, offset: Option<i64>, realtime: u64| ClockReading {
            boot_id: Some([1; 16]),
            boottime: boottime * SECOND,
            boottime_offset: offset.map(|offset| offset * SECOND as i64),
            realtime: realtime * SECOND,
        };
        // (saved, now, elapsed seconds)
        let table = [
            (at(100, Some(0), 1000), at(100_107, Some(100_000), 1007), 7),
            (at(100_100, Some(100_000), 1000), at(107, Some(0), 1007), 7),
            (at(50, Some(-60), 1000), at(1_117, Some(1_000), 1007), 7),
            (at(100, Some(0), 1000), at(107, Some(0), 10), 7),
            (at(100, None, 1000), at(100_107, Some(100_000), 1007), 7),
            (at(100, Some(0), 1000), at(100_107, None, 1007), 7),
            (at(100, None, 1000), at(107, None, 9999), 7),
            (at(100, None, 1000), at(107, None, 10), 0),
            (at(100, Some(0), 1000), at(107, Some(8), 1007), 0),
            (at(100, Some(i64::MAX / SECOND as i64), 1000), at(107, Some(0), 1007), u64::MAX),
        ];
        for (saved, now, seconds) in table {
            let expected = seconds.saturating_mul(SECOND);
            assert_eq!(now.nanoseconds_since(&saved), expected.min(LONGEST_NANOSECONDS), "{saved:?} {now:?}");
        }
    }

    #[test]
    fn boottime_decides_within_a_boot_and_the_calendar_across_boots() {
        let at = |boot_id, boottime, realtime| ClockReading {
            boot_id,
            boottime: boottime * SECOND,
            boottime_offset: Some(0),
            realtime: realtime * SECOND,
        };
        let (one, two) = (Some([1; 16]), Some([2; 16]));
        let saved = at(one, 100, 1000);
        let seconds = |now: ClockReading, saved: ClockReading| now.nanoseconds_since(&saved) / SECOND;
        assert_eq!(seconds(at(one, 107, 9999), saved), 7, "the calendar was set forward");
        assert_eq!(seconds(at(one, 99, 9999), saved), 0, "the boot clock is behind");
        assert_eq!(seconds(at(two, 5, 1060), saved), 60, "after a reboot");
        assert_eq!(seconds(at(two, 5, 900), saved), 0, "after a reboot, and the calendar was set back");
        assert_eq!(
            seconds(at(None, 107, 1001), at(None, 100, 1000)),
            1,
            "two unknown boots are not the same"
        );
        assert_eq!(at(two, 0, u64::MAX / SECOND).nanoseconds_since(&saved), LONGEST_NANOSECONDS);
    }
}
