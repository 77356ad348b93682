//! Texts that stand for "no value" in exports whose writer has no other way to say it, such as `NULL` and `\N`.
//!
//! Read as they are written, they would be names: two customers whose owner is missing would share the buckets of an
//! owner called `NULL`. Read as an empty text, they would lift restrictions. So they mean "none" only where that takes
//! nothing away, and a restriction that is one of them is refused.

use keyward_engine::record::{Field, Quoted};

/// Most texts that can be listed: every field of every row is compared with each of them.
pub const MAX_NULL_TEXTS: usize = 16;

/// Longest of them, in bytes: far more than the markers that databases write.
pub const MAX_NULL_TEXT: usize = 32;

/// What PostgreSQL's text form and MySQL's `INTO OUTFILE` write, and what most clients print.
const DEFAULT: [&str; 2] = ["NULL", "\\N"];

/// The texts of `source.null_texts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullTexts {
    texts: Box<[Box<str>]>,
    longest: usize,
}

impl NullTexts {
    /// These texts; the configuration has checked their number and their lengths.
    pub fn new(texts: impl IntoIterator<Item = Box<str>>) -> Self {
        let texts: Box<[Box<str>]> = texts.into_iter().collect();
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        Self { texts, longest }
    }

    /// Whether `text` stands for no value: without regard to ASCII case and to blanks around it.
    #[inline]
    pub(super) fn contain(&self, text: &str) -> bool {
        let text = text.trim_ascii();
        !text.is_empty()
            && text.len() <= self.longest
            && self.texts.iter().any(|null| null.eq_ignore_ascii_case(text))
    }

    /// What a field's text means: itself, or an empty text where it stands for no value.
    ///
    /// # Errors
    /// When it stands for no value in a field that restricts the key, or that every row must have.
    #[inline]
    pub(super) fn read<'t>(&self, field: Field, text: &'t str) -> Result<&'t str, NullError<'t>> {
        match self.contain(text) {
            false => Ok(text),
            true if field.is_required() => Err(NullError::Missing(field, text)),
            true if field.is_restriction() => Err(NullError::Restriction(text)),
            true => Ok(""),
        }
    }
}

impl Default for NullTexts {
    fn default() -> Self {
        Self::new(DEFAULT.map(Box::from))
    }
}

/// Why a text that stands for no value is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NullError<'a> {
    #[error("{} is missing: {} stands for no value (source.null_texts)", .0.name(), Quoted(.1))]
    Missing(Field, &'a str),
    #[error(
        "{} stands for no value (source.null_texts), which would lift a restriction; write an empty field where the \
         key has none, or take the text out of source.null_texts if it is a value",
        Quoted(.0)
    )]
    Restriction(&'a str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_texts_are_compared_without_case_and_blanks() {
        let nulls = NullTexts::default();
        for text in ["NULL", "null", " Null\t", "\\N", "\\n"] {
            assert!(nulls.contain(text), "{text:?}");
        }
        for text in ["", " ", "NULLS", "N", "\\", "NUL L", "\"NULL\"", "(NULL)", "none"] {
            assert!(!nulls.contain(text), "{text:?}");
        }
        let nulls = NullTexts::new(["(none)".into()]);
        assert!(nulls.contain("(None)") && !nulls.contain("NULL"));
        assert!(!NullTexts::new([]).contain("NULL"));
    }

    #[test]
    fn every_field_is_required_a_restriction_or_descriptive() {
        let nulls = NullTexts::default();
        for field in Field::ALL {
            let read = nulls.read(field, "NULL");
            match field {
                Field::KeyHash | Field::KeyId => assert!(matches!(read, Err(NullError::Missing(..)))),
                Field::Owner | Field::Metadata => assert_eq!(read, Ok("")),
                _ => assert_eq!(read, Err(NullError::Restriction("NULL")), "{}", field.name()),
            }
            assert_eq!(nulls.read(field, "x"), Ok("x"));
        }
    }
}
