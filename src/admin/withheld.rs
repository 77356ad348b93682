//! Keys that are out of force because of rows that cannot be understood, as `status`, `reload` and `check` tell them.

use serde::{Deserialize, Serialize};

use super::check::Finding;

/// Keys that are out of force because of rows that cannot be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withheld {
    /// Rows that are set aside.
    #[serde(default)]
    pub bad_rows: u64,
    /// Those of them whose hash cannot be read: their keys are not known.
    #[serde(default)]
    pub unreadable_rows: usize,
    /// Keys that are disabled because their rows are set aside.
    #[serde(default)]
    pub set_aside: usize,
    /// The first of them, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_aside_keys: Vec<String>,
    /// What is wrong with the rows: the first of each kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Keys that sources which were refused for such rows have revoked, disabled or expired since one was accepted.
    #[serde(default)]
    pub taken_away: usize,
    /// The first of them, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_away_keys: Vec<String>,
    /// Why what a source takes away that was refused has no effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeaways_refused: Option<String>,
}
