//! Maps the columns of an export to the fields of a record.
//!
//! Names are compared exactly. A column that is neither a field nor explicitly ignored is refused,
//! because it may be a misspelt restriction such as `allowed_ips`.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_engine::record::{Field, FieldSet, Quoted};
use serde::{Serialize, Serializer};

use crate::field::null::NullTexts;

/// The texts of one row, indexed by `Field as usize`. A text is empty if the row has no value.
pub(crate) type FieldTexts<'a> = [&'a str; Field::COUNT];

/// The columns of an export. By [default](ColumnMapping::default), each field is in the column of
/// its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnMapping {
    /// The column of each field; `None` if the name of the field is ignored or mapped to another
    /// field.
    columns: [Option<Arc<str>>; Field::COUNT],
    /// Whether the column of a field was configured; a header must then have it.
    mapped: [bool; Field::COUNT],
    ignore: Vec<Arc<str>>,
    /// Fields that an export must have, besides those that every row needs.
    required: FieldSet,
    /// Whether unknown columns are ignored instead of refused.
    ignores_unknown: bool,
    nulls: NullTexts,
}

/// Why a mapping contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnMappingError {
    /// A column is mapped to two fields.
    #[error("the column {} is {} already: give each its own", Quoted(.column), .first.name())]
    MappedTwice {
        /// The column.
        column: Arc<str>,
        /// The first field.
        first: Field,
        /// The second field.
        second: Field,
    },
    /// A column is mapped to a field and ignored.
    #[error("the column {} is mapped to {}: either read it or ignore it", Quoted(.column), .field.name())]
    MappedAndIgnored {
        /// The column.
        column: Arc<str>,
        /// The field.
        field: Field,
    },
    /// `key_hash` or `key_id` has no column, because the column of its name is ignored.
    #[error("{} is required: do not ignore its column, or map it to another", .field.name())]
    RequiredIgnored {
        /// The field.
        field: Field,
    },
    /// `key_hash` or `key_id` has no column, because the column of its name is mapped to another
    /// field.
    #[error("the column \"{0}\" is taken from {0}, which is required: map {0} to a column too", .required.name())]
    RequiredTaken {
        /// The field without a column.
        required: Field,
        /// The field that is mapped to its column.
        by: Field,
    },
    /// A field listed in `source.required` has no column.
    #[error("{} has no column: do not ignore it, or map it to a column of its own", .field.name())]
    RequiredHasNoColumn {
        /// The field.
        field: Field,
    },
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ColumnRole {
    Field(Field),
    Ignored,
    Unknown,
}

impl ColumnMapping {
    /// Creates a mapping. `columns` maps fields to the names of their columns; the other fields are
    /// in the columns of their own names. The columns in `ignore` are skipped.
    ///
    /// # Errors
    /// If `columns` and `ignore` contradict each other; see [`ColumnMappingError`].
    pub fn new(
        columns: &BTreeMap<Field, Arc<str>>,
        ignore: Vec<Arc<str>>,
    ) -> Result<Self, ColumnMappingError> {
        let mut mapping =
            Self { columns: Default::default(), mapped: Default::default(), ignore, ..Self::default() };
        for (&field, column) in columns {
            mapping.map(field, Arc::clone(column))?;
        }
        for field in Field::ALL.into_iter().filter(|field| !columns.contains_key(field)) {
            match mapping.role(field.name()) {
                ColumnRole::Unknown => mapping.columns[field as usize] = Some(field.name().into()),
                ColumnRole::Ignored if field.is_required() => {
                    return Err(ColumnMappingError::RequiredIgnored { field });
                }
                ColumnRole::Field(by) if field.is_required() => {
                    return Err(ColumnMappingError::RequiredTaken { required: field, by });
                }
                ColumnRole::Field(_) | ColumnRole::Ignored => {}
            }
        }
        Ok(mapping)
    }

    /// Sets the texts that stand for no value.
    pub fn with_null_texts(self, nulls: NullTexts) -> Self {
        Self { nulls, ..self }
    }

    /// Ignores unknown columns: for a reader that does not know the configuration of the daemon.
    pub fn ignoring_unknown(self) -> Self {
        Self { ignores_unknown: true, ..self }
    }

    /// The texts that stand for no value.
    pub(crate) fn nulls(&self) -> &NullTexts {
        &self.nulls
    }

    fn map(&mut self, field: Field, column: Arc<str>) -> Result<(), ColumnMappingError> {
        match self.role(&column) {
            ColumnRole::Unknown => {}
            ColumnRole::Ignored => return Err(ColumnMappingError::MappedAndIgnored { column, field }),
            ColumnRole::Field(first) => {
                return Err(ColumnMappingError::MappedTwice { column, first, second: field });
            }
        }
        self.columns[field as usize] = Some(column);
        self.mapped[field as usize] = true;
        Ok(())
    }

    /// What the column called `name` holds.
    pub(crate) fn role(&self, name: &str) -> ColumnRole {
        let field =
            Field::ALL.into_iter().find(|&field| self.columns[field as usize].as_deref() == Some(name));
        match field {
            Some(field) => ColumnRole::Field(field),
            None if self.ignores_unknown || self.ignore.iter().any(|ignored| **ignored == *name) => {
                ColumnRole::Ignored
            }
            None => ColumnRole::Unknown,
        }
    }

    /// The name of the column of a field.
    pub(crate) fn column(&self, field: Field) -> Arc<str> {
        self.columns[field as usize].clone().unwrap_or_else(|| field.name().into())
    }

    /// Whether a header must have a column for `field`.
    pub(crate) fn expects(&self, field: Field) -> bool {
        field.is_required() || self.mapped[field as usize] || self.required.contains(field)
    }

    /// Requires that an export has these fields.
    ///
    /// # Errors
    /// If one of them has no column, because it is ignored or mapped to another field.
    pub fn requiring(mut self, fields: impl IntoIterator<Item = Field>) -> Result<Self, ColumnMappingError> {
        for field in fields {
            if self.columns[field as usize].is_none() {
                return Err(ColumnMappingError::RequiredHasNoColumn { field });
            }
            self.required = self.required.with(field);
        }
        Ok(self)
    }

    /// The fields that an export must have, besides `key_hash` and `key_id`.
    pub fn required(&self) -> FieldSet {
        self.required
    }
}

/// The serialized form of a mapping. The daemon stores a digest of it, to recognise after a restart
/// that a source was parsed with the same mapping, so it must be stable. It contains names of
/// fields as in an export, and settings; the names of this struct's members are part of it. After a
/// change of the form, each daemon compares its source with the last good keys once more.
#[derive(Serialize)]
struct SerializedMapping<'m> {
    /// Each field with its column.
    columns: Vec<(&'static str, Option<&'m str>)>,
    mapped: Vec<&'static str>,
    ignore: Vec<&'m str>,
    required: Vec<&'static str>,
    ignores_unknown: bool,
    null_texts: Vec<&'m str>,
}

/// Two mappings are equal if and only if they serialize to the same text.
impl Serialize for ColumnMapping {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Without `..`: a new setting must be added to the form.
        let Self { columns, mapped, ignore, required, ignores_unknown, nulls } = self;
        let is_mapped = |field: &Field| mapped[*field as usize];
        SerializedMapping {
            columns: Field::ALL.map(|field| (field.name(), columns[field as usize].as_deref())).into(),
            mapped: Field::ALL.into_iter().filter(is_mapped).map(Field::name).collect(),
            ignore: ignore.iter().map(AsRef::as_ref).collect(),
            required: required.iter().map(Field::name).collect(),
            ignores_unknown: *ignores_unknown,
            null_texts: nulls.iter().collect(),
        }
        .serialize(serializer)
    }
}

impl Default for ColumnMapping {
    fn default() -> Self {
        let columns = Field::ALL.map(|field| Some(field.name().into()));
        Self {
            columns,
            mapped: Default::default(),
            ignore: Vec::new(),
            required: FieldSet::NONE,
            ignores_unknown: false,
            nulls: NullTexts::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(columns: &[(Field, &str)], ignore: &[&str]) -> Result<ColumnMapping, ColumnMappingError> {
        let columns = columns.iter().map(|&(field, column)| (field, column.into())).collect();
        ColumnMapping::new(&columns, ignore.iter().map(|&name| name.into()).collect())
    }

    #[test]
    fn field_is_in_the_column_of_its_name_unless_mapped() {
        for (index, field) in Field::ALL.into_iter().enumerate() {
            assert_eq!(field as usize, index);
            assert_eq!(ColumnMapping::default().role(field.name()), ColumnRole::Field(field));
        }
        let mapping = mapping(&[(Field::KeyHash, "sha256"), (Field::Owner, "plan")], &["id", "status"])
            .expect("a mapping");
        assert_eq!(mapping.role("sha256"), ColumnRole::Field(Field::KeyHash));
        assert_eq!(mapping.role("key_hash"), ColumnRole::Unknown);
        assert_eq!(mapping.role("plan"), ColumnRole::Field(Field::Owner));
        assert_eq!(mapping.role("owner"), ColumnRole::Unknown);
        assert_eq!(mapping.role("key_id"), ColumnRole::Field(Field::KeyId));
        assert_eq!(mapping.role("id"), ColumnRole::Ignored);
        assert_eq!(mapping.role("status"), ColumnRole::Ignored);
        assert_eq!(mapping.role("Key_ID"), ColumnRole::Unknown);
        assert!(
            mapping.expects(Field::Owner) && mapping.expects(Field::KeyId) && !mapping.expects(Field::Plan)
        );
    }

    #[test]
    fn contradictory_mapping_is_refused() {
        let message =
            |result: Result<ColumnMapping, ColumnMappingError>| result.map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(
            message(mapping(&[(Field::Owner, "x"), (Field::Plan, "x")], &[])),
            Err(r#"the column "x" is owner already: give each its own"#.to_owned())
        );
        assert_eq!(
            message(mapping(&[(Field::Owner, "x")], &["x"])),
            Err(r#"the column "x" is mapped to owner: either read it or ignore it"#.to_owned())
        );
        assert_eq!(
            message(mapping(&[(Field::Owner, "key_id")], &[])),
            Err(r#"the column "key_id" is taken from key_id, which is required: map key_id to a column too"#
                .to_owned())
        );
        assert_eq!(
            message(mapping(&[], &["key_id"])),
            Err("key_id is required: do not ignore its column, or map it to another".to_owned())
        );
    }

    #[test]
    fn two_fields_can_swap_their_columns() {
        let mapping = mapping(&[(Field::Owner, "plan"), (Field::Plan, "owner")], &[]).expect("a mapping");
        assert_eq!(mapping.role("owner"), ColumnRole::Field(Field::Plan));
        assert_eq!(mapping.role("plan"), ColumnRole::Field(Field::Owner));
    }

    /// Daemons store a digest of this text. A change makes each of them compare its source with the
    /// last good keys once more, so it is worth a line in the change log.
    #[test]
    fn serialized_form_is_stable() {
        let mapping = mapping(&[(Field::KeyHash, "sha256"), (Field::Owner, "plan")], &["note", "status"])
            .expect("a mapping")
            .requiring([Field::Scopes, Field::ExpiresAt])
            .expect("they have columns")
            .ignoring_unknown()
            .with_null_texts(NullTexts::new(["NULL".into(), "\\N".into(), "\"-\"".into()]));
        let columns = concat!(
            r#"[["key_hash","sha256"],["key_id","key_id"],["owner","plan"],["environment","environment"],"#,
            r#"["plan",null],["status",null],["not_before","not_before"],["expires_at","expires_at"],"#,
            r#"["scopes","scopes"],["allowed_ips","allowed_ips"],["allowed_origins","allowed_origins"],"#,
            r#"["limits","limits"],["metadata","metadata"]]"#,
        );
        let rest = concat!(
            r#""mapped":["key_hash","owner"],"ignore":["note","status"],"required":["expires_at","scopes"],"#,
            r#""ignores_unknown":true,"null_texts":["NULL","\\N","\"-\""]"#,
        );
        let expected = format!(r#"{{"columns":{columns},{rest}}}"#);
        assert_eq!(serde_json::to_string(&mapping).expect("text"), expected);
    }
}
