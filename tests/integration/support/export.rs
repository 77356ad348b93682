//! Exports for tests: one row per key, in CSV or JSON Lines.
//!
//! ```ignore
//! Export::of(["a", "b"])
//! Export::new([row("a").status("revoked"), row("b").limits("100/d burst 5")])
//! Export::new((0..200).map(|number| row(format!("k{number}")).plan("free"))).columns(["owner"])
//! ```
//!
//! Tests of malformed exports write their text out instead.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

/// SHA-256 of a raw key in hexadecimal, as exports contain it.
pub(crate) fn sha256_hex(key: impl AsRef<[u8]>) -> String {
    const_hex::encode(Sha256::digest(key))
}

/// A row whose raw key and `key_id` are both `key`, without restrictions.
pub(crate) fn row(key: impl Into<String>) -> Row {
    let key = key.into();
    Row { fields: vec![("key_hash", sha256_hex(&key)), ("key_id", key)], literal: None }
}

/// A literal line of CSV, or several, in place of a row: without its newline, and possibly
/// malformed.
pub(crate) fn line(text: impl Into<String>) -> Row {
    Row { fields: Vec::new(), literal: Some(text.into()) }
}

/// The fields of one key. A field is empty unless it is set.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    fields: Vec<(&'static str, String)>,
    literal: Option<String>,
}

impl Row {
    pub(crate) fn hash(self, hash: impl Into<String>) -> Self {
        self.set("key_hash", hash)
    }

    pub(crate) fn id(self, key_id: impl Into<String>) -> Self {
        self.set("key_id", key_id)
    }

    pub(crate) fn owner(self, owner: impl Into<String>) -> Self {
        self.set("owner", owner)
    }

    pub(crate) fn environment(self, environment: impl Into<String>) -> Self {
        self.set("environment", environment)
    }

    pub(crate) fn plan(self, plan: impl Into<String>) -> Self {
        self.set("plan", plan)
    }

    pub(crate) fn status(self, status: impl Into<String>) -> Self {
        self.set("status", status)
    }

    pub(crate) fn expires_at(self, expires_at: impl Into<String>) -> Self {
        self.set("expires_at", expires_at)
    }

    pub(crate) fn allowed_ips(self, allowed_ips: impl Into<String>) -> Self {
        self.set("allowed_ips", allowed_ips)
    }

    pub(crate) fn limits(self, limits: impl Into<String>) -> Self {
        self.set("limits", limits)
    }

    pub(crate) fn metadata(self, metadata: impl Into<String>) -> Self {
        self.set("metadata", metadata)
    }

    /// Sets the field of any column.
    pub(crate) fn set(mut self, column: &'static str, value: impl Into<String>) -> Self {
        match self.fields.iter_mut().find(|(name, _)| *name == column) {
            Some((_, field)) => *field = value.into(),
            None => self.fields.push((column, value.into())),
        }
        self
    }

    pub(crate) fn key_id(&self) -> &str {
        self.get("key_id")
    }

    fn get(&self, column: &str) -> &str {
        self.fields.iter().find(|(name, _)| *name == column).map_or("", |(_, value)| value)
    }
}

/// An export with the columns `key_hash` and `key_id` and every column that a row sets.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    columns: Vec<&'static str>,
    rows: Vec<Row>,
}

impl Export {
    pub(crate) fn new(rows: impl IntoIterator<Item = Row>) -> Self {
        Self { columns: vec!["key_hash", "key_id"], rows: Vec::new() }.rows(rows)
    }

    /// Keys without restrictions.
    pub(crate) fn of<K: Into<String>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self::new(keys.into_iter().map(row))
    }

    /// Appends rows.
    pub(crate) fn rows(mut self, rows: impl IntoIterator<Item = Row>) -> Self {
        for row in rows {
            self = self.columns(row.fields.iter().map(|(name, _)| *name));
            self.rows.push(row);
        }
        self
    }

    /// Changes every row.
    pub(crate) fn map_rows(self, change: impl FnMut(Row) -> Row) -> Self {
        Self { columns: self.columns, rows: Vec::new() }.rows(self.rows.into_iter().map(change))
    }

    /// Adds columns that no row needs to set.
    pub(crate) fn columns(mut self, columns: impl IntoIterator<Item = &'static str>) -> Self {
        for column in columns {
            if !self.columns.contains(&column) {
                self.columns.push(column);
            }
        }
        self
    }

    pub(crate) fn to_csv(&self) -> String {
        let mut text = self.columns.join(",") + "\n";
        for row in &self.rows {
            match &row.literal {
                Some(literal) => text.push_str(literal),
                None => {
                    let fields: Vec<_> =
                        self.columns.iter().map(|column| csv_field(row.get(column))).collect();
                    text.push_str(&fields.join(","));
                }
            }
            text.push('\n');
        }
        text
    }

    /// One object per row, with the fields that the row sets. A field set to the empty string is
    /// null.
    pub(crate) fn to_json_lines(&self) -> String {
        let line = |row: &Row| {
            let value = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty()).into();
            let fields = row.fields.iter().map(|(name, field)| ((*name).to_owned(), value(field)));
            serde_json::Value::Object(fields.collect()).to_string() + "\n"
        };
        self.rows.iter().map(line).collect()
    }
}

fn csv_field(field: &str) -> Cow<'_, str> {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\"")).into()
    } else {
        field.into()
    }
}

/// Functions that take an export as `impl Into<String>` get it in CSV.
impl From<Export> for String {
    fn from(export: Export) -> Self {
        export.to_csv()
    }
}

impl From<&Export> for String {
    fn from(export: &Export) -> Self {
        export.to_csv()
    }
}
