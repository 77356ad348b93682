//! Rows that were read apart from the table, by threads of their own, and go into it together.
//!
//! What a row costs is mostly reading it, and hashing: a [`Gather`] does that, one for each thread. The thread that owns the table, as a
//! [`Bulk`], only puts the rows one after another, and finds their owners. By digest and by id they are [indexed](super::bulk) when
//! all of them are there.

use std::hash::BuildHasher;

use crate::record::{Digest, FieldSet, KeyRecord};
use crate::snapshot::IdHasher;
use crate::snapshot::build::{Builder, RowError};
use crate::snapshot::bulk::Bulk;
use crate::snapshot::entry::{Entry, Identity};
use crate::snapshot::index::Probe;
use crate::snapshot::intern::{Interner, PolicyKey};
use crate::snapshot::kept::WINDOW;
use crate::snapshot::peppers::PepperByte;
use crate::snapshot::set_aside::Had;
use crate::snapshot::status::{End, StatusByte};
use keyward_memory::{self as memory, prefetch};

/// Takes records and makes a [`Batch`] of them.
pub struct Gather {
    hasher: IdHasher,
    batch: Batch,
    interner: Interner,
}

/// How a table hashes.
#[derive(Clone)]
pub(super) struct Hashes {
    seed: u64,
    hasher: IdHasher,
}

/// Rows, and what they have in common.
#[derive(Default)]
pub struct Batch {
    /// As they will be in the table, but that texts and policies are numbered as in the batch, and owners not at all.
    entries: Vec<Entry>,
    owner_hashes: Vec<u64>,
    /// Key id and owner of each row.
    texts: String,
    /// As in the table: by row, ascending, where its text begins.
    metadata: Vec<(u32, u64)>,
    metadata_texts: String,
    /// What the rows' policies are.
    policies: Vec<PolicyKey>,
    /// The fields that any row has a value for.
    given: FieldSet,
}

impl Hashes {
    pub(super) fn probe(&self, digest: &Digest) -> Probe {
        Probe::of_digest(digest, self.seed)
    }

    pub(super) fn text(&self, text: &str) -> u64 {
        self.hasher.hash_one(text)
    }
}

impl Builder {
    pub(super) fn hashes(&self) -> Hashes {
        Hashes { seed: self.keys.seed, hasher: self.keys.hasher.clone() }
    }
}

impl Batch {
    /// Rows in it.
    pub fn rows(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of key ids and owners, rows that have metadata, and its bytes.
    pub(super) fn text_bytes(&self) -> [usize; 3] {
        [self.texts.len(), self.metadata.len(), self.metadata_texts.len()]
    }

    pub(super) fn policies(&self) -> usize {
        self.policies.len()
    }
}

impl Gather {
    pub(super) fn new(hasher: IdHasher) -> Self {
        Self { hasher, batch: Batch::default(), interner: Interner::default() }
    }

    /// Adds a row.
    pub fn add(&mut self, record: &KeyRecord<'_>) {
        let (policy, _) = self.interner.number(record);
        let Batch { entries, owner_hashes, texts, metadata, metadata_texts, given, .. } = &mut self.batch;
        *given = given.union(record.given);
        let identity = Identity::new(texts.len(), record.key_id.len(), record.owner.len());
        texts.push_str(record.key_id);
        texts.push_str(record.owner);
        let has_metadata = !record.metadata.is_empty();
        if has_metadata {
            metadata.push((entries.len() as u32, metadata_texts.len() as u64));
            metadata_texts.push_str(record.metadata);
        }
        owner_hashes.push(self.hasher.hash_one(record.owner));
        entries.push(Entry {
            digest: record.hash,
            identity,
            not_before: record.not_before,
            expires_at: End::new(record.expires_at),
            owner: 0,
            policy,
            buckets: 0,
            status: StatusByte::new(record.status),
            has_metadata,
            had: Had::default(),
            pepper: PepperByte::default(),
        });
    }

    /// The rows that were added since the last time.
    pub fn batch(&mut self) -> Batch {
        // As many as there were: most batches are of one size.
        let next = Batch {
            entries: Vec::with_capacity(self.batch.entries.len()),
            owner_hashes: Vec::with_capacity(self.batch.entries.len()),
            texts: String::with_capacity(self.batch.texts.len()),
            ..Batch::default()
        };
        let policies = self.interner.take();
        Batch { policies, ..std::mem::replace(&mut self.batch, next) }
    }
}

impl Bulk {
    /// Adds all rows of a batch.
    ///
    /// # Errors
    /// When one contradicts the plans, or there are too many. The table is to be thrown away.
    pub fn add_batch(&mut self, batch: Batch) -> Result<(), RowError> {
        let Batch { entries, owner_hashes, texts, metadata, metadata_texts, policies, given } = batch;
        let builder = &mut self.builder;
        builder.keys.given = builder.keys.given.union(given);
        let policies =
            policies.into_iter().map(|key| builder.intern(key)).collect::<Result<Vec<u32>, _>>()?;
        let (mut id, text) = (builder.next_id()?, builder.keys.arena.as_str().len());
        u32::try_from(id as usize + entries.len()).map_err(|_| RowError::TooMany)?;
        let keys = &mut builder.keys;
        keys.entries.reserve(entries.len());
        if self.ready < keys.entries.len() + entries.len() {
            self.ready = memory::populate_some(&mut keys.entries);
        }
        keys.arena.push_str(&texts);
        let metadata_text = keys.metadata_texts.as_str().len() as u64;
        keys.metadata.extend(metadata.iter().map(|(row, start)| (id + row, metadata_text + start)));
        keys.metadata_texts.push_str(&metadata_texts);

        let mut entries = entries.into_iter();
        for hashes in owner_hashes.chunks(WINDOW) {
            builder.fetch_owners(hashes);
            for (hash, entry) in hashes.iter().zip(&mut entries) {
                let name = texts.get(entry.identity.owner()).unwrap_or_default();
                let owner = builder.owner(id, name, *hash);
                let policy = policies.get(entry.policy as usize).copied().unwrap_or_default();
                let identity = entry.identity.moved(text);
                builder.keys.entries.push(Entry { identity, owner, policy, buckets: id, ..entry });
                id += 1;
            }
        }
        Ok(())
    }
}

impl Builder {
    /// Has the names fetched that owners are compared with, which are three steps away.
    fn fetch_owners(&self, hashes: &[u64]) {
        let keys = &self.keys;
        let mut firsts = [u32::MAX; WINDOW];
        hashes.iter().for_each(|hash| self.owners.prefetch(Probe::of_hash(*hash)));
        for (hash, first) in hashes.iter().zip(&mut firsts) {
            let owner = self.owners.candidate(Probe::of_hash(*hash));
            *first = owner.and_then(|number| keys.owners.get(number as usize)).copied().unwrap_or(u32::MAX);
            keys.entries.get(*first as usize).into_iter().for_each(prefetch);
        }
        let entries = firsts.iter().filter_map(|first| keys.entries.get(*first as usize));
        let texts = keys.arena.as_str().as_bytes();
        entries.filter_map(|entry| texts.get(entry.identity.owner().start)).for_each(prefetch);
    }
}
