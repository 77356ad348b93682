//! Texts that look alike, which are key ids or owners, and key ids whose rotation has no end: what no row shows alone.
//!
//! Each different text is remembered as sixteen bytes: a hash of what it looks like, a hash of what it is, the line of
//! its first row, and what its rows have been. The texts are not kept. [`MAX_IDS`] of them take 285 MB in the table (17
//! bytes for each place, of 2^24), half as much again while the table grows, and that is all, however long the export:
//! beyond it, an id is compared with those that are remembered, and the report says how many were not.

use std::collections::BinaryHeap;
use std::hash::BuildHasher;

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use super::look::look;
use super::report::MAX_WARNINGS;
use keyward_engine::record::KeyRecord;

/// Ids that are remembered: what a table of 2^24 places takes before it grows.
pub(super) const MAX_IDS: usize = (1 << 24) / 8 * 7;

/// What has been seen of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Nothing of the kind, or itself.
    Nothing,
    /// Another that looks like it, in this line.
    Like(u64),
}

/// An id. Two that look different have the same `look` once in 2^64, which makes one warning too many; two that look the
/// same and differ have the same `id` once in 2^29, which makes one too few.
struct Slot {
    look: u64,
    /// A hash of the id in the upper bits, and [`MANY`], [`ONE`], [`ENDS`] in the lower.
    id: u32,
    /// Saturated.
    line: u32,
}

const _: () = assert!(size_of::<Slot>() == 16);

/// A row of it is active.
const ONE: u32 = 1;
/// More than one row of it is active.
const MANY: u32 = 2;
/// An active row of it ends.
const ENDS: u32 = 4;
const FLAGS: u32 = ONE | MANY | ENDS;

impl Slot {
    fn see(&mut self, flags: u32) {
        if flags & self.id & ONE != 0 {
            self.id |= MANY;
        }
        self.id |= flags;
    }

    fn is_endless(&self) -> bool {
        self.id & (MANY | ENDS) == MANY
    }
}

pub(super) struct Ids {
    hasher: RandomState,
    slots: HashTable<Slot>,
    most: usize,
    left_out: u64,
    /// What the id at hand looks like; kept for its memory.
    look: String,
}

impl Ids {
    pub(super) fn new() -> Self {
        Self::with_room_for(MAX_IDS)
    }

    fn with_room_for(most: usize) -> Self {
        let hasher = RandomState::default();
        Self { hasher, slots: HashTable::new(), most, left_out: 0, look: String::new() }
    }

    /// `in_force`: whether the row is active and not over.
    pub(super) fn see(&mut self, line: u64, record: &KeyRecord<'_>, in_force: bool) -> Seen {
        let flags = match (in_force, record.expires_at == u32::MAX) {
            (false, _) => 0,
            (true, true) => ONE,
            (true, false) => ONE | ENDS,
        };
        self.see_text(line, record.key_id, flags)
    }

    /// The same of a text that has no rotations.
    pub(super) fn see_owner(&mut self, line: u64, owner: &str) -> Seen {
        self.see_text(line, owner, 0)
    }

    fn see_text(&mut self, line: u64, text: &str, flags: u32) -> Seen {
        let id = self.hasher.hash_one(text) as u32 & !FLAGS;
        self.look.clear();
        look(text, &mut self.look);
        let look = self.hasher.hash_one(&self.look);
        let is_full = self.slots.len() >= self.most;
        match self.slots.find_mut(look, |slot| slot.look == look) {
            Some(slot) if slot.id & !FLAGS == id => slot.see(flags),
            Some(slot) => return Seen::Like(slot.line.into()),
            None if is_full => self.left_out += 1,
            None => {
                let line = u32::try_from(line).unwrap_or(u32::MAX);
                self.slots.insert_unique(look, Slot { look, id: id | flags, line }, |slot| slot.look);
            }
        }
        Seen::Nothing
    }

    /// How many ids have several rows in force of which none ends, and the lines of the first few.
    pub(super) fn endless_rotations(&self) -> (u64, Vec<u64>) {
        let mut total = 0;
        let mut first = BinaryHeap::with_capacity(MAX_WARNINGS + 1);
        for slot in self.slots.iter().filter(|slot| slot.is_endless()) {
            total += 1;
            first.push(u64::from(slot.line));
            if first.len() > MAX_WARNINGS {
                first.pop();
            }
        }
        (total, first.into_sorted_vec())
    }

    /// Rows whose ids there was no room for.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;

    fn see(ids: &mut Ids, line: u64, key_id: &str) -> Seen {
        ids.see(line, &record(key_id), true)
    }

    #[test]
    fn ids_that_differ_in_what_nobody_sees_are_alike() {
        for (one, other) in [
            ("acme-ci", "Acme-CI"),
            ("acme-ci", "acme_ci"),
            ("acme.ci", "acme-ci"),
            ("ci-10", "ci-l0"),
            ("ci-10", "ci-1o"),
            ("ci-I", "ci-1"),
            ("Größe", "gRÖSSE".replace("SS", "ß").as_str()),
        ] {
            let mut ids = Ids::new();
            assert_eq!(see(&mut ids, 7, one), Seen::Nothing);
            assert_eq!(see(&mut ids, 8, one), Seen::Nothing, "itself, in a rotation");
            assert_eq!(see(&mut ids, 9, other), Seen::Like(7), "{one} {other}");
        }
        let mut ids = Ids::new();
        for (line, id) in ["ci-1", "ci-2", "ci1", "ci--1", "ci-12", "ci-21", "c-i1"].iter().enumerate() {
            assert_eq!(see(&mut ids, line as u64, id), Seen::Nothing, "{id}");
        }
    }

    #[test]
    fn ids_beyond_the_bound_are_compared_and_not_remembered() {
        let mut ids = Ids::with_room_for(2);
        for id in ["a", "b", "c", "C"] {
            assert_eq!(see(&mut ids, 1, id), Seen::Nothing);
        }
        assert_eq!(see(&mut ids, 5, "B"), Seen::Like(1));
        assert_eq!((ids.left_out(), ids.slots.len()), (2, 2));
    }

    #[test]
    fn a_table_of_all_that_are_remembered_is_not_a_place_larger() {
        let mut table: HashTable<Slot> = HashTable::new();
        table.reserve(MAX_IDS, |slot| slot.look);
        assert_eq!(table.capacity(), MAX_IDS);
    }
}
