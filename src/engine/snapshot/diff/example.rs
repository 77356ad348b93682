//! Examples of the rows that differ between two tables, and of their differences.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::record::Digest;
use crate::snapshot::diff::access_change::AccessChanges;

/// Examples of each kind: a screenful.
pub const MAX_EXAMPLES: usize = 20;

/// The first [`MAX_EXAMPLES`] of each kind, in the order of the source that lists them. A removed
/// key is listed by the old source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examples {
    /// New keys.
    pub added: Vec<Example>,
    /// Keys that are gone.
    pub removed: Vec<Example>,
    /// Keys whose row differs.
    pub changed: Vec<Example>,
    /// Keys that are no longer active. Most of them are listed above too.
    #[serde(rename = "revoked")]
    pub deactivated: Vec<Example>,
    /// Keys that stop working.
    #[serde(default)]
    pub stopping: Vec<Example>,
    /// Keys that did not work and start working.
    #[serde(default)]
    pub starting: Vec<Example>,
    /// Keys that lose a restriction.
    #[serde(default)]
    pub loosened: Vec<Example>,
}

/// One row that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The key id; of a renamed key, the old one.
    pub key_id: Box<str>,
    /// Tells the rows of a key in rotation apart.
    pub hash: DigestPrefix,
    /// The fields that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// How access changes. Known for keys that stop working, start working or lose a restriction.
    #[serde(skip)]
    pub changes: AccessChanges,
}

/// The first four bytes of a digest: too few to be of use to an attacker. Displayed in hex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DigestPrefix([u8; 4]);

impl DigestPrefix {
    /// The prefix of `digest`.
    pub(super) fn of(digest: &Digest) -> Self {
        let [a, b, c, d, ..] = *digest;
        Self([a, b, c, d])
    }
}

impl fmt::Display for DigestPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl From<DigestPrefix> for String {
    fn from(prefix: DigestPrefix) -> Self {
        prefix.to_string()
    }
}

impl TryFrom<String> for DigestPrefix {
    type Error = const_hex::FromHexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const_hex::decode_to_array(text.as_bytes()).map(Self)
    }
}

/// A field whose value differs. Long values and lists are omitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The name of the field in a source.
    pub field: Cow<'static, str>,
    /// The old value. An empty text stands for no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Box<str>>,
    /// The new value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Box<str>>,
}

impl Difference {
    /// A difference without its values.
    pub(super) fn of(field: &'static str) -> Self {
        Self { field: field.into(), before: None, after: None }
    }

    /// A difference with its values.
    pub(super) fn between(field: &'static str, before: &str, after: &str) -> Self {
        Self { field: field.into(), before: Some(before.into()), after: Some(after.into()) }
    }
}
