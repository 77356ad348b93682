//! Rows that were read apart from the table, by a thread of their own, and go into it together.
//!
//! What a row costs is mostly reading it, and hashing: a [`Gather`] does that, one for each thread. What is left to the one
//! thread that owns the [`Builder`] is to look the row up in two tables that no cache holds. Several rows are looked up before the
//! first of them goes in, so that their cache misses overlap: after that the places are there.

use std::hash::BuildHasher;
use std::hint::black_box;

use crate::record::{Digest, KeyRecord, Status};
use crate::snapshot::IdHasher;
use crate::snapshot::build::{Builder, RowError};
use crate::snapshot::entry::{Entry, StatusByte};
use crate::snapshot::index::Probe;
use crate::snapshot::intern::{Interner, PolicyKey};
use crate::snapshot::kept::WINDOW;

/// Takes records and makes a [`Batch`] of them.
pub struct Gather {
    hashes: Hashes,
    batch: Batch,
    interner: Interner,
}

/// How a table hashes, so that other threads can do it for it.
#[derive(Clone)]
pub(super) struct Hashes {
    seed: u64,
    hasher: IdHasher,
}

/// Rows, and what they have in common.
#[derive(Default)]
pub struct Batch {
    rows: Vec<Row>,
    /// Key id and owner of each row.
    texts: String,
    metadata: String,
    /// What the rows' policies are.
    policies: Vec<PolicyKey>,
}

/// One row: what has a length of its own is in the batch's texts, in order.
struct Row {
    digest: Digest,
    probe: Probe,
    id_hash: u64,
    owner_hash: u64,
    not_before: u32,
    expires_at: u32,
    policy: u32,
    metadata: u16,
    key_id: u8,
    owner: u8,
    status: Status,
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
    /// For another thread: takes rows of the same table.
    pub fn gather(&self) -> Gather {
        Gather { hashes: self.hashes(), batch: Batch::default(), interner: Interner::default() }
    }

    pub(super) fn hashes(&self) -> Hashes {
        Hashes { seed: self.keys.seed, hasher: self.keys.hasher.clone() }
    }
}

impl Gather {
    /// Adds a row.
    pub fn add(&mut self, record: &KeyRecord<'_>) {
        let (policy, _) = self.interner.number(record);
        let Batch { rows, texts, metadata, .. } = &mut self.batch;
        texts.push_str(record.key_id);
        texts.push_str(record.owner);
        metadata.push_str(record.metadata);
        rows.push(Row {
            digest: record.hash,
            probe: self.hashes.probe(&record.hash),
            id_hash: self.hashes.text(record.key_id),
            owner_hash: self.hashes.text(record.owner),
            not_before: record.not_before,
            expires_at: record.expires_at,
            policy,
            // The record's own limits see to it that these fit.
            metadata: record.metadata.len() as u16,
            key_id: record.key_id.len() as u8,
            owner: record.owner.len() as u8,
            status: record.status,
        });
    }

    /// The rows that were added since the last time.
    pub fn batch(&mut self) -> Batch {
        let rows = Vec::with_capacity(self.batch.rows.len());
        let next = Batch { rows, ..Batch::default() };
        let policies = self.interner.take();
        Batch { policies, ..std::mem::replace(&mut self.batch, next) }
    }
}

impl Builder {
    /// Adds all rows of a batch.
    ///
    /// # Errors
    /// When one contradicts a row before it. The lines in the error mean nothing, and the table is to be thrown away.
    pub fn add_batch(&mut self, batch: Batch) -> Result<(), RowError> {
        let Batch { rows, texts, metadata, policies } = batch;
        let numbers = policies.into_iter().map(|key| self.intern(key)).collect::<Result<Vec<u32>, _>>()?;
        let number = |policy: u32| numbers.get(policy as usize).copied().unwrap_or(policy);
        let (mut texts, mut metadata) = (&*texts, &*metadata);
        for window in rows.chunks(WINDOW) {
            self.fetch(window);
            for row in window {
                let (key_id, rest) = split(texts, row.key_id.into());
                let (owner, rest) = split(rest, row.owner.into());
                let (own_metadata, rest_of_metadata) = split(metadata, row.metadata.into());
                (texts, metadata) = (rest, rest_of_metadata);
                self.add_row(row, number(row.policy), key_id, owner, own_metadata)?;
            }
        }
        Ok(())
    }

    /// Looks the rows up, for what that brings into the cache: one kind of place at a time, because the fewer instructions lie
    /// between two cache misses, the more of them a processor waits for at once.
    fn fetch(&self, rows: &[Row]) {
        let keys = &self.keys;
        for row in rows {
            keys.index.prefetch(row.probe);
            keys.ids.prefetch(Probe::of_hash(row.id_hash));
        }
        // The owner's name is three steps away, and compared with the row's.
        let mut firsts = [u32::MAX; WINDOW];
        for (row, first) in rows.iter().zip(&mut firsts) {
            let owner = self.owners.candidate(Probe::of_hash(row.owner_hash));
            *first =
                owner.and_then(|number| keys.owners.get(number as usize)).map_or(u32::MAX, |first| *first);
        }
        let entries = firsts.iter().filter_map(|first| keys.entries.get(*first as usize));
        black_box(entries.fold(0, |sum, entry| sum ^ keys.byte(entry.identity.owner().start)));
    }

    fn add_row(
        &mut self,
        row: &Row,
        policy: u32,
        key_id: &str,
        owner_name: &str,
        metadata: &str,
    ) -> Result<(), RowError> {
        let id = self.next_id()?;
        let first = self.first_of_key(row.id_hash, key_id, owner_name, policy)?.unwrap_or(id);
        self.claim_digest(id, &row.digest, row.probe)?;
        let owner = self.owner(id, owner_name, row.owner_hash);
        let identity = self.identity(id, first, row.id_hash, key_id, owner_name);
        let has_metadata = self.metadata(id, metadata);
        self.push(Entry {
            digest: row.digest,
            identity,
            not_before: row.not_before,
            expires_at: row.expires_at,
            owner,
            policy,
            buckets: first,
            status: StatusByte::new(row.status),
            has_metadata,
        });
        Ok(())
    }
}

/// A text at a length that was its own.
fn split(text: &str, at: usize) -> (&str, &str) {
    text.split_at_checked(at).unwrap_or((text, ""))
}
