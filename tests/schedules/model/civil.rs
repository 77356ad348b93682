//! The model's own calendar: time zones with daylight saving by rule, and the windows in them.
//!
//! It shares nothing with the limiter, which asks `jiff`. A day starts at the first second whose
//! local date is not an earlier one, and that second is searched for.

const DAY: i64 = 86_400;

/// The latest Unix second that a window can end at.
pub const LAST: i64 = u32::MAX as i64;

/// A time zone. All numbers are in seconds.
pub struct Zone {
    /// As `jiff` reads it.
    pub posix: &'static str,
    /// What local time is ahead of UTC.
    standard: i64,
    saving: Option<Saving>,
}

/// Daylight saving time.
struct Saving {
    offset: i64,
    begins: Change,
    ends: Change,
}

/// A day of the year: the weekday (0 is Sunday) in the week of a month, 5 for the last, and the local
/// time on it.
struct Change {
    month: i64,
    week: i64,
    weekday: i64,
    time: i64,
}

const fn saving(offset: i64, begins: [i64; 4], ends: [i64; 4]) -> Option<Saving> {
    let [month, week, weekday, time] = begins;
    let begins = Change { month, week, weekday, time };
    let [month, week, weekday, time] = ends;
    Some(Saving { offset, begins, ends: Change { month, week, weekday, time } })
}

const HOUR: i64 = 3_600;

/// Both hemispheres; changes at midnight, which skip it and repeat it, and by half an hour; and an
/// offset that is no full hour.
pub const ZONES: [Zone; 8] = [
    Zone { posix: "UTC0", standard: 0, saving: None },
    Zone { posix: "<+0545>-5:45", standard: 20_700, saving: None },
    Zone { posix: "<+14>-14", standard: 14 * HOUR, saving: None },
    Zone {
        posix: "CET-1CEST,M3.5.0,M10.5.0/3",
        standard: HOUR,
        saving: saving(2 * HOUR, [3, 5, 0, 2 * HOUR], [10, 5, 0, 3 * HOUR]),
    },
    Zone {
        posix: "EST5EDT,M3.2.0,M11.1.0",
        standard: -5 * HOUR,
        saving: saving(-4 * HOUR, [3, 2, 0, 2 * HOUR], [11, 1, 0, 2 * HOUR]),
    },
    Zone {
        posix: "CST5CDT,M3.2.0/0,M11.1.0/1",
        standard: -5 * HOUR,
        saving: saving(-4 * HOUR, [3, 2, 0, 0], [11, 1, 0, HOUR]),
    },
    Zone {
        posix: "<-04>4<-03>,M9.1.6/24,M4.1.6/24",
        standard: -4 * HOUR,
        saving: saving(-3 * HOUR, [9, 1, 6, 24 * HOUR], [4, 1, 6, 24 * HOUR]),
    },
    Zone {
        posix: "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
        standard: 37_800,
        saving: saving(11 * HOUR, [10, 1, 0, 2 * HOUR], [4, 1, 0, 2 * HOUR]),
    },
];

/// The number of a period, as files state it: hours, days, weeks from a weekday, months from a day.
pub const HOURS: u8 = 0;
pub const DAYS: u8 = 1;
pub const LAST_WEEK: u8 = 8;

/// A date as days since 1970.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let leap_days = |year: i64| year / 4 - year / 100 + year / 400;
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][month as usize - 1];
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let leap_day = i64::from(is_leap && month > 2);
    (year - 1970) * 365 + leap_days(year - 1) - leap_days(1969) + before + leap_day + day - 1
}

fn year_of(date: i64) -> i64 {
    let mut year = 1970 + date.div_euclid(366);
    while days(year + 1, 1, 1) <= date {
        year += 1;
    }
    year
}

/// The first day of the month that `date` is in, and that of the next one.
fn month_of(date: i64) -> (i64, i64) {
    let year = year_of(date);
    let month = (1..=12).rev().find(|month| days(year, *month, 1) <= date).expect("a month");
    let next = if month == 12 { days(year + 1, 1, 1) } else { days(year, month + 1, 1) };
    (days(year, month, 1), next)
}

impl Change {
    /// The Unix second of the change, when local time was ahead of UTC by `offset`.
    fn at(&self, year: i64, offset: i64) -> i64 {
        let first = days(year, self.month, 1);
        // The first day of 1970 was a Thursday.
        let mut day = first + (self.weekday - (first + 4)).rem_euclid(7) + 7 * (self.week - 1);
        while day >= month_of(first).1 {
            day -= 7;
        }
        day * DAY + self.time - offset
    }
}

impl Zone {
    fn offset(&self, unix: i64) -> i64 {
        let Some(saving) = &self.saving else { return self.standard };
        let year = year_of((unix + self.standard).div_euclid(DAY));
        let begins = saving.begins.at(year, self.standard);
        let ends = saving.ends.at(year, saving.offset);
        let is_saving =
            if begins < ends { (begins..ends).contains(&unix) } else { !(ends..begins).contains(&unix) };
        if is_saving { saving.offset } else { self.standard }
    }

    fn date(&self, unix: i64) -> i64 {
        (unix + self.offset(unix)).div_euclid(DAY)
    }

    /// The first second whose date is not before `date`.
    fn start_of(&self, date: i64) -> i64 {
        let (mut before, mut from) = ((date - 1) * DAY, (date + 1) * DAY);
        while from - before > 1 {
            let middle = i64::midpoint(before, from);
            if self.date(middle) >= date { from = middle } else { before = middle }
        }
        from
    }

    /// The Unix seconds at which the window of `unix` starts and ends.
    pub fn window(&self, period: u8, unix: i64) -> (i64, i64) {
        let today = self.date(unix);
        let of_dates = |first: i64, next: i64| (self.start_of(first), self.start_of(next));
        let (start, end) = match period {
            HOURS => {
                let start = unix - (unix + self.offset(unix)).rem_euclid(HOUR);
                (start, start + HOUR)
            }
            DAYS => of_dates(today, today + 1),
            2..=LAST_WEEK => {
                // Monday is 1, and the first day of 1970 was a Thursday.
                let start = today - (today + 4 - i64::from(period - 1)).rem_euclid(7);
                of_dates(start, start + 7)
            }
            _ => {
                let day = i64::from(period - LAST_WEEK);
                let in_month = |(first, next): (i64, i64)| (first + day - 1).min(next - 1);
                let month = month_of(today);
                let this = in_month(month);
                if today < this {
                    of_dates(in_month(month_of(month.0 - 1)), this)
                } else {
                    of_dates(this, in_month(month_of(month.1)))
                }
            }
        };
        (start.max(0), end.min(LAST))
    }
}

/// Whether a limit that is in use in the window that started at `used` starts anew in the one that
/// starts at `start`. An hour has 60 minutes, but a change of the clocks shortens days, and a change
/// of the time zone is no new window.
pub fn is_new(period: u8, used: i64, start: i64) -> bool {
    let shortest = match period {
        HOURS => HOUR,
        DAYS => 22 * HOUR,
        2..=LAST_WEEK => 6 * DAY,
        _ => 27 * DAY,
    };
    start - used >= shortest
}
