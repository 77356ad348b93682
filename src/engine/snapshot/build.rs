//! Building a snapshot: records in, one at a time; duplicates and contradictions out, with the lines of both.
//!
//! Two steps, because a reload may still be refused between them: [`Builder`] makes [`Keys`], which depend on the export
//! alone and are what the guard looks at; [`Keys::publishable`] then claims the buckets, which depend on the snapshot
//! before.

use std::hash::BuildHasher;
use std::sync::Arc;

use crate::record::{Digest, FieldSet, KeyRecord, Plans, UnknownPlanError, merge_limits};
use crate::snapshot::entry::{Entry, Identity};
use crate::snapshot::index::{Index, Probe};
use crate::snapshot::intern::{Interner, PolicyKey};
use crate::snapshot::lines::Lines;
use crate::snapshot::peppers::PepperByte;
use crate::snapshot::policy::Policy;
use crate::snapshot::set_aside::Had;
use crate::snapshot::status::{End, StatusByte};
use crate::snapshot::{IdHasher, same_digest};
use keyward_memory::{self as memory, Huge, HugeText, HugeVec};

/// Bytes that a key id and an owner are assumed to have, when room is made for them. Too few are grown; what is too much is
/// never touched, and so costs no memory.
pub(super) const IDENTITY_BYTES: usize = 32;

/// The keys of one export.
pub struct Keys {
    pub(super) seed: u64,
    pub(super) hasher: IdHasher,
    /// Digest to entry.
    pub(super) index: Index,
    /// Key id to the first entry that has it.
    pub(super) ids: Index,
    /// The other entries of a key id in rotation, each after the first entry that has it; ascending.
    pub(super) rotated: Vec<(u32, u32)>,
    pub(super) entries: HugeVec<Entry>,
    pub(super) policies: Vec<Policy>,
    /// The first entry of each owner; the first of them is nobody's.
    pub(super) owners: Vec<u32>,
    /// Key ids and owners, side by side.
    pub(super) arena: HugeText,
    /// By entry, ascending: where its text begins in `metadata_texts`. It ends where the next begins.
    pub(super) metadata: HugeVec<(u32, u64)>,
    pub(super) metadata_texts: HugeText,
    /// The fields that any row has a value for.
    pub(super) given: FieldSet,
    /// The restrictions that keys had whose rows are set aside.
    pub(super) set_aside_given: FieldSet,
    /// Whether rows of the export are set aside.
    pub(super) has_set_aside: bool,
    /// The plans that rows are on.
    pub(super) plans: Arc<Plans>,
}

/// Why a row cannot go in beside the ones before it. Lines count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Two rows with one hash: which of them would decide?
    #[error("the same key_hash as in line {line}; a key may be listed once")]
    DuplicateHash {
        /// The first.
        line: u64,
    },
    /// Rows of one key share its buckets, so that they cannot be of two sizes.
    #[error("line {line} has the same key_id and other limits; rows that share a key_id share its limits")]
    OtherLimits {
        /// The first.
        line: u64,
    },
    /// Rows of one key are one identity.
    #[error(
        "line {line} has the same key_id and another owner; rows that share a key_id are one key in rotation"
    )]
    OtherOwner {
        /// The first.
        line: u64,
    },
    /// A plan that is not defined.
    #[error(transparent)]
    UnknownPlan(#[from] UnknownPlanError),
    /// Entries are numbered with 32 bits.
    #[error("more than {} keys", u32::MAX)]
    TooMany,
}

/// What the rows of [`Keys`] have in common, as the export has it: before plans are applied. It is needed to write the keys to a
/// compiled file, and for nothing else.
pub struct RowPolicies(Vec<PolicyKey>);

impl RowPolicies {
    pub(super) fn keys(&self) -> &[PolicyKey] {
        &self.0
    }
}

/// Takes records and makes [`Keys`] of them.
pub struct Builder {
    pub(super) keys: Keys,
    /// For errors.
    pub(super) lines: Lines,
    /// Name to an owner's number.
    pub(super) owners: Index,
    pub(super) interner: Interner,
}

impl Builder {
    /// An empty table. `seed` should be random and the same for no two processes; `expected` rows are made room for. However few there
    /// are then, they may be all over the indexes.
    pub fn new(seed: u64, expected: usize) -> Self {
        let keys = Keys {
            seed,
            hasher: IdHasher::default(),
            index: Index::with_capacity(expected),
            ids: Index::with_capacity(expected),
            rotated: Vec::new(),
            entries: HugeVec::with_capacity_in(expected, Huge),
            policies: Vec::new(),
            owners: vec![u32::MAX],
            arena: HugeText::with_capacity(expected.saturating_mul(IDENTITY_BYTES)),
            metadata: HugeVec::new_in(Huge),
            metadata_texts: HugeText::with_capacity(0),
            given: FieldSet::NONE,
            set_aside_given: FieldSet::NONE,
            has_set_aside: false,
            plans: Arc::default(),
        };
        Self { keys, lines: Lines::default(), owners: Index::with_capacity(0), interner: Interner::default() }
    }

    /// The same, with the plans that rows may name.
    pub fn with_plans(mut self, plans: Arc<Plans>) -> Self {
        self.keys.plans = plans;
        self
    }

    /// Adds the row of `line`.
    ///
    /// # Errors
    /// When it contradicts a row before it; the table is as if it had not been there.
    pub fn add(&mut self, line: u64, record: &KeyRecord<'_>) -> Result<(), RowError> {
        let id = self.next_id()?;
        let hashes = self.hashes();
        let (key_id, owner_name, id_hash) = (record.key_id, record.owner, hashes.text(record.key_id));
        let policy = self.policy(record)?;
        let first = self.first_of_key(id_hash, key_id, owner_name, policy)?.unwrap_or(id);
        self.claim_digest(id, &record.hash, hashes.probe(&record.hash))?;
        let owner = self.owner(id, owner_name, hashes.text(owner_name));
        let identity = self.identity(id, first, id_hash, key_id, owner_name);
        let has_metadata = self.metadata(id, record.metadata);
        self.push(Entry {
            digest: record.hash,
            identity,
            not_before: record.not_before,
            expires_at: End::new(record.expires_at),
            owner,
            policy,
            buckets: first,
            status: StatusByte::new(record.status),
            has_metadata,
            had: Had::default(),
            pepper: PepperByte::default(),
        });
        self.keys.given = self.keys.given.union(record.given);
        self.lines.push(id, line);
        Ok(())
    }

    pub(super) fn next_id(&self) -> Result<u32, RowError> {
        u32::try_from(self.keys.entries.len()).map_err(|_| RowError::TooMany)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        let id = self.keys.entries.len() as u32;
        if entry.buckets != id {
            self.keys.rotated.push((entry.buckets, id));
        }
        self.keys.entries.push(entry);
    }

    /// Keeps the metadata of an entry, if it has some.
    pub(super) fn metadata(&mut self, id: u32, text: &str) -> bool {
        if !text.is_empty() {
            self.keys.metadata.push((id, self.keys.metadata_texts.as_str().len() as u64));
            self.keys.metadata_texts.push_str(text);
        }
        !text.is_empty()
    }

    /// Every row, with its number counted from 1, as the export had it.
    pub fn records(&self, see: &mut dyn FnMut(u64, &KeyRecord<'_>)) {
        let keys = &self.keys;
        for ((entry, id), number) in keys.entries.iter().zip(0..).zip(1..) {
            let Some(policy) = self.interner.keys().get(entry.policy as usize) else { continue };
            see(
                number,
                &KeyRecord {
                    hash: entry.digest,
                    key_id: keys.key_id(entry),
                    owner: keys.owner(entry),
                    environment: &policy.environment,
                    plan: &policy.plan,
                    status: entry.status.of_row(),
                    not_before: entry.not_before,
                    expires_at: entry.expires_at.get(),
                    scopes: Arc::clone(&policy.scopes),
                    allowed_ips: policy.ips.clone(),
                    allowed_origins: policy.origins.clone(),
                    limits: Arc::clone(&policy.limits),
                    metadata: keys.metadata_of(id).unwrap_or_default(),
                    given: keys.given,
                },
            );
        }
    }

    /// The fields that any row has a value for.
    pub fn given(&self) -> FieldSet {
        self.keys.given
    }

    /// Rows in it.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The finished table.
    pub fn finish(self) -> Keys {
        self.finish_with_policies().0
    }

    /// The finished table, and what it takes to write it to a compiled file.
    pub fn finish_with_policies(self) -> (Keys, RowPolicies) {
        let Self { mut keys, interner, .. } = self;
        memory::trim(&mut keys.entries);
        memory::trim(&mut keys.metadata);
        keys.metadata_texts.trim();
        keys.rotated.shrink_to_fit();
        keys.rotated.sort_unstable();
        (keys, RowPolicies(interner.into_keys()))
    }

    /// The first row with the same key id, which has to agree with this one.
    pub(super) fn first_of_key(
        &self,
        id_hash: u64,
        key_id: &str,
        owner: &str,
        policy: u32,
    ) -> Result<Option<u32>, RowError> {
        let Some(first) = self.keys.find_by_id_hash(id_hash, key_id) else {
            return Ok(None);
        };
        self.agrees(first, owner, policy)?;
        Ok(Some(first))
    }

    /// Whether a row of this owner and policy can be one of the key whose first row is `first`.
    pub(super) fn agrees(&self, first: u32, owner: &str, policy: u32) -> Result<(), RowError> {
        let entry = &self.keys.entries[first as usize];
        let line = self.lines.of(first);
        let [first_limits, limits] =
            [entry.policy, policy].map(|policy| self.keys.policies[policy as usize].limits());
        if entry.policy != policy && first_limits != limits {
            return Err(RowError::OtherLimits { line });
        }
        if self.keys.owner(entry) != owner {
            return Err(RowError::OtherOwner { line });
        }
        Ok(())
    }

    pub(super) fn claim_digest(&mut self, id: u32, digest: &Digest, probe: Probe) -> Result<(), RowError> {
        let Keys { index, entries, seed, .. } = &mut self.keys;
        if let Some(first) = index.find(probe, |id| same_digest(&entries[id as usize].digest, digest)) {
            return Err(RowError::DuplicateHash { line: self.lines.of(first) });
        }
        index.insert(probe, id, |id| Probe::of_digest(&entries[id as usize].digest, *seed));
        Ok(())
    }

    /// Rows of one key have one text.
    pub(super) fn identity(
        &mut self,
        id: u32,
        first: u32,
        id_hash: u64,
        key_id: &str,
        owner: &str,
    ) -> Identity {
        if first != id {
            return self.keys.entries[first as usize].identity;
        }
        let Keys { arena, .. } = &mut self.keys;
        let identity = Identity::new(arena.as_str().len(), key_id.len(), owner.len());
        arena.push_str(key_id);
        arena.push_str(owner);
        self.insert_id(id, id_hash);
        identity
    }

    /// Has the new entry, which is not in `entries` yet, found by its key id.
    pub(super) fn insert_id(&mut self, id: u32, hash: u64) {
        let Keys { ids, entries, arena, hasher, .. } = &mut self.keys;
        // The new one is not rehashed: it is inserted after the table has grown.
        ids.insert(Probe::of_hash(hash), id, |id| {
            let key_id = entries[id as usize].identity.key_id();
            Probe::of_hash(hasher.hash_one(arena.as_str().get(key_id).unwrap_or_default()))
        });
    }

    /// The number of an owner; `id` is the entry that is about to have it.
    pub(super) fn owner(&mut self, id: u32, owner: &str, hash: u64) -> u32 {
        if owner.is_empty() {
            return 0;
        }
        let keys = &mut self.keys;
        let probe = Probe::of_hash(hash);
        if let Some(number) = self.owners.find(probe, |number| keys.owner_name(number) == owner) {
            return number;
        }
        let number = keys.owners.len() as u32;
        let rehash = |number| Probe::of_hash(keys.hasher.hash_one(keys.owner_name(number)));
        self.owners.insert(probe, number, rehash);
        keys.owners.push(id);
        number
    }

    fn policy(&mut self, record: &KeyRecord<'_>) -> Result<u32, UnknownPlanError> {
        let (number, is_new) = self.interner.number(record);
        self.complete(number, is_new)
    }

    /// The number of a policy that other rows may have already.
    pub(super) fn intern(&mut self, key: PolicyKey) -> Result<u32, UnknownPlanError> {
        let (number, is_new) = self.interner.intern(key);
        self.complete(number, is_new)
    }

    /// Puts a policy that is new on its plan.
    fn complete(&mut self, number: u32, is_new: bool) -> Result<u32, UnknownPlanError> {
        if is_new {
            let key = &self.interner.keys()[number as usize];
            match self.keys.plans.resolve(&key.plan) {
                Ok((plan, limits)) => {
                    self.keys.policies.push(Policy::new(key, plan, merge_limits(limits, &key.limits)));
                }
                Err(unknown) => {
                    self.interner.forget_last();
                    return Err(unknown);
                }
            }
        }
        Ok(number)
    }
}
