//! Parses times, in the forms that databases and programs write, into Unix seconds.
//!
//! A record stores whole seconds from 1970 to 2106. Fractions are rounded so that a key is valid
//! for less time, not more. Times outside of these years mean "always" or "never"; exports often
//! have years such as 9999.
//!
//! A number is taken as Unix seconds only if it is plausible as such. Dates without separators,
//! spreadsheet days and milliseconds are also numbers; as seconds, they would shift the times of a
//! key by decades.

use std::fmt;

use jiff::civil::{self, DateTime};
use jiff::fmt::temporal::Pieces;

use keyward_engine::record::Quoted;

/// Smallest positive number accepted as Unix seconds: in March 1973, before any API key. Smaller
/// numbers are dates such as 20270401, spreadsheet days or mistakes. 0 and negative numbers are
/// accepted and mean "in the past".
const MIN_SECONDS: i64 = 100_000_000;

/// Largest number accepted as Unix seconds: at the end of the year 5138. Larger numbers are
/// milliseconds or dates such as 202704011200.
const MAX_SECONDS: i64 = 99_999_999_999;

/// The year 9999 in Unix seconds, a common way to write "never".
const YEAR_9999: std::ops::RangeInclusive<i64> = 253_370_764_800..=253_402_300_799;

/// Spreadsheet days (since 1900) of the years 1954 to 2119.
const SERIAL_DAYS: std::ops::RangeInclusive<i64> = 20_000..=80_000;

/// A number of 12 or 14 digits is taken as a date and time before this `YYYYMMDD`, in the year
/// 2200.
const DATE_BOUND: i64 = 22_000_101;

/// Maximum number of digits of a year: the last year of PostgreSQL is 294276.
const MAX_YEAR_DIGITS: usize = 6;

const EPOCH: DateTime = civil::datetime(1970, 1, 1, 0, 0, 0, 0);

/// Why a text is not a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TimeError<'a> {
    #[error("{} is not a time; write it as 2026-11-21T10:00:00Z", Quoted(.0))]
    Form(&'a str),
    #[error("{} has no time of day; write it as 2026-11-21T10:00:00Z", Quoted(.0))]
    NoTime(&'a str),
    #[error(
        "{} is ambiguous, because it has no offset from UTC; write it as \
         2026-11-21T10:00:00Z, or with an offset as 2026-11-21T10:00:00+02:00",
        Quoted(.0)
    )]
    NoOffset(&'a str),
    #[error("{} is not a time in Unix seconds: {}; write RFC 3339, as in 2026-11-21T10:00:00Z", Quoted(.0), .1)]
    Number(&'a str, NumberKind),
}

/// What a number that is not plausible as Unix seconds looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberKind {
    /// `20270401`.
    Date,
    /// `202704011200` or `20270401120000`.
    DateAndTime,
    /// Days since 1900.
    SpreadsheetDay,
    Milliseconds,
    Microseconds,
    Nanoseconds,
    /// Below [`MIN_SECONDS`], and none of the above.
    TooSmall,
    /// Above [`MAX_SECONDS`], and none of the above.
    TooLarge,
    /// With a fraction.
    Fraction,
}

impl fmt::Display for NumberKind {
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

impl NumberKind {
    /// Classifies a number below [`MIN_SECONDS`].
    fn classify_small(seconds: i64) -> Self {
        match seconds {
            _ if is_date(seconds) => Self::Date,
            _ if SERIAL_DAYS.contains(&seconds) => Self::SpreadsheetDay,
            _ => Self::TooSmall,
        }
    }

    /// Classifies a number above [`MAX_SECONDS`]. The units of time are recognised by their number
    /// of digits from 2001 on.
    fn classify_large(digits: &str) -> Self {
        let date = digits.get(..8).and_then(|date| date.parse().ok());
        let date = date.is_some_and(|date| is_date(date) && date < DATE_BOUND);
        match digits.len() {
            12 | 14 if date => Self::DateAndTime,
            12 | 13 => Self::Milliseconds,
            15 | 16 => Self::Microseconds,
            18 | 19 => Self::Nanoseconds,
            _ => Self::TooLarge,
        }
    }
}

/// Whether a number is a date of the form `YYYYMMDD`, from 1900 on.
fn is_date(number: i64) -> bool {
    let (year, month, day) = (number / 10_000, number / 100 % 100, number % 100);
    (1900..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day)
}

/// A time with the precision that rounding needs.
#[derive(Clone, Copy)]
enum Time {
    /// Before any time that a record can hold.
    Past,
    /// Whole seconds since 1970, rounded down, and whether there was a fraction.
    At { seconds: i64, fraction: bool },
    /// After any time that a record can hold.
    Future,
}

/// Parses the first second at which a key is valid. A fraction rounds up. A time before 1970 is 0,
/// as is an empty text. A time after 2106 is `u32::MAX`, which no [`Now`](keyward_engine::now::Now)
/// reaches: the key is never valid.
pub(crate) fn not_before(text: &str) -> Result<u32, TimeError<'_>> {
    if text.is_empty() {
        return Ok(0);
    }
    Ok(match parse(text)? {
        Time::Past => 0,
        Time::At { seconds, fraction } => clamp(seconds.saturating_add(i64::from(fraction))),
        Time::Future => u32::MAX,
    })
}

/// Parses the first second at which a key is no longer valid. A fraction rounds down. A time before
/// 1970 is 0 (expired), and a time after 2106 is `u32::MAX` (never), as is an empty text.
pub(crate) fn expires_at(text: &str) -> Result<u32, TimeError<'_>> {
    if text.is_empty() {
        return Ok(u32::MAX);
    }
    Ok(match parse(text)? {
        Time::Past => 0,
        Time::At { seconds, .. } => clamp(seconds),
        Time::Future => u32::MAX,
    })
}

fn clamp(seconds: i64) -> u32 {
    u32::try_from(seconds.max(0)).unwrap_or(u32::MAX)
}

fn parse(text: &str) -> Result<Time, TimeError<'_>> {
    match text {
        "infinity" => return Ok(Time::Future),
        "-infinity" => return Ok(Time::Past),
        _ => {}
    }
    let number = text.strip_prefix('-').unwrap_or(text);
    if number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        parse_unix_seconds(text, number)
    } else {
        parse_timestamp(text)
    }
}

/// Parses Unix seconds. `text` is `number` with or without a minus sign. A fraction of zeros is
/// accepted: programs that treat integers as floats write it, and so does `extract(epoch from
/// ...)`.
fn parse_unix_seconds<'a>(text: &'a str, number: &'a str) -> Result<Time, TimeError<'a>> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || decimals.is_empty() || decimals.contains('.') {
        return Err(TimeError::Form(text));
    }
    let refused = |number| Err(TimeError::Number(text, number));
    let is_negative = text.len() > number.len();
    let digits = whole.trim_start_matches('0');
    let seconds = match whole.parse::<i64>() {
        Ok(seconds @ 1..MIN_SECONDS) if !is_negative => return refused(NumberKind::classify_small(seconds)),
        Ok(seconds) if seconds <= MAX_SECONDS || YEAR_9999.contains(&seconds) => seconds,
        _ => return refused(NumberKind::classify_large(digits)),
    };
    if decimals.bytes().any(|b| b != b'0') {
        return refused(NumberKind::Fraction);
    }
    Ok(Time::At { seconds: if is_negative { -seconds } else { seconds }, fraction: false })
}

/// Parses RFC 3339 and similar forms: that of PostgreSQL, with a space instead of the `T` and an
/// offset in hours; that of Ruby, with a space before the offset, or with `UTC` in its place; and
/// that of Go, with both.
fn parse_timestamp(text: &str) -> Result<Time, TimeError<'_>> {
    // PostgreSQL writes years before Christ with this suffix.
    if let Some(before) = text.strip_suffix(" BC") {
        return parse_civil(before).map(|_| Time::Past).map_err(|problem| problem.in_text(text));
    }
    match split_long_year(text) {
        Some((year, rest)) => {
            // The rest is validated in an equivalent year: leap years repeat after 400 years.
            let year = 2000 + year % 400;
            parse_civil(&format!("{year}{rest}"))
                .map(|_| Time::Future)
                .map_err(|problem| problem.in_text(text))
        }
        None => parse_civil(text).map_err(|problem| problem.in_text(text)),
    }
}

/// Splits off a year after 9999, as in `10000-01-01 00:59:59+01` and `+010000-01-01T00:00:00Z`.
fn split_long_year(text: &str) -> Option<(u32, &str)> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let (year, rest) = digits.split_at_checked(digits.find('-')?)?;
    let is_year = year.len() <= MAX_YEAR_DIGITS && year.bytes().all(|b| b.is_ascii_digit());
    let year = year.parse().ok().filter(|year| is_year && *year > 9999)?;
    Some((year, rest))
}

/// Why a text is not a timestamp. It becomes a [`TimeError`] together with the text as the row has
/// it.
enum Problem {
    Form,
    NoTime,
    NoOffset,
}

impl Problem {
    fn in_text(self, text: &str) -> TimeError<'_> {
        match self {
            Self::Form => TimeError::Form(text),
            Self::NoTime => TimeError::NoTime(text),
            Self::NoOffset => TimeError::NoOffset(text),
        }
    }
}

fn parse_civil(text: &str) -> Result<Time, Problem> {
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
    // jiff's Timestamp ends a day before the year 9999, so the seconds are computed from the civil
    // time.
    let since = pieces.date().to_datetime(time).duration_since(EPOCH);
    let (seconds, nanoseconds) = (since.as_secs(), since.subsec_nanos());
    let floor = seconds - i64::from(nanoseconds < 0) - i64::from(offset);
    Ok(Time::At { seconds: floor, fraction: nanoseconds != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-21 10:00:00 UTC.
    const T: u32 = 1_795_255_200;

    #[test]
    fn every_form_is_parsed() {
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
    fn time_after_the_year_9999_is_never() {
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
    fn implausible_unix_seconds_are_refused_with_a_guess() {
        for (text, number) in [
            ("20270401", NumberKind::Date),
            ("19700101", NumberKind::Date),
            ("99991231", NumberKind::Date),
            ("46000", NumberKind::SpreadsheetDay),
            ("46000.5", NumberKind::SpreadsheetDay),
            ("1", NumberKind::TooSmall),
            ("2027", NumberKind::TooSmall),
            ("202704", NumberKind::TooSmall),
            ("270401", NumberKind::TooSmall),
            ("20271301", NumberKind::TooSmall),
            ("01042027", NumberKind::TooSmall),
            ("99999999", NumberKind::TooSmall),
            ("202704011200", NumberKind::DateAndTime),
            ("20270401120000", NumberKind::DateAndTime),
            ("100000000000", NumberKind::Milliseconds),
            ("253370764799", NumberKind::Milliseconds),
            ("253402300800", NumberKind::Milliseconds),
            ("1795255200000", NumberKind::Milliseconds),
            ("1795255200000.5", NumberKind::Milliseconds),
            ("1795255200000000", NumberKind::Microseconds),
            ("1795255200000000000", NumberKind::Nanoseconds),
            ("99999999999999999999", NumberKind::TooLarge),
            ("-99999999999999999999", NumberKind::TooLarge),
            ("-1795255200000", NumberKind::Milliseconds),
            ("1795255200.5", NumberKind::Fraction),
            ("0.5", NumberKind::Fraction),
            ("-0.5", NumberKind::Fraction),
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
    fn fraction_rounds_towards_less_validity() {
        for text in ["2026-11-21 15:30:00.123456+05:30", "2026-11-21T10:00:00.000000001Z"] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(T + 1), Ok(T)), "{text}");
        }
        assert_eq!(not_before("1969-12-31T23:59:59.5Z"), Ok(0));
        assert_eq!(not_before("1970-01-01T00:00:00.5Z"), Ok(1));
    }

    #[test]
    fn time_out_of_range_is_always_or_never() {
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
    fn invalid_time_is_refused_with_a_reason() {
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
            Err("\"2026-11-21 10:00:00\" is ambiguous, because it has no offset from UTC; write \
                 it as 2026-11-21T10:00:00Z, or with an offset as 2026-11-21T10:00:00+02:00"
                .to_owned())
        );
    }
}
