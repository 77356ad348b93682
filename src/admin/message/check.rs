//! The report of `check`: what reloading a source would do.

use serde::{Deserialize, Serialize};

use super::diagnostic::Diagnostics;
use super::diff::{ChangeCounts, Examples};
use super::withheld::Withheld;

/// The outcome of checking a source. Nothing has been published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The source.
    pub source: String,
    /// Why the source is refused, as text: one line for each diagnostic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The errors in the rows of the source.
    #[serde(rename = "findings", default, skip_serializing_if = "Option::is_none")]
    pub diagnostics: Option<Diagnostics>,
    /// Keys that a reload would disable or restrict because of bad rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
    /// What a reload would change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<CheckDiff>,
    /// How long the check took.
    pub took_ms: u64,
}

/// The comparison of two sets of keys: what replacing one by the other would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckDiff {
    /// Whether the guard would accept it.
    pub accepted: bool,
    /// Why the guard would refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Why none of the keys would be served: the source is older than `max_staleness`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
    /// The table generation of the snapshot that was compared with. 0: no snapshot, or a file.
    pub generation: u64,
    /// The number of keys in what was compared with.
    pub serving: usize,
    /// The number of keys in the source.
    pub keys: usize,
    /// Whether both sets are the same.
    pub unchanged: bool,
    /// How many keys would change.
    pub changes: ChangeCounts,
    /// The first of the keys that would change.
    pub examples: Examples,
}
