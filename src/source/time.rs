//! Points in time, in the forms that databases and programs write them, as Unix seconds.
//!
//! A record counts in whole seconds from 1970 to 2106. What lies between two of its seconds is rounded so
//! that a key is valid for less time rather than more, and what lies outside of its years is "always" or
//! "never": exports are full of years like 9999.
//!
//! A bare number is Unix seconds only where it can be meant as such. Dates without separators, a spreadsheet's days and
//! milliseconds are numbers too, and read as seconds they would move a key's times by decades.

use std::fmt;

use jiff::civil::{self, DateTime};
use jiff::fmt::temporal::Pieces;

use keyward_engine::record::Quoted;

/// The first Unix second that a bare number can stand for: March 1973, before any API key. Smaller numbers are dates such as
/// 20270401, a spreadsheet's days or mistakes. 0 and negative numbers keep their meaning: before all time.
const MIN_SECONDS: i64 = 100_000_000;

/// The last, the end of the year 5138: larger numbers are milliseconds since 1970, or dates such as 202704011200.
const MAX_SECONDS: i64 = 99_999_999_999;

/// The year 9999 in Unix seconds: a common way to write "never".
const YEAR_9999: std::ops::RangeInclusive<i64> = 253_370_764_800..=253_402_300_799;

/// A spreadsheet's days since 1900, from 1954 to 2119.
const SERIAL_DAYS: std::ops::RangeInclusive<i64> = 20_000..=80_000;

/// The first date that a number of 12 or 14 digits is not taken for: `YYYYMMDD` of the year 2200.
const LAST_DATE: i64 = 22_000_101;

/// Most digits of a year: PostgreSQL's last is 294276.
const MAX_YEAR_DIGITS: usize = 6;

const EPOCH: DateTime = civil::datetime(1970, 1, 1, 0, 0, 0, 0);

/// Why a text is not a point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TimeError<'a> {
    #[error("{} is not a time; write it as 2026-11-21T10:00:00Z", Quoted(.0))]
    Form(&'a str),
    #[error("{} has no time of day; write it as 2026-11-21T10:00:00Z", Quoted(.0))]
    NoTime(&'a str),
    #[error(
        "{} could be any of a day's hours, because it has no offset from UTC; write it as \
         2026-11-21T10:00:00Z, or with an offset as 2026-11-21T10:00:00+02:00",
        Quoted(.0)
    )]
    NoOffset(&'a str),
    #[error("{} is not a time in Unix seconds: {}; write RFC 3339, as in 2026-11-21T10:00:00Z", Quoted(.0), .1)]
    Number(&'a str, Number),
}

/// What a number that is not Unix seconds looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// `20270401`.
    Date,
    /// `202704011200` or `20270401120000`.
    DateAndTime,
    /// Days since 1900.
    SpreadsheetDay,
    Milliseconds,
    Microseconds,
    Nanoseconds,
    /// Before [`MIN_SECONDS`], and none of the above.
    TooSmall,
    /// After [`MAX_SECONDS`], and none of the above.
    TooLarge,
    /// Not whole.
    Fraction,
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Date => "it looks like a date without separators (YYYYMMDD)",
            Self::DateAndTime => "it looks like a date and time without separators (YYYYMMDDhhmm)",
            Self::SpreadsheetDay => "it looks like a spreadsheet's number of days since 1900",
            Self::Milliseconds => "it looks like milliseconds (divide it by 1000)",
            Self::Microseconds => "it looks like microseconds (divide it by 1000000)",
            Self::Nanoseconds => "it looks like nanoseconds (divide it by 1000000000)",
            Self::TooSmall => "it would be a time before March 1973",
            Self::TooLarge => "it would be a time past the year 5138",
            Self::Fraction => "it has a fraction of a second",
        })
    }
}

impl Number {
    /// What the digits of a number below [`MIN_SECONDS`] look like.
    fn small(seconds: i64) -> Self {
        match seconds {
            _ if is_date(seconds) => Self::Date,
            _ if SERIAL_DAYS.contains(&seconds) => Self::SpreadsheetDay,
            _ => Self::TooSmall,
        }
    }

    /// What the digits of a number above [`MAX_SECONDS`] look like: each unit by its digits from 2001 on.
    fn large(digits: &str) -> Self {
        let date = digits.get(..8).and_then(|date| date.parse().ok());
        let date = date.is_some_and(|date| is_date(date) && date < LAST_DATE);
        match digits.len() {
            12 | 14 if date => Self::DateAndTime,
            12 | 13 => Self::Milliseconds,
            15 | 16 => Self::Microseconds,
            18 | 19 => Self::Nanoseconds,
            _ => Self::TooLarge,
        }
    }
}

/// Whether a number reads as `YYYYMMDD`, from 1900 on.
fn is_date(number: i64) -> bool {
    let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
    (1900..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day)
}

/// A point in time as exactly as rounding needs it.
#[derive(Clone, Copy)]
enum Point {
    /// Before all time.
    Past,
    /// Whole seconds since 1970, rounded down, and whether that took a fraction away.
    At { seconds: i64, fraction: bool },
    /// After all time.
    Future,
}

/// The first second at which a key is valid: a fraction rounds up, before 1970 is 0, and what lies beyond 2106
/// is `u32::MAX`, which no clock that a record can be checked against reaches: the key is never valid. Empty is 0.
pub(super) fn not_before(text: &str) -> Result<u32, TimeError<'_>> {
    if text.is_empty() {
        return Ok(0);
    }
    Ok(match point(text)? {
        Point::Past => 0,
        Point::At { seconds, fraction } => clamp(seconds.saturating_add(i64::from(fraction))),
        Point::Future => u32::MAX,
    })
}

/// The first second at which a key is not valid any more: a fraction rounds down, before 1970 is 0 (expired),
/// and what lies beyond 2106 is `u32::MAX` (never). Empty is never.
pub(super) fn expires_at(text: &str) -> Result<u32, TimeError<'_>> {
    if text.is_empty() {
        return Ok(u32::MAX);
    }
    Ok(match point(text)? {
        Point::Past => 0,
        Point::At { seconds, .. } => clamp(seconds),
        Point::Future => u32::MAX,
    })
}

fn clamp(seconds: i64) -> u32 {
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}

fn point(text: &str) -> Result<Point, TimeError<'_>> {
    match text {
        "infinity" => return Ok(Point::Future),
        "-infinity" => return Ok(Point::Past),
        _ => {}
    }
    let number = text.strip_prefix('-').unwrap_or(text);
    match number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        true => unix_seconds(text, number),
        false => timestamp(text),
    }
}

/// `text` is `number` with or without a minus. Zeros behind a point are none: programs that read a column of
/// integers as floats write them, and so does `extract(epoch from ...)`.
fn unix_seconds<'a>(text: &'a str, number: &'a str) -> Result<Point, TimeError<'a>> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || decimals.is_empty() || decimals.contains('.') {
        return Err(TimeError::Form(text));
    }
    let refused = |number| Err(TimeError::Number(text, number));
    let is_negative = text.len() > number.len();
    let digits = whole.trim_start_matches('0');
    let seconds = match whole.parse::<i64>() {
        Ok(seconds @ 1..MIN_SECONDS) if !is_negative => return refused(Number::small(seconds)),
        Ok(seconds) if seconds <= MAX_SECONDS || YEAR_9999.contains(&seconds) => seconds,
        _ => return refused(Number::large(digits)),
    };
    if decimals.bytes().any(|b| b != b'0') {
        return refused(Number::Fraction);
    }
    Ok(Point::At { seconds: if is_negative { -seconds } else { seconds }, fraction: false })
}

/// RFC 3339, and what is close to it: PostgreSQL's form, with a space for the `T` and an offset in hours only; Ruby's,
/// with a space before the offset, or `UTC` in its place; Go's, with both.
fn timestamp(text: &str) -> Result<Point, TimeError<'_>> {
    // PostgreSQL's years before Christ.
    if let Some(before) = text.strip_suffix(" BC") {
        return civil_time(before).map(|_| Point::Past).map_err(|problem| error(text, problem));
    }
    match long_year(text) {
        Some((year, rest)) => {
            // Leap years repeat after 400 years.
            let year = 2000 + year % 400;
            civil_time(&format!("{year}{rest}"))
                .map(|_| Point::Future)
                .map_err(|problem| error(text, problem))
        }
        None => civil_time(text).map_err(|problem| error(text, problem)),
    }
}

fn error(text: &str, problem: Problem) -> TimeError<'_> {
    match problem {
        Problem::Form => TimeError::Form(text),
        Problem::NoTime => TimeError::NoTime(text),
        Problem::NoOffset => TimeError::NoOffset(text),
    }
}

/// A year past 9999, as in `10000-01-01 00:59:59+01` and `+010000-01-01T00:00:00Z`, and what follows it.
fn long_year(text: &str) -> Option<(u32, &str)> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let (year, rest) = digits.split_at_checked(digits.find('-')?)?;
    let is_year = year.len() <= MAX_YEAR_DIGITS && year.bytes().all(|b| b.is_ascii_digit());
    let year = year.parse().ok().filter(|year| is_year && *year > 9999)?;
    Some((year, rest))
}

/// What a text lacks to be a timestamp.
enum Problem {
    Form,
    NoTime,
    NoOffset,
}

fn civil_time(text: &str) -> Result<Point, Problem> {
    let (text, is_utc) = match text.strip_suffix(" UTC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let joined = match text.rsplit_once(' ') {
        Some((time, offset)) if offset.starts_with(['+', '-']) => format!("{time}{offset}"),
        _ => text.to_owned(),
    };
    let pieces = Pieces::parse(&joined).map_err(|_| Problem::Form)?;
    if pieces.time_zone_annotation().is_some() {
        return Err(Problem::Form);
    }
    let time = pieces.time().ok_or(Problem::NoTime)?;
    let offset = match (pieces.to_numeric_offset(), is_utc) {
        (Some(offset), true) if offset.seconds() != 0 => return Err(Problem::Form),
        (Some(offset), _) => offset.seconds(),
        (None, true) => 0,
        (None, false) => return Err(Problem::NoOffset),
    };
    // Not by way of jiff's Timestamp, which ends a day before the year 9999 does.
    let since = pieces.date().to_datetime(time).duration_since(EPOCH);
    let (seconds, nanoseconds) = (since.as_secs(), since.subsec_nanos());
    let floor = seconds - i64::from(nanoseconds < 0) - i64::from(offset);
    Ok(Point::At { seconds: floor, fraction: nanoseconds != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21 10:00:00 UTC.
    const T: u32 = 1_795_255_200;

    #[test]
    fn every_form_is_read() {
        for text in [
            "2026-11-21T10:00:00Z",
            "2026-11-21t10:00:00z",
            "2026-11-21T10:00:00.000Z",
            "2026-11-21T12:00:00+02:00",
            "2026-11-21T15:30:00+05:30",
            "2026-11-21 10:00:00+00",
            "2026-11-21 10:00:00+00:00",
            "2026-11-21 10:00:00.000000+00",
            "2026-11-21 02:00:00-08",
            "1795255200",
            "1795255200.000000",
            "2026-11-21 10:00:00 UTC",
            "2026-11-21 10:00:00.000 UTC",
            "2026-11-21 12:00:00 +0200",
            "2026-11-21 12:00:00 +02:00",
            "2026-11-21T12:00:00+0200",
            "2026-11-21 10:00:00 +0000 UTC",
            "2026-11-21T10:00:00 UTC",
        ] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(T), Ok(T)), "{text}");
        }
    }

    #[test]
    fn a_year_past_9999_never_comes() {
        for text in [
            "10000-01-01 00:59:59+01",
            "10000-01-01 00:00:00 UTC",
            "+010000-01-01T00:00:00.000Z",
            "12000-02-29T00:00:00Z",
            "294276-12-31 23:59:59.999999+00",
            "infinity",
        ] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(u32::MAX), Ok(u32::MAX)), "{text}");
        }
        for text in
            ["4714-11-24 00:00:00+00 BC", "0044-03-15 12:00:00+00 BC", "-infinity", "-000043-03-15T12:00:00Z"]
        {
            assert_eq!((not_before(text), expires_at(text)), (Ok(0), Ok(0)), "{text}");
        }
        let form = |text: &str| format!("\"{text}\" is not a time; write it as 2026-11-21T10:00:00Z");
        for text in [
            "10000-13-01 00:00:00+00",
            "10001-02-29 00:00:00+00",
            "1000000-01-01 00:00:00+00",
            "20270401-01-01T00:00:00Z",
            "x BC",
            "2026-11-21 10:00:00 +0200 UTC",
            "2026-11-21 10:00:00 CET",
            "2026-11-21 10:00:00UTC",
        ] {
            assert_eq!(expires_at(text).map_err(|e| e.to_string()), Err(form(text)), "{text}");
        }
        assert_eq!(expires_at("10000-01-01 00:00:00"), Err(TimeError::NoOffset("10000-01-01 00:00:00")));
        assert_eq!(expires_at("10000-01-01"), Err(TimeError::NoTime("10000-01-01")));
    }

    #[test]
    fn a_number_that_cannot_be_unix_seconds_is_refused_with_what_it_looks_like() {
        for (text, number) in [
            ("20270401", Number::Date),
            ("19700101", Number::Date),
            ("99991231", Number::Date),
            ("46000", Number::SpreadsheetDay),
            ("46000.5", Number::SpreadsheetDay),
            ("1", Number::TooSmall),
            ("2027", Number::TooSmall),
            ("202704", Number::TooSmall),
            ("270401", Number::TooSmall),
            ("20271301", Number::TooSmall),
            ("01042027", Number::TooSmall),
            ("99999999", Number::TooSmall),
            ("202704011200", Number::DateAndTime),
            ("20270401120000", Number::DateAndTime),
            ("100000000000", Number::Milliseconds),
            ("253370764799", Number::Milliseconds),
            ("253402300800", Number::Milliseconds),
            ("1795255200000", Number::Milliseconds),
            ("1795255200000.5", Number::Milliseconds),
            ("1795255200000000", Number::Microseconds),
            ("1795255200000000000", Number::Nanoseconds),
            ("99999999999999999999", Number::TooLarge),
            ("-99999999999999999999", Number::TooLarge),
            ("-1795255200000", Number::Milliseconds),
            ("1795255200.5", Number::Fraction),
            ("0.5", Number::Fraction),
            ("-0.5", Number::Fraction),
        ] {
            let refused = Err(TimeError::Number(text, number));
            assert_eq!((not_before(text), expires_at(text)), (refused, refused), "{text}");
        }
        for (text, seconds) in [
            ("100000000", 100_000_000),
            ("999999999", 999_999_999),
            ("4102444800", 4_102_444_800),
            ("9999999999", u32::MAX),
            ("32503680000", u32::MAX),
            ("99999999999", u32::MAX),
            ("253370764800", u32::MAX),
        ] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(seconds), Ok(seconds)), "{text}");
        }
        assert_eq!(
            expires_at("20270401").map_err(|e| e.to_string()),
            Err("\"20270401\" is not a time in Unix seconds: it looks like a date without separators (YYYYMMDD); \
                 write RFC 3339, as in 2026-11-21T10:00:00Z"
                .to_owned())
        );
    }

    #[test]
    fn a_fraction_rounds_towards_less_validity() {
        for text in ["2026-11-21 15:30:00.123456+05:30", "2026-11-21T10:00:00.000000001Z"] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(T + 1), Ok(T)), "{text}");
        }
        assert_eq!(not_before("1969-12-31T23:59:59.5Z"), Ok(0));
        assert_eq!(not_before("1970-01-01T00:00:00.5Z"), Ok(1));
    }

    #[test]
    fn what_a_record_cannot_count_is_always_or_never() {
        for text in ["-infinity", "1969-12-31T23:59:58Z", "0001-01-01 00:00:00+00", "-1", "0", "-0"] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(0), Ok(0)), "{text}");
        }
        for text in [
            "infinity",
            "2106-02-07T06:28:15Z",
            "2106-02-07T06:28:16Z",
            "9999-12-31T23:59:59Z",
            "9999-12-31 23:59:59.999999-08",
            "4294967295",
            "253402300799",
        ] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(u32::MAX), Ok(u32::MAX)), "{text}");
        }
        assert_eq!(expires_at("2106-02-07T06:28:14Z"), Ok(u32::MAX - 1));
        assert_eq!((not_before(""), expires_at("")), (Ok(0), Ok(u32::MAX)));
    }

    #[test]
    fn what_is_not_a_time_says_why() {
        let form = |text: &str| format!("\"{text}\" is not a time; write it as 2026-11-21T10:00:00Z");
        for text in [
            "2026-13-01T00:00:00Z",
            "2026-02-30T00:00:00Z",
            "2026-11-21T25:00:00Z",
            "2026-11-21T10:00:00Z ",
            "2026-11-21T10:00:00+02:00[Europe/Paris]",
            "21.11.2026",
            "Infinity",
            "never",
            "+1795255200",
            "1.795e9",
            "1.",
            ".5",
            ".",
            "-",
            "1.2.3",
            " ",
        ] {
            assert_eq!(expires_at(text).map_err(|e| e.to_string()), Err(form(text)), "{text}");
        }
        assert_eq!(
            expires_at("2026-11-21").map_err(|e| e.to_string()),
            Err("\"2026-11-21\" has no time of day; write it as 2026-11-21T10:00:00Z".to_owned())
        );
        assert_eq!(
            not_before("2026-11-21 10:00:00").map_err(|e| e.to_string()),
            Err("\"2026-11-21 10:00:00\" could be any of a day's hours, because it has no offset from UTC; write \
                 it as 2026-11-21T10:00:00Z, or with an offset as 2026-11-21T10:00:00+02:00"
                .to_owned())
        );
    }
}
