//! Calendar windows: hours, days, weeks and months in a time zone.
//!
//! A window never goes back when the clock does: the latest time that was seen decides. It is saved
//! with the balances, so this holds over restarts too. Only an operator can set it
//! [back](super::reset).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

/// Seconds in the unit that the start of a window is counted in. Every offset of a time zone in use
/// is a multiple of it, so no two windows start in the same one.
const SECONDS_PER_QUARTER: u32 = 900;

/// The latest start of a window.
pub(super) const MAX_START: u32 = u32::MAX / SECONDS_PER_QUARTER;

const HOUR: u32 = 4;
const DAY: u32 = 24 * HOUR;

/// The lengths of calendar windows, and where they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// From full hour to full hour.
    Hour,
    /// From midnight to midnight.
    Day,
    /// A week that starts on this day: 1 is Monday, 7 is Sunday.
    Week(u8),
    /// A month that starts on this day: 1 to 31, or on its last day if it is shorter.
    Month(u8),
}

/// The number of periods.
const PERIODS: usize = 2 + 7 + 31;

/// Why a number is not that of a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no such calendar period")]
pub struct UnknownPeriodError;

impl Period {
    /// The number of the period, in files.
    pub fn number(self) -> u8 {
        match self {
            Self::Hour => 0,
            Self::Day => 1,
            Self::Week(day) => 1 + day,
            Self::Month(day) => 8 + day,
        }
    }

    /// The period with this [number](Self::number).
    ///
    /// # Errors
    /// If there is none.
    pub fn from_number(number: u8) -> Result<Self, UnknownPeriodError> {
        match number {
            0 => Ok(Self::Hour),
            1 => Ok(Self::Day),
            2..=8 => Ok(Self::Week(number - 1)),
            9..=39 => Ok(Self::Month(number - 8)),
            _ => Err(UnknownPeriodError),
        }
    }

    /// The shortest time from the start of a window to the start of the next, in quarters of an
    /// hour. It allows for a change of the clocks, and for a change of the time zone: the same day
    /// in another zone is no new window.
    fn shortest(self) -> u32 {
        match self {
            Self::Hour => HOUR,
            Self::Day => 22 * HOUR,
            Self::Week(_) => 6 * DAY,
            Self::Month(_) => 27 * DAY,
        }
    }
}

/// A window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Its start, in quarters of an hour since 1970.
    pub(super) start: u32,
    /// The Unix second at which it ends.
    pub(super) end: u32,
    /// See [`Period::shortest`].
    shortest: u32,
}

impl Window {
    /// Whether a window that started at `start` is an earlier one.
    pub(super) fn is_later_than(&self, start: u32) -> bool {
        self.start >= start.saturating_add(self.shortest)
    }
}

/// The windows of all periods.
#[derive(Debug)]
pub(super) struct Calendar {
    zone: RwLock<TimeZone>,
    /// The latest Unix second that was seen.
    latest: AtomicU32,
    /// The window of each period in which `latest` was when the window was last used: its start and
    /// its end. 0: not computed yet.
    windows: [AtomicU64; PERIODS],
}

impl Default for Calendar {
    /// The calendar of UTC.
    fn default() -> Self {
        Self {
            zone: RwLock::new(TimeZone::UTC),
            latest: AtomicU32::new(0),
            windows: [const { AtomicU64::new(0) }; PERIODS],
        }
    }
}

impl Calendar {
    /// Changes the time zone. A window that is in use continues until the window of the new zone
    /// that follows it.
    pub(super) fn set_time_zone(&self, zone: TimeZone) {
        let mut current = self.zone.write().unwrap_or_else(PoisonError::into_inner);
        if *current != zone {
            *current = zone;
            self.windows.iter().for_each(|window| window.store(0, Ordering::Relaxed));
        }
    }

    /// The latest Unix second that was seen.
    pub(super) fn latest(&self) -> u32 {
        self.latest.load(Ordering::Relaxed)
    }

    /// Raises the latest time to `unix`, and returns it.
    pub(super) fn advance(&self, unix: u32) -> u32 {
        let latest = self.latest();
        if latest >= unix { latest } else { self.latest.fetch_max(unix, Ordering::Relaxed).max(unix) }
    }

    /// Sets the latest time to an earlier one.
    pub(super) fn set_back(&self, unix: u32) {
        // Locked, so that no window of the later time is stored afterwards.
        let _zone = self.zone.write().unwrap_or_else(PoisonError::into_inner);
        self.latest.store(unix, Ordering::Relaxed);
        self.windows.iter().for_each(|window| window.store(0, Ordering::Relaxed));
    }

    /// The window of the latest time, which is at least `unix`.
    pub(super) fn window(&self, period: Period, unix: u32) -> Window {
        let unix = self.advance(unix);
        let cached = &self.windows[usize::from(period.number()).min(PERIODS - 1)];
        let [start, end] = unpack(cached.load(Ordering::Relaxed));
        let [start, end] = if unix < end { [start, end] } else { self.compute(period, cached) };
        Window { start, end, shortest: period.shortest() }
    }

    /// The Unix second at which a limit starts anew that was last used in the window that started at
    /// `start`. That is not always the end of the current window: after a change of the time zone, the
    /// next one may be [no later one](Window::is_later_than) either.
    #[cold]
    pub(super) fn end_of_use(&self, period: Period, start: u32) -> u32 {
        let earliest = u64::from(start.saturating_add(period.shortest())) * u64::from(SECONDS_PER_QUARTER);
        let Ok(unix) = u32::try_from(earliest) else { return u32::MAX };
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let [start, end] = bounds(period, unix, &zone).unwrap_or([0, i64::MAX]);
        let first_start = if start == i64::from(unix) { start } else { end };
        u32::try_from(first_start).unwrap_or(u32::MAX)
    }

    #[cold]
    fn compute(&self, period: Period, cached: &AtomicU64) -> [u32; 2] {
        // Locked until the result is stored: it must not be stored after the zone has changed, or the
        // calendar was set back. So the latest time is read again.
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        let unix = self.latest();
        // No failure is known. It would make a window that does not end, which admits too little.
        let [start, end] = bounds(period, unix, &zone).unwrap_or([0, i64::MAX]);
        let second = |bound: i64| u32::try_from(bound.max(0)).unwrap_or(u32::MAX);
        let packed = pack([second(start) / SECONDS_PER_QUARTER, second(end)]);
        unpack(cached.fetch_max(packed, Ordering::Relaxed).max(packed))
    }
}

fn pack([start, end]: [u32; 2]) -> u64 {
    u64::from(start) << 32 | u64::from(end)
}

fn unpack(packed: u64) -> [u32; 2] {
    [(packed >> 32) as u32, packed as u32]
}

/// The Unix seconds at which the window of `unix` starts and ends.
fn bounds(period: Period, unix: u32, zone: &TimeZone) -> Result<[i64; 2], jiff::Error> {
    let now = Timestamp::from_second(unix.into())?;
    let local = zone.to_datetime(now);
    let midnight = |date: Date| -> Result<i64, jiff::Error> {
        Ok(zone.to_timestamp(date.to_datetime(Time::midnight()))?.as_second())
    };
    let today = local.date();
    match period {
        Period::Hour => {
            let into_hour = i64::from(local.minute()) * 60 + i64::from(local.second());
            let start = i64::from(unix) - into_hour;
            Ok([start, start + 3_600])
        }
        Period::Day => Ok([midnight(today)?, midnight(today.tomorrow()?)?]),
        Period::Week(day) => {
            let since = (today.weekday().to_monday_one_offset() + 7 - day.cast_signed()).rem_euclid(7);
            let start = today.checked_sub(Span::new().days(since))?;
            Ok([midnight(start)?, midnight(start.checked_add(Span::new().days(7))?)?])
        }
        Period::Month(day) => {
            let first_of_month = today.first_of_month();
            let this = start_in_month(first_of_month, day)?;
            let month = Span::new().months(1);
            if today < this {
                let before = start_in_month(first_of_month.checked_sub(month)?, day)?;
                Ok([midnight(before)?, midnight(this)?])
            } else {
                let after = start_in_month(first_of_month.checked_add(month)?, day)?;
                Ok([midnight(this)?, midnight(after)?])
            }
        }
    }
}

/// The day `day` of a month, or its last one.
fn start_in_month(first_of_month: Date, day: u8) -> Result<Date, jiff::Error> {
    let day = day.cast_signed().clamp(1, first_of_month.days_in_month());
    Date::new(first_of_month.year(), first_of_month.month(), day)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    fn unix(text: &str) -> u32 {
        let second = text.parse::<Timestamp>().expect("a time").as_second();
        u32::try_from(second).expect("in range")
    }

    /// A zone with the rules of central Europe, from a POSIX string: no database is needed.
    fn berlin() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("a zone")
    }

    fn window(zone: TimeZone, period: Period, now: &str) -> [u32; 2] {
        let calendar = Calendar::default();
        calendar.set_time_zone(zone);
        let Window { start, end, .. } = calendar.window(period, unix(now));
        [start * SECONDS_PER_QUARTER, end]
    }

    #[test]
    fn windows_are_aligned_to_the_calendar() {
        let utc = || TimeZone::UTC;
        let table = [
            (utc(), Period::Hour, "2026-02-28T23:59:59Z", ["2026-02-28T23:00:00Z", "2026-03-01T00:00:00Z"]),
            (utc(), Period::Day, "2028-02-29T00:00:00Z", ["2028-02-29T00:00:00Z", "2028-03-01T00:00:00Z"]),
            (
                utc(),
                Period::Week(1),
                "2026-11-30T00:00:00Z",
                ["2026-11-30T00:00:00Z", "2026-12-07T00:00:00Z"],
            ),
            (
                utc(),
                Period::Week(7),
                "2026-11-30T00:00:00Z",
                ["2026-11-29T00:00:00Z", "2026-12-06T00:00:00Z"],
            ),
            (
                utc(),
                Period::Month(1),
                "2028-02-29T12:00:00Z",
                ["2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"],
            ),
            (
                utc(),
                Period::Month(31),
                "2026-02-27T12:00:00Z",
                ["2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"],
            ),
            (
                utc(),
                Period::Month(31),
                "2026-02-28T12:00:00Z",
                ["2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"],
            ),
            (
                utc(),
                Period::Month(15),
                "2026-01-14T23:59:59Z",
                ["2025-12-15T00:00:00Z", "2026-01-15T00:00:00Z"],
            ),
            // The day on which the clocks are set forward has 23 hours, the other one 25.
            (berlin(), Period::Day, "2026-03-29T10:00:00Z", ["2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"]),
            (berlin(), Period::Day, "2026-10-25T10:00:00Z", ["2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"]),
            (
                berlin(),
                Period::Month(1),
                "2026-03-31T22:00:00Z",
                ["2026-03-31T22:00:00Z", "2026-04-30T22:00:00Z"],
            ),
            // The hour that is repeated counts twice.
            (
                berlin(),
                Period::Hour,
                "2026-10-25T00:30:00Z",
                ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"],
            ),
            (
                berlin(),
                Period::Hour,
                "2026-10-25T01:30:00Z",
                ["2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"],
            ),
        ];
        for (zone, period, now, bounds) in table {
            assert_eq!(window(zone, period, now), bounds.map(unix), "{period:?} at {now}");
        }
        let nepal = TimeZone::fixed(jiff::tz::Offset::from_seconds(20_700).expect("in range"));
        let bounds = ["2026-11-30T10:15:00Z", "2026-11-30T11:15:00Z"];
        assert_eq!(window(nepal, Period::Hour, "2026-11-30T11:14:00Z"), bounds.map(unix));
    }

    #[test]
    fn each_window_follows_the_one_before_without_a_gap() {
        for zone in [TimeZone::UTC, berlin()] {
            for number in 0..PERIODS as u8 {
                let period = Period::from_number(number).expect("a period");
                assert_eq!(period.number(), number);
                let calendar = Calendar::default();
                calendar.set_time_zone(zone.clone());
                let mut before = calendar.window(period, unix("2026-01-01T00:00:00Z"));
                for _ in 0..800 {
                    assert_eq!(calendar.window(period, before.end - 1), before);
                    let next = calendar.window(period, before.end);
                    assert_eq!(next.start * SECONDS_PER_QUARTER, before.end);
                    assert!(next.is_later_than(before.start), "{period:?} {before:?} {next:?}");
                    assert!(!next.is_later_than(next.start));
                    before = next;
                }
            }
        }
        assert_eq!(Period::from_number(PERIODS as u8), Err(UnknownPeriodError));
    }

    /// Zones with changes of the clocks by half an hour or two hours, and with offsets that are no full
    /// hours. Those of the host's database are left out if it has none.
    fn unusual_zones() -> Vec<(&'static str, TimeZone)> {
        let rules = [
            ("Lord Howe", "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0"),
            ("Troll", "<+00>0<+02>-2,M3.5.0/1,M10.5.0/3"),
            ("Kathmandu", "<+0545>-5:45"),
            ("Monrovia", "GMT0"),
            ("Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"),
        ];
        let names = [
            "Australia/Lord_Howe",
            "Asia/Kathmandu",
            "Africa/Monrovia",
            "Asia/Pyongyang",
            "Asia/Colombo",
            "America/Caracas",
            "America/St_Johns",
            "Antarctica/Troll",
            "Pacific/Chatham",
            "Pacific/Apia",
        ];
        let of_rules = rules.map(|(name, rule)| (name, TimeZone::posix(rule).expect("a zone")));
        let of_names = names.into_iter().filter_map(|name| Some((name, TimeZone::get(name).ok()?)));
        of_rules.into_iter().chain(of_names).collect()
    }

    /// At a change of the clocks by half an hour, the hour in progress is extended by half an hour:
    /// it neither begins anew, nor is it cut short.
    #[test]
    fn hours_are_granted_once_whatever_the_clocks_do() {
        const STEP: usize = 300;
        let moment = |text: &str| text.parse::<Timestamp>().expect("a time");
        let end = moment("2040-01-01T00:00:00Z");
        for (name, zone) in unusual_zones() {
            let changes = zone.following(moment("2000-01-01T00:00:00Z")).map(|change| change.timestamp());
            let changes: Vec<_> = changes.take_while(|change| *change < end).collect();
            // A zone without changes is examined at any time.
            let changes = if changes.is_empty() { vec![moment("2026-11-30T12:00:00Z")] } else { changes };
            for change in changes {
                let change = u32::try_from(change.as_second()).expect("in range");
                // Whatever the moment of the first charge.
                for first in (change - 3 * 3_600..change + 3 * 3_600).step_by(STEP) {
                    let calendar = Calendar::default();
                    calendar.set_time_zone(zone.clone());
                    let (mut word, mut grants) = (None, Vec::new());
                    for now in (first..change + 6 * 3_600).step_by(STEP) {
                        let window = calendar.window(Period::Hour, now);
                        assert!(
                            (window.start * SECONDS_PER_QUARTER..window.end).contains(&now),
                            "{name}, {now}"
                        );
                        if word.is_none_or(|start| window.is_later_than(start)) {
                            word = Some(window.start);
                            grants.push(now);
                        }
                    }
                    let mut apart = grants.windows(2).map(|pair| pair[1] - pair[0]);
                    let since_first = apart.next().expect("several");
                    assert!(since_first <= 5_400, "{name}: {grants:?}");
                    let longer =
                        apart.inspect(|apart| assert!((3_600..=5_400).contains(apart), "{name}: {grants:?}"));
                    assert!(longer.filter(|apart| *apart > 3_600).count() <= 1, "{name}: {grants:?}");
                }
            }
        }
    }

    #[test]
    fn window_never_goes_back() {
        let calendar = Calendar::default();
        let today = calendar.window(Period::Day, unix("2026-11-30T12:00:00Z"));
        assert_eq!(calendar.window(Period::Day, unix("2026-11-29T12:00:00Z")), today);
        assert_eq!(calendar.latest(), unix("2026-11-30T12:00:00Z"));
        calendar.advance(today.end);
        assert!(calendar.window(Period::Day, 0).is_later_than(today.start));
    }

    /// A thread that has read the later time must not store its window afterwards.
    #[test]
    fn window_that_is_computed_while_the_calendar_is_set_back_is_not_kept() {
        let calendar = Calendar::default();
        let noon = unix("2026-11-30T12:00:00Z");
        let today = calendar.window(Period::Day, noon);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        calendar.window(Period::Day, noon);
                    }
                });
            }
            let kept_later = (0..50_000).find(|round| {
                calendar.advance(noon + 7 * 86_400);
                (0..round % 256).for_each(|_| std::hint::spin_loop());
                calendar.set_back(noon);
                (0..100).any(|_| calendar.window(Period::Day, noon) != today)
            });
            stop.store(true, Ordering::Relaxed);
            assert_eq!(kept_later, None);
        });
    }

    #[test]
    fn change_of_the_time_zone_starts_no_new_window() {
        // In the second case, the window of the new zone starts later than the one in use.
        for (old, new) in [(TimeZone::UTC, berlin()), (berlin(), TimeZone::UTC)] {
            for period in [Period::Day, Period::Week(1), Period::Month(1)] {
                let calendar = Calendar::default();
                calendar.set_time_zone(old.clone());
                let at = unix("2026-11-30T12:00:00Z");
                let before = calendar.window(period, at);
                calendar.set_time_zone(new.clone());
                let after = calendar.window(period, at);
                assert_ne!(before.start, after.start, "the zone is in use");
                assert!(!after.is_later_than(before.start));
                assert!(calendar.window(period, after.end).is_later_than(before.start));
            }
        }
    }

    #[test]
    fn last_representable_time_has_windows() {
        let calendar = Calendar::default();
        for number in 0..PERIODS as u8 {
            let period = Period::from_number(number).expect("a period");
            assert_eq!(calendar.window(period, u32::MAX - 1).end, u32::MAX, "{period:?}");
        }
    }
}
