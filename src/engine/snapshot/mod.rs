//! The table of keys: built once by a reload, then only read, by every worker at once. What is set in an entry
//! later: that an operator has revoked the key ([`revoke`]), what an export that was refused takes away from it
//! ([`take_away`]), and by which of two peppers it was found ([`peppers`]).
//!
//! * [`Builder`] takes [records](crate::record::KeyRecord) one at a time and refuses duplicates ([`build`]).
//! * An [`Entry`] is a key in one cache line: digest, times, and numbers that say where the rest is.
//! * A [`Policy`] is what many keys have in common, held once: environment, plan, scopes, networks, limits.
//!
//! The index is keyed by the digest's own bits, mixed with a seed: SHA-256 is uniform already, but nothing says that what is
//! listed as a hash is one. It ([`index`]) holds numbers, not entries: it stays small, and the entries lie side by side in the order of the export.

use std::hash::BuildHasher;

use subtle::ConstantTimeEq;

use crate::limiter::{BucketId, BucketRef, Charge, MAX_CHARGES};
use crate::record::{Digest, Status};
use crate::rules::GlobalPolicy;
use keyward_memory::prefetch;

mod batch;
mod build;
mod bulk;
mod claim;
pub mod compiled;
mod diff;
mod entry;
mod example;
mod impact;
mod index;
mod intern;
mod ip_set;
mod kept;
mod lines;
mod peppers;
mod policy;
mod revoke;
mod room;
mod scope_set;
mod set_aside;
mod stamp;
mod status;
mod summary;
mod take_away;
#[cfg(test)]
mod test_record;
#[cfg(test)]
pub(crate) mod tests;

pub use batch::{Batch, Gather};
pub use build::{Builder, Keys, RowError, RowPolicies};
pub use bulk::Bulk;
use claim::OwnerBuckets;
pub use claim::TooManyBuckets;
pub use diff::{CompareOptions, Comparison, Diff};
use entry::Entry;
pub use example::{Difference, Example, Examples, MAX_EXAMPLES};
pub use impact::{AccessChange, AccessChanges, Impact, Share};
pub use index::Probe;
pub use ip_set::IpSet;
pub use kept::Kept;
pub use peppers::HashedWith;
pub use policy::Policy;
pub use room::HEAP;
pub use scope_set::ScopeSet;
pub use stamp::Stamp;
pub use summary::Summary;
pub use take_away::{Takeaway, Takeaways};

/// A complete set of keys with a generation. See the [module](self).
pub struct Snapshot {
    stamp: Stamp,
    keys: Keys,
    /// Slots of the keys with several limits, one run after another.
    runs: Box<[u32]>,
    owner_buckets: OwnerBuckets,
}

/// Position of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId(u32);

impl EntryId {
    /// The same as a number; the first is 0.
    #[inline]
    pub fn number(self) -> u32 {
        self.0
    }
}

fn words(digest: &Digest) -> [u64; 4] {
    [0, 8, 16, 24]
        .map(|at: usize| digest[at..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)))
}

/// Whether two digests are equal, in a time that does not tell where they differ. Word by word, because
/// `subtle` goes byte by byte over slices, which costs ten times as much.
fn same_digest(a: &Digest, b: &Digest) -> bool {
    let difference = words(a).into_iter().zip(words(b)).fold(0, |sum, (a, b)| sum | (a ^ b));
    difference.ct_eq(&0).into()
}

impl Snapshot {
    /// Number of this snapshot; the first is 1.
    pub fn generation(&self) -> u64 {
        self.stamp.generation
    }

    /// What it is.
    pub fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// The daemon's own rules, as of this snapshot.
    pub fn global_policy(&self) -> &GlobalPolicy {
        &self.stamp.global_policy
    }

    /// Keys in it: rows of the export.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether it holds no key.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its keys, as far as they do not depend on the snapshot before it.
    pub fn table(&self) -> &Keys {
        &self.keys
    }

    /// A look-up has three steps, so that a batch's look-ups overlap: each reads what the one before has had fetched. This is the
    /// first, which only calculates, and has a line of the index fetched.
    #[inline]
    pub fn probe(&self, digest: &Digest) -> Probe {
        let probe = Probe::of_digest(digest, self.keys.seed);
        self.keys.index.prefetch(probe);
        probe
    }

    /// The second: reads the line, and has the entry fetched that the digest most likely belongs to. `None`: no key has this digest.
    #[inline]
    pub fn candidate(&self, probe: Probe) -> Option<EntryId> {
        let number = self.keys.index.candidate(probe)?;
        prefetch(self.keys.entries.get(number as usize)?);
        Some(EntryId(number))
    }

    /// The last, and the only one to be believed: the key of `digest`, given its [candidate](Self::candidate).
    #[inline]
    pub fn confirm(&self, candidate: EntryId, digest: &Digest) -> Option<Key<'_>> {
        let entry = self.keys.entries.get(candidate.0 as usize)?;
        if same_digest(&entry.digest, digest) {
            return self.with_policy(entry, candidate);
        }
        self.find_exactly(digest)
    }

    /// Two keys can have the same fingerprint in the same group; then the whole digest has to decide.
    #[cold]
    fn find_exactly(&self, digest: &Digest) -> Option<Key<'_>> {
        self.key(self.keys.find_exactly(digest)?)
    }

    /// The key of `digest`.
    pub fn find(&self, digest: &Digest) -> Option<Key<'_>> {
        self.confirm(self.candidate(self.probe(digest))?, digest)
    }

    /// The first row with this key id; in a rotation there may be more.
    pub fn find_by_id(&self, key_id: &str) -> Option<Key<'_>> {
        self.key(self.keys.find_by_id(key_id)?)
    }

    fn key(&self, id: u32) -> Option<Key<'_>> {
        self.with_policy(self.keys.entries.get(id as usize)?, EntryId(id))
    }

    /// `None` would be an entry without a policy, and there is none.
    #[inline]
    fn with_policy<'s>(&'s self, entry: &'s Entry, id: EntryId) -> Option<Key<'s>> {
        let policy = self.keys.policies.get(entry.policy as usize)?;
        Some(Key { snapshot: self, entry, policy, id })
    }

    /// The key of an entry, by its [number](EntryId::number).
    pub fn key_at(&self, number: u32) -> Option<Key<'_>> {
        self.key(number)
    }

    /// Has the entry of a [number](EntryId::number) fetched.
    pub fn prefetch_key(&self, number: u32) {
        self.keys.entries.get(number as usize).into_iter().for_each(prefetch);
    }

    /// Every key, in the order of the export.
    pub fn keys(&self) -> impl Iterator<Item = Key<'_>> {
        let ids = (0..).map(EntryId);
        self.keys.entries.iter().zip(ids).filter_map(|(entry, id)| self.with_policy(entry, id))
    }

    /// Every bucket of every row, with what names it; rows of one key repeat theirs, and keys of one owner those that they share.
    pub fn buckets(&self) -> impl Iterator<Item = (BucketRef, impl FnOnce() -> BucketId)> {
        self.keys().flat_map(|key| {
            let limits = key.policy().limits().iter().zip(key.slots());
            limits.map(move |(limit, slot)| {
                let name = move || key.snapshot.bucket_name(key.entry, limit);
                (BucketRef { slot: *slot, rate: limit.rate }, name)
            })
        })
    }
}

/// One key of a snapshot.
#[derive(Clone, Copy)]
pub struct Key<'s> {
    snapshot: &'s Snapshot,
    entry: &'s Entry,
    policy: &'s Policy,
    id: EntryId,
}

impl<'s> Key<'s> {
    /// Where it is in its snapshot.
    pub fn id(self) -> EntryId {
        self.id
    }

    /// Its SHA-256.
    pub fn digest(self) -> &'s Digest {
        &self.entry.digest
    }

    /// What it is called in answers, logs and metrics.
    pub fn key_id(self) -> &'s str {
        self.snapshot.keys.key_id(self.entry)
    }

    /// Who it belongs to; empty where nobody is named.
    pub fn owner(self) -> &'s str {
        self.snapshot.keys.owner(self.entry)
    }

    /// The bytes of its id, and of its owner's name.
    #[inline]
    pub fn identity(self) -> (&'s [u8], &'s [u8]) {
        let arena = self.snapshot.keys.arena.as_str().as_bytes();
        let identity = self.entry.identity;
        let both = arena.get(identity.both()).unwrap_or_default();
        both.split_at_checked(identity.key_id_length()).unwrap_or_default()
    }

    /// What it shares with other keys.
    #[inline]
    pub fn policy(self) -> &'s Policy {
        self.policy
    }

    /// Active, disabled or revoked: what its row says, or revoked by an operator.
    #[inline]
    pub fn status(self) -> Status {
        self.entry.status.in_force()
    }

    /// What its row says.
    pub fn status_of_row(self) -> Status {
        self.entry.status.of_row()
    }

    /// First Unix second at which it is valid.
    pub fn not_before(self) -> u32 {
        self.entry.not_before
    }

    /// First Unix second at which it is no longer valid; `u32::MAX`: never ends.
    pub fn expires_at(self) -> u32 {
        self.entry.expires_at.get()
    }

    /// A JSON object, if it has one.
    pub fn metadata(self) -> Option<&'s str> {
        self.snapshot.keys.metadata_of(self.id.0)
    }

    /// The slots of its limits, in their order.
    #[inline]
    fn slots(self) -> &'s [u32] {
        match self.policy().limits().len() {
            0 => &[],
            1 => std::slice::from_ref(&self.entry.buckets),
            many => {
                let start = self.entry.buckets as usize;
                self.snapshot.runs.get(start..start + many).unwrap_or_default()
            }
        }
    }

    /// The slot of its only limit, or of the first: what is worth fetching ahead of a charge.
    #[inline]
    pub fn first_slot(self) -> Option<u32> {
        self.slots().first().copied()
    }

    /// Has its id and its owner's name fetched, for an answer that is about to need them.
    #[inline]
    pub fn prefetch_texts(self) {
        let arena = self.snapshot.keys.arena.as_str().as_bytes();
        if let Some(texts @ [first, ..]) = arena.get(self.entry.identity.both()) {
            prefetch(first);
            // They may lie across two cache lines.
            texts.last().into_iter().for_each(prefetch);
        }
    }

    /// What a request has to be charged to, in `charges`; returns how many there are.
    pub fn charges(self, charges: &mut [Charge]) -> usize {
        let limits = self.policy().limits();
        for ((charge, limit), slot) in charges.iter_mut().zip(limits).zip(self.slots()) {
            *charge = Charge { slot: *slot, rate: limit.rate, shadow: limit.shadow };
        }
        limits.len().min(MAX_CHARGES)
    }
}

/// The keys of a snapshot, as far as they do not depend on the snapshot before it.
impl Keys {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Their hashes, each with its key id.
    pub fn digests(&self) -> impl Iterator<Item = (&Digest, &str)> {
        self.entries.iter().map(|entry| (&entry.digest, self.key_id(entry)))
    }

    fn key_id(&self, entry: &Entry) -> &str {
        self.arena.as_str().get(entry.identity.key_id()).unwrap_or_default()
    }

    fn owner(&self, entry: &Entry) -> &str {
        self.arena.as_str().get(entry.identity.owner()).unwrap_or_default()
    }

    /// The name of an owner, by its number; empty for nobody.
    fn owner_name(&self, number: u32) -> &str {
        let first = self.owners.get(number as usize).and_then(|first| self.entries.get(*first as usize));
        first.map_or("", |first| self.owner(first))
    }

    fn metadata_of(&self, entry: u32) -> Option<&str> {
        let has_metadata = self.entries.get(entry as usize)?.has_metadata;
        let at =
            has_metadata.then(|| self.metadata.binary_search_by_key(&entry, |(entry, _)| *entry).ok())??;
        let start = self.metadata.get(at)?.1;
        let end =
            self.metadata.get(at + 1).map_or(self.metadata_texts.as_str().len(), |(_, next)| *next as usize);
        self.metadata_texts.as_str().get(start as usize..end)
    }

    fn find_exactly(&self, digest: &Digest) -> Option<u32> {
        let same =
            |id: u32| self.entries.get(id as usize).is_some_and(|entry| same_digest(&entry.digest, digest));
        self.index.find(Probe::of_digest(digest, self.seed), same)
    }

    fn find_by_id(&self, key_id: &str) -> Option<u32> {
        self.find_by_id_hash(self.hasher.hash_one(key_id), key_id)
    }

    fn find_by_id_hash(&self, hash: u64, key_id: &str) -> Option<u32> {
        let same = |id: u32| self.entries.get(id as usize).is_some_and(|entry| self.key_id(entry) == key_id);
        self.ids.find(Probe::of_hash(hash), same)
    }

    /// Whether `digest` is among them, and neither revoked nor past its end: what a reload's guard counts.
    pub fn has_use_for(&self, digest: &Digest, now: u32) -> bool {
        let entry = self.find_exactly(digest).and_then(|id| self.entries.get(id as usize));
        entry.is_some_and(|entry| entry.status.of_row() != Status::Revoked && entry.expires_at.get() > now)
    }
}

/// Seeded by the process, and several times as fast as the standard library's on the short texts of an export.
type IdHasher = foldhash::quality::RandomState;
