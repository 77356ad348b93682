//! Which of two peppers a row is hashed with. The digest does not show which; a successful look-up
//! does.
//!
//! Before retiring a pepper, an operator checks which rows still use it. While there are two
//! peppers, each successful look-up therefore records the pepper that found the row, and the next
//! snapshot inherits the record for the rows that it has in common with this one. A look-up that
//! runs while the next snapshot is being made may not be recorded in it, and a restart discards all
//! records. Such a row is unrecorded until it is requested again.

use crate::global_policy::GlobalPolicy;
use crate::snapshot::diff::RowMap;
use crate::snapshot::entry::HashedWith;
use crate::snapshot::{Key, KeyTable};

impl Key<'_> {
    /// Which of the two peppers in force the row is hashed with, if known.
    pub fn hashed_with(self) -> Option<HashedWith> {
        self.entry.pepper.get()
    }

    /// Records the pepper that the row was found with.
    pub(crate) fn set_hashed_with(self, with: HashedWith) {
        self.entry.pepper.set(with);
    }
}

impl KeyTable {
    /// Copies the records of the previous snapshot if the same two peppers are in force.
    pub(super) fn inherit_peppers(&self, row_map: &RowMap<'_>, global_policy: &GlobalPolicy) {
        let same_two = |old: &GlobalPolicy| {
            global_policy.previous_pepper().is_some() && global_policy.peppers == old.peppers
        };
        if !row_map.old.is_some_and(|old| same_two(old.global_policy())) {
            return;
        }
        for (entry, before) in row_map.matched_entries(&self.entries) {
            before.pepper.get().into_iter().for_each(|with| entry.pepper.set(with));
        }
    }
}
