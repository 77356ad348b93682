//! What a new set of keys changes, counted before it is published: row against row, whatever an operator has revoked.

use std::collections::HashMap;

use crate::record::Status;
use crate::snapshot::entry::Entry;
use crate::snapshot::{IdHasher, Keys, Snapshot};

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
        let mut same_policy: HashMap<_, _, IdHasher> = HashMap::default();
        let mut diff = Diff::default();
        for (before, before_id) in old.keys.entries.iter().zip(0..) {
            let after_id = self.find_exactly(&before.digest);
            let after = after_id.and_then(|id| Some((self.entries.get(id as usize)?, id)));
            let was_active = before.status.of_row() == Status::Active;
            let Some((after, after_id)) = after else {
                diff.removed += 1;
                diff.revoked += usize::from(was_active);
                continue;
            };
            let same_policy = *same_policy.entry((before.policy, after.policy)).or_insert_with(|| {
                old.keys.policies[before.policy as usize] == self.policies[after.policy as usize]
            });
            let same_row = same_row((self, after, after_id), (&old.keys, before, before_id));
            diff.changed += usize::from(!same_policy || !same_row);
            diff.revoked += usize::from(was_active && after.status.of_row() != Status::Active);
        }
        diff.added = self.len() - (old.len() - diff.removed);
        diff
    }
}

/// Whether two rows of one hash say the same, their policies apart.
fn same_row((keys, a, a_id): (&Keys, &Entry, u32), (others, b, b_id): (&Keys, &Entry, u32)) -> bool {
    (a.status.of_row(), a.not_before, a.expires_at) == (b.status.of_row(), b.not_before, b.expires_at)
        && keys.text(a.key_id) == others.text(b.key_id)
        && keys.text(keys.owners[a.owner as usize]) == others.text(others.owners[b.owner as usize])
        && keys.metadata_of(a_id) == others.metadata_of(b_id)
}
