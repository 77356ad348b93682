//! Values of `[source]`: formats, fields, columns, and texts that stand for no value.

use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, Error};

use keyward_settings::deserialize_text;
use keyward_settings::text::Text;
use keyward_source::{Field, Format, MAX_NULL_TEXT, MAX_NULL_TEXTS, NullTexts};

/// Maximum length of the name of a column in bytes. PostgreSQL allows 63.
const MAX_COLUMN_NAME: usize = 128;

/// How bad rows are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::config) enum BadRowAction {
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

/// The format of a source.
#[derive(Clone, Copy, Debug)]
pub(in crate::config) struct FormatText(pub(in crate::config) Format);

impl Text for FormatText {
    const EXPECTED: &'static str = "\"csv\", \"jsonl\" or \"compiled\"";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is not a format: write {}", Self::EXPECTED))
    }
}

/// A field of a key record.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::config) struct FieldText(pub(in crate::config) Field);

impl Text for FieldText {
    const EXPECTED: &'static str = "a field of a key record";

    fn parse(text: &str) -> Result<Self, String> {
        Field::from_name(text).map(Self).ok_or_else(|| {
            let names = Field::ALL.map(Field::name).join(", ");
            format!("{text:?} is not a field: write one of {names}, and its column's name after the =")
        })
    }
}

/// The name of a column: 1..=[`MAX_COLUMN_NAME`] bytes without control characters.
#[derive(Clone, Debug)]
pub(in crate::config) struct ColumnName(pub(in crate::config) Arc<str>);

impl Text for ColumnName {
    const EXPECTED: &'static str = "the name of a column";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_COLUMN_NAME || text.contains(char::is_control) {
            return Err(format!(
                "a column's name has 1 to {MAX_COLUMN_NAME} bytes and no control characters"
            ));
        }
        Ok(Self(text.into()))
    }
}

/// A text that stands for no value: 1..=[`MAX_NULL_TEXT`] bytes without surrounding whitespace.
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
pub(in crate::config) struct NullTextList(pub(in crate::config) NullTexts);

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

deserialize_text!(BadRowAction, FormatText, FieldText, ColumnName, NullText);
