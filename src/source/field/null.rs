//! Null texts: texts such as `NULL` and `\N` that stand for no value.
//!
//! Taken literally, they would be names: two customers without an owner would share the buckets of
//! an owner called `NULL`. Taken as empty, they would lift restrictions. Therefore they mean "no
//! value" only in fields that restrict nothing, and are refused in the others.

use keyward_engine::record::{Field, Quoted};

/// Maximum number of null texts: every field of every row is compared with each of them.
pub const MAX_NULL_TEXTS: usize = 16;

/// Longest null text, in bytes; the ones that databases write are much shorter.
pub const MAX_NULL_TEXT: usize = 32;

/// `\N` as written by PostgreSQL's text format and MySQL's `INTO OUTFILE`, and `NULL` as printed by
/// most clients.
const DEFAULT: [&str; 2] = ["NULL", "\\N"];

/// The texts of the setting `source.null_texts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NullTexts {
    texts: Box<[Box<str>]>,
    longest: usize,
}

impl NullTexts {
    /// Creates the set. The caller checks the number of texts and their lengths.
    pub fn new(texts: impl IntoIterator<Item = Box<str>>) -> Self {
        let texts: Box<[Box<str>]> = texts.into_iter().collect();
        let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        Self { texts, longest }
    }

    /// The texts, in the order of the setting.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(AsRef::as_ref)
    }

    /// Whether `text` is a null text, ignoring ASCII case and white space around it.
    #[inline]
    pub(crate) fn contains(&self, text: &str) -> bool {
        let text = text.trim_ascii();
        !text.is_empty()
            && text.len() <= self.longest
            && self.texts.iter().any(|null| null.eq_ignore_ascii_case(text))
    }

    /// Resolves the text of a field: a null text becomes an empty one.
    ///
    /// # Errors
    /// If `text` is a null text, and the field is required or a restriction.
    #[inline]
    pub(crate) fn resolve<'t>(&self, field: Field, text: &'t str) -> Result<&'t str, NullError<'t>> {
        if !self.contains(text) {
            Ok(text)
        } else if field.is_required() {
            Err(NullError::Missing(field, text))
        } else if field.is_restriction() {
            Err(NullError::Restriction(text))
        } else {
            Ok("")
        }
    }
}

impl Default for NullTexts {
    fn default() -> Self {
        Self::new(DEFAULT.map(Box::from))
    }
}

/// Why a null text is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NullError<'a> {
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
    fn null_texts_are_compared_without_case_and_white_space() {
        let nulls = NullTexts::default();
        for text in ["NULL", "null", " Null\t", "\\N", "\\n"] {
            assert!(nulls.contains(text), "{text:?}");
        }
        for text in ["", " ", "NULLS", "N", "\\", "NUL L", "\"NULL\"", "(NULL)", "none"] {
            assert!(!nulls.contains(text), "{text:?}");
        }
        let nulls = NullTexts::new(["(none)".into()]);
        assert!(nulls.contains("(None)") && !nulls.contains("NULL"));
        assert!(!NullTexts::new([]).contains("NULL"));
    }

    #[test]
    fn null_text_is_refused_in_required_fields_and_restrictions() {
        let nulls = NullTexts::default();
        for field in Field::ALL {
            let resolved = nulls.resolve(field, "NULL");
            match field {
                Field::KeyHash | Field::KeyId => assert!(matches!(resolved, Err(NullError::Missing(..)))),
                Field::Owner | Field::Metadata => assert_eq!(resolved, Ok("")),
                _ => assert_eq!(resolved, Err(NullError::Restriction("NULL")), "{}", field.name()),
            }
            assert_eq!(nulls.resolve(field, "x"), Ok("x"));
        }
    }
}
