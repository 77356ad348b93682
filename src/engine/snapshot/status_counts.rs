//! Counts of the keys by what a request with them would be answered, limits and restrictions apart.

use crate::record::Status;
use crate::snapshot::View;

/// The number of keys by status. Every row is counted once, by the first problem that a request with
/// it would be refused for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusCounts {
    /// Keys that work.
    pub active: u64,
    /// Disabled keys.
    pub disabled: u64,
    /// Revoked keys: by their rows, an operator or a refused source.
    pub revoked: u64,
    /// Keys that will be valid later.
    pub not_yet_valid: u64,
    /// Keys that have been valid.
    pub expired: u64,
}

impl View<'_> {
    /// Counts the keys as of the Unix second `now`. Looks at all of them.
    pub fn count_statuses(self, now: u32) -> StatusCounts {
        let mut counts = StatusCounts::default();
        for key in self.snapshot.keys() {
            let access = self.overlay.map_or_else(|| key.access(), |overlay| overlay.access(key));
            let count = match access.status {
                Status::Revoked => &mut counts.revoked,
                Status::Disabled => &mut counts.disabled,
                Status::Active if now < key.not_before() => &mut counts.not_yet_valid,
                Status::Active if now >= access.expires_at => &mut counts.expired,
                Status::Active => &mut counts.active,
            };
            *count += 1;
        }
        counts
    }
}
