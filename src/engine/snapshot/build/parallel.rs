//! A table that is filled first and indexed afterwards: the fast path for a large source without
//! errors.
//!
//! Inserting each row into the indexes at once would miss the cache for nearly every row. Here the
//! rows are partitioned by hash, and the rows of a partition are inserted together, while that part
//! of the index is cached. The two indexes, by digest and by key id, are built at the same time by
//! two threads.
//!
//! The price: a conflict between rows is found late, and without their lines. To report the lines,
//! start over with [`Builder::add`]. The texts of a key in rotation are stored once for each row.

use keyward_memory::prefetch;

use crate::record::UnknownPlanError;
use crate::snapshot::build::batch::{BatchBuilder, RowBatch};
use crate::snapshot::build::{Builder, Conflict, IDENTITY_BYTES};
use crate::snapshot::entry::Entry;
use crate::snapshot::index::{Index, IndexHash};
use crate::snapshot::key_table::{KeyTable, WINDOW};
use crate::snapshot::same_digest;

/// Partitions of an index. The index of a million keys takes 12 MiB, so one partition of it fits in
/// the L1 and L2 caches.
const PARTITIONS: usize = 256;

/// Rows that are collected for a partition before they are inserted.
const PARTITION_ROWS: usize = 1024;

/// Memory for the collected rows of all partitions.
pub(in crate::snapshot) const PARTITIONING_BYTES: usize =
    PARTITIONS * PARTITION_ROWS * size_of::<(IndexHash, u32)>();

/// Builds a table from [batches](RowBatch) of rows.
pub struct ParallelBuilder {
    pub(in crate::snapshot) builder: Builder,
    /// The number of entries whose memory has been populated.
    populated: usize,
}

/// Why the rows do not make a table. The rows at fault are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParallelBuildError {
    /// Two rows have the same digest.
    #[error("two rows have the same key_hash")]
    DuplicateHash,
    /// Two rows of one key conflict.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The plan of a row is not defined in the configuration.
    #[error(transparent)]
    UnknownPlan(#[from] UnknownPlanError),
    /// Entries are numbered with 32 bits.
    #[error("more than {} keys", u32::MAX)]
    TooMany,
}

/// Evidence that no two rows have the same digest.
pub struct UniqueDigests(());

/// The rows with the key id of an earlier row: (first row, later row), unordered.
pub struct RotatedRows(Vec<(u32, u32)>);

impl Builder {
    /// Turns an empty builder into a parallel one with room for `expected` rows. If fewer rows
    /// follow, only address space is taken for the others.
    pub fn into_parallel(mut self, expected: usize) -> ParallelBuilder {
        let KeyTable { entries, arena, .. } = &mut self.keys;
        keyward_memory::reserve_if_possible(entries, expected);
        arena.reserve_if_possible(expected.saturating_mul(IDENTITY_BYTES));
        ParallelBuilder { builder: self, populated: 0 }
    }
}

impl ParallelBuilder {
    /// A batch builder for another thread.
    pub fn batch_builder(&self) -> BatchBuilder {
        BatchBuilder::new(self.builder.keys.hasher.clone())
    }

    /// Adds all rows of a batch.
    ///
    /// # Errors
    /// If a row names an unknown plan, or there are too many rows. The table is then unusable.
    pub fn add_batch(&mut self, batch: RowBatch) -> Result<(), ParallelBuildError> {
        let RowBatch { entries, owner_hashes, texts, metadata, metadata_texts, policies, present_fields } =
            batch;
        let builder = &mut self.builder;
        builder.keys.present_fields = builder.keys.present_fields.union(present_fields);
        let policies =
            policies.iter().map(|policy| builder.intern(policy)).collect::<Result<Vec<u32>, _>>()?;
        let first_number = u32::try_from(builder.keys.entries.len());
        let mut number = first_number.map_err(|_| ParallelBuildError::TooMany)?;
        let text = builder.keys.arena.as_str().len();
        u32::try_from(number as usize + entries.len()).map_err(|_| ParallelBuildError::TooMany)?;
        let keys = &mut builder.keys;
        keys.entries.reserve(entries.len());
        if self.populated < keys.entries.len() + entries.len() {
            self.populated = keyward_memory::prefault_ahead(&mut keys.entries);
        }
        keys.arena.push_str(&texts);
        let metadata_text = keys.metadata_texts.as_str().len() as u64;
        keys.metadata.extend(metadata.iter().map(|(row, start)| (number + row, metadata_text + start)));
        keys.metadata_texts.push_str(&metadata_texts);

        let mut entries = entries.into_iter();
        for hashes in owner_hashes.chunks(WINDOW) {
            builder.prefetch_owners(hashes);
            for (hash, entry) in hashes.iter().zip(&mut entries) {
                let name = texts.get(entry.identity.owner()).unwrap_or_default();
                let owner = builder.owner(number, name, *hash);
                let policy = policies[entry.policy as usize];
                let identity = entry.identity.moved(text);
                builder.keys.entries.push(Entry { identity, owner, policy, buckets: number, ..entry });
                number += 1;
            }
        }
        Ok(())
    }

    /// Two functions that build the indexes once all rows are there. They may run at the same time.
    pub fn index_builders(
        &mut self,
    ) -> (
        impl FnOnce() -> Result<UniqueDigests, ParallelBuildError> + Send,
        impl FnOnce() -> RotatedRows + Send,
    ) {
        let KeyTable { digest_index, key_id_index, entries, arena, seed, hasher, .. } =
            &mut self.builder.keys;
        let (entries, arena, seed, hasher) = (&**entries, &*arena, *seed, &*hasher);
        let index_hash = move |entry: &Entry| IndexHash::of_digest(&entry.digest, seed);
        // The number of rows is known only now.
        let allocate = move |index: &mut Index| {
            *index = keyward_memory::with_prefault(|| Index::with_capacity(entries.len()))
        };
        let by_digest = move || {
            allocate(digest_index);
            let same = |a: &Entry, b: &Entry| same_digest(&a.digest, &b.digest);
            let duplicates = insert_all(digest_index, entries, index_hash, same);
            if duplicates.is_empty() { Ok(UniqueDigests(())) } else { Err(ParallelBuildError::DuplicateHash) }
        };
        let key_id = move |entry: &Entry| arena.as_str().get(entry.identity.key_id()).unwrap_or_default();
        let by_id = move || {
            allocate(key_id_index);
            let index_hash = |entry: &Entry| IndexHash::of(hasher, key_id(entry));
            RotatedRows(insert_all(key_id_index, entries, index_hash, |a, b| key_id(a) == key_id(b)))
        };
        (by_digest, by_id)
    }

    /// Returns the table that [`Builder::add`] would have built from the same rows.
    ///
    /// # Errors
    /// If rows with the same key id conflict.
    pub fn finish(
        self,
        _: UniqueDigests,
        RotatedRows(mut rotated): RotatedRows,
    ) -> Result<Builder, ParallelBuildError> {
        let Self { mut builder, .. } = self;
        rotated.sort_unstable_by_key(|(_, number)| *number);
        for (first, number) in rotated {
            let keys = &mut builder.keys;
            let entry = &keys.entries[number as usize];
            keys.check_conflict(first, keys.owner(entry), entry.policy)?;
            let identity = keys.entries[first as usize].identity;
            let entry = &mut keys.entries[number as usize];
            (entry.identity, entry.buckets) = (identity, first);
            keys.rotated.push((first, number));
        }
        Ok(builder)
    }
}

/// Inserts all entries into an index. An entry that is the `same` as an earlier one is not inserted
/// but returned, as (earlier, later).
fn insert_all(
    index: &mut Index,
    entries: &[Entry],
    index_hash: impl Fn(&Entry) -> IndexHash,
    same: impl Fn(&Entry, &Entry) -> bool,
) -> Vec<(u32, u32)> {
    let mut repeated = Vec::new();
    let mut insert = |rows: &[(IndexHash, u32)]| {
        for window in rows.chunks(WINDOW) {
            window.iter().for_each(|(index_hash, _)| index.prefetch(*index_hash));
            for (of_entry, number) in window {
                let entry = &entries[*number as usize];
                let same = |other: u32| same(&entries[other as usize], entry);
                let rehash = |other: u32| index_hash(&entries[other as usize]);
                repeated.extend(
                    index.find_or_insert(*of_entry, *number, same, rehash).map(|first| (first, *number)),
                );
            }
        }
    };
    // Within a partition the rows keep their order, so the first of several equal ones is inserted.
    let mut partitions: Vec<Vec<(IndexHash, u32)>> =
        (0..PARTITIONS).map(|_| Vec::with_capacity(PARTITION_ROWS)).collect();
    for (entry, number) in entries.iter().zip(0..) {
        let index_hash = index_hash(entry);
        let partition = &mut partitions[index_hash.home(PARTITIONS)];
        partition.push((index_hash, number));
        if partition.len() == PARTITION_ROWS {
            insert(partition);
            partition.clear();
        }
    }
    partitions.iter().for_each(|partition| insert(partition));
    repeated
}

impl Builder {
    /// Prefetches the names that owners with these hashes are compared with. They are three
    /// dependent reads away.
    fn prefetch_owners(&self, hashes: &[u64]) {
        let keys = &self.keys;
        let mut firsts = [u32::MAX; WINDOW];
        hashes.iter().for_each(|hash| self.owners.prefetch(IndexHash::of_hash(*hash)));
        for (hash, first) in hashes.iter().zip(&mut firsts) {
            let owner = self.owners.candidate(IndexHash::of_hash(*hash));
            *first = owner.and_then(|number| keys.owners.get(number as usize)).copied().unwrap_or(u32::MAX);
            keys.entries.get(*first as usize).into_iter().for_each(prefetch);
        }
        let entries = firsts.iter().filter_map(|first| keys.entries.get(*first as usize));
        let texts = keys.arena.as_str().as_bytes();
        entries.filter_map(|entry| texts.get(entry.identity.owner().start)).for_each(prefetch);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::record::{KeyRecord, Limit, parse_limits};

    fn record<'a>(digest: u16, key_id: &'a str, owner: &'a str, limits: &Arc<[Limit]>) -> KeyRecord<'a> {
        let mut hash = [0; 32];
        hash[..2].copy_from_slice(&digest.to_le_bytes());
        let (not_before, limits) = (digest.into(), Arc::clone(limits));
        let metadata = if digest.is_multiple_of(5) { "{}" } else { "" };
        KeyRecord { owner, not_before, limits, metadata, ..KeyRecord::new(hash, key_id) }
    }

    fn in_parallel(batches: &[&[KeyRecord<'_>]]) -> Result<Builder, ParallelBuildError> {
        add_in_parallel(Builder::new(7, 0), batches)
    }

    fn add_in_parallel(
        builder: Builder,
        batches: &[&[KeyRecord<'_>]],
    ) -> Result<Builder, ParallelBuildError> {
        let mut builder = builder.into_parallel(0);
        let mut batch_builder = builder.batch_builder();
        for batch in batches {
            batch.iter().for_each(|record| batch_builder.add(record));
            builder.add_batch(batch_builder.take())?;
        }
        let (by_digest, by_id) = builder.index_builders();
        let (unique, rotated) = (by_digest()?, by_id());
        builder.finish(unique, rotated)
    }

    fn described(builder: &Builder) -> (Vec<String>, Vec<(u32, u32)>) {
        let keys = &builder.keys;
        let entries = keys.entries.iter().zip(0..).map(|(entry, number)| {
            let Entry { owner, policy, buckets, not_before, .. } = entry;
            let (found, first) = (keys.find_exactly(&entry.digest), keys.find_by_id(keys.key_id(entry)));
            let (key_id, owner_name) = (keys.key_id(entry), keys.owner(entry));
            let metadata = keys.metadata_of(number);
            format!("{key_id} {owner_name} {owner} {policy} {buckets} {not_before} {found:?} {first:?} {metadata:?}")
        });
        (entries.collect(), keys.rotated.clone())
    }

    proptest! {
        #[test]
        fn parallel_build_equals_adding_rows_one_by_one(
            rows in prop::collection::vec((0_u16..5_000, 0_u16..900), 0..400),
            other in prop::option::of((0_u16..900, 0..2_u8)),
            at in 0_usize..400,
        ) {
            let limits: [Arc<[Limit]>; 2] =
                ["1/s", "2/s"].map(|text| parse_limits(text).expect("limits").into());
            let ids: Vec<String> = rows.iter().map(|(_, key)| format!("k{key}")).collect();
            // The rows of a key agree, except the last row of at most one key.
            let records: Vec<_> = rows.iter().zip(&ids).enumerate().map(|(row, ((digest, key), id))| {
                let odd = other.filter(|(odd, _)| odd == key && row + 1 == rows.len()).map(|(_, what)| what);
                let owner = if odd == Some(0) { "other" } else { ["", "acme", "b"][usize::from(key % 3)] };
                let limits = &limits[usize::from((key % 2 == 0) == (odd == Some(1)))];
                record(*digest, id, owner, limits)
            }).collect();
            let mut builder = Builder::new(7, 0);
            let added = records.iter().zip(1..).try_for_each(|(record, line)| builder.add(line, record));
            let (before, after) = records.split_at(at.min(records.len()));
            match (added, in_parallel(&[before, after])) {
                (Ok(()), Ok(parallel)) => prop_assert_eq!(described(&parallel), described(&builder)),
                (added, parallel) => prop_assert!(added.is_err() && parallel.is_err()),
            }
        }
    }

    /// The policies of batches are not those of the previous row.
    #[test]
    fn rows_before_and_after_batches_keep_their_own_policies() {
        let open = |digest| KeyRecord::new([digest; 32], ["a", "b", "c"][usize::from(digest)]);
        let shut = |digest| KeyRecord { allowed_ips: Some(Arc::default()), ..open(digest) };
        let policies = |builder: &Builder| {
            let keys = &builder.keys;
            let policy_of = |entry: &Entry| keys.policies.at(entry.policy);
            keys.entries.iter().map(|entry| policy_of(entry).is_limited_to_networks()).collect::<Vec<_>>()
        };
        let mut builder = in_parallel(&[&[shut(0)]]).expect("one row");
        builder.add(2, &open(1)).expect("another row");
        assert_eq!(policies(&builder), [true, false]);

        let mut builder = Builder::new(7, 0);
        builder.add(1, &shut(0)).expect("a row");
        let mut builder = add_in_parallel(builder, &[&[open(1)]]).expect("another row");
        builder.add(3, &shut(2)).expect("the third row");
        assert_eq!(policies(&builder), [true, false, true]);
    }
}
