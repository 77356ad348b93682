//! Which column of an export holds which field of a record.
//!
//! Names are compared exactly. A column that is neither a field nor ignored on purpose is refused: it is
//! more often a misspelt `allowed_ips` than something that nobody needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::Quoted;

/// A field of a key record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the record's own fields")]
pub enum Field {
    KeyHash,
    KeyId,
    Owner,
    Environment,
    Plan,
    Status,
    NotBefore,
    ExpiresAt,
    Scopes,
    AllowedIps,
    AllowedOrigins,
    Limits,
    Metadata,
}

impl Field {
    /// How many fields a record has.
    pub const COUNT: usize = 13;

    /// Every field, in the order of its discriminant.
    pub const ALL: [Self; Self::COUNT] = [
        Self::KeyHash,
        Self::KeyId,
        Self::Owner,
        Self::Environment,
        Self::Plan,
        Self::Status,
        Self::NotBefore,
        Self::ExpiresAt,
        Self::Scopes,
        Self::AllowedIps,
        Self::AllowedOrigins,
        Self::Limits,
        Self::Metadata,
    ];

    /// Its name in an export, unless a [`Layout`] gives it another.
    pub fn name(self) -> &'static str {
        match self {
            Self::KeyHash => "key_hash",
            Self::KeyId => "key_id",
            Self::Owner => "owner",
            Self::Environment => "environment",
            Self::Plan => "plan",
            Self::Status => "status",
            Self::NotBefore => "not_before",
            Self::ExpiresAt => "expires_at",
            Self::Scopes => "scopes",
            Self::AllowedIps => "allowed_ips",
            Self::AllowedOrigins => "allowed_origins",
            Self::Limits => "limits",
            Self::Metadata => "metadata",
        }
    }

    /// Whether every row has to have it.
    pub fn is_required(self) -> bool {
        matches!(self, Self::KeyHash | Self::KeyId)
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

/// The texts of one row by `Field as usize`; empty where the row has none.
pub(super) type Texts<'a> = [&'a str; Field::COUNT];

/// Where the columns of an export go. [`Layout::default`] is every field under its own name.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The column of each field; `None` where another field or `ignore` has taken the name away.
    columns: [Option<Arc<str>>; Field::COUNT],
    /// Fields whose column was named on purpose: a header without it is wrong.
    mapped: [bool; Field::COUNT],
    ignore: Vec<String>,
}

/// Why a layout makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A column is mapped to something that is no field.
    #[error("{} is not a field of a key; the fields are {}", Quoted(.0), field_names())]
    UnknownField(String),
    /// One column for two fields.
    #[error("the column {} is mapped to two fields", Quoted(.0))]
    MappedTwice(String),
    /// One column is a field and ignored.
    #[error("the column {} is both mapped to a field and ignored", Quoted(.0))]
    MappedAndIgnored(String),
    /// `key_hash` or `key_id` is left without a column.
    #[error("{0} is required, but its column is ignored or mapped to another field")]
    Required(&'static str),
}

/// What to do with a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    Field(Field),
    Ignored,
    Unknown,
}

impl Layout {
    /// `columns` maps the name of a field to that of its column in the export; a field that it leaves out is
    /// found under its own name. Columns in `ignore` are skipped.
    ///
    /// # Errors
    /// When the two contradict each other or name no field; see [`LayoutError`].
    pub fn new(columns: &BTreeMap<String, String>, ignore: Vec<String>) -> Result<Self, LayoutError> {
        let mut layout = Self { columns: Default::default(), mapped: Default::default(), ignore };
        for (field, column) in columns {
            let field = Field::from_name(field).ok_or_else(|| LayoutError::UnknownField(field.clone()))?;
            if layout.ignore.contains(column) {
                return Err(LayoutError::MappedAndIgnored(column.clone()));
            }
            if layout.slot(column) != Slot::Unknown {
                return Err(LayoutError::MappedTwice(column.clone()));
            }
            layout.columns[field as usize] = Some(column.as_str().into());
            layout.mapped[field as usize] = true;
        }
        for field in Field::ALL.into_iter().filter(|field| !columns.contains_key(field.name())) {
            if layout.slot(field.name()) == Slot::Unknown {
                layout.columns[field as usize] = Some(field.name().into());
            } else if field.is_required() {
                return Err(LayoutError::Required(field.name()));
            }
        }
        Ok(layout)
    }

    /// What the column `name` of an export holds.
    pub(super) fn slot(&self, name: &str) -> Slot {
        let field =
            Field::ALL.into_iter().find(|&field| self.columns[field as usize].as_deref() == Some(name));
        match field {
            Some(field) => Slot::Field(field),
            None if self.ignore.iter().any(|ignored| ignored == name) => Slot::Ignored,
            None => Slot::Unknown,
        }
    }

    /// The name of a field's column in the export.
    pub(super) fn column(&self, field: Field) -> Arc<str> {
        self.columns[field as usize].clone().unwrap_or_else(|| field.name().into())
    }

    /// Whether a header has to have a column for the field.
    pub(super) fn expects(&self, field: Field) -> bool {
        field.is_required() || self.mapped[field as usize]
    }
}

impl Default for Layout {
    fn default() -> Self {
        let columns = Field::ALL.map(|field| Some(field.name().into()));
        Self { columns, mapped: Default::default(), ignore: Vec::new() }
    }
}

/// Why a column that is no field is refused.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{} is not a field of a key, nor listed as ignored; the fields are {}", Quoted(.0), field_names())]
pub(super) struct UnknownColumn<'a>(pub(super) &'a str);

fn field_names() -> String {
    Field::ALL.map(Field::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(columns: &[(&str, &str)], ignore: &[&str]) -> Result<Layout, LayoutError> {
        let columns = columns.iter().map(|&(field, column)| (field.to_owned(), column.to_owned())).collect();
        Layout::new(&columns, ignore.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn a_field_is_found_by_its_name_unless_it_is_mapped() {
        for (index, field) in Field::ALL.into_iter().enumerate() {
            assert_eq!(field as usize, index);
            assert_eq!(Layout::default().slot(field.name()), Slot::Field(field));
        }
        let layout =
            layout(&[("key_hash", "sha256"), ("owner", "plan")], &["id", "status"]).expect("a layout");
        assert_eq!(layout.slot("sha256"), Slot::Field(Field::KeyHash));
        assert_eq!(layout.slot("key_hash"), Slot::Unknown);
        assert_eq!(layout.slot("plan"), Slot::Field(Field::Owner));
        assert_eq!(layout.slot("owner"), Slot::Unknown);
        assert_eq!(layout.slot("key_id"), Slot::Field(Field::KeyId));
        assert_eq!(layout.slot("id"), Slot::Ignored);
        assert_eq!(layout.slot("status"), Slot::Ignored);
        assert_eq!(layout.slot("Key_ID"), Slot::Unknown);
        assert!(layout.expects(Field::Owner) && layout.expects(Field::KeyId) && !layout.expects(Field::Plan));
    }

    #[test]
    fn a_layout_that_contradicts_itself_is_refused() {
        let message = |result: Result<Layout, LayoutError>| result.map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(
            message(layout(&[("scope", "s")], &[])),
            Err("\"scope\" is not a field of a key; the fields are key_hash, key_id, owner, environment, plan, \
                 status, not_before, expires_at, scopes, allowed_ips, allowed_origins, limits, metadata"
                .to_owned())
        );
        assert_eq!(
            message(layout(&[("owner", "x"), ("plan", "x")], &[])),
            Err(r#"the column "x" is mapped to two fields"#.to_owned())
        );
        assert_eq!(
            message(layout(&[("owner", "x")], &["x"])),
            Err(r#"the column "x" is both mapped to a field and ignored"#.to_owned())
        );
        for wrong in [layout(&[("owner", "key_id")], &[]), layout(&[], &["key_id"])] {
            assert_eq!(
                message(wrong),
                Err("key_id is required, but its column is ignored or mapped to another field".to_owned())
            );
        }
    }
}
