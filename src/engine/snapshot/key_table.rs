//! The table of keys: entries, what they refer to, and the indexes by digest and by key id.

use std::hash::BuildHasher;
use std::sync::Arc;

use arrayvec::ArrayVec;
use keyward_memory::{HugeText, HugeVec, prefetch};

use crate::record::{Digest, FieldSet, Plans, Status};
use crate::snapshot::entry::Entry;
use crate::snapshot::index::{Index, IndexHash};
use crate::snapshot::policy::PolicyTable;
use crate::snapshot::same_digest;

/// Hashes short texts several times as fast as the standard library's hasher. Seeded per process.
pub(super) type IdHasher = foldhash::quality::RandomState;

/// The number of rows that are looked up together, so that their cache misses overlap: more than a
/// processor can have in flight, and few enough that what was prefetched for the first row is still
/// cached after the last.
pub(super) const WINDOW: usize = 64;

/// The keys of one source: the part of a [`Snapshot`](super::Snapshot) that does not depend on its
/// predecessor.
pub struct KeyTable {
    pub(super) seed: u64,
    pub(super) hasher: IdHasher,
    /// Digest to entry number.
    pub(super) digest_index: Index,
    /// Key id to the number of the first entry that has it.
    pub(super) key_id_index: Index,
    /// For keys in rotation: (first entry of the key id, later entry), ascending.
    pub(super) rotated: Vec<(u32, u32)>,
    pub(super) entries: HugeVec<Entry>,
    pub(super) policies: PolicyTable,
    /// The first entry of each owner, by owner number. Number 0 stands for "no owner" and has no
    /// entry.
    pub(super) owners: Vec<u32>,
    /// Key ids and owners' names, side by side.
    pub(super) arena: HugeText,
    /// (entry, start of its text in `metadata_texts`), ascending. A text ends where the next one
    /// starts.
    pub(super) metadata: HugeVec<(u32, u64)>,
    pub(super) metadata_texts: HugeText,
    /// The fields for which any row has a value.
    pub(super) present_fields: FieldSet,
    /// The restrictions that keys had before their rows were set aside.
    pub(super) prior_restrictions: FieldSet,
    /// Whether any row of the source is set aside.
    pub(super) has_set_aside: bool,
    /// The plans of the configuration that the policies were resolved with.
    pub(super) plans: Arc<Plans>,
}

impl KeyTable {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the table has no rows.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All digests, each with its key id.
    pub fn digests(&self) -> impl Iterator<Item = (&Digest, &str)> {
        self.entries.iter().map(|entry| (&entry.digest, self.key_id(entry)))
    }

    /// Whether the table lists `digest` as a key that is neither revoked nor expired at the Unix
    /// second `now`.
    pub fn has_live_key(&self, digest: &Digest, now: u32) -> bool {
        let entry = self.find_exactly(digest).and_then(|number| self.entries.get(number as usize));
        entry.is_some_and(|entry| entry.status.of_row() != Status::Revoked && entry.expires_at.get() > now)
    }

    pub(super) fn key_id(&self, entry: &Entry) -> &str {
        self.arena.as_str().get(entry.identity.key_id()).unwrap_or_default()
    }

    pub(super) fn owner(&self, entry: &Entry) -> &str {
        self.arena.as_str().get(entry.identity.owner()).unwrap_or_default()
    }

    /// The name of the owner with this number; empty for number 0.
    pub(super) fn owner_name(&self, number: u32) -> &str {
        let first = self.owners.get(number as usize).and_then(|first| self.entries.get(*first as usize));
        first.map_or("", |first| self.owner(first))
    }

    pub(super) fn metadata_of(&self, entry: u32) -> Option<&str> {
        let has_metadata = self.entries.get(entry as usize)?.has_metadata;
        let at =
            has_metadata.then(|| self.metadata.binary_search_by_key(&entry, |(entry, _)| *entry).ok())??;
        let start = self.metadata.get(at)?.1;
        let end =
            self.metadata.get(at + 1).map_or(self.metadata_texts.as_str().len(), |(_, next)| *next as usize);
        self.metadata_texts.as_str().get(start as usize..end)
    }
}

/// Look-ups.
impl KeyTable {
    /// The entry with this digest.
    pub(super) fn find_exactly(&self, digest: &Digest) -> Option<u32> {
        let same = |number: u32| {
            self.entries.get(number as usize).is_some_and(|entry| same_digest(&entry.digest, digest))
        };
        self.digest_index.find(IndexHash::of_digest(digest, self.seed), same)
    }

    /// The first entry with this key id.
    pub(super) fn find_by_id(&self, key_id: &str) -> Option<u32> {
        self.find_by_id_hash(self.hasher.hash_one(key_id), key_id)
    }

    /// [`find_by_id`](Self::find_by_id) with the hash already computed.
    pub(super) fn find_by_id_hash(&self, hash: u64, key_id: &str) -> Option<u32> {
        let same =
            |number: u32| self.entries.get(number as usize).is_some_and(|entry| self.key_id(entry) == key_id);
        self.key_id_index.find(IndexHash::of_hash(hash), same)
    }

    /// All entries of a key id, the first one first.
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

    /// Finds the entries with the digests of up to [`WINDOW`] rows of another table.
    ///
    /// `next` is the entry expected for the first row. Most sources keep their order, so each row
    /// is found right after the one before and nothing has to be looked up. The other rows are
    /// looked up together. What the caller compares next (the entry and its texts) is prefetched.
    pub(super) fn find_window(&self, rows: &[Entry], next: &mut u32, found: &mut Vec<Option<u32>>) {
        found.clear();
        let mut elsewhere: ArrayVec<(usize, IndexHash), WINDOW> = ArrayVec::new();
        for (at, row) in rows.iter().enumerate().take(WINDOW) {
            let expected = self.entries.get(*next as usize);
            if expected.is_some_and(|entry| same_digest(&entry.digest, &row.digest)) {
                found.push(Some(*next));
                *next += 1;
            } else {
                found.push(None);
                elsewhere.push((at, IndexHash::of_digest(&row.digest, self.seed)));
            }
        }
        if elsewhere.is_empty() {
            return;
        }
        elsewhere.iter().for_each(|(_, index_hash)| self.digest_index.prefetch(*index_hash));
        for (at, index_hash) in &elsewhere {
            found[*at] = self.digest_index.candidate(*index_hash);
            self.entry_at(found[*at]).into_iter().for_each(prefetch);
        }
        for (at, _) in &elsewhere {
            let texts = self.entry_at(found[*at]).map(|entry| entry.identity.key_id().start);
            texts.and_then(|start| self.arena.as_str().as_bytes().get(start)).into_iter().for_each(prefetch);
        }
        for (at, _) in &elsewhere {
            let digest = &rows[*at].digest;
            if !self.entry_at(found[*at]).is_none_or(|entry| same_digest(&entry.digest, digest)) {
                found[*at] = self.find_exactly(digest);
            }
        }
        if let Some(Some(last)) = found.last() {
            *next = last + 1;
        }
    }

    fn entry_at(&self, number: Option<u32>) -> Option<&Entry> {
        self.entries.get(number? as usize)
    }
}
