//! Looks up the records of entries that are new in a snapshot. After a start and after each reload
//! these are all the keys in use, at the rate at which workers verify them.
//!
//! A look-up reads five places that no cache holds: the entry, its texts, the hash table of key
//! ids, the record, and the record's key id. So all entries of a block take each step together, and
//! their cache misses overlap.

use std::hash::BuildHasher;
use std::hint::black_box;
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::log::Event;
use super::table::{BLOCK, ColdRecord, NOT_FOUND, Table};
use keyward_engine::snapshot::Key;

impl Table {
    /// Fills in the `records` that are [`NOT_FOUND`], as one more than the record's number.
    #[cold]
    pub(super) fn look_up(&mut self, view: usize, events: &[Event], records: &mut [u32; BLOCK]) {
        let snapshot = Arc::clone(&self.views[view].snapshot);
        let missing = || records.iter().zip(events).filter(|(record, _)| **record == NOT_FOUND);
        missing().for_each(|(_, event)| snapshot.prefetch_key(event.entry));
        let keys: ArrayVec<Key<'_>, BLOCK> =
            missing().filter_map(|(_, event)| snapshot.key_at(event.entry)).collect();
        keys.iter().for_each(|key| key.prefetch_texts());
        let hashes: ArrayVec<u64, BLOCK> =
            keys.iter().map(|key| self.hasher.hash_one(key.key_id())).collect();
        let likely: ArrayVec<u32, BLOCK> =
            hashes.iter().filter_map(|hash| self.find_by_hash(*hash)).collect();
        let ids = likely.iter().filter_map(|record| Some(&*self.cold.get(*record as usize)?.key_id));
        // Reads a byte of each id and ignores it: `black_box` keeps the compiler from removing the
        // loads, which bring the ids into the cache before they are compared.
        black_box(ids.fold(0, |sum, id| sum ^ id.as_bytes().first().copied().unwrap_or(0)));

        for (key, hash) in keys.iter().zip(hashes) {
            let entry = key.entry_number().number();
            // Two events can have the same entry, and two entries the same key id.
            if self.views[view].record(entry) == NOT_FOUND {
                let record = self.find_or_create(hash, *key);
                self.views[view].set(entry, record + 1);
            }
        }
        // All records are known now: no event has an entry beyond its snapshot.
        for (record, event) in records.iter_mut().zip(events) {
            *record = self.views[view].record(event.entry);
        }
    }

    /// The record of a key id, if there is one.
    pub(super) fn find(&self, hash: u64, key_id: &str) -> Option<u32> {
        let matches = |(other, record): &(u64, u32)| {
            *other == hash && self.cold.get(*record as usize).is_some_and(|cold| *cold.key_id == *key_id)
        };
        self.by_id.find(hash, matches).map(|(_, record)| *record)
    }

    /// The record that most likely has the key id with this hash.
    fn find_by_hash(&self, hash: u64) -> Option<u32> {
        self.by_id.find(hash, |(other, _)| *other == hash).map(|(_, record)| *record)
    }

    fn find_or_create(&mut self, hash: u64, key: Key<'_>) -> u32 {
        let (key_id, owner) = (key.key_id(), key.owner());
        if *self.last_owner != *owner {
            self.last_owner = owner.into();
        }
        if let Some(record) = self.find(hash, key_id) {
            let cold = &mut self.cold[record as usize];
            if *cold.owner != *owner {
                cold.owner = Arc::clone(&self.last_owner);
            }
            self.compare_limits(record, key);
            return record;
        }
        let limits = self.retain_limits(key);
        let record = self.new_record(ColdRecord::new(key_id.into(), Arc::clone(&self.last_owner)), limits);
        self.by_id.insert_unique(hash, (hash, record), |(hash, _)| *hash);
        record
    }
}
