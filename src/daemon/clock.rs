//! The only module that reads the system's clocks for verdicts and balances.
//!
//! Token buckets use CLOCK_BOOTTIME: it never steps back, and it continues while the machine is
//! suspended, so that a laptop opened in the morning does not find yesterday's empty buckets. The
//! validity of a key is given in calendar time, CLOCK_REALTIME. A worker reads both clocks once for
//! each batch.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, Timespec, clock_gettime};

use keyward_engine::limiter::ClockReading;
use keyward_engine::now::{MAX_UNIX, Now};

/// The first nanosecond. A bucket whose word is 0 is then already full.
const FIRST_NANOSECOND: u64 = 1;

/// Reads [`Now`], in nanoseconds since this clock's origin.
///
/// All parts of a daemon that charge the same buckets must count from the same origin: create one
/// clock at startup and clone it for each thread. Sharing one clock between threads is correct but
/// slower, because the cache line of its latest time would move between their processors.
#[derive(Debug)]
pub struct Clock {
    /// CLOCK_BOOTTIME at construction, in nanoseconds.
    origin: i64,
    /// The latest nanoseconds returned.
    latest: AtomicU64,
}

impl Clock {
    /// A clock whose origin is the current time.
    #[expect(clippy::new_without_default, reason = "a second origin must be explicit")]
    pub fn new() -> Self {
        Self { origin: nanoseconds(read(ClockId::Boottime)), latest: AtomicU64::new(FIRST_NANOSECOND) }
    }

    /// The current time. The nanoseconds of one clock never decrease, even if the system's clock does.
    pub fn now(&self) -> Now {
        let elapsed = nanoseconds_since(self.origin, read(ClockId::Boottime));
        let (unix, millisecond) = unix_time(read(ClockId::Realtime));
        Now { nanoseconds: self.at_least_latest(elapsed), unix, millisecond }
    }

    /// The current time on clocks without an origin, for balances that another process may continue
    /// with.
    pub fn reading(boot_id: Option<[u8; 16]>, boottime_offset: Option<i64>) -> ClockReading {
        let since_zero = |clock| u64::try_from(nanoseconds(read(clock))).unwrap_or(0);
        ClockReading {
            boot_id,
            boottime: since_zero(ClockId::Boottime),
            boottime_offset,
            realtime: since_zero(ClockId::Realtime),
        }
    }

    /// Returns the latest time while the system's clock is behind it. Relaxed ordering is enough,
    /// because the value is not used to synchronise any other memory.
    fn at_least_latest(&self, nanoseconds: u64) -> u64 {
        self.latest.fetch_max(nanoseconds, Ordering::Relaxed).max(nanoseconds)
    }
}

impl Clone for Clock {
    /// A clock with the same origin that is not behind this one. The two advance independently.
    fn clone(&self) -> Self {
        Self { origin: self.origin, latest: AtomicU64::new(self.latest.load(Ordering::Relaxed)) }
    }
}

/// Reads a clock of the system, or of the model test.
#[inline]
fn read(clock: ClockId) -> Timespec {
    #[cfg(feature = "simulation")]
    if let Some(time) = keyward_state::simulation::time() {
        let time = if clock == ClockId::Boottime { time.boottime } else { time.realtime };
        return Timespec { tv_sec: time.div_euclid(1_000_000_000), tv_nsec: time.rem_euclid(1_000_000_000) };
    }
    clock_gettime(clock)
}

/// Nanoseconds since the zero of a clock. An `i64` holds 292 years of them.
fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

fn nanoseconds_since(origin: i64, time: Timespec) -> u64 {
    u64::try_from(nanoseconds(time).saturating_sub(origin)).unwrap_or(0) + FIRST_NANOSECOND
}

/// Unix seconds, and the milliseconds of the second.
fn unix_time(time: Timespec) -> (u32, u16) {
    match u32::try_from(time.tv_sec) {
        Ok(seconds) if seconds < MAX_UNIX => {
            (seconds, u16::try_from(time.tv_nsec / 1_000_000).unwrap_or(0).min(999))
        }
        Err(_) if time.tv_sec < 0 => (0, 0),
        _ => (MAX_UNIX, 999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn at(tv_sec: i64, tv_nsec: i64) -> Timespec {
        Timespec { tv_sec, tv_nsec }
    }

    #[test]
    fn nanoseconds_start_at_one() {
        let origin = 5 * SECOND + 7;
        assert_eq!(nanoseconds_since(origin, at(5, 7)), 1);
        assert_eq!(nanoseconds_since(origin, at(5, 8)), 2);
        assert_eq!(nanoseconds_since(origin, at(6, 6)), 1_000_000_000);
        assert_eq!(nanoseconds_since(i64::MIN, at(i64::MAX, 0)), 1 + i64::MAX as u64, "they saturate");
    }

    #[test]
    fn clock_behind_its_origin_returns_the_first_nanosecond() {
        assert_eq!(nanoseconds_since(5 * SECOND, at(4, 0)), 1);
        assert_eq!(nanoseconds_since(i64::MAX, at(i64::MIN, 0)), 1);
    }

    #[test]
    fn unix_time_saturates_below_the_value_for_never() {
        assert_eq!(unix_time(at(-1, 0)), (0, 0));
        assert_eq!(unix_time(at(1_795_255_200, 999_999_999)), (1_795_255_200, 999));
        assert_eq!(unix_time(at(1_795_255_200, 1_000_000)), (1_795_255_200, 1));
        assert_eq!(unix_time(at(i64::from(u32::MAX), 0)), (u32::MAX - 1, 999));
        assert_eq!(unix_time(at(i64::MAX, 0)), (u32::MAX - 1, 999));
    }

    #[test]
    fn nanoseconds_never_decrease() {
        let clock = Clock::new();
        assert_eq!(clock.at_least_latest(100), 100);
        assert_eq!(clock.at_least_latest(99), 100, "the system's clock has stepped back");
        assert_eq!(clock.clone().at_least_latest(1), 100, "a clone starts at its original's latest time");
        assert_eq!(clock.at_least_latest(101), 101);

        let clock = Clock::new();
        let mut before = 0;
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now.nanoseconds >= before.max(FIRST_NANOSECOND));
            before = now.nanoseconds;
        }
    }

    #[test]
    fn clones_count_from_the_same_origin() {
        let clock = Clock::new();
        let clone = clock.clone();
        let first = clock.now().nanoseconds;
        let second = clone.now().nanoseconds;
        let third = clock.now().nanoseconds;
        assert!(first <= second && second <= third, "{first} {second} {third}");
    }

    #[test]
    fn unix_seconds_are_those_of_the_system() {
        let system = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("it is after 1970").as_secs();
        let unix = u64::from(Clock::new().now().unix);
        assert!((system..=system + 60).contains(&unix), "{system} {unix}");
    }
}
