//! Keys that an operator revokes beside the source, found by key id or by owner.
//!
//! After marking a key of a published snapshot, the caller advances the epoch. A snapshot
//! that is not published yet can simply be marked.

use std::collections::HashSet;

use crate::snapshot::{EntryNumber, Key, Snapshot};

impl Snapshot {
    /// All rows of a key: more than one if it is in rotation. The cost does not depend on the
    /// number of keys.
    pub fn rows_of_key(&self, key_id: &str) -> impl Iterator<Item = Key<'_>> {
        self.keys.rows_of_key(key_id).filter_map(move |row| self.key(row))
    }

    /// All rows of an owner. Rows without an owner have none in common. Scans all keys.
    pub fn rows_of_owner(&self, owner: &str) -> impl Iterator<Item = Key<'_>> {
        self.rows_of_owners(move |name| name == owner)
    }

    /// All rows of the owners for which `predicate` returns true. Calls it once for each owner, and
    /// scans all keys once.
    pub fn rows_of_owners(&self, mut predicate: impl FnMut(&str) -> bool) -> impl Iterator<Item = Key<'_>> {
        // Number 0 stands for no owner.
        let named = 1..u32::try_from(self.keys.owners.len()).unwrap_or(u32::MAX);
        let selected: HashSet<u32> =
            named.filter(|number| predicate(self.keys.owner_name(*number))).collect();
        let entries = if selected.is_empty() { &[] } else { &self.keys.entries[..] };
        let rows = entries.iter().zip((0..).map(EntryNumber));
        rows.filter(move |(entry, _)| selected.contains(&entry.owner))
            .filter_map(move |(entry, number)| self.key_of(entry, number))
    }
}

impl Key<'_> {
    /// Revokes the key, regardless of its row, or undoes that.
    pub fn set_revoked(self, revoked: bool) {
        self.entry.status.set_revoked_by_operator(revoked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Limiter, SlotAllocator};
    use crate::record::{KeyRecord, Status};
    use crate::snapshot::{Builder, SnapshotMeta};

    fn record<'a>(number: u8, key_id: &'a str, owner: &'a str, status: Status) -> KeyRecord<'a> {
        KeyRecord { owner, status, ..KeyRecord::new([number; 32], key_id) }
    }

    fn snapshot(rows: &[(&str, &str, Status)]) -> Snapshot {
        let mut builder = Builder::new(7, rows.len());
        for ((key_id, owner, status), number) in rows.iter().zip(1..) {
            builder.add(number.into(), &record(number, key_id, owner, *status)).expect("a good row");
        }
        let limiter = Limiter::new();
        let mut allocator = SlotAllocator::new();
        let mut allocation = allocator.begin(&limiter);
        builder.finish().into_snapshot(&mut allocation, None, SnapshotMeta::default()).expect("few limits")
    }

    /// The numbers of the rows of `keys`.
    fn numbers<'s>(keys: impl Iterator<Item = Key<'s>>) -> Vec<u8> {
        keys.map(|key| key.digest()[0]).collect()
    }

    const ROWS: [(&str, &str, Status); 7] = [
        ("a", "acme", Status::Active),
        ("b", "", Status::Active),
        ("a", "acme", Status::Disabled),
        ("c", "bolt", Status::Active),
        ("b", "", Status::Active),
        ("a", "acme", Status::Active),
        ("d", "acme", Status::Revoked),
    ];

    #[test]
    fn all_rows_of_a_key_in_rotation_are_found() {
        let snapshot = snapshot(&ROWS);
        assert_eq!(numbers(snapshot.rows_of_key("a")), [1, 3, 6]);
        assert_eq!(numbers(snapshot.rows_of_key("b")), [2, 5]);
        assert_eq!(numbers(snapshot.rows_of_key("c")), [4]);
        assert!(snapshot.rows_of_key("e").next().is_none());
    }

    #[test]
    fn all_rows_of_an_owner_are_found_and_none_of_the_empty_owner() {
        let snapshot = snapshot(&ROWS);
        assert_eq!(numbers(snapshot.rows_of_owner("acme")), [1, 3, 6, 7]);
        assert_eq!(numbers(snapshot.rows_of_owner("bolt")), [4]);
        assert!(snapshot.rows_of_owner("").next().is_none());
        assert_eq!(numbers(snapshot.rows_of_owners(|_| true)), [1, 3, 4, 6, 7]);
    }

    #[test]
    fn revocation_overrides_the_row_and_can_be_undone() {
        let snapshot = snapshot(&ROWS);
        let status = || snapshot.rows_of_key("a").map(Key::status).collect::<Vec<_>>();
        snapshot.rows_of_key("a").for_each(|key| key.set_revoked(true));
        assert_eq!(status(), [Status::Revoked; 3]);
        assert!(snapshot.rows_of_key("a").next().is_some_and(|key| key.status_of_row() == Status::Active));
        snapshot.rows_of_key("a").for_each(|key| key.set_revoked(false));
        assert_eq!(status(), [Status::Active, Status::Disabled, Status::Active]);
    }
}
