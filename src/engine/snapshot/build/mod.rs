//! Building a table: records in, duplicates and conflicts out.
//!
//! There are three ways to the same table:
//!
//! * [`Builder::add`] takes the rows one by one. An error names the lines of both rows. Every
//!   source can be read this way.
//! * [`ParallelBuilder`] takes batches of rows that other threads have prepared, and builds the
//!   indexes when all rows are there. It is faster, but an error does not name the rows: the caller
//!   then starts over with [`Builder::add`].
//! * A [compiled](super::compiled) file is decoded into place, in a third of the time that the
//!   parallel builder takes for finished records (`benches/profile.md`).
//!
//! All of them reject a duplicate digest, and rows of one key id that conflict
//! ([`KeyTable::check_conflict`]). The first two find a duplicate when they insert it into an index
//! ([`Index::find_or_insert`]); the rows of a compiled file are sorted, so duplicates are
//! neighbours.
//!
//! A table depends on its source alone and can still be refused. [`KeyTable::into_snapshot`] then
//! allocates the buckets, which depend on the snapshot in force.

use std::hash::BuildHasher;
use std::sync::Arc;

use keyward_memory::{HugePages, HugeText, HugeVec};

use crate::record::{Digest, FieldSet, KeyRecord, Plans, UnknownPlanError};
use crate::snapshot::entry::{AtomicExpiry, AtomicPepper, AtomicStatus, Entry, Identity, PriorRestrictions};
use crate::snapshot::index::{Index, IndexHash};
use crate::snapshot::key_table::{IdHasher, KeyTable};
use crate::snapshot::policy::{PolicyIndexes, PolicyTable};
use crate::snapshot::row_policy::{RowPolicies, RowPolicy};
use crate::snapshot::same_digest;

mod batch;
mod interner;
mod line_numbers;
mod parallel;

pub use batch::{BatchBuilder, RowBatch};
use interner::{Interner, NewPolicy};
use line_numbers::LineNumbers;
pub(super) use parallel::PARTITIONING_BYTES;
pub use parallel::{ParallelBuildError, ParallelBuilder};

/// Bytes reserved for the key id and the owner of a row. If they are too few, the arena grows; the
/// rest is never touched and so takes no memory.
pub(super) const IDENTITY_BYTES: usize = 32;

/// Why a row cannot be added to the rows before it. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Another row has the same digest, so it is ambiguous which of them decides.
    #[error("the same key_hash as in line {line}; a key may be listed once")]
    DuplicateHash {
        /// The line of the earlier row.
        line: u64,
    },
    /// Rows of one key share its buckets, so their limits must be equal.
    #[error("line {line} has the same key_id and other limits; rows that share a key_id share its limits")]
    OtherLimits {
        /// The line of the earlier row.
        line: u64,
    },
    /// Rows of one key have one identity.
    #[error(
        "line {line} has the same key_id and another owner; rows that share a key_id are one key in rotation"
    )]
    OtherOwner {
        /// The line of the earlier row.
        line: u64,
    },
    /// The plan is not defined in the configuration.
    #[error(transparent)]
    UnknownPlan(#[from] UnknownPlanError),
    /// Entries are numbered with 32 bits.
    #[error("more than {} keys", u32::MAX)]
    TooMany,
}

/// How two rows with one key id conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Their limits differ, either their own or those of their plans.
    #[error("two rows have the same key_id and different limits")]
    Limits,
    /// Their owners differ.
    #[error("two rows have the same key_id and different owners")]
    Owner,
}

impl Conflict {
    fn with_line(self, line: u64) -> RowError {
        match self {
            Self::Limits => RowError::OtherLimits { line },
            Self::Owner => RowError::OtherOwner { line },
        }
    }
}

/// Builds a [`KeyTable`] from records.
pub struct Builder {
    pub(super) keys: KeyTable,
    /// For error messages.
    pub(super) lines: LineNumbers,
    /// Owner name to owner number.
    pub(super) owners: Index,
    pub(super) interner: Interner,
    pub(super) policy_indexes: PolicyIndexes,
}

impl Builder {
    /// An empty table with room for `expected` rows. Even if fewer rows follow, they may be spread
    /// over the whole indexes. `seed` should be random and different in every process.
    pub fn new(seed: u64, expected: usize) -> Self {
        let keys = KeyTable {
            seed,
            hasher: IdHasher::default(),
            digest_index: Index::with_capacity(expected),
            key_id_index: Index::with_capacity(expected),
            rotated: Vec::new(),
            entries: HugeVec::with_capacity_in(expected, HugePages),
            policies: PolicyTable::new(),
            owners: vec![u32::MAX],
            arena: HugeText::with_capacity(expected.saturating_mul(IDENTITY_BYTES)),
            metadata: HugeVec::new_in(HugePages),
            metadata_texts: HugeText::with_capacity(0),
            present_fields: FieldSet::NONE,
            prior_restrictions: FieldSet::NONE,
            has_set_aside: false,
            plans: Arc::default(),
        };
        Self {
            keys,
            lines: LineNumbers::default(),
            owners: Index::with_capacity(0),
            interner: Interner::default(),
            policy_indexes: PolicyIndexes::default(),
        }
    }

    /// Sets the plans that rows may name.
    pub fn with_plans(mut self, plans: Arc<Plans>) -> Self {
        self.keys.plans = plans;
        self
    }

    /// Adds the row on `line`.
    ///
    /// # Errors
    /// If the row is a duplicate of an earlier one or conflicts with it. The table is then
    /// unchanged.
    pub fn add(&mut self, line: u64, record: &KeyRecord<'_>) -> Result<(), RowError> {
        let number = self.next_entry()?;
        let hasher = self.hasher();
        let (key_id, owner_name, key_id_hash) = (record.key_id, record.owner, hasher.text(record.key_id));
        let policy = self.policy(record)?;
        let first = self.keys.find_by_id_hash(key_id_hash, key_id);
        if let Some(first) = first {
            let checked = self.keys.check_conflict(first, owner_name, policy);
            checked.map_err(|conflict| conflict.with_line(self.lines.of(first)))?;
        }
        let first = first.unwrap_or(number);
        self.index_digest(number, &record.hash, hasher.digest(&record.hash))?;
        let owner = self.owner(number, owner_name, hasher.text(owner_name));
        let identity = self.identity(number, first, key_id_hash, key_id, owner_name);
        let has_metadata = self.metadata(number, record.metadata);
        self.push(Entry {
            digest: record.hash,
            identity,
            not_before: record.not_before,
            expires_at: AtomicExpiry::new(record.expires_at),
            owner,
            policy,
            buckets: first,
            status: AtomicStatus::new(record.status),
            has_metadata,
            prior_restrictions: PriorRestrictions::default(),
            pepper: AtomicPepper::default(),
        });
        self.keys.present_fields = self.keys.present_fields.union(record.present_fields);
        self.lines.push(number, line);
        Ok(())
    }

    /// The finished table.
    pub fn finish(self) -> KeyTable {
        self.finish_with_policies().0
    }

    /// The finished table, and the row policies with which it can be written to a compiled file.
    pub fn finish_with_policies(self) -> (KeyTable, RowPolicies) {
        let Self { mut keys, interner, policy_indexes, .. } = self;
        // Trimming a list takes memory for its copy.
        drop(policy_indexes);
        keyward_memory::trim(&mut keys.entries);
        keys.policies.trim();
        keyward_memory::trim(&mut keys.metadata);
        keys.metadata_texts.trim();
        keys.rotated.shrink_to_fit();
        keys.rotated.sort_unstable();
        (keys, interner.into_policies())
    }

    /// Calls `visit` with every row as the source stated it, and with its number, counted from 1.
    pub fn for_each_record(&self, visit: &mut dyn FnMut(u64, &KeyRecord<'_>)) {
        let keys = &self.keys;
        let record_of = |policy| RowPolicy::new(self.interner.policies().get(policy)).to_record();
        let mut last = (0, record_of(0));
        for ((entry, number), row) in keys.entries.iter().zip(0..).zip(1..) {
            if last.0 != entry.policy {
                last = (entry.policy, record_of(entry.policy));
            }
            visit(
                row,
                &KeyRecord {
                    hash: entry.digest,
                    key_id: keys.key_id(entry),
                    owner: keys.owner(entry),
                    status: entry.status.of_row(),
                    not_before: entry.not_before,
                    expires_at: entry.expires_at.get(),
                    metadata: keys.metadata_of(number).unwrap_or_default(),
                    present_fields: keys.present_fields,
                    ..last.1.clone()
                },
            );
        }
    }

    /// The fields for which any row has a value.
    pub fn present_fields(&self) -> FieldSet {
        self.keys.present_fields
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

/// The steps of adding a row.
impl Builder {
    pub(super) fn next_entry(&self) -> Result<u32, RowError> {
        u32::try_from(self.keys.entries.len()).map_err(|_| RowError::TooMany)
    }

    /// Indexes the digest of the entry `number`, which is about to be added.
    pub(super) fn index_digest(
        &mut self,
        number: u32,
        digest: &Digest,
        index_hash: IndexHash,
    ) -> Result<(), RowError> {
        let KeyTable { digest_index, entries, seed, .. } = &mut self.keys;
        let same = |number: u32| same_digest(&entries[number as usize].digest, digest);
        let rehash = |number: u32| IndexHash::of_digest(&entries[number as usize].digest, *seed);
        match digest_index.find_or_insert(index_hash, number, same, rehash) {
            Some(first) => Err(RowError::DuplicateHash { line: self.lines.of(first) }),
            None => Ok(()),
        }
    }

    /// The texts of the entry `number`, which is about to be added. Rows of one key share one copy.
    fn identity(&mut self, number: u32, first: u32, key_id_hash: u64, key_id: &str, owner: &str) -> Identity {
        if first != number {
            return self.keys.entries[first as usize].identity;
        }
        let KeyTable { arena, .. } = &mut self.keys;
        let identity = Identity::new(arena.as_str().len(), key_id.len(), owner.len());
        arena.push_str(key_id);
        arena.push_str(owner);
        self.index_key_id(number, key_id_hash);
        identity
    }

    /// Indexes the key id of the entry `number`, which need not be in `entries` yet.
    pub(super) fn index_key_id(&mut self, number: u32, hash: u64) {
        let KeyTable { key_id_index, entries, arena, hasher, .. } = &mut self.keys;
        // The new entry is inserted after the index has grown, so it is not rehashed.
        key_id_index.insert(IndexHash::of_hash(hash), number, |number| {
            let key_id = entries[number as usize].identity.key_id();
            IndexHash::of(hasher, arena.as_str().get(key_id).unwrap_or_default())
        });
    }

    /// The number of an owner, for the entry `first`, which is about to be added.
    fn owner(&mut self, first: u32, owner: &str, hash: u64) -> u32 {
        if owner.is_empty() {
            return 0;
        }
        let keys = &mut self.keys;
        let number = keys.owners.len() as u32;
        let same = |number: u32| keys.owner_name(number) == owner;
        let rehash = |number: u32| IndexHash::of(&keys.hasher, keys.owner_name(number));
        if let Some(number) = self.owners.find_or_insert(IndexHash::of_hash(hash), number, same, rehash) {
            return number;
        }
        keys.owners.push(first);
        number
    }

    /// Stores the metadata of the entry `number`, if it has any.
    fn metadata(&mut self, number: u32, text: &str) -> bool {
        if !text.is_empty() {
            self.keys.metadata.push((number, self.keys.metadata_texts.as_str().len() as u64));
            self.keys.metadata_texts.push_str(text);
        }
        !text.is_empty()
    }

    pub(super) fn push(&mut self, entry: Entry) {
        let number = self.keys.entries.len() as u32;
        if entry.buckets != number {
            self.keys.rotated.push((entry.buckets, number));
        }
        self.keys.entries.push(entry);
    }

    fn policy(&mut self, record: &KeyRecord<'_>) -> Result<u32, UnknownPlanError> {
        self.interner.find(record).or_else(|new| self.add_policy(new))
    }

    /// The number of a row policy, which other rows may share.
    pub(super) fn intern(&mut self, policy: &[u8]) -> Result<u32, UnknownPlanError> {
        self.interner.find_policy(policy).or_else(|new| self.add_policy(new))
    }

    /// Adds the row policy that was looked up last, and the policy that it is under its plan.
    fn add_policy(&mut self, new: NewPolicy) -> Result<u32, UnknownPlanError> {
        let KeyTable { plans, policies, .. } = &mut self.keys;
        let row_policy = self.interner.looked_up();
        let (plan, limits) = plans.resolve(row_policy.plan)?;
        policies.add(row_policy, plan, limits, &mut self.policy_indexes);
        Ok(self.interner.add(new))
    }
}

impl KeyTable {
    /// Checks that a row with this owner and policy can have the key id of the entry `first`.
    pub(super) fn check_conflict(&self, first: u32, owner: &str, policy: u32) -> Result<(), Conflict> {
        let entry = &self.entries[first as usize];
        let limits_of = |policy| self.policies.at(policy).limits();
        if entry.policy != policy && limits_of(entry.policy).ne(limits_of(policy)) {
            return Err(Conflict::Limits);
        }
        if self.owner(entry) != owner {
            return Err(Conflict::Owner);
        }
        Ok(())
    }
}

/// Hashes digests and texts as the indexes of one table do.
#[derive(Clone)]
pub(super) struct TableHasher {
    seed: u64,
    hasher: IdHasher,
}

impl TableHasher {
    pub(super) fn digest(&self, digest: &Digest) -> IndexHash {
        IndexHash::of_digest(digest, self.seed)
    }

    pub(super) fn text(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }
}

impl Builder {
    pub(super) fn hasher(&self) -> TableHasher {
        TableHasher { seed: self.keys.seed, hasher: self.keys.hasher.clone() }
    }
}
