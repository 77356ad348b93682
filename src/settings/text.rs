//! Deserializes strings, integers and durations. There is one visitor for each type, so that the
//! error about a value of another type contains an example of the right one.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Maximum of any duration: a year. No deadline that is computed with it can overflow.
pub const MAX_DURATION: Duration = Duration::from_secs(31_557_600);

/// A value that is written as a string.
pub trait Text: Sized {
    /// Completes the error message "expected …" about a value of another type.
    const EXPECTED: &'static str;

    /// Parses the value. The error says what is wrong, and what to write instead.
    fn parse(text: &str) -> Result<Self, String>;
}

/// Deserializes a [`Text`].
pub fn text<'de, D: Deserializer<'de>, T: Text>(deserializer: D) -> Result<T, D::Error> {
    struct TextVisitor<T>(PhantomData<T>);

    impl<T: Text> Visitor<'_> for TextVisitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(T::EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
            T::parse(text).map_err(E::custom)
        }
    }

    deserializer.deserialize_str(TextVisitor(PhantomData))
}

/// Implements `Deserialize` for types that implement [`Text`].
#[macro_export]
macro_rules! deserialize_text {
    ($($type:ty),+) => {$(
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::text::text(deserializer)
            }
        }
    )+};
}
/// Deserializes an integer in a range.
pub fn integer<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: RangeInclusive<u32>,
) -> Result<u32, D::Error> {
    struct IntegerVisitor(RangeInclusive<u32>);

    impl Visitor<'_> for IntegerVisitor {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "an integer from {} to {}", self.0.start(), self.0.end())
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<u32, E> {
            match u32::try_from(value) {
                Ok(value) if self.0.contains(&value) => Ok(value),
                _ => Err(E::invalid_value(Unexpected::Signed(value), &self)),
            }
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<u32, E> {
            match u32::try_from(value) {
                Ok(value) if self.0.contains(&value) => Ok(value),
                _ => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
            }
        }
    }

    deserializer.deserialize_i64(IntegerVisitor(range))
}

/// Deserializes a duration in a range, as in `"1h 30m"`.
pub fn duration<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: RangeInclusive<Duration>,
) -> Result<Duration, D::Error> {
    let DurationText(duration) = text(deserializer)?;
    check_range(duration, &range).map_err(D::Error::custom)
}

/// Deserializes a duration in a range, or a word for no limit, such as `"never"`.
pub fn duration_or_word<'de, D: Deserializer<'de>>(
    deserializer: D,
    range: RangeInclusive<Duration>,
    word: &'static str,
) -> Result<Option<Duration>, D::Error> {
    struct DurationOrWord(&'static str);

    impl Visitor<'_> for DurationOrWord {
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}, or {:?}", DurationText::EXPECTED, self.0)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Option<Duration>, E> {
            if text == self.0 {
                return Ok(None);
            }
            DurationText::parse(text).map(|DurationText(duration)| Some(duration)).map_err(E::custom)
        }
    }

    let duration = deserializer.deserialize_str(DurationOrWord(word))?;
    let checked = duration.map(|duration| check_range(duration, &range)).transpose();
    checked.map_err(|problem| D::Error::custom(format!("{problem}, or {word:?}")))
}

fn check_range(duration: Duration, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    if range.contains(&duration) {
        return Ok(duration);
    }
    let [given, shortest, longest] = [duration, *range.start(), *range.end()].map(humantime::format_duration);
    Err(format!("{given} is out of range: write {shortest} to {longest}"))
}

struct DurationText(Duration);

impl Text for DurationText {
    const EXPECTED: &'static str = "a duration such as \"90s\", \"1h 30m\" or \"7d\"";

    fn parse(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|error| {
            format!("{text:?} is not a duration: {error}; write one such as \"90s\", \"1h 30m\" or \"7d\"")
        })
    }
}
