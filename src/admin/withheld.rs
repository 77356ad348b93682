//! Keys that rows that cannot be understood have disabled or restricted, as `status`, `reload` and `check` report them.

use serde::{Deserialize, Serialize};

use super::check::Finding;

/// Keys that rows that cannot be understood have disabled or restricted: rows that were set aside disable their own keys, and a source
/// that was refused for such rows can take access away from others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withheld {
    /// Rows that are set aside.
    #[serde(default)]
    pub bad_rows: u64,
    /// Those of them whose hash cannot be read. Their keys are unknown to the daemon.
    #[serde(default)]
    pub unreadable_rows: usize,
    /// Keys that are disabled because their rows are set aside.
    #[serde(default)]
    pub set_aside: usize,
    /// The ids of the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_aside_keys: Vec<String>,
    /// What is wrong with the rows: the first of each kind.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// Keys that sources which were refused for such rows have revoked, disabled or expired since one was accepted.
    #[serde(default)]
    pub taken_away: usize,
    /// The ids of the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_away_keys: Vec<String>,
    /// Why a refused source takes no access away, although the settings ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeaways_refused: Option<String>,
}
