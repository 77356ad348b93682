//! Some of the rows that differ between two sets of keys, and how.

use crate::snapshot::impact::AccessChanges;

/// Examples of each kind: a screenful.
pub const MAX_EXAMPLES: usize = 20;

/// The first [`MAX_EXAMPLES`] of each kind, in the order of the export that has them: for what is gone, the old one.
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

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// What the key is called; of a key that is renamed, before.
    pub key_id: Box<str>,
    /// The first bytes of its hash, to tell the rows of a rotation apart; too few to be of any use.
    pub hash: [u8; 4],
    /// What is said differently of it.
    pub differences: Vec<Difference>,
    /// What that changes in access; known of those that stop, start or lose a restriction.
    pub changes: AccessChanges,
}

/// One field that says something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its name in an export.
    pub field: &'static str,
    /// What it says before and after, where that is short. Empty: it says nothing.
    pub values: Option<[Box<str>; 2]>,
}

impl Difference {
    /// A field that is too long to be shown.
    pub(super) fn of(field: &'static str) -> Self {
        Self { field, values: None }
    }

    /// A field that is short.
    pub(super) fn between(field: &'static str, before: &str, after: &str) -> Self {
        Self { field, values: Some([before.into(), after.into()]) }
    }
}
