//! Finds key ids and owners that look alike, and rotations that do not end, across the rows of an
//! export.
//!
//! Each distinct name takes sixteen bytes: a hash of its [skeleton](super::skeleton), a hash of the
//! name, the line of its first row, and the state of its rotation. [`MAX_NAMES`] names take 285 MB
//! (17 bytes for each of 2^24 slots), and half as much again while the table grows. Names beyond
//! that are still compared with those in the table, but not added, and the report counts them.

use std::collections::BinaryHeap;
use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use super::report::MAX_WARNINGS;
use super::skeleton::skeleton;
use keyward_engine::record::KeyRecord;

/// Maximum number of names in the table: the number that 2^24 slots hold before the table grows.
const MAX_NAMES: usize = (1 << 24) / 8 * 7;

/// A name. The hashes of two different skeletons collide with probability 2^-64, which causes a
/// false warning. The hashes of two different names with the same skeleton collide with probability
/// 2^-29, which misses a warning.
struct NameEntry {
    skeleton_hash: u64,
    /// A hash of the name in the upper bits, and [flags](FLAGS) in the lower ones.
    name_hash: u32,
    /// The line of the first row; saturated.
    line: u32,
}

const _: () = assert!(size_of::<NameEntry>() == 16);

/// A row is in force.
const IN_FORCE: u32 = 1;
/// Several rows are in force.
const SEVERAL_IN_FORCE: u32 = 2;
/// A row in force expires.
const EXPIRES: u32 = 4;
const FLAGS: u32 = IN_FORCE | SEVERAL_IN_FORCE | EXPIRES;

impl NameEntry {
    fn add_row(&mut self, flags: u32) {
        if flags & self.name_hash & IN_FORCE != 0 {
            self.name_hash |= SEVERAL_IN_FORCE;
        }
        self.name_hash |= flags;
    }

    fn is_endless_rotation(&self) -> bool {
        self.name_hash & (SEVERAL_IN_FORCE | EXPIRES) == SEVERAL_IN_FORCE
    }
}

/// The names in the rows of an export.
pub(super) struct NameTable {
    hasher: RandomState,
    entries: HashTable<NameEntry>,
    capacity: usize,
    left_out: u64,
    /// The skeleton of the current name; a buffer that is reused.
    skeleton: String,
}

impl NameTable {
    pub(super) fn new() -> Self {
        Self::with_capacity(MAX_NAMES)
    }

    fn with_capacity(capacity: usize) -> Self {
        let (hasher, entries) = (RandomState::default(), HashTable::new());
        Self { hasher, entries, capacity, left_out: 0, skeleton: String::new() }
    }

    /// Adds the key id of a row. Returns the line of another key id that looks like it. `in_force`
    /// is whether the row is active and not expired.
    pub(super) fn add_key_id(&mut self, line: u64, record: &KeyRecord<'_>, in_force: bool) -> Option<u64> {
        let flags = match (in_force, record.expires_at == u32::MAX) {
            (false, _) => 0,
            (true, true) => IN_FORCE,
            (true, false) => IN_FORCE | EXPIRES,
        };
        self.add(line, record.key_id, flags)
    }

    /// Adds an owner. Returns the line of another owner that looks like it.
    pub(super) fn add_owner(&mut self, line: u64, owner: &str) -> Option<u64> {
        self.add(line, owner, 0)
    }

    fn add(&mut self, line: u64, name: &str, flags: u32) -> Option<u64> {
        let name_hash = self.hasher.hash_one(name) as u32 & !FLAGS;
        self.skeleton.clear();
        skeleton(name, &mut self.skeleton);
        let skeleton_hash = self.hasher.hash_one(&self.skeleton);
        let is_full = self.entries.len() >= self.capacity;
        match self.entries.find_mut(skeleton_hash, |entry| entry.skeleton_hash == skeleton_hash) {
            Some(entry) if entry.name_hash & !FLAGS == name_hash => entry.add_row(flags),
            Some(entry) => return Some(entry.line.into()),
            None if is_full => self.left_out += 1,
            None => {
                let line = u32::try_from(line).unwrap_or(u32::MAX);
                let entry = NameEntry { skeleton_hash, name_hash: name_hash | flags, line };
                self.entries.insert_unique(skeleton_hash, entry, |entry| entry.skeleton_hash);
            }
        }
        None
    }

    /// The number of key ids with several rows in force of which none expires, and the lines of the
    /// first few.
    pub(super) fn endless_rotations(&self) -> (u64, Vec<u64>) {
        let mut total = 0;
        let mut first = BinaryHeap::with_capacity(MAX_WARNINGS + 1);
        for entry in self.entries.iter().filter(|entry| entry.is_endless_rotation()) {
            total += 1;
            first.push(u64::from(entry.line));
            if first.len() > MAX_WARNINGS {
                first.pop();
            }
        }
        (total, first.into_sorted_vec())
    }

    /// Number of rows whose names were not added, because the table was full.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    fn add(names: &mut NameTable, line: u64, key_id: &str) -> Option<u64> {
        names.add_key_id(line, &record(key_id), true)
    }

    #[test]
    fn names_with_the_same_skeleton_are_alike() {
        for (one, other) in [
            ("acme-ci", "Acme-CI"),
            ("acme-ci", "acme_ci"),
            ("acme.ci", "acme-ci"),
            ("ci-10", "ci-l0"),
            ("ci-10", "ci-1o"),
            ("ci-I", "ci-1"),
            ("Größe", "gRÖSSE".replace("SS", "ß").as_str()),
        ] {
            let mut names = NameTable::new();
            assert_eq!(add(&mut names, 7, one), None);
            assert_eq!(add(&mut names, 8, one), None, "the same name, in a rotation");
            assert_eq!(add(&mut names, 9, other), Some(7), "{one} {other}");
        }
        let mut names = NameTable::new();
        for (line, id) in ["ci-1", "ci-2", "ci1", "ci--1", "ci-12", "ci-21", "c-i1"].iter().enumerate() {
            assert_eq!(add(&mut names, line as u64, id), None, "{id}");
        }
    }

    #[test]
    fn name_is_compared_but_not_added_if_the_table_is_full() {
        let mut names = NameTable::with_capacity(2);
        for id in ["a", "b", "c", "C"] {
            assert_eq!(add(&mut names, 1, id), None);
        }
        assert_eq!(add(&mut names, 5, "B"), Some(1));
        assert_eq!((names.left_out(), names.entries.len()), (2, 2));
    }

    #[test]
    fn table_of_the_maximum_size_has_no_spare_slots() {
        let mut table: HashTable<NameEntry> = HashTable::new();
        table.reserve(MAX_NAMES, |entry| entry.skeleton_hash);
        assert_eq!(table.capacity(), MAX_NAMES);
    }
}
