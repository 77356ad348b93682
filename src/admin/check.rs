//! What a daemon says about a source that it was asked to look at, and not to serve.

use serde::{Deserialize, Serialize};

use super::message::Changes;
use super::withheld::Withheld;

/// What would come of a reload of a source. Nothing has been published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The source.
    pub source: String,
    /// Why it cannot be read, or is wrong: for people, a line for each finding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is wrong with its rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Findings>,
    /// Keys that a reload would disable or restrict because of rows that cannot be understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
    /// What it would change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<Diff>,
    /// How long it took to tell.
    pub took_ms: u64,
}

/// The findings of a source: the first of each kind in full, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// All of them.
    #[serde(rename = "total_findings")]
    pub total: u64,
    /// The first of each kind.
    #[serde(rename = "findings")]
    pub first: Vec<Finding>,
}

/// One finding; a place that it does not have is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The line at which the first row begins that has it, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The column of a CSV file, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<usize>,
    /// The name of the column, or of the field of an object, as the file has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The byte of the line, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub byte: Option<usize>,
    /// What is wrong, and how to write it instead.
    pub message: String,
    /// How often it is found, the first time among them.
    #[serde(default)]
    pub count: u64,
}

/// What replacing some keys by others would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// Whether the guard would let it pass.
    pub accepted: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Why none of its keys would be served: it is older than `max_staleness`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
    /// The snapshot that the keys were compared with; 0: none, or a file.
    pub generation: u64,
    /// Keys in what they were compared with.
    pub serving: usize,
    /// Keys in the source.
    pub keys: usize,
    /// Whether both say the same.
    pub unchanged: bool,
    /// How many keys would change.
    pub changes: Changes,
    /// The first few of them.
    pub examples: Examples,
}

/// Some of the keys that would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examples {
    /// New.
    pub added: Vec<Example>,
    /// Gone.
    pub removed: Vec<Example>,
    /// Different.
    pub changed: Vec<Example>,
    /// No longer active; those above among them.
    pub revoked: Vec<Example>,
    /// They work and would stop working.
    #[serde(default)]
    pub stopping: Vec<Example>,
    /// They do not work and would start working.
    #[serde(default)]
    pub starting: Vec<Example>,
    /// They would lose a restriction.
    #[serde(default)]
    pub loosened: Vec<Example>,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// What the key is called.
    pub key_id: String,
    /// The first eight hex digits of its hash, to tell the rows of a rotation apart.
    pub hash: String,
    /// What would be said differently of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

/// A field that would say something else. What is long, or a list, is only named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Its name in an export.
    pub field: String,
    /// What it says now; empty: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it would say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}
