//! Reads JSON Lines exports: one object per line, with its fields in any order. A field without a
//! value is absent or null.
//!
//! The values are not parsed into a tree. Numbers, arrays and strings without escapes are texts
//! that the parsers of the fields read in place.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, Read};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use keyward_engine::record::{Field, Quoted};

use crate::column_hint::UnknownColumn;
use crate::column_mapping::{ColumnMapping, ColumnRole, FieldTexts};
use crate::diagnostic::{Column, Diagnostics, Location};
use crate::key_texts::{KeyTexts, find_key_texts};
use crate::row::Rows;
use crate::{FramingError, MAX_ROW};

/// Reads a JSON Lines export into `rows`.
pub(crate) fn read(mut input: impl BufRead, mapping: &ColumnMapping, rows: &mut Rows<'_>) -> io::Result<()> {
    let mut line = Vec::with_capacity(4096);
    for number in 1.. {
        line.clear();
        // Bounds the buffer if a line does not end.
        if input.by_ref().take(MAX_ROW as u64 + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Some(bytes) = line.strip_suffix(b"\n") else {
            let location = Location::Row { line: number };
            if line.len() > MAX_ROW {
                rows.diagnostics.add(location, TooLong);
            } else {
                rows.diagnostics.add(location, FramingError::NoNewline);
            }
            break;
        };
        if !bytes.trim_ascii().is_empty() {
            rows.begin();
            let total_before = rows.diagnostics.total();
            let values = read_row(number, bytes, mapping, rows);
            if rows.diagnostics.total() > total_before {
                let texts = match values {
                    Some(values) => Some(key_texts(&values)),
                    None => find_key_texts(bytes, mapping),
                };
                rows.diagnostics.close_row(number, total_before, texts);
            }
        }
    }
    Ok(())
}

/// A line exceeds [`MAX_ROW`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the line is longer than {MAX_ROW} bytes: the newline behind an object may be missing, or a field is as large as that and \
     has to be left out of the export"
)]
struct TooLong;

/// The texts of the digest and the key id of an object.
fn key_texts(values: &Values<'_>) -> KeyTexts {
    [Field::KeyHash, Field::KeyId].map(|field| {
        let text = value_text(field, values[field as usize]?.get()).ok()?;
        Some(text.into())
    })
}

/// Reads one line. Returns its values, unless it is not an object or has two digests.
fn read_row<'b>(
    line: u64,
    bytes: &'b [u8],
    mapping: &ColumnMapping,
    rows: &mut Rows<'_>,
) -> Option<Values<'b>> {
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let column = Column::Byte(error.valid_up_to() + 1);
            let message = "this is not UTF-8; export the file as UTF-8";
            rows.diagnostics.add(Location::Column { line, column }, message);
            return None;
        }
    };
    if !text.trim_start().starts_with('{') {
        let message = "a line of JSON Lines is one object, as in {\"key_hash\":\"...\",\"key_id\":\"...\"}";
        rows.diagnostics.add(Location::Row { line }, message);
        return None;
    }
    let mut problems = Vec::new();
    let values = match (ObjectVisitor { mapping, problems: &mut problems }).parse(text) {
        Ok(values) => values,
        Err(error) => {
            let column = Column::Byte(error.column());
            rows.diagnostics.add(Location::Column { line, column }, SyntaxError(error));
            return None;
        }
    };
    let absent = mapping.required().iter().filter(|field| values[*field as usize].is_none());
    problems.extend(absent.map(NameProblem::Absent));
    problems.iter().for_each(|problem| problem.report(line, mapping, rows.diagnostics));
    let decoded = decode(line, &values, mapping, rows.diagnostics);
    if let Some(decoded) = decoded.filter(|_| problems.is_empty()) {
        let texts: FieldTexts<'_> = std::array::from_fn(|index| &*decoded[index]);
        rows.deliver(line, &texts, |field| Column::Named(mapping.column(field)));
    }
    let has_two_hashes =
        problems.iter().any(|problem| matches!(problem, NameProblem::Duplicate(Field::KeyHash)));
    (!has_two_hashes).then_some(values)
}

/// A line is not JSON. The message omits the position, which the diagnostic has, and contains
/// nothing of the line.
#[derive(Debug)]
struct SyntaxError(serde_json::Error);

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.0.to_string();
        let reason = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
        write!(f, "it is not JSON: {reason}")
    }
}

type Values<'a> = [Option<&'a RawValue>; Field::COUNT];

/// Converts each value to text. Returns `None` after adding the problems to `diagnostics`.
fn decode<'a>(
    line: u64,
    values: &Values<'a>,
    mapping: &ColumnMapping,
    diagnostics: &mut Diagnostics,
) -> Option<[Cow<'a, str>; Field::COUNT]> {
    let mut texts: [Cow<'a, str>; Field::COUNT] = Default::default();
    let mut is_valid = true;
    for field in Field::ALL {
        let Some(value) = values[field as usize] else { continue };
        match value_text(field, value.get()) {
            Ok(text) => texts[field as usize] = text,
            Err(error) => {
                is_valid = false;
                let column = Column::Named(mapping.column(field));
                diagnostics.add(Location::Column { line, column }, error);
            }
        }
    }
    is_valid.then_some(texts)
}

/// Why a JSON value is not a value of its field.
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

/// Converts a value to text: the content of a string, or a number, an array or an object as
/// written. Ids and owners may be numbers, as they are in many tables.
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

/// A problem with the names in an object.
enum NameProblem {
    Unknown(String),
    Duplicate(Field),
    Absent(Field),
}

impl NameProblem {
    fn report(&self, line: u64, mapping: &ColumnMapping, diagnostics: &mut Diagnostics) {
        match self {
            Self::Unknown(name) => {
                let column = Column::Unknown(Quoted(name).to_string().into());
                diagnostics.add(Location::Column { line, column }, UnknownColumn(name));
            }
            Self::Duplicate(field) => {
                let column = Column::Named(mapping.column(*field));
                diagnostics.add(Location::Column { line, column }, "it is in the object twice");
            }
            Self::Absent(field) => {
                let column = Column::Named(mapping.column(*field));
                let message = "it is not in the object, and source.required lists it";
                diagnostics.add(Location::Column { line, column }, message);
            }
        }
    }
}

/// Splits an object into its values. Collects problems with names instead of reporting them,
/// because a syntax error takes precedence.
struct ObjectVisitor<'l> {
    mapping: &'l ColumnMapping,
    problems: &'l mut Vec<NameProblem>,
}

impl ObjectVisitor<'_> {
    fn parse<'de>(self, text: &'de str) -> serde_json::Result<Values<'de>> {
        let mut json = serde_json::Deserializer::from_str(text);
        let values = json.deserialize_map(self)?;
        json.end()?;
        Ok(values)
    }
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = Values<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut values = Values::default();
        while let Some(role) =
            map.next_key_seed(NameVisitor { mapping: self.mapping, problems: self.problems })?
        {
            let ColumnRole::Field(field) = role else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if values[field as usize].replace(map.next_value()?).is_some() {
                self.problems.push(NameProblem::Duplicate(field));
            }
        }
        Ok(values)
    }
}

/// Resolves a name without allocating it.
struct NameVisitor<'l> {
    mapping: &'l ColumnMapping,
    problems: &'l mut Vec<NameProblem>,
}

impl<'de> DeserializeSeed<'de> for NameVisitor<'_> {
    type Value = ColumnRole;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ColumnRole, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameVisitor<'_> {
    type Value = ColumnRole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<ColumnRole, E> {
        let role = self.mapping.role(name);
        if role == ColumnRole::Unknown {
            self.problems.push(NameProblem::Unknown(name.to_owned()));
        }
        Ok(role)
    }
}
