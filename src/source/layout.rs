//! Which column of an export holds which field of a record.
//!
//! Names are compared exactly. A column that is neither a field nor ignored on purpose is refused: it is
//! more often a misspelt `allowed_ips` than something that nobody needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use keyward_engine::record::{Field, FieldSet, Quoted};

use super::null::NullTexts;

/// The texts of one row by `Field as usize`; empty where the row has none.
pub(super) type Texts<'a> = [&'a str; Field::COUNT];

/// Where the columns of an export go. [`ColumnMapping::default`] is every field under its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnMapping {
    /// The column of each field; `None` where another field or `ignore` has taken the name away.
    columns: [Option<Arc<str>>; Field::COUNT],
    /// FieldSet whose column was named on purpose: a header without it is wrong.
    mapped: [bool; Field::COUNT],
    ignore: Vec<Arc<str>>,
    /// FieldSet that an export has to have.
    required: FieldSet,
    /// Whether columns that are not known are ignored too.
    ignores_unknown: bool,
    nulls: NullTexts,
}

/// Why a layout makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ColumnMappingError {
    /// One column for two fields.
    #[error("the column {} is {} already: give each its own", Quoted(.column), .first.name())]
    MappedTwice {
        /// The column.
        column: Arc<str>,
        /// The field that has it.
        first: Field,
        /// The field that wants it too.
        second: Field,
    },
    /// One column is a field and ignored.
    #[error("the column {} is mapped to {}: either read it or ignore it", Quoted(.column), .field.name())]
    MappedAndIgnored {
        /// The column.
        column: Arc<str>,
        /// The field that it is mapped to.
        field: Field,
    },
    /// `key_hash` or `key_id` is left without a column, because its own is ignored.
    #[error("{} is required: do not ignore its column, or map it to another", .field.name())]
    RequiredIgnored {
        /// The field.
        field: Field,
    },
    /// `key_hash` or `key_id` is left without a column, because its own is mapped to another field.
    #[error("the column \"{0}\" is taken from {0}, which is required: map {0} to a column too", .required.name())]
    RequiredTaken {
        /// The field without a column.
        required: Field,
        /// The field that has its column.
        by: Field,
    },
    /// A field that an export has to have is left without a column.
    #[error("{} has no column: do not ignore it, or map it to a column of its own", .field.name())]
    RequiredHasNoColumn {
        /// The field.
        field: Field,
    },
}

/// What to do with a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnRole {
    Field(Field),
    Ignored,
    Unknown,
}

impl ColumnMapping {
    /// `columns` maps fields to the names of their columns in the export; a field that it leaves out is found
    /// under its own name. Columns in `ignore` are skipped.
    ///
    /// # Errors
    /// When the two contradict each other; see [`ColumnMappingError`].
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

    /// The same, with these texts for "no value".
    pub fn with_null_texts(self, nulls: NullTexts) -> Self {
        Self { nulls, ..self }
    }

    /// The same, with columns that are not known ignored: for a reader that does not know the daemon's configuration.
    pub fn ignoring_unknown(self) -> Self {
        Self { ignores_unknown: true, ..self }
    }

    /// The texts that stand for no value.
    pub(super) fn nulls(&self) -> &NullTexts {
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

    /// What the column `name` of an export holds.
    pub(super) fn role(&self, name: &str) -> ColumnRole {
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

    /// The name of a field's column in the export.
    pub(super) fn column(&self, field: Field) -> Arc<str> {
        self.columns[field as usize].clone().unwrap_or_else(|| field.name().into())
    }

    /// Whether a header has to have a column for the field.
    pub(super) fn expects(&self, field: Field) -> bool {
        field.is_required() || self.mapped[field as usize] || self.required.contains(field)
    }

    /// The same layout for exports that have to have these fields.
    ///
    /// # Errors
    /// When one of them has no column, because it is ignored or mapped to another field.
    pub fn requiring(mut self, fields: impl IntoIterator<Item = Field>) -> Result<Self, ColumnMappingError> {
        for field in fields {
            if self.columns[field as usize].is_none() {
                return Err(ColumnMappingError::RequiredHasNoColumn { field });
            }
            self.required = self.required.with(field);
        }
        Ok(self)
    }

    /// The fields that every row has to have, besides those that no row can do without.
    pub fn required(&self) -> FieldSet {
        self.required
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
    fn a_field_is_found_by_its_name_unless_it_is_mapped() {
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
    fn a_layout_that_contradicts_itself_is_refused() {
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
    fn fields_may_swap_their_columns() {
        let mapping = mapping(&[(Field::Owner, "plan"), (Field::Plan, "owner")], &[]).expect("a mapping");
        assert_eq!(mapping.role("owner"), ColumnRole::Field(Field::Plan));
        assert_eq!(mapping.role("plan"), ColumnRole::Field(Field::Owner));
    }
}
