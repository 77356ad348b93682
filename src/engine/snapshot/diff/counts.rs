//! The counts of a [`Diff`](super::Diff), as the admin socket and the audit trail report them.

use serde::{Deserialize, Serialize};

/// How many keys a new table adds, removes and changes, and what that means for access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeCounts {
    /// Digests that are new.
    pub added: usize,
    /// Digests that are gone.
    pub removed: usize,
    /// Digests whose row differs.
    pub changed: usize,
    /// Keys that were active and no longer are: removed, disabled or revoked. Most of them are
    /// counted above too.
    #[serde(rename = "revoked")]
    pub deactivated: usize,
    /// Keys that stop working: removed, disabled, revoked, or outside their period of validity.
    #[serde(default)]
    pub stopping: usize,
    /// Keys that were listed before, did not work, and start working.
    #[serde(default)]
    pub starting: usize,
    /// Keys that lose a restriction.
    #[serde(default)]
    pub loosened: usize,
}
