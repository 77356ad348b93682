//! Settings that are more than a number, a text or a duration.

use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

use super::text::{Text, deserialize_text};
use keyward_source::{Field, Format, MAX_NULL_TEXT, MAX_NULL_TEXTS, NullTexts};

/// Longest name of a column, in bytes; a database's is at most 63.
const MAX_COLUMN: usize = 128;

/// The permission bits of the verify socket: `0o001..=0o777`, with a write bit among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketMode(u32);

impl SocketMode {
    /// The default: the owner and the socket's group may connect.
    pub(super) const DEFAULT: Self = Self(0o660);

    /// The bits, as `chmod` takes them.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Text for SocketMode {
    const EXPECTED: &'static str = "octal digits in quotes, such as \"0660\"";

    fn parse(text: &str) -> Result<Self, String> {
        let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| byte.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            Ok(mode) if octal && mode <= 0o777 && mode & 0o222 != 0 => Ok(Self(mode)),
            Ok(mode) if octal && mode <= 0o777 => {
                Err(format!("{text:?} lets nobody write, and so nobody connect: write one such as \"0660\""))
            }
            _ => Err(format!("{text:?} is not a mode: write octal digits from \"0200\" to \"0777\"")),
        }
    }
}

/// A portion of the keys: `0.0..=1.0`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Portion(f64);

impl Portion {
    /// The default of `max_shrink`. An export that lost more than half of its keys is likelier broken than meant.
    pub(super) const MAX_SHRINK: Self = Self(0.5);
    /// The default of `max_reactivated` and `max_loosened`: wide enough for a campaign, or a new price list.
    pub(super) const WIDE: Self = Self(0.75);

    /// The portion, `0.0..=1.0`.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Portion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortionVisitor;

        impl Visitor<'_> for PortionVisitor {
            type Value = Portion;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0.0 (no key) to 1.0 (every key)")
            }

            fn visit_f64<E: Error>(self, part: f64) -> Result<Portion, E> {
                // Not a number is in no range.
                match (0.0..=1.0).contains(&part) {
                    true => Ok(Portion(part)),
                    false => Err(E::invalid_value(Unexpected::Float(part), &self)),
                }
            }

            fn visit_i64<E: Error>(self, part: i64) -> Result<Portion, E> {
                match part {
                    0 => Ok(Portion(0.0)),
                    1 => Ok(Portion(1.0)),
                    _ => Err(E::invalid_value(Unexpected::Signed(part), &self)),
                }
            }
        }

        deserializer.deserialize_f64(PortionVisitor)
    }
}

/// What is done about a row that cannot be understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum BadRowAction {
    #[default]
    Refuse,
    SetAside,
}

impl Text for BadRowAction {
    const EXPECTED: &'static str = "\"refuse\" or \"set-aside\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "refuse" => Ok(Self::Refuse),
            "set-aside" => Ok(Self::SetAside),
            _ => Err(format!("{text:?} is not an action: write {}", Self::EXPECTED)),
        }
    }
}

impl Text for Format {
    const EXPECTED: &'static str = "\"csv\" or \"jsonl\"";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("{text:?} is not a format: write {}", Self::EXPECTED))
    }
}

impl Text for Field {
    const EXPECTED: &'static str = "a field of a key record";

    fn parse(text: &str) -> Result<Self, String> {
        Self::from_name(text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is not a field: write one of {names}, and its column's name after the =")
        })
    }
}

/// The name of a column: 1..=[`MAX_COLUMN`] bytes, no control characters.
#[derive(Clone, Debug)]
pub(super) struct Column(pub(super) Arc<str>);

impl Text for Column {
    const EXPECTED: &'static str = "the name of a column";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_COLUMN || text.contains(char::is_control) {
            return Err(format!("a column's name has 1 to {MAX_COLUMN} bytes and no control characters"));
        }
        Ok(Self(text.into()))
    }
}

/// A text that stands for no value: 1..=[`MAX_NULL_TEXT`] bytes, without blanks around them.
struct NullText(Box<str>);

impl Text for NullText {
    const EXPECTED: &'static str = "a text that stands for no value, such as \"NULL\"";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_NULL_TEXT || text.trim() != text {
            return Err(format!(
                "{text:?} cannot stand for no value: write 1 to {MAX_NULL_TEXT} bytes without blanks around them; an \
                 empty text means no value anyway"
            ));
        }
        Ok(Self(text.into()))
    }
}

/// The texts that stand for no value, at most [`MAX_NULL_TEXTS`].
#[derive(Debug, Default)]
pub(super) struct NullTextList(pub(super) NullTexts);

impl<'de> Deserialize<'de> for NullTextList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<NullText>::deserialize(deserializer)?;
        if texts.len() > MAX_NULL_TEXTS {
            let problem = format!("{} texts are too many: list at most {MAX_NULL_TEXTS}", texts.len());
            return Err(D::Error::custom(problem));
        }
        Ok(Self(NullTexts::new(texts.into_iter().map(|NullText(text)| text))))
    }
}

/// How large a file may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileSize(u64);

impl FileSize {
    /// Smaller, and lines are renamed more often than read.
    const SMALLEST: u64 = 4 << 10;
    /// Larger than what is looked at in one piece.
    const LARGEST: u64 = 1 << 40;
    /// Written after the number.
    const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

    pub(super) const fn mebibytes(number: u64) -> Self {
        Self(number << 20)
    }

    pub(super) fn bytes(self) -> u64 {
        self.0
    }
}

impl Text for FileSize {
    const EXPECTED: &'static str = "a size such as \"64MiB\"";

    fn parse(text: &str) -> Result<Self, String> {
        let unit =
            Self::UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?.trim_end(), bytes)));
        let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let Some((digits, unit)) = unit.filter(|(digits, _)| is_number(digits)) else {
            return Err(format!(
                "{text:?} is not a size: write a number and KiB, MiB or GiB, such as \"64MiB\""
            ));
        };
        match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(*unit)) {
            Some(bytes) if (Self::SMALLEST..=Self::LARGEST).contains(&bytes) => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is out of range: write \"4KiB\" to \"1024GiB\"")),
        }
    }
}

/// How much is logged: this level and the graver ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// What stops the daemon from doing its work.
    Error,
    /// What an operator should look at.
    Warn,
    /// Starts, reloads, revocations.
    Info,
    /// What helps to find a fault.
    Debug,
    /// Everything.
    Trace,
}

impl Text for LogLevel {
    const EXPECTED: &'static str = "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            "trace" => Ok(Self::Trace),
            _ => Err(format!("{text:?} is not a level: write {}", Self::EXPECTED)),
        }
    }
}

impl From<LogLevel> for tracing::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl Text for LogFormat {
    const EXPECTED: &'static str = "\"text\" or \"json\"";

    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is not a format: write \"text\" or \"json\"")),
        }
    }
}

deserialize_text!(SocketMode, Column, NullText, FileSize, LogLevel, LogFormat, BadRowAction);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_three_or_four_octal_digits_of_permissions() {
        for (text, bits) in [("0660", 0o660), ("660", 0o660), ("0777", 0o777), ("0200", 0o200)] {
            assert_eq!(SocketMode::parse(text).map(SocketMode::bits), Ok(bits), "{text}");
        }
        for text in ["", "0", "66", "0o660", "1660", "4755", "0680", "+660", "rw-rw----", "00660"] {
            let refused = SocketMode::parse(text).expect_err("not a mode");
            let expected = format!("{text:?} is not a mode: write octal digits from \"0200\" to \"0777\"");
            assert_eq!(refused, expected);
        }
        let refused = SocketMode::parse("0444").expect_err("nobody may connect");
        assert_eq!(refused, r#""0444" lets nobody write, and so nobody connect: write one such as "0660""#);
    }

    #[test]
    fn a_size_has_a_unit_and_a_range() {
        for (text, bytes) in [("4KiB", 4096), ("64MiB", 64 << 20), ("1024 GiB", 1 << 40)] {
            assert_eq!(FileSize::parse(text).map(FileSize::bytes), Ok(bytes), "{text}");
        }
        for text in ["", "64", "MiB", "64MB", "-1MiB", "1.5MiB", "0x1MiB"] {
            let refused = FileSize::parse(text).expect_err("not a size");
            assert!(refused.ends_with("write a number and KiB, MiB or GiB, such as \"64MiB\""), "{refused}");
        }
        for text in ["3KiB", "0MiB", "1025GiB", "99999999999999999999GiB"] {
            let refused = FileSize::parse(text).expect_err("out of range");
            assert_eq!(refused, format!("{text:?} is out of range: write \"4KiB\" to \"1024GiB\""));
        }
    }

    #[test]
    fn levels_are_ordered_as_tracing_orders_them() {
        let levels = ["error", "warn", "info", "debug", "trace"].map(LogLevel::parse);
        for level in levels {
            let level = level.expect("a level");
            assert_eq!(
                tracing::Level::from(level).to_string().to_lowercase(),
                format!("{level:?}").to_lowercase()
            );
        }
    }
}
