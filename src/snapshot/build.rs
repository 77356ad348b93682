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

use crate::memory::{Huge, HugeVec};
use crate::record::{KeyRecord, Limit, Origin, Plans, UnknownPlan, on_top};
use crate::snapshot::entry::{Entry, StatusByte, Text};
use crate::snapshot::policy::Policy;
use crate::snapshot::{IdHasher, Ids, Index, IndexSlot, Probe, same_digest};

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
    /// The first is nobody.
    pub(super) owners: Vec<Text>,
    /// Key ids and owners.
    pub(super) arena: String,
    /// By entry, ascending.
    pub(super) metadata: Vec<(u32, Box<str>)>,
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
    /// Line of each entry, for errors.
    lines: Vec<u64>,
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
            ids: HashTable::with_capacity(expected),
            rotated: Vec::new(),
            entries: HugeVec::with_capacity_in(expected, Huge),
            policies: Vec::new(),
            owners: vec![Text::default()],
            arena: String::new(),
            metadata: Vec::new(),
        };
        Self {
            keys,
            plans: Arc::default(),
            lines: Vec::with_capacity(expected),
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
        let key_id = self.key_id(id, first, id_hash, record.key_id);
        let owner = self.owner(record.owner);
        if !record.metadata.is_empty() {
            self.keys.metadata.push((id, record.metadata.into()));
        }
        self.keys.entries.push(Entry {
            digest: record.hash,
            key_id,
            not_before: record.not_before,
            expires_at: record.expires_at,
            owner,
            policy,
            buckets: first,
            status: StatusByte::new(record.status),
            has_metadata: !record.metadata.is_empty(),
        });
        self.lines.push(line);
        Ok(())
    }

    /// The finished table.
    pub fn finish(self) -> Keys {
        let mut keys = self.keys;
        keys.entries.shrink_to_fit();
        keys.arena.shrink_to_fit();
        keys.metadata.shrink_to_fit();
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
        let line = self.line(first);
        let [first_limits, limits] =
            [entry.policy, policy].map(|policy| self.keys.policies[policy as usize].limits());
        if entry.policy != policy && first_limits != limits {
            return Err(RowError::OtherLimits { line });
        }
        if self.keys.text(self.keys.owners[entry.owner as usize]) != record.owner {
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
        Err(RowError::DuplicateHash { line: self.line(first) })
    }

    fn key_id(&mut self, id: u32, first: u32, id_hash: u64, key_id: &str) -> Text {
        if first != id {
            return self.keys.entries[first as usize].key_id;
        }
        let Keys { ids, entries, arena, hasher, .. } = &mut self.keys;
        let text = append(arena, key_id);
        // The new entry is not in `entries` yet, and is not rehashed: it is inserted after the table has grown.
        let rehash = |entry: &u32| {
            hasher.hash_one(arena.get(entries[*entry as usize].key_id.range()).unwrap_or_default())
        };
        ids.insert_unique(id_hash, id, rehash);
        text
    }

    fn owner(&mut self, owner: &str) -> u32 {
        if owner.is_empty() {
            return 0;
        }
        let Keys { owners, arena, hasher, .. } = &mut self.keys;
        let hash = hasher.hash_one(owner);
        let text = |id: &u32| arena.get(owners[*id as usize].range()).unwrap_or_default();
        if let Some(id) = self.owners.find(hash, |id| text(id) == owner) {
            return *id;
        }
        let id = owners.len() as u32;
        self.owners.insert_unique(hash, id, |id| hasher.hash_one(text(id)));
        owners.push(append(arena, owner));
        id
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

    fn line(&self, entry: u32) -> u64 {
        self.lines.get(entry as usize).copied().unwrap_or(0)
    }
}

fn append(arena: &mut String, text: &str) -> Text {
    let at = Text::new(arena.len(), text.len());
    arena.push_str(text);
    at
}
