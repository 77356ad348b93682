//! Which column of the source holds which field: other people's exports have their own names.

use std::collections::BTreeMap;

use super::text::{Text, deserialize_text};

/// Longest name of a column, in bytes; a database's is at most 63.
const MAX_COLUMN: usize = 128;

/// A field of a key record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each variant is the field of its name, described by KeyRecord")]
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
    /// Every field, in the order of the documentation.
    pub const ALL: [Self; 13] = [
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

    /// Its name, which is also its column's unless the configuration says otherwise.
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
}

impl Text for Field {
    const EXPECTED: &'static str = "a field of a key record";

    fn parse(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|field| field.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{text:?} is not a field: write one of {names}, and its column's name after the =")
        })
    }
}

/// The name of a column: 1..=128 bytes, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Column(pub(super) Box<str>);

impl Text for Column {
    const EXPECTED: &'static str = "the name of a column";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > MAX_COLUMN || text.contains(char::is_control) {
            return Err(format!("a column's name has 1 to {MAX_COLUMN} bytes and no control characters"));
        }
        Ok(Self(text.into()))
    }
}

deserialize_text!(Field, Column);

/// What each column of the source is: a field, ignored, or unknown.
///
/// A field that the configuration maps is read from that column only; every other field from the column of
/// its own name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    mapped: BTreeMap<Field, Box<str>>,
    ignored: Box<[Box<str>]>,
}

/// What to do with one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnUse {
    /// It holds this field.
    Field(Field),
    /// It is listed in `source.ignore`.
    Ignored,
    /// The configuration does not say, and the source is to be refused.
    Unknown,
}

impl Columns {
    /// Refuses two fields in one column, and a column that is both read and ignored; says which setting.
    pub(super) fn new(
        mapped: BTreeMap<Field, Column>,
        ignored: Vec<Column>,
    ) -> Result<Self, (String, String)> {
        let mut fields: BTreeMap<&str, Field> = BTreeMap::new();
        for (field, Column(column)) in &mapped {
            if let Some(first) = fields.insert(column, *field) {
                let problem = format!("the column {column:?} is {} already: give each its own", first.name());
                return Err((format!("source.columns.{}", field.name()), problem));
            }
        }
        if let Some(Column(column)) = ignored.iter().find(|column| fields.contains_key(&*column.0)) {
            let problem =
                format!("the column {column:?} is read by source.columns: name it in one of the two");
            return Err(("source.ignore".to_owned(), problem));
        }
        Ok(Self {
            mapped: mapped.into_iter().map(|(field, column)| (field, column.0)).collect(),
            ignored: ignored.into_iter().map(|column| column.0).collect(),
        })
    }

    /// The column that holds a field, unless it is ignored or another field is mapped to it.
    pub fn column(&self, field: Field) -> &str {
        self.mapped.get(&field).map_or(field.name(), |column| column)
    }

    /// What a column of this name is.
    pub fn what_is(&self, column: &str) -> ColumnUse {
        if let Some((field, _)) = self.mapped.iter().find(|(_, mapped)| ***mapped == *column) {
            return ColumnUse::Field(*field);
        }
        if self.ignored.iter().any(|ignored| **ignored == *column) {
            return ColumnUse::Ignored;
        }
        match Field::parse(column) {
            Ok(field) if !self.mapped.contains_key(&field) => ColumnUse::Field(field),
            _ => ColumnUse::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(mapped: &[(Field, &str)], ignored: &[&str]) -> Result<Columns, (String, String)> {
        let column = |name: &str| Column::parse(name).expect("a column");
        Columns::new(
            mapped.iter().map(|(field, name)| (*field, column(name))).collect(),
            ignored.iter().map(|name| column(name)).collect(),
        )
    }

    #[test]
    fn without_a_mapping_fields_have_their_own_names() {
        let columns = Columns::default();
        for field in Field::ALL {
            assert_eq!(columns.column(field), field.name());
            assert_eq!(columns.what_is(field.name()), ColumnUse::Field(field));
        }
        assert_eq!(columns.what_is("created_by"), ColumnUse::Unknown);
        assert_eq!(columns.what_is(""), ColumnUse::Unknown);
    }

    #[test]
    fn a_mapped_field_is_read_from_its_column_only() {
        let columns =
            columns(&[(Field::KeyHash, "sha256"), (Field::Owner, "plan")], &["created_by", "status"])
                .expect("no clash");
        assert_eq!(columns.column(Field::KeyHash), "sha256");
        assert_eq!(columns.what_is("sha256"), ColumnUse::Field(Field::KeyHash));
        assert_eq!(columns.what_is("key_hash"), ColumnUse::Unknown);
        assert_eq!(columns.what_is("plan"), ColumnUse::Field(Field::Owner));
        assert_eq!(columns.what_is("created_by"), ColumnUse::Ignored);
        assert_eq!(columns.what_is("status"), ColumnUse::Ignored, "theirs means something else");
        assert_eq!(columns.what_is("key_id"), ColumnUse::Field(Field::KeyId));
    }

    #[test]
    fn fields_may_swap_their_columns() {
        let columns = columns(&[(Field::Owner, "plan"), (Field::Plan, "owner")], &[]).expect("no clash");
        assert_eq!(columns.what_is("owner"), ColumnUse::Field(Field::Plan));
        assert_eq!(columns.what_is("plan"), ColumnUse::Field(Field::Owner));
    }
}
