//! How much memory the next step of building or publishing a table can ask for: told before it is done, so that a load can be given
//! up while everything is as it was.
//!
//! These are upper bounds of what is asked for at once, and not of what stays. What is small, or in proportion to one batch, is not in
//! them: a load leaves a margin for that.

use crate::limiter::MAX_CHARGES;
use crate::record::Per;
use crate::snapshot::build::{Builder, IDENTITY_BYTES};
use crate::snapshot::bulk::INDEXING_BYTES;
use crate::snapshot::entry::Entry;
use crate::snapshot::index::Index;
use crate::snapshot::{Batch, Bulk, Diff, Keys, Policy, Snapshot};
use keyward_memory::growth;

/// What a reload keeps of a bucket whose key is new or has other limits: its slot, and whose balance it inherits, each in a list
/// that doubles.
const CLAIMED: usize = 3 * (4 + 40);

/// What it keeps of a bucket that is gone, or has another rate: by name, in a table that doubles.
const PARKED: usize = 3 * 64;

/// The number of a slot in a list that doubles, and its word.
const SLOT: usize = 3 * 4 + 8;

/// An owner's bucket, in two tables that double.
const SHARED: usize = 3 * 160;

/// Two numbers that a row costs until it is published, and one that the record of usage takes then.
const COMPARED: usize = 3 * 4;

/// What is smaller is left to the margin.
const SMALL: usize = 64 << 10;

/// Address space in which the C library's allocator grows for a thread. Where there is none left, it takes a page for every small
/// allocation, and no margin is enough for many of them.
pub const HEAP: usize = 64 << 20;

/// So many small allocations need no heap.
const FEW: usize = 1 << 7;

/// Room for so many threads to make so many small allocations each.
pub(super) fn heaps(allocations: usize, threads: usize) -> usize {
    if allocations <= FEW { 0 } else { (threads + 1).saturating_mul(HEAP) }
}

/// Small allocations of a policy.
pub(super) const POLICY_PARTS: usize = 16;

/// Bytes that a list asks for before it has `more` values, if they are many.
fn list<T>(length: usize, capacity: usize, more: usize) -> usize {
    large(growth::<T>(length, capacity, more))
}

fn large(bytes: usize) -> usize {
    if bytes < SMALL { 0 } else { bytes }
}

/// A line of an index.
const LINE: usize = 64;

impl Index {
    /// Bytes of a table that is made for so many.
    fn bytes_for(expected: usize) -> usize {
        Self::lines_for(expected).saturating_mul(LINE)
    }

    /// Bytes that it asks for before it has `more`; 0: it has room for them.
    fn growth(&self, more: usize) -> usize {
        let (lines, room) = self.size();
        let needed = self.len().saturating_add(more);
        // It doubles as often as it takes.
        if needed <= room {
            0
        } else {
            (lines * 2).max(2 * Self::lines_for(needed)).max(4).saturating_mul(LINE)
        }
    }
}

/// Bytes of so many rows without their texts.
pub(super) fn rows_bytes(rows: usize) -> usize {
    let indexes = Index::bytes_for(rows).saturating_mul(2);
    rows.saturating_mul(size_of::<Entry>()).saturating_add(indexes)
}

impl Builder {
    /// Address space that has to be there all the time while rows are added one by one.
    pub fn reading_bytes(&self) -> usize {
        heaps(self.keys.policies.len(), 1)
    }

    /// Bytes of a table of so many rows with usual key ids and owners, a few policies and no metadata.
    pub fn bytes_for(rows: usize) -> usize {
        rows_bytes(rows).saturating_add(rows.saturating_mul(IDENTITY_BYTES))
    }

    /// Bytes that adding so many rows can ask for, with `texts` bytes of key ids and owners, and so many of metadata; 0: there is room.
    pub fn growth(&self, rows: usize, texts: usize, metadata: usize) -> usize {
        let with_metadata = rows.min(metadata);
        self.fixed_growth(rows, texts)
            + self.index_growth(rows)
            + list::<(u32, u64)>(self.keys.metadata.len(), self.keys.metadata.capacity(), with_metadata)
            + large(self.keys.metadata_texts.growth(metadata))
            + self.policy_growth(rows)
    }

    fn fixed_growth(&self, rows: usize, texts: usize) -> usize {
        let keys = &self.keys;
        list::<Entry>(keys.entries.len(), keys.entries.capacity(), rows)
            + large(keys.arena.growth(texts))
            + list::<(u32, u32)>(keys.rotated.len(), keys.rotated.capacity(), rows)
            + list::<u32>(keys.owners.len(), keys.owners.capacity(), rows)
            + large(self.owners.growth(rows))
    }

    fn index_growth(&self, rows: usize) -> usize {
        large(self.keys.index.growth(rows)) + large(self.keys.ids.growth(rows))
    }

    fn policy_growth(&self, policies: usize) -> usize {
        list::<Policy>(self.keys.policies.len(), self.keys.policies.capacity(), policies)
            + large(self.interner.growth(policies))
    }
}

impl Bulk {
    /// Address space that has to be there beside that, while so many threads read others like it.
    pub fn reading_bytes(batch: &Batch, threads: usize) -> usize {
        heaps(batch.policies() * POLICY_PARTS, threads)
    }

    /// Bytes that adding a batch can ask for; 0: there is room.
    pub fn growth(&self, batch: &Batch) -> usize {
        let (keys, [texts, rows_with_metadata, metadata]) = (&self.builder.keys, batch.text_bytes());
        self.builder.fixed_growth(batch.rows(), texts)
            + list::<(u32, u64)>(keys.metadata.len(), keys.metadata.capacity(), rows_with_metadata)
            + large(keys.metadata_texts.growth(metadata))
            + self.builder.policy_growth(batch.policies())
    }

    /// Bytes that its indexes take, and making them.
    pub fn indexing_bytes(&self) -> usize {
        let rows = self.builder.len();
        // Rows in rotation, in two lists that double.
        let rotated = rows.saturating_mul(2 * 3 * size_of::<(u32, u32)>());
        Index::bytes_for(rows).saturating_mul(2).saturating_add(2 * INDEXING_BYTES).saturating_add(rotated)
    }
}

impl Keys {
    /// Bytes that comparing them with others takes.
    pub fn comparing_bytes(&self) -> usize {
        self.len().saturating_mul(COMPARED)
    }

    /// Address space that publishing them takes beside that.
    pub fn publishing_heaps(&self) -> usize {
        heaps(self.owners.len(), 1)
    }

    /// Bytes that publishing them after `old` takes, which differs from them by `diff`.
    pub fn publishing_bytes(&self, diff: &Diff, old: Option<&Snapshot>) -> usize {
        let limits =
            |keys: &Self| keys.policies.iter().map(|policy| policy.limits().len()).max().unwrap_or(0);
        let limits = limits(self).max(old.map_or(0, |old| limits(old.table()))).min(MAX_CHARGES);
        let shares = |policy: &Policy| policy.limits().iter().any(|limit| limit.per == Per::Owner);
        let owners = if self.policies.iter().any(shares) { self.owners.len() } else { 0 };
        // At a start the difference can be that from the last good keys, of which no bucket is in use.
        let claimed = if old.is_none() { self.len() } else { diff.added.saturating_add(diff.changed) };
        let of = |buckets: usize, bytes: usize| buckets.saturating_mul(limits).saturating_mul(bytes);
        [
            of(self.len(), SLOT),
            of(claimed, CLAIMED),
            of(diff.removed.saturating_add(diff.changed), PARKED),
            of(owners, SHARED),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{KeyRecord, parse_limits};

    #[test]
    fn growth_is_told_before_every_large_reallocation() {
        let mut builder = Builder::new(7, 0);
        let sizes = |builder: &Builder| {
            let keys = &builder.keys;
            let entries = keys.entries.capacity() * size_of::<Entry>();
            let metadata = keys.metadata.capacity() * size_of::<(u32, u64)>();
            let policies = keys.policies.capacity() * size_of::<Policy>();
            [entries, metadata, policies, keys.index.size().0 * LINE, keys.ids.size().0 * LINE]
        };
        let mut told_how_often = 0;
        for number in 0..20_000_u32 {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&number.to_le_bytes());
            let (key_id, environment) = (format!("k{number}"), format!("e{number}"));
            let record =
                KeyRecord { environment: &environment, metadata: "{}", ..KeyRecord::new(hash, &key_id) };
            let (told, before) = (builder.growth(1, key_id.len(), 2), sizes(&builder));
            builder.add(1, &record).expect("no contradictions");
            let grown = sizes(&builder).into_iter().zip(before).filter(|(after, before)| after != before);
            let asked: usize = grown.map(|(after, _)| after).filter(|bytes| *bytes >= SMALL).sum();
            assert!(told >= asked, "row {number}: {told} told, {asked} asked for");
            told_how_often += u32::from(told > 0);
        }
        assert!((10..100).contains(&told_how_often), "told {told_how_often} times");
    }

    #[test]
    fn buckets_of_a_first_snapshot_are_claimed_whatever_the_last_good_keys_were() {
        let mut builder = Builder::new(7, 100);
        for number in 0..100 {
            let key_id = format!("k{number}");
            let limits = parse_limits("10/s").expect("a limit").into();
            builder.add(1, &KeyRecord { limits, ..KeyRecord::new([number; 32], &key_id) }).expect("a row");
        }
        let keys = builder.finish();
        let same = Diff::default();
        assert!(keys.publishing_bytes(&same, None) >= 100 * (SLOT + CLAIMED));
    }

    #[test]
    fn table_takes_no_more_than_was_said() {
        let keys = Builder::new(7, 100_000).keys;
        let entries = keys.entries.capacity() * size_of::<Entry>();
        let indexes = (keys.index.size().0 + keys.ids.size().0) * LINE;
        assert!(Builder::bytes_for(100_000) >= entries + indexes + 100_000 * IDENTITY_BYTES);
        assert_eq!(keys.index.growth(100_000), 0);
    }
}
