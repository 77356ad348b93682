//! Rows that a thread prepares on its own, to be added to a
//! [`ParallelBuilder`](super::ParallelBuilder) together.
//!
//! Most of the cost of a row is parsing and hashing. Both happen here, in as many threads as there
//! are batch builders.

use std::hash::BuildHasher;

use crate::record::{FieldSet, KeyRecord};
use crate::snapshot::build::interner::Interner;
use crate::snapshot::entry::{AtomicExpiry, AtomicPepper, AtomicStatus, Entry, Identity, PriorRestrictions};
use crate::snapshot::key_table::IdHasher;
use crate::snapshot::row_policy::RowPolicies;

/// Rows, and what they have in common.
#[derive(Default)]
pub struct RowBatch {
    /// The entries as in the table, except that texts and policies are numbered within the batch
    /// and owners not at all.
    pub(super) entries: Vec<Entry>,
    pub(super) owner_hashes: Vec<u64>,
    /// Key id and owner of each row.
    pub(super) texts: String,
    /// (row, start of its text in `metadata_texts`), ascending, as in the table.
    pub(super) metadata: Vec<(u32, u64)>,
    pub(super) metadata_texts: String,
    pub(super) policies: RowPolicies,
    /// The fields for which any row has a value.
    pub(super) present_fields: FieldSet,
}

impl RowBatch {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of key ids and owners, the number of rows with metadata, and bytes of metadata.
    pub(in crate::snapshot) fn text_bytes(&self) -> [usize; 3] {
        [self.texts.len(), self.metadata.len(), self.metadata_texts.len()]
    }

    /// The different policies.
    pub(in crate::snapshot) fn policies(&self) -> &RowPolicies {
        &self.policies
    }
}

/// Collects records in a [`RowBatch`].
pub struct BatchBuilder {
    hasher: IdHasher,
    batch: RowBatch,
    interner: Interner,
}

impl BatchBuilder {
    /// `hasher` is that of the table.
    pub(super) fn new(hasher: IdHasher) -> Self {
        Self { hasher, batch: RowBatch::default(), interner: Interner::default() }
    }

    /// Adds a row.
    pub fn add(&mut self, record: &KeyRecord<'_>) {
        let policy = self.interner.find(record).unwrap_or_else(|new| self.interner.add(new));
        let RowBatch { entries, owner_hashes, texts, metadata, metadata_texts, present_fields, .. } =
            &mut self.batch;
        *present_fields = present_fields.union(record.present_fields);
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
            expires_at: AtomicExpiry::new(record.expires_at),
            owner: 0,
            policy,
            buckets: 0,
            status: AtomicStatus::new(record.status),
            has_metadata,
            prior_restrictions: PriorRestrictions::default(),
            pepper: AtomicPepper::default(),
        });
    }

    /// Returns the rows that were added since the last call.
    pub fn take(&mut self) -> RowBatch {
        // Most batches have the same size.
        let RowBatch { entries, owner_hashes, texts, metadata, metadata_texts, .. } = &self.batch;
        let next = RowBatch {
            entries: Vec::with_capacity(entries.len()),
            owner_hashes: Vec::with_capacity(owner_hashes.len()),
            texts: String::with_capacity(texts.len()),
            metadata: Vec::with_capacity(metadata.len()),
            metadata_texts: String::with_capacity(metadata_texts.len()),
            ..RowBatch::default()
        };
        let policies = self.interner.take();
        RowBatch { policies, ..std::mem::replace(&mut self.batch, next) }
    }
}
