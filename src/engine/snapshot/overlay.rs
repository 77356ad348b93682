//! Changes of a published snapshot that its entries do not have yet.
//!
//! Workers read entries at any time. A mark that is set in an entry would take effect in the middle
//! of a generation, so it is set only when no worker needs the entry as it was:
//!
//! 1. The change is published as an overlay, in the next generation. Its rows are *covered*: their
//!    entries do not decide.
//! 2. Once every worker has passed the epoch of that publication, no worker uses a view in which
//!    the rows are not covered. The marks are set.
//! 3. The same generation is published without the overlay.
//!
//! `src/daemon/revocation/changes.rs` keeps to these steps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::record::{Digest, Status};
use crate::snapshot::entry::Entry;
use crate::snapshot::{Key, KeyTable, Snapshot, Takeaway};

/// The changes, with their new states.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Whether an operator has revoked these rows, by entry number. Has precedence over `owners`.
    rows: BTreeMap<u32, bool>,
    /// Whether an operator has revoked the rows of these owners.
    owners: BTreeMap<OwnerNumber, bool>,
    takeaways: Option<Arc<RowTakeaways>>,
}

/// The number of an owner in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerNumber(u32);

/// Takeaways by entry number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowTakeaways(BTreeMap<u32, Takeaway>);

/// The part of a key's state that can change while its snapshot is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) status: Status,
    pub(crate) expires_at: u32,
}

impl Access {
    pub(super) fn is_revoked(self) -> bool {
        self.status == Status::Revoked
    }
}

impl Overlay {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.owners.is_empty() && self.takeaways.is_none()
    }

    /// An operator has revoked this row, or has not.
    pub fn set_row(&mut self, key: Key<'_>, revoked: bool) {
        self.rows.insert(key.number.0, revoked);
    }

    /// An operator has revoked the rows of this owner, or has not, except for rows that are
    /// [set](Self::set_row).
    pub fn set_owner(&mut self, owner: OwnerNumber, revoked: bool) {
        self.owners.insert(owner, revoked);
    }

    /// A refused source takes this away.
    pub fn set_takeaways(&mut self, takeaways: Arc<RowTakeaways>) {
        self.takeaways = Some(takeaways);
    }

    /// The state in force of a key.
    #[cold]
    #[inline(never)]
    pub(crate) fn access(&self, key: Key<'_>) -> Access {
        let Key { entry, number, .. } = key;
        let takeaway = self.takeaways.as_ref().and_then(|takeaways| takeaways.0.get(&number.0)).copied();
        let status = entry.status.with_changes(self.is_revoked(number.0, entry), takeaway);
        let expires_at = match takeaway {
            Some(Takeaway::ExpiresAt(earlier)) => entry.expires_at.get().min(earlier),
            _ => entry.expires_at.get(),
        };
        Access { status, expires_at }
    }

    /// Whether an operator has revoked the row; `None`: its entry decides.
    fn is_revoked(&self, row: u32, entry: &Entry) -> Option<bool> {
        self.rows.get(&row).or_else(|| self.owners.get(&OwnerNumber(entry.owner))).copied()
    }
}

impl KeyTable {
    /// The numbers of the owners with this name: one, or none. Looks at all owners.
    pub fn owner_numbers(&self, owner: &str) -> Vec<OwnerNumber> {
        // Number 0 stands for no owner.
        let named = 1..u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        named.filter(|number| self.owner_name(*number) == owner).map(OwnerNumber).collect()
    }

    /// The rows that these takeaways apply to.
    pub fn locate_takeaways<'t>(
        &self,
        takeaways: impl IntoIterator<Item = &'t (Digest, Takeaway)>,
    ) -> RowTakeaways {
        let located = takeaways
            .into_iter()
            .filter_map(|(digest, takeaway)| Some((self.find_exactly(digest)?, *takeaway)));
        RowTakeaways(located.collect())
    }
}

impl Snapshot {
    /// All rows of the owners with these numbers. Scans all keys.
    pub fn rows_of_owner_numbers(&self, owners: &[OwnerNumber]) -> impl Iterator<Item = Key<'_>> {
        let owners: BTreeSet<u32> = owners.iter().map(|owner| owner.0).collect();
        let only = owners.first().copied().filter(|_| owners.len() == 1);
        let entries = if owners.is_empty() { &[] } else { &self.keys.entries[..] };
        let is_selected = move |entry: &Entry| match only {
            Some(only) => entry.owner == only,
            None => owners.contains(&entry.owner),
        };
        let rows = entries.iter().zip((0..).map(crate::snapshot::EntryNumber));
        let selected = rows.filter(move |(entry, _)| is_selected(entry));
        selected.filter_map(move |(entry, number)| self.key_of(entry, number))
    }

    /// Sets the marks of the revocations in `overlay`. All rows that it changes must be covered in
    /// every view of this snapshot that a worker may use.
    pub fn mark_revocations(&self, overlay: &Overlay) {
        for (row, revoked) in &overlay.rows {
            self.key(*row).into_iter().for_each(|key| key.set_revoked(*revoked));
        }
        let owners: Vec<OwnerNumber> = overlay.owners.keys().copied().collect();
        for key in self.rows_of_owner_numbers(&owners) {
            if let Some(revoked) = overlay.is_revoked(key.number.0, key.entry) {
                key.set_revoked(revoked);
            }
        }
    }
}

impl Key<'_> {
    /// The number of the key's owner; `None` if it has no owner.
    pub fn owner_number(self) -> Option<OwnerNumber> {
        (self.entry.owner != 0).then_some(OwnerNumber(self.entry.owner))
    }

    /// The state of the key, without an overlay.
    #[inline]
    pub(crate) fn access(self) -> Access {
        Access { status: self.status(), expires_at: self.expires_at() }
    }
}
