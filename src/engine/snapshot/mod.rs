//! The immutable table of keys that every worker reads: the digest of a key in, a [`Key`] out.
//!
//! A reload takes these steps:
//!
//! 1. [`Builder`] collects the [records](crate::record::KeyRecord) of a source into a [`KeyTable`]
//!    and refuses duplicates ([`build`]); a compiled source is decoded into one directly
//!    ([`compiled`]).
//! 2. [`Comparison`] counts what the table changes, compared with the one in force ([`diff`]).
//! 3. [`KeyTable::into_snapshot`] allocates the rate limit buckets and completes the [`Snapshot`]
//!    ([`buckets`]).
//!
//! A key is an [`Entry`] of one cache line: the digest, the times, and numbers that locate the
//! rest. What many rows have in common (environment, plan, scopes, networks, origins, limits) is
//! stored once, as a [`Policy`]. The [`index`] maps digests to entry numbers. It hashes the
//! digest's own bits with a seed: SHA-256 is uniform already, but a source may list values that are
//! not SHA-256 digests. The index stays small, and the entries lie side by side in the order of the
//! source.
//!
//! Three atomic fields of an entry change after publication: `status` (an operator's revocation,
//! [`revocation`], and what a refused source takes away, [`takeaways`]), `expires_at` (a refused
//! source can bring it forward), and `pepper` (which of two peppers the row is hashed with,
//! [`peppers`]). The first two decide answers. They change only while an [`Overlay`] covers the row,
//! so a [`View`] never changes.

use std::collections::HashSet;

use keyward_memory::prefetch;
use subtle::ConstantTimeEq;

use crate::global_policy::GlobalPolicy;
use crate::record::Digest;

mod buckets;
mod build;
pub mod compiled;
mod diff;
mod entry;
mod index;
mod key;
mod key_table;
mod memory_estimate;
mod meta;
mod overlay;
mod peppers;
mod policy;
mod revocation;
mod row_policy;
mod set_aside;
mod status_counts;
mod summary;
mod takeaways;
#[cfg(test)]
mod test_record;
#[cfg(test)]
pub(crate) mod tests;
mod view;

use buckets::OwnerBuckets;
pub use buckets::{BucketError, LimitSlots};
pub use build::{BatchBuilder, Builder, Conflict, ParallelBuildError, ParallelBuilder, RowBatch, RowError};
pub use diff::{
    AccessChange, AccessChanges, ChangeCounts, CompareOptions, Comparison, Diff, Difference, DigestPrefix,
    Example, Examples, Impact, MAX_EXAMPLES, RowMap, Share,
};
use entry::Entry;
pub use entry::HashedWith;
pub(crate) use index::IndexHash;
pub use key::Key;
pub use key_table::KeyTable;
pub use memory_estimate::MALLOC_HEAP_BYTES;
pub use meta::SnapshotMeta;
pub(crate) use overlay::Access;
pub use overlay::{Overlay, OwnerNumber, RowTakeaways};

pub use policy::Policy;
pub(crate) use policy::PolicyLimit;
pub use revocation::NamedRow;
pub use row_policy::RowPolicies;
pub use status_counts::StatusCounts;
pub use summary::Summary;
pub use takeaways::{Takeaway, Takeaways};
pub use view::View;

/// A complete set of keys. See the [module](self).
pub struct Snapshot {
    meta: SnapshotMeta,
    keys: KeyTable,
    /// The bucket slots of the keys with several limits, one list after another.
    slot_lists: Box<[u32]>,
    owner_buckets: OwnerBuckets,
    /// The names of all limits.
    limit_names: HashSet<Box<str>>,
}

/// The number of an entry in its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryNumber(u32);

impl EntryNumber {
    /// The number itself. The first entry is 0.
    #[inline]
    pub fn number(self) -> u32 {
        self.0
    }
}

fn as_le_u64s(digest: &Digest) -> [u64; 4] {
    [0, 8, 16, 24]
        .map(|at: usize| digest[at..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
}

/// Compares two digests in constant time. It works on 64-bit words, because `subtle` compares
/// slices byte by byte, which costs ten times as much.
fn same_digest(a: &Digest, b: &Digest) -> bool {
    let difference = as_le_u64s(a).into_iter().zip(as_le_u64s(b)).fold(0, |sum, (a, b)| sum | (a ^ b));
    difference.ct_eq(&0).into()
}

/// Look-ups.
///
/// A look-up has three steps, so that the look-ups of a batch overlap: each step prefetches what
/// the next one reads.
impl Snapshot {
    /// Whether any key has a limit of this name.
    pub fn has_limit(&self, name: &str) -> bool {
        self.limit_names.contains(name)
    }

    /// Step 1: hashes the digest and prefetches the group of the index that may hold it.
    #[inline]
    pub(crate) fn index_hash(&self, digest: &Digest) -> IndexHash {
        let index_hash = IndexHash::of_digest(digest, self.keys.seed);
        self.keys.digest_index.prefetch(index_hash);
        index_hash
    }

    /// Step 2: reads the group and prefetches the entry that the digest most likely belongs to.
    /// `None` if no key has this digest.
    #[inline]
    pub(crate) fn candidate(&self, index_hash: IndexHash) -> Option<EntryNumber> {
        let number = self.keys.digest_index.candidate(index_hash)?;
        prefetch(self.keys.entries.get(number as usize)?);
        Some(EntryNumber(number))
    }

    /// Step 3: compares the whole digest with the [candidate](Self::candidate). Only this result
    /// may be relied on.
    #[inline]
    pub(crate) fn confirm(&self, candidate: EntryNumber, digest: &Digest) -> Option<Key<'_>> {
        let entry = self.keys.entries.get(candidate.0 as usize)?;
        if same_digest(&entry.digest, digest) {
            return self.key_of(entry, candidate);
        }
        self.find_exactly(digest)
    }

    /// Two keys can have the same tag in the same group. Then the whole digests decide.
    #[cold]
    fn find_exactly(&self, digest: &Digest) -> Option<Key<'_>> {
        self.key(self.keys.find_exactly(digest)?)
    }

    /// The key with this digest: all three steps at once.
    pub fn find(&self, digest: &Digest) -> Option<Key<'_>> {
        self.confirm(self.candidate(self.index_hash(digest))?, digest)
    }

    /// The first row with this key id. A key in rotation has more than one row.
    pub fn find_by_id(&self, key_id: &str) -> Option<Key<'_>> {
        self.key(self.keys.find_by_id(key_id)?)
    }

    /// The key with this [entry number](EntryNumber::number).
    pub fn key_at(&self, number: u32) -> Option<Key<'_>> {
        self.key(number)
    }

    /// Prefetches the entry with this [number](EntryNumber::number).
    pub fn prefetch_key(&self, number: u32) {
        self.keys.entries.get(number as usize).into_iter().for_each(prefetch);
    }

    fn key(&self, number: u32) -> Option<Key<'_>> {
        self.key_of(self.keys.entries.get(number as usize)?, EntryNumber(number))
    }

    /// Every entry has a policy, so this is never `None`.
    #[inline]
    fn key_of<'s>(&'s self, entry: &'s Entry, number: EntryNumber) -> Option<Key<'s>> {
        let policy = self.keys.policies.record(entry.policy)?;
        Some(Key { snapshot: self, entry, policy, number })
    }
}

impl Snapshot {
    /// The table generation: the generation in which this snapshot came into force. Answers carry
    /// it, or a later one if anything has been revoked since ([`View`]).
    pub fn table_generation(&self) -> u64 {
        self.meta.generation
    }

    /// Sets the [table generation](Self::table_generation), which is known only when the snapshot
    /// comes into force.
    pub fn set_table_generation(&mut self, generation: u64) {
        self.meta.generation = generation;
    }

    /// The generation, the age and the global policy.
    pub fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }

    /// The global policy in force with this snapshot.
    pub fn global_policy(&self) -> &GlobalPolicy {
        &self.meta.global_policy
    }

    /// The number of rows. A key in rotation has several.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether the snapshot has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part of the snapshot that does not depend on its predecessor.
    pub fn table(&self) -> &KeyTable {
        &self.keys
    }

    /// All rows, in the order of the source.
    pub fn keys(&self) -> impl Iterator<Item = Key<'_>> {
        let numbers = (0..).map(EntryNumber);
        self.keys.entries.iter().zip(numbers).filter_map(|(entry, number)| self.key_of(entry, number))
    }
}
