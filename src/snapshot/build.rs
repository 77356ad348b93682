//! Building a snapshot: records in, one at a time; duplicates and contradictions out, with the lines of both.
//!
//! Two steps, because a reload may still be refused between them: [`Builder`] makes [`Keys`], which depend on the export
//! alone and are what the guard looks at; [`Keys::publishable`] then claims the buckets, which depend on the snapshot
//! before.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry as Place;
use ipnet::IpNet;

use crate::memory::{self, Huge, HugeText, HugeVec};
use crate::record::{KeyRecord, Limit, Origin, Plans, UnknownPlan, on_top};
use crate::snapshot::entry::{Entry, Identity, StatusByte};
use crate::snapshot::lines::Lines;
use crate::snapshot::policy::Policy;
use crate::snapshot::{IdHasher, Ids, Index, IndexSlot, Probe, same_digest};

/// Bytes that a key id and an owner are assumed to have, when room is made for them. Too few are grown; what is too much is
/// never touched, and so costs no memory.
const IDENTITY_BYTES: usize = 32;

/// The keys of one export.
pub struct Keys {
    pub(super) seed: u64,
    pub(super) hasher: IdHasher,
    /// Digest to entry.
    pub(super) index: Index,
    /// Key id to the first entry that has it.
    pub(super) ids: Ids,
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
    UnknownPlan(#[from] UnknownPlan),
    /// Entries are numbered with 32 bits.
    #[error("more than {} keys", u32::MAX)]
    TooMany,
}

/// Takes records and makes [`Keys`] of them.
pub struct Builder {
    keys: Keys,
    plans: Arc<Plans>,
    /// For errors.
    lines: Lines,
    owners: HashTable<u32>,
    policies: HashTable<(u64, u32)>,
    policy_keys: Vec<PolicyKey>,
    /// The policy of the row before: in most exports the next row has it too.
    last_policy: u32,
}

/// What makes two policies the same.
struct PolicyKey {
    environment: Box<str>,
    plan: Box<str>,
    scopes: Arc<[Box<str>]>,
    ips: Arc<[IpNet]>,
    origins: Arc<[Origin]>,
    limits: Arc<[Limit]>,
}

impl PolicyKey {
    fn of(record: &KeyRecord<'_>) -> Self {
        Self {
            environment: record.environment.into(),
            plan: record.plan.into(),
            scopes: Arc::clone(&record.scopes),
            ips: Arc::clone(&record.allowed_ips),
            origins: Arc::clone(&record.allowed_origins),
            limits: Arc::clone(&record.limits),
        }
    }

    fn is_of(&self, record: &KeyRecord<'_>) -> bool {
        *self.environment == *record.environment
            && *self.plan == *record.plan
            && same(&self.scopes, &record.scopes)
            && same(&self.ips, &record.allowed_ips)
            && same(&self.origins, &record.allowed_origins)
            && same(&self.limits, &record.limits)
    }

    fn hash(hasher: &IdHasher, record: &KeyRecord<'_>) -> u64 {
        let mut state = hasher.build_hasher();
        (record.environment, record.plan, &record.scopes, &record.allowed_ips).hash(&mut state);
        (&record.allowed_origins, &record.limits).hash(&mut state);
        state.finish()
    }
}

fn same<T: PartialEq>(a: &Arc<[T]>, b: &Arc<[T]>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

impl Builder {
    /// An empty table. `seed` should be random and the same for no two processes; `expected` rows are made room for.
    pub fn new(seed: u64, expected: usize) -> Self {
        let keys = Keys {
            seed,
            hasher: IdHasher::default(),
            index: HashTable::with_capacity_in(expected, Huge),
            ids: HashTable::with_capacity_in(expected, Huge),
            rotated: Vec::new(),
            entries: HugeVec::with_capacity_in(expected, Huge),
            policies: Vec::new(),
            owners: vec![u32::MAX],
            arena: HugeText::with_capacity(expected.saturating_mul(IDENTITY_BYTES)),
            metadata: HugeVec::new_in(Huge),
            metadata_texts: HugeText::with_capacity(0),
        };
        Self {
            keys,
            plans: Arc::default(),
            lines: Lines::default(),
            owners: HashTable::new(),
            policies: HashTable::new(),
            policy_keys: Vec::new(),
            last_policy: 0,
        }
    }

    /// The same, with the plans that rows may name.
    pub fn with_plans(self, plans: Arc<Plans>) -> Self {
        Self { plans, ..self }
    }

    /// Adds the row of `line`.
    ///
    /// # Errors
    /// When it contradicts a row before it; the table is as if it had not been there.
    pub fn add(&mut self, line: u64, record: &KeyRecord<'_>) -> Result<(), RowError> {
        let id = u32::try_from(self.keys.entries.len()).map_err(|_| RowError::TooMany)?;
        let id_hash = self.keys.hasher.hash_one(record.key_id);
        let policy = self.policy(record)?;
        let first = self.first_of_key(id_hash, record, policy)?.unwrap_or(id);
        self.claim_digest(id, record)?;

        if first != id {
            self.keys.rotated.push((first, id));
        }
        let owner = self.owner(id, record.owner);
        let identity = self.identity(id, first, id_hash, record);
        if !record.metadata.is_empty() {
            self.keys.metadata.push((id, self.keys.metadata_texts.as_str().len() as u64));
            self.keys.metadata_texts.push_str(record.metadata);
        }
        self.keys.entries.push(Entry {
            digest: record.hash,
            identity,
            not_before: record.not_before,
            expires_at: record.expires_at,
            owner,
            policy,
            buckets: first,
            status: StatusByte::new(record.status),
            has_metadata: !record.metadata.is_empty(),
        });
        self.lines.push(id, line);
        Ok(())
    }

    /// The finished table.
    pub fn finish(self) -> Keys {
        let mut keys = self.keys;
        memory::trim(&mut keys.entries);
        keys.arena.trim();
        memory::trim(&mut keys.metadata);
        keys.metadata_texts.trim();
        keys.rotated.shrink_to_fit();
        keys.rotated.sort_unstable();
        keys
    }

    /// The first row with the same key id, which has to agree with this one.
    fn first_of_key(
        &self,
        id_hash: u64,
        record: &KeyRecord<'_>,
        policy: u32,
    ) -> Result<Option<u32>, RowError> {
        let Some(first) = self.keys.find_by_id_hash(id_hash, record.key_id) else {
            return Ok(None);
        };
        let entry = &self.keys.entries[first as usize];
        let line = self.lines.of(first);
        let [first_limits, limits] =
            [entry.policy, policy].map(|policy| self.keys.policies[policy as usize].limits());
        if entry.policy != policy && first_limits != limits {
            return Err(RowError::OtherLimits { line });
        }
        if self.keys.owner(entry) != record.owner {
            return Err(RowError::OtherOwner { line });
        }
        Ok(Some(first))
    }

    fn claim_digest(&mut self, id: u32, record: &KeyRecord<'_>) -> Result<(), RowError> {
        let seed = self.keys.seed;
        let Keys { index, entries, .. } = &mut self.keys;
        let probe = Probe::new(&record.hash, seed);
        let same = |slot: &IndexSlot| {
            slot.fingerprint == probe.fingerprint
                && same_digest(&entries[slot.entry as usize].digest, &record.hash)
        };
        let rehash = |slot: &IndexSlot| Probe::new(&entries[slot.entry as usize].digest, seed).hash;
        let first = match index.entry(probe.hash, same, rehash) {
            Place::Occupied(there) => there.get().entry,
            Place::Vacant(free) => {
                free.insert(IndexSlot { fingerprint: probe.fingerprint, entry: id });
                return Ok(());
            }
        };
        Err(RowError::DuplicateHash { line: self.lines.of(first) })
    }

    /// Rows of one key have one text.
    fn identity(&mut self, id: u32, first: u32, id_hash: u64, record: &KeyRecord<'_>) -> Identity {
        if first != id {
            return self.keys.entries[first as usize].identity;
        }
        let Keys { ids, entries, arena, hasher, .. } = &mut self.keys;
        let identity = Identity::new(arena.as_str().len(), record.key_id.len(), record.owner.len());
        arena.push_str(record.key_id);
        arena.push_str(record.owner);
        // The new entry is not in `entries` yet, and is not rehashed: it is inserted after the table has grown.
        let rehash = |entry: &u32| {
            let key_id = entries[*entry as usize].identity.key_id();
            hasher.hash_one(arena.as_str().get(key_id).unwrap_or_default())
        };
        ids.insert_unique(id_hash, id, rehash);
        identity
    }

    /// The number of an owner; `id` is the entry that is about to have it.
    fn owner(&mut self, id: u32, owner: &str) -> u32 {
        if owner.is_empty() {
            return 0;
        }
        let keys = &mut self.keys;
        let hash = keys.hasher.hash_one(owner);
        if let Some(number) = self.owners.find(hash, |number| keys.owner_name(*number) == owner) {
            return *number;
        }
        let number = keys.owners.len() as u32;
        self.owners.insert_unique(hash, number, |number| keys.hasher.hash_one(keys.owner_name(*number)));
        keys.owners.push(id);
        number
    }

    fn policy(&mut self, record: &KeyRecord<'_>) -> Result<u32, UnknownPlan> {
        if self.policy_keys.get(self.last_policy as usize).is_some_and(|key| key.is_of(record)) {
            return Ok(self.last_policy);
        }
        let hash = PolicyKey::hash(&self.keys.hasher, record);
        let found = self.policies.find(hash, |(_, id)| self.policy_keys[*id as usize].is_of(record)).copied();
        self.last_policy = match found {
            Some((_, id)) => id,
            None => {
                let (plan, limits) = self.plans.of(record.plan)?;
                let policy = Policy::new(record, plan, on_top(limits, &record.limits));
                let id = self.policy_keys.len() as u32;
                self.policy_keys.push(PolicyKey::of(record));
                self.keys.policies.push(policy);
                self.policies.insert_unique(hash, (hash, id), |(hash, _)| *hash);
                id
            }
        };
        Ok(self.last_policy)
    }
}
