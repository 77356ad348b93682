//! What a new set of keys changes, counted before it is published.

use std::collections::HashMap;

use crate::record::Status;
use crate::snapshot::entry::Entry;
use crate::snapshot::{Keys, Snapshot};

/// How many keys a reload adds, removes and changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Diff {
    /// Hashes that were not there before.
    pub added: usize,
    /// Hashes that are no longer there.
    pub removed: usize,
    /// Hashes whose row says something else.
    pub changed: usize,
    /// Keys that were active and are not any more: removed, disabled or revoked. Some of these are counted above too.
    pub revoked: usize,
}

impl Keys {
    /// What publishing these keys after `old` would change.
    pub fn diff(&self, old: Option<&Snapshot>) -> Diff {
        let Some(old) = old else {
            return Diff { added: self.len(), ..Diff::default() };
        };
        let mut same_policy = HashMap::new();
        let mut diff = Diff::default();
        for before in &old.keys.entries {
            let after = self.find_exactly(&before.digest).and_then(|entry| self.entries.get(entry as usize));
            let was_active = before.status == Status::Active;
            let Some(after) = after else {
                diff.removed += 1;
                diff.revoked += usize::from(was_active);
                continue;
            };
            let same_policy = *same_policy.entry((before.policy, after.policy)).or_insert_with(|| {
                old.keys.policies[before.policy as usize] == self.policies[after.policy as usize]
            });
            diff.changed += usize::from(!same_policy || !self.same_row(after, &old.keys, before));
            diff.revoked += usize::from(was_active && after.status != Status::Active);
        }
        diff.added = self.len() - (old.len() - diff.removed);
        diff
    }

    /// Whether two rows of one hash say the same, their policies apart.
    fn same_row(&self, entry: &Entry, others: &Self, other: &Entry) -> bool {
        (entry.status, entry.not_before, entry.expires_at)
            == (other.status, other.not_before, other.expires_at)
            && self.text(entry.key_id) == others.text(other.key_id)
            && self.text(self.owners[entry.owner as usize])
                == others.text(others.owners[other.owner as usize])
            && self.metadata_of(entry) == others.metadata_of(other)
    }
}
