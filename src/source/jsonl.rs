//! JSON Lines exports: an object in each line, its fields in any order, absent or null where the key has none.
//!
//! The values are taken as they are written and not turned into a tree: a string without escapes, a number and
//! an array are all texts that the fields' parsers read in place.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, Read};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use keyward_engine::record::{Field, Quoted};

use super::bad_row::{KeyTexts, texts_in_line};
use super::finding::{Column, Diagnostics};
use super::layout::{ColumnMapping, ColumnRole, Texts};
use super::row::Rows;
use super::unknown::UnknownColumn;
use super::{FramingError, MAX_ROW};

/// Reads a JSON Lines export; what is wrong goes to the diagnostics of `rows`.
pub(super) fn read(mut input: impl BufRead, mapping: &ColumnMapping, rows: &mut Rows<'_>) -> io::Result<()> {
    let mut line = Vec::with_capacity(4096);
    for number in 1.. {
        line.clear();
        // The bound is on what is read, so that a line without an end cannot grow the buffer.
        if input.by_ref().take(MAX_ROW as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Some(bytes) = line.strip_suffix(b"\n") else {
            match line.len() > MAX_ROW {
                true => rows.diagnostics.add(number, None, TooLong),
                false => rows.diagnostics.add(number, None, FramingError::NoNewline),
            }
            break;
        };
        if !bytes.trim_ascii().is_empty() {
            rows.count();
            let before = rows.diagnostics.total();
            let values = row(number, bytes, mapping, rows);
            if rows.diagnostics.total() > before {
                let texts =
                    values.map_or_else(|| texts_in_line(bytes, mapping), |values| Some(key_texts(&values)));
                rows.diagnostics.close_row(number, before, texts);
            }
        }
    }
    Ok(())
}

/// Why a line is not read to its end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the line is longer than {MAX_ROW} bytes: the newline behind an object may be missing, or a field is as large as that and \
     has to be left out of the export"
)]
struct TooLong;

/// The texts of the hash and the key id among the values of an object.
fn key_texts(values: &Values<'_>) -> KeyTexts {
    [Field::KeyHash, Field::KeyId].map(|field| {
        let text = value_text(field, values[field as usize]?.get()).ok()?;
        Some(text.into())
    })
}

/// Reads a line. Returns its values, if it is an object that has no hash twice.
fn row<'b>(line: u64, bytes: &'b [u8], mapping: &ColumnMapping, rows: &mut Rows<'_>) -> Option<Values<'b>> {
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let place = Column::Byte(error.valid_up_to() + 1);
            rows.diagnostics.add(line, Some(place), "this is not UTF-8; export the file as UTF-8");
            return None;
        }
    };
    if !text.trim_start().starts_with('{') {
        let message = "a line of JSON Lines is one object, as in {\"key_hash\":\"...\",\"key_id\":\"...\"}";
        rows.diagnostics.add(line, None, message);
        return None;
    }
    let mut problems = Vec::new();
    let values = match (Object { mapping, problems: &mut problems }).parse(text) {
        Ok(values) => values,
        Err(error) => {
            rows.diagnostics.add(line, Some(Column::Byte(error.column())), syntax(&error));
            return None;
        }
    };
    let absent = mapping.required().iter().filter(|field| values[*field as usize].is_none());
    problems.extend(absent.map(Problem::Absent));
    problems.iter().for_each(|problem| problem.report(line, mapping, rows.diagnostics));
    let decoded = decode(line, &values, mapping, rows.diagnostics);
    if let Some(decoded) = decoded.filter(|_| problems.is_empty()) {
        let texts: Texts<'_> = std::array::from_fn(|index| &*decoded[index]);
        rows.deliver(line, &texts, |field| Column::Named(mapping.column(field)));
    }
    let is_twice = problems.iter().any(|problem| matches!(problem, Problem::Twice(Field::KeyHash)));
    (!is_twice).then_some(values)
}

/// The message without its place, which the diagnostic has. It holds nothing of the line.
fn syntax(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let bare = message.rsplit_once(" at line ").map_or(message.as_str(), |(bare, _)| bare);
    format!("it is not JSON: {bare}")
}

type Values<'a> = [Option<&'a RawValue>; Field::COUNT];

/// The text of each value; `None` after telling `diagnostics` of each that is none.
fn decode<'a>(
    line: u64,
    values: &Values<'a>,
    mapping: &ColumnMapping,
    diagnostics: &mut Diagnostics,
) -> Option<[Cow<'a, str>; Field::COUNT]> {
    let mut texts: [Cow<'a, str>; Field::COUNT] = Default::default();
    let mut good = true;
    for field in Field::ALL {
        let Some(value) = values[field as usize] else { continue };
        match value_text(field, value.get()) {
            Ok(text) => texts[field as usize] = text,
            Err(error) => {
                good = false;
                diagnostics.add(line, Some(Column::Named(mapping.column(field))), error);
            }
        }
    }
    good.then_some(texts)
}

/// Why a JSON value is not that of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum ValueError {
    #[error("it must be a string")]
    NotString,
    #[error("it must be a string or a number")]
    NotTime,
    #[error("it must be a string or an array of strings")]
    NotList,
    #[error("it must be an object")]
    NotObject,
    #[error("a \\u escape in it does not stand for a character")]
    Escape,
}

/// The text that a value stands for: a string's own, and what a number, array or object is written as. Ids are
/// numbers in many a table, so a number stands for its digits in a text too.
fn value_text(field: Field, json: &str) -> Result<Cow<'_, str>, ValueError> {
    match (json.as_bytes().first(), field) {
        (Some(b'n'), _) => Ok(Cow::Borrowed("")),
        (Some(b'"'), _) => string(json),
        (Some(b'0'..=b'9' | b'-'), Field::KeyId | Field::Owner | Field::NotBefore | Field::ExpiresAt)
        | (Some(b'['), Field::Scopes | Field::AllowedIps | Field::AllowedOrigins)
        | (Some(b'{'), Field::Metadata) => Ok(Cow::Borrowed(json)),
        (_, Field::NotBefore | Field::ExpiresAt) => Err(ValueError::NotTime),
        (_, Field::Scopes | Field::AllowedIps | Field::AllowedOrigins) => Err(ValueError::NotList),
        (_, Field::Metadata) => Err(ValueError::NotObject),
        _ => Err(ValueError::NotString),
    }
}

fn string(json: &str) -> Result<Cow<'_, str>, ValueError> {
    let inner = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match inner.filter(|inner| !inner.as_bytes().contains(&b'\\')) {
        Some(inner) => Ok(Cow::Borrowed(inner)),
        None => serde_json::from_str(json).map(Cow::Owned).map_err(|_| ValueError::Escape),
    }
}

/// What is wrong with the names in an object.
enum Problem {
    Unknown(String),
    Twice(Field),
    Absent(Field),
}

impl Problem {
    fn report(&self, line: u64, mapping: &ColumnMapping, diagnostics: &mut Diagnostics) {
        match self {
            Self::Unknown(name) => {
                diagnostics.add(
                    line,
                    Some(Column::Unknown(Quoted(name).to_string().into())),
                    UnknownColumn(name),
                );
            }
            Self::Twice(field) => {
                diagnostics.add(
                    line,
                    Some(Column::Named(mapping.column(*field))),
                    "it is in the object twice",
                );
            }
            Self::Absent(field) => {
                let message = "it is not in the object, and source.required lists it";
                diagnostics.add(line, Some(Column::Named(mapping.column(*field))), message);
            }
        }
    }
}

/// Takes an object apart, and notes what is wrong with its names: a mistake in JSON itself comes first.
struct Object<'l> {
    mapping: &'l ColumnMapping,
    problems: &'l mut Vec<Problem>,
}

impl Object<'_> {
    fn parse<'de>(self, text: &'de str) -> serde_json::Result<Values<'de>> {
        let mut json = serde_json::Deserializer::from_str(text);
        let values = json.deserialize_map(self)?;
        json.end()?;
        Ok(values)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Values<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut values = Values::default();
        while let Some(role) = map.next_key_seed(Name { mapping: self.mapping, problems: self.problems })? {
            let ColumnRole::Field(field) = role else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if values[field as usize].replace(map.next_value()?).is_some() {
                self.problems.push(Problem::Twice(field));
            }
        }
        Ok(values)
    }
}

/// Looks up a name without keeping it.
struct Name<'l> {
    mapping: &'l ColumnMapping,
    problems: &'l mut Vec<Problem>,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = ColumnRole;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ColumnRole, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = ColumnRole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<ColumnRole, E> {
        let role = self.mapping.role(name);
        if role == ColumnRole::Unknown {
            self.problems.push(Problem::Unknown(name.to_owned()));
        }
        Ok(role)
    }
}
