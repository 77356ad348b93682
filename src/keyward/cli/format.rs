//! Formats durations, counts and texts for people.

use std::fmt;
use std::time::Duration;

use keyward_engine::record::{Escaped, is_invisible};

/// A duration in its two largest units, as in `5 ms`, `2.5 s`, `3 min 20 s`, `4 d 1 h`.
pub(super) struct HumanDuration(pub(super) Duration);

impl HumanDuration {
    pub(super) fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub(super) fn milliseconds(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, milliseconds) = (self.0.as_secs(), self.0.subsec_millis());
        let two = |f: &mut fmt::Formatter<'_>, unit: u64, name: &str, part: u64, part_name: &str| {
            write!(f, "{} {name}", seconds / unit)?;
            match seconds % unit / part {
                0 => Ok(()),
                rest => write!(f, " {rest} {part_name}"),
            }
        };
        match seconds {
            0 => write!(f, "{milliseconds} ms"),
            1..60 if milliseconds >= 100 => write!(f, "{seconds}.{} s", milliseconds / 100),
            1..60 => write!(f, "{seconds} s"),
            60..3_600 => two(f, 60, "min", 1, "s"),
            3_600..86_400 => two(f, 3_600, "h", 60, "min"),
            _ => two(f, 86_400, "d", 3_600, "h"),
        }
    }
}

/// A number of seconds in the past, as in `5 s ago`.
pub(super) struct Ago(pub(super) u64);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("just now"),
            seconds => write!(f, "{} ago", HumanDuration::seconds(seconds)),
        }
    }
}

/// A number and a noun whose plural ends in s, as in `2 keys`.
pub(super) struct Count<N>(pub(super) N, pub(super) &'static str);

impl<N: fmt::Display + PartialEq + From<u8>> fmt::Display for Count<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(number, noun) = self;
        write!(f, "{number} {noun}{}", if *number == N::from(1) { "" } else { "s" })
    }
}

/// A text from an export, on one line of a terminal. It is quoted and escaped unless it is a single
/// word.
pub(super) struct Word<'a>(pub(super) &'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_word = |c: char| c != ' ' && c != '"' && c != '\\' && !is_invisible(c);
        if !self.0.is_empty() && self.0.chars().all(is_word) {
            f.write_str(self.0)
        } else {
            write!(f, "\"{}\"", Escaped(self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_has_at_most_two_units() {
        for (milliseconds, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1 s"),
            (2_550, "2.5 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min"),
            (200_500, "3 min 20 s"),
            (3_600_000, "1 h"),
            (7_500_000, "2 h 5 min"),
            (349_200_000, "4 d 1 h"),
        ] {
            assert_eq!(HumanDuration::milliseconds(milliseconds).to_string(), text);
        }
    }

    #[test]
    fn counts_have_singular_and_plural() {
        let counts = [0_usize, 1, 2].map(|number| Count(number, "key").to_string());
        assert_eq!(counts, ["0 keys", "1 key", "2 keys"]);
        assert_eq!([Ago(0).to_string(), Ago(61).to_string()], ["just now", "1 min 1 s ago"]);
    }

    #[test]
    fn control_characters_and_spaces_are_quoted() {
        assert_eq!(Word("acme").to_string(), "acme");
        assert_eq!(Word("a b").to_string(), r#""a b""#);
        assert_eq!(Word("\u{1b}[2J").to_string(), r#""\u{1b}[2J""#);
        assert_eq!(Word("a\u{202e}b").to_string(), r#""a\u{202e}b""#);
        assert_eq!(Word("acme\u{200b}").to_string(), r#""acme\u{200b}""#);
        assert_eq!(Word("it's é").to_string(), "\"it's é\"");
    }
}
