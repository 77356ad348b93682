//! Parses limits, as the rows of an export and the plans of the configuration write them:
//!
//! ```text
//! limits  = limit *( ";" limit )
//! limit   = [ name "=" ] rule [ "per" "owner" ]    ; without a name: "default"
//! rule    = ( bucket / window / credits ) [ "overdraft" count ]
//! bucket  = count "/" [ count ] unit [ "burst" count ]
//! unit    = "s" / "m" / "min" / "h" / "d"
//! window  = count "/" ( "hour" / "day" / "week" / "month" ) [ "from" start ]
//! start   = day of the month, 1 to 31     ; of a month; without it: 1
//!         / "monday" … "sunday"           ; of a week; without it: monday
//! credits = count [ "credits" ]           ; without the word: only if the name is "credits"
//! ```
//!
//! Examples are `100/s`, `1000/h burst 50`, `1000000/30d`, `10000/month from 15` and `requests=100/s
//! burst 200; daily=10000/day; credits=5000`. Spaces are allowed between any two tokens. The default
//! burst is the count, because users expect that 1000 per hour can be spent at once.
//!
//! A unit that is one letter makes a token bucket, which refills continuously; a unit that is spelt
//! out makes a quota that starts anew with each such part of the calendar.

use crate::limiter::{Period, Rate, RateError, Rule, RuleError};

use super::{CREDITS_NAME, DEFAULT_LIMIT_NAME, Limit, MAX_LIMITS, MAX_NAME, Per, Quoted};

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
    /// The part is not of the form of a limit.
    #[error("{} is not a limit; write it as 100/s, 1000/h burst 50, 10000/month or 5000 credits", Quoted(.0))]
    NotLimit(Box<str>),
    /// A number stands alone, and the limit is not called `credits`.
    #[error("{} has no period; write {}/s for a rate, or {} credits for a total that is never refilled", Quoted(.0), .0, .0)]
    NoPeriod(Box<str>),
    /// The start of a week or a month.
    #[error(
        "{} is not a day that a {} can start on; it is {}", Quoted(.0), .1,
        if *.1 == "week" { "monday to sunday" } else { "a number from 1 to 31" }
    )]
    Start(Box<str>, &'static str),
    /// A number has other characters than digits, or exceeds 64 bits.
    #[error("{} is not a whole number that a limit can have", Quoted(.0))]
    Number(Box<str>),
    /// The unit after the slash is unknown.
    #[error(
        "{} is not a period; it is s, m, h or d, several of one as in 30d, or hour, day, week or month of the \
         calendar", Quoted(.0)
    )]
    Period(Box<str>),
    /// A bucket cannot represent the rate.
    #[error("{}: {}", Quoted(.0), .1)]
    Range(Box<str>, RateError),
    /// A limit of this size cannot be counted.
    #[error("{}: {}", Quoted(.0), .1)]
    Rule(Box<str>, RuleError),
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
    let (name, rule) = match text.split_once('=') {
        Some((name, rule)) => (name.trim_end(), rule),
        None => (DEFAULT_LIMIT_NAME, text),
    };
    if !is_limit_name(name) {
        return Err(LimitError::Name(name.into()));
    }
    let words: Vec<&str> = rule.split_whitespace().collect();
    let (rule, per) = match words.as_slice() {
        [words @ .., "per", "owner"] => (words.join(" "), Per::Owner),
        _ => (rule.to_owned(), Per::Key),
    };
    Ok(Limit { per, ..Limit::new(name, parse_rule(name, &rule)?) })
}

/// Whether `text` is a name for a limit: 1 to [`MAX_NAME`] letters, digits, `_`, `.` and `-`.
pub fn is_limit_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Parses what the limit `name` admits, such as `100/s burst 200` or `10000/month`.
///
/// # Errors
/// See [`LimitError`].
pub fn parse_rule(name: &str, text: &str) -> Result<Rule, LimitError> {
    let text = text.trim();
    let not_limit = || LimitError::NotLimit(text.into());
    let range = |error| LimitError::Rule(text.into(), error);
    let words: Vec<&str> = text.split_whitespace().collect();
    let (words, overdraft) = match words.as_slice() {
        [words @ .., "overdraft", overdraft] => (words, parse_number(overdraft)?),
        words => (words, 0),
    };
    let overdraft =
        u32::try_from(overdraft).map_err(|_| LimitError::Number(words_after(text, "overdraft").into()))?;
    let rule = words.join(" ");
    let Some((count, rest)) = rule.split_once('/') else {
        return match words {
            [granted, "credits"] => Rule::credits(parse_number(granted)?, overdraft).map_err(range),
            [granted] if name == CREDITS_NAME => {
                Rule::credits(parse_number(granted)?, overdraft).map_err(range)
            }
            [number] if parse_number(number).is_ok() => Err(LimitError::NoPeriod((*number).into())),
            _ => Err(not_limit()),
        };
    };
    match parse_window(rest)? {
        Some(period) => Rule::window(parse_number(count.trim_end())?, period, overdraft).map_err(range),
        None => Rule::bucket(parse_rate(&rule)?, overdraft).map_err(|error| match error {
            RuleError::Rate(error) => LimitError::Range(text.into(), error),
            error => range(error),
        }),
    }
}

/// What follows `word` in `text`.
fn words_after<'t>(text: &'t str, word: &str) -> &'t str {
    text.rsplit_once(word).map_or(text, |(_, rest)| rest.trim())
}

/// Parses a part of the calendar, such as `month from 15`. `None` if it is the unit of a rate.
fn parse_window(text: &str) -> Result<Option<Period>, LimitError> {
    const WEEKDAYS: [&str; 7] =
        ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];
    let words: Vec<&str> = text.split_whitespace().collect();
    let period = match words[..] {
        ["hour"] => Period::Hour,
        ["day"] => Period::Day,
        ["week"] => Period::Week(1),
        ["month"] => Period::Month(1),
        ["week", "from", start] => {
            let day = (1..).zip(WEEKDAYS).find(|(_, name)| *name == start).map(|(day, _)| day);
            Period::Week(day.ok_or_else(|| LimitError::Start(start.into(), "week"))?)
        }
        ["month", "from", start] => {
            let day = parse_number(start).ok().and_then(|day| u8::try_from(day).ok());
            let day = day.filter(|day| (1..=31).contains(day));
            Period::Month(day.ok_or_else(|| LimitError::Start(start.into(), "month"))?)
        }
        _ => return Ok(None),
    };
    Ok(Some(period))
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

    fn bucket(count: u64, period: u64, burst: u64) -> Rule {
        Rule::bucket(rate(count, period, burst), 0).expect("in range")
    }

    #[test]
    fn rule_is_a_rate_a_calendar_quota_or_credits() {
        let window = |count, period, overdraft| Rule::window(count, period, overdraft).expect("in range");
        let credits = |granted, overdraft| Rule::credits(granted, overdraft).expect("in range");
        for (text, expected) in [
            ("1000/h burst 50", bucket(1_000, 3_600 * SECOND, 50)),
            ("1/s overdraft 7", Rule::bucket(rate(1, SECOND, 1), 7).expect("in range")),
            (" 1/s burst 2  overdraft  7 ", Rule::bucket(rate(1, SECOND, 2), 7).expect("in range")),
            ("100/hour", window(100, Period::Hour, 0)),
            (" 100 / day", window(100, Period::Day, 0)),
            ("100/week", window(100, Period::Week(1), 0)),
            ("100/week from sunday", window(100, Period::Week(7), 0)),
            ("100/month overdraft 5", window(100, Period::Month(1), 5)),
            ("10000000000/month from 31 overdraft 5", window(10_000_000_000, Period::Month(31), 5)),
            ("5000 credits", credits(5_000, 0)),
            ("0 credits overdraft 5", credits(0, 5)),
        ] {
            assert_eq!(parse_rule("tokens", text), Ok(expected), "{text}");
        }
        assert_eq!(parse_rule("credits", "5000"), Ok(credits(5_000, 0)));
        assert_eq!(parse_rule("credits", "5000 overdraft 9"), Ok(credits(5_000, 9)));
        assert_eq!(parse_rule("credits", "5/s"), Ok(bucket(5, SECOND, 5)), "a name decides nothing else");
    }

    #[test]
    fn limit_of_a_row_may_belong_to_the_owner() {
        let limits = parse_limits("credits=5000 per owner; 5/s burst 7  per  owner;x=1/s").expect("limits");
        let named: Vec<_> = limits.iter().map(|limit| (&*limit.name, limit.per)).collect();
        assert_eq!(named, [("credits", Per::Owner), ("default", Per::Owner), ("x", Per::Key)]);
        assert_eq!(limits[1].rule, bucket(5, SECOND, 7));
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
        let named: Vec<_> = limits.iter().map(|limit| (&*limit.name, limit.rule)).collect();
        assert_eq!(
            named,
            [
                ("requests", bucket(100, SECOND, 200)),
                ("daily", bucket(10_000, DAY, 10_000)),
                ("default", bucket(5, 10 * SECOND, 5)),
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
            (
                "100",
                r#""100" has no period; write 100/s for a rate, or 100 credits for a total that is never refilled"#,
            ),
            ("x", r#""x" is not a limit; write it as 100/s, 1000/h burst 50, 10000/month or 5000 credits"#),
            ("credits=-5", r#""-5" is not a whole number that a limit can have"#),
            (
                "1/month from 32",
                r#""32" is not a day that a month can start on; it is a number from 1 to 31"#,
            ),
            ("1/week from 1", r#""1" is not a day that a week can start on; it is monday to sunday"#),
            ("0/day", r#""0/day": a calendar quota must be 1 to 274877906943, its overdraft included"#),
            (
                "9007199254740993 credits",
                r#""9007199254740993 credits": credits must be at most 9007199254740992"#,
            ),
            ("1/s overdraft -1", r#""-1" is not a whole number that a limit can have"#),
            ("1/s overdraft 4294967296", r#""4294967296" is not a whole number that a limit can have"#),
            ("100/", r#""100/" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/10", r#""100/10" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/s burst", r#""100/s burst" is not a rate; write it as 100/s or 1000/h burst 50"#),
            (
                "100/s, 5/m",
                r#""s," is not a period; it is s, m, h or d, several of one as in 30d, or hour, day, week or month of the calendar"#,
            ),
            ("100/s 200", r#""100/s 200" is not a rate; write it as 100/s or 1000/h burst 50"#),
            ("100/s burst 2 x", r#""100/s burst 2 x" is not a rate; write it as 100/s or 1000/h burst 50"#),
            (
                "100/months",
                r#""months" is not a period; it is s, m, h or d, several of one as in 30d, or hour, day, week or month of the calendar"#,
            ),
            (
                "100/-1s",
                r#""-1s" is not a period; it is s, m, h or d, several of one as in 30d, or hour, day, week or month of the calendar"#,
            ),
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
