//! How much memory the next step of building or publishing a table can allocate. A load asks before
//! each step, so that it can be given up while everything is still as it was.
//!
//! All sizes are upper bounds of what is allocated at once, not of what stays allocated. Small
//! allocations and those in proportion to one batch are not included; a load leaves a margin for
//! them.

use keyward_memory::growth;

use crate::limiter::MAX_CHARGES;
use crate::record::{KeyRecord, Per};
use crate::snapshot::build::{IDENTITY_BYTES, PARTITIONING_BYTES};
use crate::snapshot::entry::Entry;
use crate::snapshot::index::Index;
use crate::snapshot::{Builder, Diff, KeyTable, ParallelBuilder, Policy, RowBatch, Snapshot};

/// The address space in which the C library's allocator grows for one thread. If no such space is
/// left, it maps a page for every small allocation, and no margin suffices for many of them.
pub const MALLOC_HEAP_BYTES: usize = 64 << 20;

/// Up to this number, small allocations need no heap of their own.
const FEW_ALLOCATIONS: usize = 1 << 7;

/// Address space for `threads` threads that make `allocations` small allocations each.
pub(super) fn heap_bytes(allocations: usize, threads: usize) -> usize {
    if allocations <= FEW_ALLOCATIONS { 0 } else { (threads + 1).saturating_mul(MALLOC_HEAP_BYTES) }
}

/// Small allocations of one policy.
const ALLOCATIONS_PER_POLICY: usize = 16;

/// Smaller allocations are left to the margin.
const SMALL: usize = 64 << 10;

fn large(bytes: usize) -> usize {
    if bytes < SMALL { 0 } else { bytes }
}

/// Bytes that a list allocates before it holds `more` values, if they are many.
fn list<T>(length: usize, capacity: usize, more: usize) -> usize {
    large(growth::<T>(length, capacity, more))
}

/// Bytes of a group of an index.
const GROUP_BYTES: usize = 64;

impl Index {
    /// Bytes of a table made for `expected` numbers.
    fn bytes_for(expected: usize) -> usize {
        Self::groups_for(expected).saturating_mul(GROUP_BYTES)
    }

    /// Bytes that the table allocates before it holds `more` numbers; 0 if there is room for them.
    pub(super) fn growth(&self, more: usize) -> usize {
        let (groups, room) = self.size();
        let needed = self.len().saturating_add(more);
        // The table doubles as often as needed.
        if needed <= room {
            0
        } else {
            (groups * 2).max(2 * Self::groups_for(needed)).max(4).saturating_mul(GROUP_BYTES)
        }
    }
}

/// Bytes of a table of `rows` rows, without their texts.
pub(super) fn rows_bytes(rows: usize) -> usize {
    let indexes = Index::bytes_for(rows).saturating_mul(2);
    rows.saturating_mul(size_of::<Entry>()).saturating_add(indexes)
}

impl Builder {
    /// Address space that has to be available all the time while rows are added one by one.
    pub fn heap_bytes(&self) -> usize {
        heap_bytes(self.keys.policies.len(), 1)
    }

    /// Bytes of a table of `rows` rows with key ids and owners of usual length, a few policies and
    /// no metadata.
    pub fn bytes_for(rows: usize) -> usize {
        rows_bytes(rows).saturating_add(rows.saturating_mul(IDENTITY_BYTES))
    }

    /// Bytes that adding a row can allocate; 0 if there is room for it.
    pub fn growth(&self, record: &KeyRecord<'_>) -> usize {
        let metadata = record.metadata.len();
        let (policies, bytes) =
            if self.interner.is_last(record) { (0, 0) } else { (1, record.policy_bytes()) };
        self.entry_growth(1, record.key_id.len() + record.owner.len())
            + self.index_growth(1)
            + list::<(u32, u64)>(self.keys.metadata.len(), self.keys.metadata.capacity(), metadata.min(1))
            + large(self.keys.metadata_texts.growth(metadata))
            + self.policy_growth(policies, bytes)
    }

    /// Bytes that setting `rows` rows aside can allocate, with `texts` bytes of key ids; 0 if there
    /// is room for them.
    pub fn set_aside_growth(&self, rows: usize, texts: usize) -> usize {
        // All of them have the same policy.
        let bytes = KeyRecord::new([0; 32], "").policy_bytes();
        self.entry_growth(rows, texts) + self.index_growth(rows) + self.policy_growth(1, bytes)
    }

    fn entry_growth(&self, rows: usize, texts: usize) -> usize {
        let keys = &self.keys;
        list::<Entry>(keys.entries.len(), keys.entries.capacity(), rows)
            + large(keys.arena.growth(texts))
            + list::<(u32, u32)>(keys.rotated.len(), keys.rotated.capacity(), rows)
            + list::<u32>(keys.owners.len(), keys.owners.capacity(), rows)
            + large(self.owners.growth(rows))
    }

    fn index_growth(&self, rows: usize) -> usize {
        large(self.keys.digest_index.growth(rows)) + large(self.keys.key_id_index.growth(rows))
    }

    /// For row policies of `bytes` bytes in total.
    pub(super) fn policy_growth(&self, policies: usize, bytes: usize) -> usize {
        if policies == 0 {
            return 0;
        }
        let of_rows = self.interner.policies().growth(policies, bytes);
        let index = self.interner.index().growth(policies);
        let of_table = self.keys.policies.growth(policies, bytes, &self.policy_indexes, &self.keys.plans);
        of_rows.into_iter().chain([index]).chain(of_table).map(large).fold(0, usize::saturating_add)
    }
}

impl ParallelBuilder {
    /// Address space that has to be available in addition, while `threads` threads build batches
    /// like this one.
    pub fn heap_bytes(batch: &RowBatch, threads: usize) -> usize {
        heap_bytes(batch.policies().len() * ALLOCATIONS_PER_POLICY, threads)
    }

    /// Bytes that adding a batch can allocate; 0 if there is room for it.
    pub fn growth(&self, batch: &RowBatch) -> usize {
        let (keys, [texts, rows_with_metadata, metadata]) = (&self.builder.keys, batch.text_bytes());
        self.builder.entry_growth(batch.rows(), texts)
            + list::<(u32, u64)>(keys.metadata.len(), keys.metadata.capacity(), rows_with_metadata)
            + large(keys.metadata_texts.growth(metadata))
            + self.builder.policy_growth(batch.policies().len(), batch.policies().bytes())
    }

    /// Bytes of the indexes, and of the memory that building them takes.
    pub fn indexing_bytes(&self) -> usize {
        let rows = self.builder.len();
        // Rows in rotation, in two lists that double.
        let rotated = rows.saturating_mul(2 * 3 * size_of::<(u32, u32)>());
        Index::bytes_for(rows)
            .saturating_mul(2)
            .saturating_add(2 * PARTITIONING_BYTES)
            .saturating_add(rotated)
    }
}

/// Per bucket of a key that is new or has other limits: its slot and the migrated balance, each in
/// a list that doubles.
const ALLOCATED_BUCKET: usize = 3 * (4 + 40);

/// Per bucket that is gone or has another rate: its balance by name, in a table that doubles.
const RETAINED_BUCKET: usize = 3 * 64;

/// Per bucket: its slot number in a list that doubles, and its state.
const SLOT: usize = 3 * 4 + 8;

/// Per bucket of an owner: entries in two tables that double.
const OWNER_BUCKET: usize = 3 * 160;

/// Per row: two numbers until it is published, and one in the record of usage from then on.
const COMPARED_ROW: usize = 3 * 4;

impl KeyTable {
    /// Bytes that comparing this table with another takes.
    pub fn comparing_bytes(&self) -> usize {
        self.len().saturating_mul(COMPARED_ROW)
    }

    /// Address space that publishing this table takes, in addition to
    /// [`publishing_bytes`](Self::publishing_bytes).
    pub fn publishing_heap_bytes(&self) -> usize {
        heap_bytes(self.owners.len(), 1)
    }

    /// Bytes that publishing this table after `old` takes, where `diff` is the difference between
    /// them.
    pub fn publishing_bytes(&self, diff: &Diff, old: Option<&Snapshot>) -> usize {
        let max_limits =
            |keys: &Self| keys.policies.iter().map(|policy| policy.policy_limits().len()).max().unwrap_or(0);
        let limits = max_limits(self).max(old.map_or(0, |old| max_limits(old.table()))).min(MAX_CHARGES);
        let has_owner_limit =
            |policy: Policy<'_>| policy.policy_limits().iter().any(|limit| limit.per == Per::Owner);
        let owners = if self.policies.iter().any(has_owner_limit) { self.owners.len() } else { 0 };
        // At startup, `diff` may be the difference from the last good keys, which have no buckets.
        let allocated = if old.is_none() { self.len() } else { diff.added.saturating_add(diff.changed) };
        let of = |buckets: usize, bytes: usize| buckets.saturating_mul(limits).saturating_mul(bytes);
        [
            of(self.len(), SLOT),
            of(allocated, ALLOCATED_BUCKET),
            of(diff.removed.saturating_add(diff.changed), RETAINED_BUCKET),
            of(owners, OWNER_BUCKET),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::record::{Limit, MAX_LIMITS, MAX_NAME, Plans, parse_limits, parse_rule};

    /// A default plan with as many limits as possible, and the longest names.
    fn largest_plan() -> Plans {
        let rule = parse_rule("l", "9/s").expect("a rule");
        let limits = (0..MAX_LIMITS).map(|at| Limit::new(format!("{at:0MAX_NAME$}"), rule));
        let name: Box<str> = "p".repeat(MAX_NAME).into();
        Plans::new([(name.clone(), limits.collect())], Some(name)).expect("a plan")
    }

    #[test]
    fn growth_covers_every_large_reallocation() {
        let mut builder = Builder::new(7, 0).with_plans(largest_plan().into());
        let sizes = |builder: &Builder| {
            let keys = &builder.keys;
            let entries = keys.entries.capacity() * size_of::<Entry>();
            let metadata = keys.metadata.capacity() * size_of::<(u32, u64)>();
            let indexes = [&keys.digest_index, &keys.key_id_index, builder.interner.index()];
            let indexes = indexes.into_iter().chain(builder.policy_indexes.all());
            let policies =
                keys.policies.allocated().into_iter().chain(builder.interner.policies().allocated());
            let tables = indexes.map(|index| index.size().0 * GROUP_BYTES).chain(policies);
            [entries, metadata].into_iter().chain(tables).collect::<Vec<_>>()
        };
        let mut estimates = 0;
        for number in 0..20_000_u32 {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&number.to_le_bytes());
            let (key_id, environment) = (format!("k{number}"), format!("e{number}"));
            let record = KeyRecord {
                environment: &environment,
                metadata: "{}",
                scopes: [format!("tenant:{number}:*").into()].into(),
                limits: parse_limits(&format!("{}/s", number + 1)).expect("a limit").into(),
                ..KeyRecord::new(hash, &key_id)
            };
            let (estimate, before) = (builder.growth(&record), sizes(&builder));
            builder.add(1, &record).expect("no conflict");
            let grown = sizes(&builder).into_iter().zip(before).filter(|(after, before)| after != before);
            let allocated: usize = grown.map(|(after, _)| after).filter(|bytes| *bytes >= SMALL).sum();
            assert!(estimate >= allocated, "row {number}: {estimate} estimated, {allocated} allocated");
            estimates += u32::from(estimate > 0);
        }
        assert!((10..400).contains(&estimates), "{estimates} estimates");
    }

    /// A few texts of each policy are stored for answers, but its lists only once.
    #[test]
    fn lists_are_not_estimated_as_texts_of_answers() {
        let addresses = (0..10_000_u32).map(|number| IpAddr::from(number.to_be_bytes()).into());
        let record =
            KeyRecord { allowed_ips: Some(addresses.collect()), ..KeyRecord::new([0; 32], "a key id") };
        let (estimate, bytes) = (Builder::new(7, 0).growth(&record), record.policy_bytes());
        assert!((bytes..4 * bytes).contains(&estimate), "{estimate} for {bytes}");
    }

    #[test]
    fn first_snapshot_allocates_all_buckets_even_if_equal_to_the_last_good_keys() {
        let mut builder = Builder::new(7, 100);
        for number in 0..100 {
            let key_id = format!("k{number}");
            let limits = parse_limits("10/s").expect("a limit").into();
            builder.add(1, &KeyRecord { limits, ..KeyRecord::new([number; 32], &key_id) }).expect("a row");
        }
        let keys = builder.finish();
        let same = Diff::default();
        assert!(keys.publishing_bytes(&same, None) >= 100 * (SLOT + ALLOCATED_BUCKET));
    }

    #[test]
    fn table_takes_no_more_than_the_estimate() {
        let keys = Builder::new(7, 100_000).keys;
        let entries = keys.entries.capacity() * size_of::<Entry>();
        let indexes = (keys.digest_index.size().0 + keys.key_id_index.size().0) * GROUP_BYTES;
        assert!(Builder::bytes_for(100_000) >= entries + indexes + 100_000 * IDENTITY_BYTES);
        assert_eq!(keys.digest_index.growth(100_000), 0);
    }
}
