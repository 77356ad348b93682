//! Keys that bad rows have disabled or restricted, as `status`, `reload` and `check` report
//! them.

use serde::{Deserialize, Serialize};

use super::diagnostic::Diagnostic;

/// Keys that bad rows have disabled or restricted. Rows that are set aside disable their own
/// keys. A source that was refused because of bad rows can take access away from other keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withheld {
    /// The number of rows that are set aside.
    #[serde(default)]
    pub bad_rows: u64,
    /// How many of these rows have an unreadable hash, so the daemon does not know their keys.
    #[serde(default)]
    pub unreadable_rows: usize,
    /// The number of keys that are disabled because their rows are set aside.
    #[serde(default)]
    pub set_aside: usize,
    /// The ids of the first of these keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_aside_keys: Vec<String>,
    /// The first error of each kind in these rows.
    #[serde(rename = "findings", default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
    /// The number of keys that were revoked, disabled or expired by refused sources since a source
    /// was last accepted.
    #[serde(default)]
    pub taken_away: usize,
    /// The ids of the first of these keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken_away_keys: Vec<String>,
    /// Why the takeaways of refused sources would not survive a restart. They are in force, and the
    /// daemon retries the write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeaways_not_durable: Option<String>,
    /// Why a refused source takes no access away, although the settings allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeaways_refused: Option<String>,
}
