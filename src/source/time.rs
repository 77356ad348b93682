//! Points in time, in the forms that databases and programs write them, as Unix seconds.
//!
//! A record counts in whole seconds from 1970 to 2106. What lies between two of its seconds is rounded so
//! that a key is valid for less time rather than more, and what lies outside of its years is "always" or
//! "never": exports are full of years like 9999.

use jiff::civil::{self, DateTime};
use jiff::fmt::temporal::Pieces;

use crate::record::Quoted;

/// Largest number of seconds accepted, the end of the year 9999. Milliseconds since 1970 have been larger
/// than that since 1978, and read as seconds they would make a key valid for ever.
const MAX_SECONDS: i64 = 253_402_300_799;

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
    #[error("{} is past the year 9999 in Unix seconds; if it is in milliseconds, divide it by 1000", Quoted(.0))]
    TooLarge(&'a str),
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
/// is `u32::MAX`, which no clock that a record can be checked against reaches. Empty is 0.
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

/// `text` is `number` with or without a minus; `extract(epoch from ...)` writes decimals.
fn unix_seconds<'a>(text: &'a str, number: &'a str) -> Result<Point, TimeError<'a>> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || decimals.is_empty() || decimals.contains('.') {
        return Err(TimeError::Form(text));
    }
    let seconds = match whole.parse() {
        Ok(seconds) if seconds <= MAX_SECONDS => seconds,
        _ => return Err(TimeError::TooLarge(text)),
    };
    let fraction = decimals.bytes().any(|b| b != b'0');
    Ok(match text.len() == number.len() {
        true => Point::At { seconds, fraction },
        false => Point::At { seconds: -seconds - i64::from(fraction), fraction },
    })
}

/// RFC 3339, and Postgres's own form: a space for the `T`, and an offset in hours only.
fn timestamp(text: &str) -> Result<Point, TimeError<'_>> {
    let pieces = Pieces::parse(text).map_err(|_| TimeError::Form(text))?;
    if pieces.time_zone_annotation().is_some() {
        return Err(TimeError::Form(text));
    }
    let time = pieces.time().ok_or(TimeError::NoTime(text))?;
    let offset = pieces.to_numeric_offset().ok_or(TimeError::NoOffset(text))?;
    // Not by way of jiff's Timestamp, which ends a day before the year 9999 does.
    let since = pieces.date().to_datetime(time).duration_since(EPOCH);
    let (seconds, nanoseconds) = (since.as_secs(), since.subsec_nanos());
    let floor = seconds - i64::from(nanoseconds < 0) - i64::from(offset.seconds());
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
        ] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(T), Ok(T)), "{text}");
        }
    }

    #[test]
    fn a_fraction_rounds_towards_less_validity() {
        for text in ["2026-11-21 15:30:00.123456+05:30", "2026-11-21T10:00:00.000000001Z", "1795255200.5"] {
            assert_eq!((not_before(text), expires_at(text)), (Ok(T + 1), Ok(T)), "{text}");
        }
        assert_eq!(not_before("1969-12-31T23:59:59.5Z"), Ok(0));
        assert_eq!(not_before("-0.5"), Ok(0));
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
            "4294967295.5",
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
        for text in ["1795255200000", "253402300800", "99999999999999999999", "-99999999999999999999"] {
            assert_eq!(
                expires_at(text).map_err(|e| e.to_string()),
                Err(format!(
                    "\"{text}\" is past the year 9999 in Unix seconds; if it is in milliseconds, divide it by 1000"
                ))
            );
        }
    }
}
