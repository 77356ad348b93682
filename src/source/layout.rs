//! Which column of an export holds which field of a record.
//!
//! Names are compared exactly. A column that is neither a field nor ignored on purpose is refused: it is
//! more often a misspelt `allowed_ips` than something that nobody needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::record::{Field, FieldSet, Quoted};

use super::null::NullTexts;

/// The texts of one row by `Field as usize`; empty where the row has none.
pub(super) type Texts<'a> = [&'a str; Field::COUNT];

/// Where the columns of an export go. [`Layout::default`] is every field under its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
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
pub enum LayoutError {
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
pub(super) enum Slot {
    Field(Field),
    Ignored,
    Unknown,
}

impl Layout {
    /// `columns` maps fields to the names of their columns in the export; a field that it leaves out is found
    /// under its own name. Columns in `ignore` are skipped.
    ///
    /// # Errors
    /// When the two contradict each other; see [`LayoutError`].
    pub fn new(columns: &BTreeMap<Field, Arc<str>>, ignore: Vec<Arc<str>>) -> Result<Self, LayoutError> {
        let mut layout =
            Self { columns: Default::default(), mapped: Default::default(), ignore, ..Self::default() };
        for (&field, column) in columns {
            layout.map(field, Arc::clone(column))?;
        }
        for field in Field::ALL.into_iter().filter(|field| !columns.contains_key(field)) {
            match layout.slot(field.name()) {
                Slot::Unknown => layout.columns[field as usize] = Some(field.name().into()),
                Slot::Ignored if field.is_required() => return Err(LayoutError::RequiredIgnored { field }),
                Slot::Field(by) if field.is_required() => {
                    return Err(LayoutError::RequiredTaken { required: field, by });
                }
                Slot::Field(_) | Slot::Ignored => {}
            }
        }
        Ok(layout)
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

    fn map(&mut self, field: Field, column: Arc<str>) -> Result<(), LayoutError> {
        match self.slot(&column) {
            Slot::Unknown => {}
            Slot::Ignored => return Err(LayoutError::MappedAndIgnored { column, field }),
            Slot::Field(first) => return Err(LayoutError::MappedTwice { column, first, second: field }),
        }
        self.columns[field as usize] = Some(column);
        self.mapped[field as usize] = true;
        Ok(())
    }

    /// What the column `name` of an export holds.
    pub(super) fn slot(&self, name: &str) -> Slot {
        let field =
            Field::ALL.into_iter().find(|&field| self.columns[field as usize].as_deref() == Some(name));
        match field {
            Some(field) => Slot::Field(field),
            None if self.ignores_unknown || self.ignore.iter().any(|ignored| **ignored == *name) => {
                Slot::Ignored
            }
            None => Slot::Unknown,
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
    pub fn requiring(mut self, fields: impl IntoIterator<Item = Field>) -> Result<Self, LayoutError> {
        for field in fields {
            if self.columns[field as usize].is_none() {
                return Err(LayoutError::RequiredHasNoColumn { field });
            }
            self.required = self.required.with(field);
        }
        Ok(self)
    }

    /// The fields that every row has to have, besides those that no row can do without.
    pub(crate) fn required(&self) -> FieldSet {
        self.required
    }
}

impl Default for Layout {
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

    fn layout(columns: &[(Field, &str)], ignore: &[&str]) -> Result<Layout, LayoutError> {
        let columns = columns.iter().map(|&(field, column)| (field, column.into())).collect();
        Layout::new(&columns, ignore.iter().map(|&name| name.into()).collect())
    }

    #[test]
    fn a_field_is_found_by_its_name_unless_it_is_mapped() {
        for (index, field) in Field::ALL.into_iter().enumerate() {
            assert_eq!(field as usize, index);
            assert_eq!(Layout::default().slot(field.name()), Slot::Field(field));
        }
        let layout = layout(&[(Field::KeyHash, "sha256"), (Field::Owner, "plan")], &["id", "status"])
            .expect("a layout");
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
            message(layout(&[(Field::Owner, "x"), (Field::Plan, "x")], &[])),
            Err(r#"the column "x" is owner already: give each its own"#.to_owned())
        );
        assert_eq!(
            message(layout(&[(Field::Owner, "x")], &["x"])),
            Err(r#"the column "x" is mapped to owner: either read it or ignore it"#.to_owned())
        );
        assert_eq!(
            message(layout(&[(Field::Owner, "key_id")], &[])),
            Err(r#"the column "key_id" is taken from key_id, which is required: map key_id to a column too"#
                .to_owned())
        );
        assert_eq!(
            message(layout(&[], &["key_id"])),
            Err("key_id is required: do not ignore its column, or map it to another".to_owned())
        );
    }

    #[test]
    fn fields_may_swap_their_columns() {
        let layout = layout(&[(Field::Owner, "plan"), (Field::Plan, "owner")], &[]).expect("a layout");
        assert_eq!(layout.slot("owner"), Slot::Field(Field::Plan));
        assert_eq!(layout.slot("plan"), Slot::Field(Field::Owner));
    }
}
