//! Differences between two sets of keys.

use serde::{Deserialize, Serialize};

/// How many keys were added, removed and changed, and what that means for access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// New hashes.
    pub added: usize,
    /// Hashes that are gone.
    pub removed: usize,
    /// Hashes whose rows differ.
    pub changed: usize,
    /// Keys that were active and are not any more. Some of them are counted above too.
    pub revoked: usize,
    /// Keys that stop working: removed, disabled, revoked, or outside of their validity period.
    #[serde(default)]
    pub stopping: usize,
    /// Keys that were listed before, did not work, and start working.
    #[serde(default)]
    pub starting: usize,
    /// Keys that lose a restriction.
    #[serde(default)]
    pub loosened: usize,
}

/// The first keys of each kind of change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examples {
    /// New keys.
    pub added: Vec<Example>,
    /// Keys that are gone.
    pub removed: Vec<Example>,
    /// Keys whose rows differ.
    pub changed: Vec<Example>,
    /// Keys that are no longer active. Some of them are listed above too.
    pub revoked: Vec<Example>,
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

/// The first keys whose access changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessExamples {
    /// Keys that stop working.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopping: Vec<Example>,
    /// Keys that start working.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starting: Vec<Example>,
    /// Keys that lose a restriction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loosened: Vec<Example>,
}

impl AccessExamples {
    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.stopping.is_empty() && self.starting.is_empty() && self.loosened.is_empty()
    }
}

/// A row that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The id of the key.
    pub key_id: String,
    /// The first eight hex digits of the hash, to tell the rows of a rotation apart.
    pub hash: String,
    /// The fields that differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// A field that differs. The values of long fields and lists are omitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The name of the field in an export.
    pub field: String,
    /// The old value. Empty: the field was empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// The new value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}
