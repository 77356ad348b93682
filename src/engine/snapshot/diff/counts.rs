//! The counts of a [`Diff`](super::Diff), as the admin socket and the audit trail report them.

use serde::{Deserialize, Serialize};

/// How many rows a new table adds, removes and changes, and what that means for access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeCounts {
    /// Rows with a digest that is new.
    pub added: usize,
    /// Rows with a digest that is gone.
    pub removed: usize,
    /// Rows that differ from the old row with the same digest.
    pub changed: usize,
    /// Rows that were active and no longer are: removed, disabled or revoked. Most of them are
    /// counted above too.
    #[serde(rename = "revoked")]
    pub deactivated: usize,
    /// Rows that stop working: removed, disabled, revoked, or outside their period of validity.
    #[serde(default)]
    pub stopping: usize,
    /// Rows that were listed before, did not work, and start working.
    #[serde(default)]
    pub starting: usize,
    /// Rows that lose a restriction.
    #[serde(default)]
    pub loosened: usize,
}
