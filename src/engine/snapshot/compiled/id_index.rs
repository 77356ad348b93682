//! Filling the index by key id, which rows are not sorted by.
//!
//! Inserting row by row would miss the cache for nearly every row. While rows are decoded, each
//! thread therefore partitions the hashes of their key ids, by parts of the index that fit in a
//! processor's own cache ([`HashPartitions`]). Afterwards each part is filled from its hashes, by
//! any thread ([`IdPartition`]).
//!
//! A row whose hash suggests that it shares its key id with another row is resolved when the index
//! is complete.

use keyward_memory::{HugeVec, prefetch, zeroed};

use crate::snapshot::compiled::buffers::Buffers;
use crate::snapshot::index::{Index, IndexHash, IndexPartition};
use crate::snapshot::key_table::WINDOW;

/// The smallest number of groups in a part: 256 KiB.
const MIN_PART_GROUPS: usize = 1 << 12;

/// Maximum number of partitions that a thread writes to: the ends of all of them stay in its cache.
const MAX_PARTITIONS: usize = 512;

/// Groups that are handed to a thread together: a huge page, which is faulted in when it is
/// written.
const GROUPS_PER_TASK: usize = 1 << 15;

/// Hashes in a cache line.
const HASHES_PER_LINE: usize = 64 / size_of::<HashedRow>();

/// The lower and the upper half of a hash, and the row.
type HashedRow = [u32; 3];

/// The key id hashes of the rows that one thread has decoded.
pub struct HashPartitions {
    /// Groups of the index, and groups of a part: a power of two.
    groups: usize,
    part_groups: usize,
    /// The partitions, one after another, each with the same capacity, and the length of each.
    hashes: HugeVec<HashedRow>,
    capacity: usize,
    lengths: Vec<u32>,
    /// Rows that found their partition full, if this thread has decoded more than its share.
    overflow: Vec<u32>,
}

impl HashPartitions {
    /// For one of `threads` threads that decode `rows` rows.
    pub(super) fn new(rows: usize, threads: usize) -> Self {
        let groups = Index::groups_for(rows);
        let part_groups = groups.div_ceil(MAX_PARTITIONS).next_power_of_two().max(MIN_PART_GROUPS);
        let partitions = groups.div_ceil(part_groups);
        let share = rows.div_ceil(threads.max(1) * partitions.max(1));
        // Hashes are uniform, so a partition hardly ever exceeds its share by more than this.
        let capacity = share + share / 16 + 64;
        Self {
            groups,
            part_groups,
            hashes: zeroed(partitions * capacity),
            capacity,
            lengths: vec![0; partitions],
            overflow: Vec::new(),
        }
    }

    /// Adds the hash of a row's key id.
    #[inline]
    pub(super) fn put(&mut self, hash: u64, row: u32) {
        // A division by a power of two.
        let partition = IndexHash::of_hash(hash).home(self.groups) >> self.part_groups.trailing_zeros();
        let start = partition * self.capacity;
        if let Some(length) =
            self.lengths.get_mut(partition).filter(|length| (**length as usize) < self.capacity)
            && let Some([hashed, rest @ ..]) = self.hashes.get_mut(start + *length as usize..)
        {
            // The next cache line, before it is written.
            rest.get(HASHES_PER_LINE).into_iter().for_each(prefetch);
            *hashed = [hash as u32, (hash >> 32) as u32, row];
            *length += 1;
        } else {
            self.overflow.push(row);
        }
    }

    fn partition(&self, partition: usize) -> impl Iterator<Item = (IndexHash, u32)> + Clone {
        let length = self.lengths.get(partition).map_or(0, |length| *length as usize);
        let hashes = self.hashes.get(partition * self.capacity..).into_iter().flatten().take(length);
        hashes.map(|[low, high, row]| (IndexHash::of_hash(u64::from(*high) << 32 | u64::from(*low)), *row))
    }
}

/// Parts of the index that one thread fills.
pub struct IdPartition<'t> {
    index: IndexPartition<'t>,
}

/// The result of filling parts of the index.
#[derive(Default)]
pub struct FilledIds {
    /// The number of rows inserted.
    pub(super) inserted: usize,
    /// Rows that may share a key id, or that overflowed their part.
    pub(super) unresolved: Vec<u32>,
}

impl Buffers {
    /// The parts of the index by key id, one after another.
    pub fn id_partitions(&mut self, partitions: &[HashPartitions]) -> impl Iterator<Item = IdPartition<'_>> {
        let groups_per_task = partitions
            .first()
            .map_or(GROUPS_PER_TASK, |partitions| partitions.part_groups.max(GROUPS_PER_TASK));
        let mut rest = self.key_id_index.partition();
        std::iter::from_fn(move || {
            rest.take(groups_per_task)
                .map(|index| IdPartition { index })
                .filter(|partition| partition.index.len() > 0)
        })
    }
}

impl IdPartition<'_> {
    /// Fills the parts from the hashes that all threads have partitioned.
    pub fn fill(mut self, partitions: &[HashPartitions]) -> FilledIds {
        let mut filled = FilledIds::default();
        let Some(part_groups) = partitions.first().map(|partitions| partitions.part_groups) else {
            return filled;
        };
        while let Some(mut part) = self.index.take(part_groups).filter(|part| part.len() > 0) {
            let partition = part.first() / part_groups;
            let rows = partitions.iter().flat_map(|partitions| partitions.partition(partition));
            let mut ahead = rows.clone().skip(WINDOW);
            for (index_hash, row) in rows {
                // The part was allocated as zeros, but is not in this processor's cache.
                ahead.next().into_iter().for_each(|(index_hash, _)| part.prefetch(index_hash));
                match part.insert(index_hash, row) {
                    None => filled.inserted += 1,
                    Some(unresolved) => filled.unresolved.push(unresolved),
                }
            }
        }
        filled
    }
}

/// The rows that are in no partition.
pub(super) fn overflow(partitions: &[HashPartitions]) -> impl Iterator<Item = u32> {
    partitions.iter().flat_map(|partitions| partitions.overflow.iter().copied())
}
