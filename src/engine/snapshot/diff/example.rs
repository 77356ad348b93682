//! Examples of the rows that differ between two tables, and of their differences.

use crate::snapshot::diff::access_change::AccessChanges;

/// Examples of each kind: a screenful.
pub const MAX_EXAMPLES: usize = 20;

/// The first [`MAX_EXAMPLES`] of each kind, in the order of the source that lists them. A removed
/// key is listed by the old source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the counts")]
pub struct Examples {
    pub added: Vec<Example>,
    pub removed: Vec<Example>,
    pub changed: Vec<Example>,
    pub revoked: Vec<Example>,
    pub stopping: Vec<Example>,
    pub starting: Vec<Example>,
    pub loosened: Vec<Example>,
}

/// One row that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// The key id; of a renamed key, the old one.
    pub key_id: Box<str>,
    /// The first bytes of the digest, to tell the rows of a key in rotation apart. They are too few
    /// to be of any other use.
    pub hash: [u8; 4],
    /// The fields that differ.
    pub differences: Vec<Difference>,
    /// How access changes. Known for keys that stop working, start working or lose a restriction.
    pub changes: AccessChanges,
}

/// A field whose value differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name in a source.
    pub field: &'static str,
    /// The values before and after, if they are short. An empty text stands for no value.
    pub values: Option<[Box<str>; 2]>,
}

impl Difference {
    /// A difference whose values are too long to be shown.
    pub(super) fn of(field: &'static str) -> Self {
        Self { field, values: None }
    }

    /// A difference with its values.
    pub(super) fn between(field: &'static str, before: &str, after: &str) -> Self {
        Self { field, values: Some([before.into(), after.into()]) }
    }
}
