//! The row of a key, as a line of an export.

use serde::{Serialize, Serializer};

use super::header::Header;
use crate::cli::exit::{CliError, Exit};
use keyward_source::Field;

/// The exported fields of a key.
pub(super) struct Row<'a> {
    pub(super) key_hash: String,
    pub(super) key_id: String,
    pub(super) owner: Option<&'a str>,
    pub(super) environment: Option<&'a str>,
    pub(super) plan: Option<&'a str>,
    pub(super) not_before: Option<&'a str>,
    pub(super) expires_at: Option<&'a str>,
    pub(super) scopes: Option<&'a str>,
    pub(super) limits: Option<&'a str>,
}

/// An object with the fields that are present.
impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.fields().map(|(field, text)| (field.name(), text)))
    }
}

impl Row<'_> {
    /// The fields that are present, in the order of the header.
    pub(super) fn fields(&self) -> impl Iterator<Item = (Field, &str)> {
        let optional = [
            (Field::Owner, self.owner),
            (Field::Environment, self.environment),
            (Field::Plan, self.plan),
            (Field::NotBefore, self.not_before),
            (Field::ExpiresAt, self.expires_at),
            (Field::Scopes, self.scopes),
            (Field::Limits, self.limits),
        ];
        let required = [(Field::KeyHash, Some(&*self.key_hash)), (Field::KeyId, Some(&*self.key_id))];
        required.into_iter().chain(optional).filter_map(|(field, text)| Some((field, text?)))
    }

    /// As a line of JSON Lines.
    pub(super) fn json(&self) -> Result<String, CliError> {
        serde_json::to_string(self).map_err(|error| CliError::new(Exit::Denied, error))
    }

    pub(super) fn header(&self) -> String {
        self.fields().map(|(field, _)| field.name()).collect::<Vec<_>>().join(",")
    }

    pub(super) fn csv(&self) -> String {
        self.fields().map(|(_, text)| quoted(text)).collect::<Vec<_>>().join(",")
    }

    /// As a line of CSV under another header. Absent fields are empty.
    pub(super) fn csv_under(&self, header: &Header) -> String {
        let text =
            |column: &Field| self.fields().find(|(field, _)| field == column).map_or("", |(_, text)| text);
        let columns = header.columns.iter().map(|field| field.as_ref().map_or("", text));
        columns.map(quoted).collect::<Vec<_>>().join(",")
    }
}

/// Quotes a value as in RFC 4180.
fn quoted(text: &str) -> String {
    let is_plain = !text.contains([',', '"', '\r', '\n']) && text.trim() == text;
    if is_plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}
