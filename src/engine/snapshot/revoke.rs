//! Keys that an operator revokes beside the export: found by their id or by their owner, and marked.
//!
//! Who marks a key has to end a publication epoch after it; who marks a snapshot that is still to be
//! published need not.

use std::collections::HashSet;

use crate::snapshot::{EntryId, Key, Keys, Snapshot};

impl Keys {
    /// The numbers of all entries of a key id, the first of them first.
    pub(super) fn rows_of_key(&self, key_id: &str) -> impl Iterator<Item = u32> {
        let first = self.find_by_id(key_id);
        let rotated = first.map_or(&[][..], |first| {
            let rotated = &self.rotated[..];
            let start = rotated.partition_point(|(of, _)| *of < first);
            let length = rotated[start..].partition_point(|(of, _)| *of == first);
            &rotated[start..start + length]
        });
        first.into_iter().chain(rotated.iter().map(|(_, row)| *row))
    }
}

impl Snapshot {
    /// All rows of a key: more than one where it is in rotation. A look-up, however many keys there are.
    pub fn rows_of_key(&self, key_id: &str) -> impl Iterator<Item = Key<'_>> {
        self.keys.rows_of_key(key_id).filter_map(move |row| self.key(row))
    }

    /// All rows of an owner; those without one belong to nobody. Goes over all keys.
    pub fn rows_of_owner(&self, owner: &str) -> impl Iterator<Item = Key<'_>> {
        self.rows_of_owners(move |name| name == owner)
    }

    /// All rows of the owners that `wanted` wants. Asks once for each owner, and goes over all keys once.
    pub fn rows_of_owners(&self, mut wanted: impl FnMut(&str) -> bool) -> impl Iterator<Item = Key<'_>> {
        // The first is nobody.
        let named = 1..u32::try_from(self.keys.owners.len()).unwrap_or(u32::MAX);
        let wanted: HashSet<u32> = named.filter(|number| wanted(self.keys.owner_name(*number))).collect();
        let entries = if wanted.is_empty() { &[] } else { &self.keys.entries[..] };
        let rows = entries.iter().zip((0..).map(EntryId));
        rows.filter(move |(entry, _)| wanted.contains(&entry.owner))
            .filter_map(move |(entry, id)| self.with_policy(entry, id))
    }
}

impl Key<'_> {
    /// Revokes it, whatever its row says, or takes that back.
    pub fn set_revoked(self, revoked: bool) {
        self.entry.status.set_by_operator(revoked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Limiter, SlotAllocator};
    use crate::record::{KeyRecord, Status};
    use crate::snapshot::{Builder, Stamp};

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
        builder.finish().publishable(&mut allocation, None, Stamp::default()).expect("few limits")
    }

    /// The numbers of the rows that `keys` are.
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
    fn all_rows_of_an_owner_are_found_and_nobody_is_none() {
        let snapshot = snapshot(&ROWS);
        assert_eq!(numbers(snapshot.rows_of_owner("acme")), [1, 3, 6, 7]);
        assert_eq!(numbers(snapshot.rows_of_owner("bolt")), [4]);
        assert!(snapshot.rows_of_owner("").next().is_none());
        assert_eq!(numbers(snapshot.rows_of_owners(|_| true)), [1, 3, 4, 6, 7]);
    }

    #[test]
    fn a_mark_overrules_the_row_and_leaves_it_as_it_was() {
        let snapshot = snapshot(&ROWS);
        let status = || snapshot.rows_of_key("a").map(Key::status).collect::<Vec<_>>();
        snapshot.rows_of_key("a").for_each(|key| key.set_revoked(true));
        assert_eq!(status(), [Status::Revoked; 3]);
        assert!(snapshot.rows_of_key("a").next().is_some_and(|key| key.status_of_row() == Status::Active));
        snapshot.rows_of_key("a").for_each(|key| key.set_revoked(false));
        assert_eq!(status(), [Status::Active, Status::Disabled, Status::Active]);
    }
}
