//! Parses limits, as the rows of an export and the plans of the configuration write them:
//!
//! ```text
//! limits = limit *( ";" limit )
//! limit  = [ name "=" ] rate              ; without a name: "default"
//! rate   = count "/" [ count ] period [ "burst" count ]
//! period = "s" / "m" / "min" / "h" / "d"
//! ```
//!
//! Examples are `100/s`, `1000/h burst 50`, `1000000/30d` and `requests=100/s burst 200;
//! daily=10000/d`. Spaces are allowed between any two tokens. The default burst is the count,
//! because users expect that a quota of 1000 per hour can be spent at once.

use crate::limiter::{Rate, RateError};

use super::{DEFAULT_LIMIT_NAME, Limit, MAX_LIMITS, MAX_NAME, Quoted};

const SECOND: u64 = 1_000_000_000;

/// Why a text is not a list of limits. Each message quotes the offending part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// There is nothing between two `;`, or before or after one.
    #[error("there is an empty limit; separate limits by a single ; as in requests=100/s; daily=10000/d")]
    Empty,
    /// There are more than [`MAX_LIMITS`] limits.
    #[error("there are more than {MAX_LIMITS} limits, and every request would be charged to each")]
    TooMany,
    /// A name is empty, longer than [`MAX_NAME`], or has a character that is not allowed.
    #[error(
        "{} is not a name for a limit: it has 1 to {MAX_NAME} letters, digits, _, . and -", Quoted(.0)
    )]
    Name(Box<str>),
    /// Two limits have the same name; a limit without a name is called [`DEFAULT_LIMIT_NAME`].
    #[error("there are two limits with the name {}", Quoted(.0))]
    Duplicate(Box<str>),
    /// The part is not of the form of a rate.
    #[error("{} is not a rate; write it as 100/s or 1000/h burst 50", Quoted(.0))]
    NotRate(Box<str>),
    /// A number has other characters than digits, or exceeds 64 bits.
    #[error("{} is not a whole number that a limit can have", Quoted(.0))]
    Number(Box<str>),
    /// The unit after the slash is not `s`, `m`, `min`, `h` or `d`.
    #[error("{} is not a period; it is s, m, h or d, or several of one as in 30d", Quoted(.0))]
    Period(Box<str>),
    /// A bucket cannot represent the rate.
    #[error("{}: {}", Quoted(.0), .1)]
    Range(Box<str>, RateError),
}

/// Parses one or more limits, separated by `;`, in the order written. Their names must be unique.
///
/// # Errors
/// See [`LimitError`]. An empty text is an error, because what it means depends on the caller.
pub fn parse_limits(text: &str) -> Result<Vec<Limit>, LimitError> {
    let mut limits: Vec<Limit> = Vec::new();
    for part in text.split(';') {
        let limit = parse_limit(part.trim())?;
        if limits.iter().any(|other| other.name == limit.name) {
            return Err(LimitError::Duplicate(limit.name));
        }
        if limits.len() == MAX_LIMITS {
            return Err(LimitError::TooMany);
        }
        limits.push(limit);
    }
    Ok(limits)
}

fn parse_limit(text: &str) -> Result<Limit, LimitError> {
    if text.is_empty() {
        return Err(LimitError::Empty);
    }
    let (name, rate) = match text.split_once('=') {
        Some((name, rate)) => (name.trim_end(), rate),
        None => (DEFAULT_LIMIT_NAME, text),
    };
    if !is_limit_name(name) {
        return Err(LimitError::Name(name.into()));
    }
    Ok(Limit::new(name, parse_rate(rate)?))
}

/// Whether `text` is a name for a limit: 1 to [`MAX_NAME`] letters, digits, `_`, `.` and `-`.
pub fn is_limit_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Parses one rate, such as `100/s burst 200`.
///
/// # Errors
/// See [`LimitError`].
pub fn parse_rate(text: &str) -> Result<Rate, LimitError> {
    let text = text.trim();
    let not_rate = || LimitError::NotRate(text.into());
    let (count, rest) = text.split_once('/').ok_or_else(not_rate)?;
    let count = parse_number(count.trim_end())?;
    let mut words = rest.split_whitespace();
    let period = words.next().ok_or_else(not_rate)?;
    let period = if period.bytes().all(|b| b.is_ascii_digit()) {
        parse_period(period, words.next().ok_or_else(not_rate)?)?
    } else {
        let unit = period.trim_start_matches(|c: char| c.is_ascii_digit());
        parse_period(&period[..period.len() - unit.len()], unit)?
    };
    let burst = match (words.next(), words.next(), words.next()) {
        (None, ..) => count,
        (Some("burst"), Some(burst), None) => parse_number(burst)?,
        _ => return Err(not_rate()),
    };
    Rate::new(count, period, burst).map_err(|error| LimitError::Range(text.into(), error))
}

/// The nanoseconds of `multiple` units; an empty multiple is 1. Saturates at a value that
/// [`Rate::new`] refuses.
fn parse_period(multiple: &str, unit: &str) -> Result<u64, LimitError> {
    let nanoseconds = match unit {
        "s" => SECOND,
        "m" | "min" => 60 * SECOND,
        "h" => 3_600 * SECOND,
        "d" => 86_400 * SECOND,
        _ => return Err(LimitError::Period(unit.into())),
    };
    let multiple = if multiple.is_empty() { 1 } else { parse_number(multiple)? };
    Ok(nanoseconds.saturating_mul(multiple))
}

/// Accepts digits only; `u64::from_str` would also accept a `+`.
fn parse_number(text: &str) -> Result<u64, LimitError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| LimitError::Number(text.into()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: u64 = 86_400 * SECOND;

    fn rate(count: u64, period: u64, burst: u64) -> Rate {
        Rate::new(count, period, burst).expect("in range")
    }

    #[test]
    fn rate_is_a_count_and_a_period() {
        for (text, expected) in [
            ("100/s", rate(100, SECOND, 100)),
            ("100/s burst 200", rate(100, SECOND, 200)),
            ("7/m", rate(7, 60 * SECOND, 7)),
            ("7/min", rate(7, 60 * SECOND, 7)),
            ("1000/h burst 50", rate(1000, 3600 * SECOND, 50)),
            ("10000/d", rate(10_000, DAY, 10_000)),
            ("1000000/30d", rate(1_000_000, 30 * DAY, 1_000_000)),
            ("5/10s burst 1", rate(5, 10 * SECOND, 1)),
            (" 5 / 10 s  burst  1 ", rate(5, 10 * SECOND, 1)),
        ] {
            assert_eq!(parse_rate(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn limits_have_names_and_keep_their_order() {
        let limits = parse_limits("requests = 100/s burst 200; daily=10000/d ;5/10s").expect("limits");
        let named: Vec<_> = limits.iter().map(|limit| (&*limit.name, limit.rate)).collect();
        assert_eq!(
            named,
            [
                ("requests", rate(100, SECOND, 200)),
                ("daily", rate(10_000, DAY, 10_000)),
                ("default", rate(5, 10 * SECOND, 5)),
            ]
        );
    }

    #[test]
    fn invalid_limits_are_refused_with_a_reason() {
        let long = format!("{}=1/s", "n.".repeat(33));
        for (text, message) in [
            (
                "",
                "there is an empty limit; separate limits by a single ; as in requests=100/s; daily=10000/d",
            ),
            (
                "1/s;",
                "there is an empty limit; separate limits by a single ; as in requests=100/s; daily=10000/d",
            ),
            ("1/s;default=2/s", r#"there are two limits with the name "default""#),
            ("a=1/s;b=2/s;a=1/s", r#"there are two limits with the name "a""#),
            (" =1/s", r#""" is not a name for a limit: it has 1 to 64 letters, digits, _, . and -"#),
            ("a b=1/s", r#""a b" is not a name for a limit: it has 1 to 64 letters, digits, _, . and -"#),
            ("ä=1/s", r#""ä" is not a name for a limit: it has 1 to 64 letters, digits, _, . and -"#),
            (
                long.as_str(),
                "\"n.n.n.n.n.n.n.n.n.n.n.n.n.n.n.n.n.n.n.n.…\" is not a name for a limit: it has 1 to 64 \
                 letters, digits, _, . and -",
            ),
            ("100", r#""100" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/", r#""100/" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/10", r#""100/10" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/s burst", r#""100/s burst" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/s, 5/m", r#""s," is not a period; it is s, m, h or d, or several of one as in 30d"#),
            ("100/s 200", r#""100/s 200" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/s burst 2 x", r#""100/s burst 2 x" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/month", r#""month" is not a period; it is s, m, h or d, or several of one as in 30d"#),
            ("100/-1s", r#""-1s" is not a period; it is s, m, h or d, or several of one as in 30d"#),
            ("/s", r#""" is not a whole number that a limit can have"#),
            ("+1/s", r#""+1" is not a whole number that a limit can have"#),
            ("1.5/s", r#""1.5" is not a whole number that a limit can have"#),
            ("a=b=1/s", r#""b=1" is not a whole number that a limit can have"#),
            (
                "99999999999999999999/s",
                r#""99999999999999999999" is not a whole number that a limit can have"#,
            ),
            ("0/s", r#""0/s": the rate must admit at least 1 in a time longer than zero"#),
            ("1/0s", r#""1/0s": the rate must admit at least 1 in a time longer than zero"#),
            ("1/s burst 0", r#""1/s burst 0": the burst must be at least 1"#),
            (
                "1/18446744073709551615d",
                "\"1/18446744073709551615d\": burst / rate must be at most 4.5 years: \
              the bucket would refill more slowly than it can count",
            ),
        ] {
            assert_eq!(parse_limits(text).map_err(|e| e.to_string()), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn at_most_eight_limits_are_accepted() {
        let limits = |n: usize| (0..n).map(|i| format!("l{i}=1/s")).collect::<Vec<_>>().join(";");
        assert_eq!(parse_limits(&limits(MAX_LIMITS)).map(|l| l.len()), Ok(MAX_LIMITS));
        assert_eq!(parse_limits(&limits(MAX_LIMITS + 1)), Err(LimitError::TooMany));
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text in "[0-9a-z/=; .é]{0,40}") {
            let _ = parse_limits(&text);
        }
    }
}
