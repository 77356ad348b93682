//! Keys that an operator revokes beside the source, found by key id or by owner.
//!
//! A snapshot that is not published yet is marked directly. After that, a row is marked only while
//! an [`Overlay`](crate::snapshot::Overlay) covers it.
//!
//! A table that gives a row another key id or owner could lift its revocation. [`NamedRow`]s of
//! both tables show that.

use std::collections::HashSet;

use crate::record::{Digest, Status};
use crate::snapshot::entry::Entry;
use crate::snapshot::{CompareOptions, EntryNumber, Key, KeyTable, Snapshot};

/// A row with the names by which it can be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedRow<'k> {
    /// The digest of the row.
    pub digest: &'k Digest,
    /// The key id.
    pub key_id: &'k str,
    /// The owner; empty if there is none.
    pub owner: &'k str,
}

impl KeyTable {
    /// The rows with this key id.
    pub fn named_rows_of_key(&self, key_id: &str) -> impl Iterator<Item = NamedRow<'_>> {
        self.rows_of_key(key_id).filter_map(|row| Some(self.named(self.entries.get(row as usize)?)))
    }

    /// The rows of the owners for which `predicate` returns true. Calls it once for each owner, and
    /// scans all rows once.
    pub fn named_rows_of_owners(
        &self,
        predicate: impl FnMut(&str) -> bool,
    ) -> impl Iterator<Item = NamedRow<'_>> {
        self.rows_of_owners(predicate).map(|(entry, _)| self.named(entry))
    }

    /// The rows that may admit the client of the row `before` of another table, now or later: the row
    /// with its digest, or else, if digests of the two tables may differ, all rows with its key id.
    /// Revoked, expired and set-aside rows are left out.
    pub fn live_successors(
        &self,
        before: NamedRow<'_>,
        options: CompareOptions,
    ) -> impl Iterator<Item = NamedRow<'_>> {
        let same_digest = self.find_exactly(before.digest);
        let by_key_id = same_digest.is_none() && options.by_key_id;
        let same_key_id = by_key_id.then(|| self.rows_of_key(before.key_id)).into_iter().flatten();
        let rows = same_digest.into_iter().chain(same_key_id);
        let entries = rows.filter_map(|row| self.entries.get(row as usize));
        entries.filter(move |entry| is_live(entry, options.now)).map(|entry| self.named(entry))
    }

    fn named<'k>(&'k self, entry: &'k Entry) -> NamedRow<'k> {
        NamedRow { digest: &entry.digest, key_id: self.key_id(entry), owner: self.owner(entry) }
    }

    fn rows_of_owners(
        &self,
        mut predicate: impl FnMut(&str) -> bool,
    ) -> impl Iterator<Item = (&Entry, EntryNumber)> {
        // Number 0 stands for no owner.
        let named = 1..u32::try_from(self.owners.len()).unwrap_or(u32::MAX);
        let selected: HashSet<u32> = named.filter(|number| predicate(self.owner_name(*number))).collect();
        let entries = if selected.is_empty() { &[] } else { &self.entries[..] };
        let rows = entries.iter().zip((0..).map(EntryNumber));
        rows.filter(move |(entry, _)| selected.contains(&entry.owner))
    }
}

/// Whether the row admits requests at the Unix second `now`, or may once it is enabled or valid.
fn is_live(entry: &Entry, now: u32) -> bool {
    entry.status.of_row() != Status::Revoked && !entry.status.is_set_aside() && entry.expires_at.get() > now
}

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
    pub fn rows_of_owners(&self, predicate: impl FnMut(&str) -> bool) -> impl Iterator<Item = Key<'_>> {
        self.keys.rows_of_owners(predicate).filter_map(move |(entry, number)| self.key_of(entry, number))
    }
}

impl Key<'_> {
    /// Revokes the key, regardless of its row, or undoes that. If the snapshot is published, an
    /// [overlay](crate::snapshot::Overlay) must cover the row in every view that is in use.
    pub fn set_revoked(self, revoked: bool) {
        self.entry.status.set_revoked_by_operator(revoked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Limiter, SlotAllocator};
    use crate::record::KeyRecord;
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
    fn named_rows_and_their_live_successors_are_found() {
        let old = snapshot(&ROWS);
        let named = |row: NamedRow<'_>| (row.digest[0], row.key_id.to_owned(), row.owner.to_owned());
        let of_key: Vec<_> = old.table().named_rows_of_key("a").map(named).collect();
        assert_eq!(of_key, [1, 3, 6].map(|number| (number, "a".to_owned(), "acme".to_owned())));
        let of_owner: Vec<_> =
            old.table().named_rows_of_owners(|owner| owner == "acme").map(|row| named(row).0).collect();
        assert_eq!(of_owner, [1, 3, 6, 7]);

        let successors = |number: u8, new: &Snapshot, by_key_id| {
            let before = NamedRow { digest: &[number; 32], key_id: "a", owner: "" };
            let options = CompareOptions { now: 10, by_key_id };
            new.table().live_successors(before, options).map(|row| row.digest[0]).collect::<Vec<_>>()
        };
        let found = |number| successors(number, &old, false);
        // The last row is revoked, a disabled one may return, and the digest 9 is unknown.
        assert_eq!([1, 3, 7, 9].map(found), [vec![1], vec![3], vec![], vec![]]);
        assert_eq!(successors(9, &old, true), [1, 3, 6]);
        assert_eq!(successors(4, &old, true), [4], "the digest decides if it is there");
        for (expires_at, expected) in [(10, vec![]), (11, vec![1])] {
            let mut builder = Builder::new(7, 1);
            builder.add(1, &KeyRecord { expires_at, ..KeyRecord::new([1; 32], "a") }).expect("a good row");
            let mut allocator = SlotAllocator::new();
            let limiter = Limiter::new();
            let mut allocation = allocator.begin(&limiter);
            let meta = SnapshotMeta::default();
            let new = builder.finish().into_snapshot(&mut allocation, None, meta).expect("no limits");
            assert_eq!(successors(1, &new, false), expected);
        }
    }

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
