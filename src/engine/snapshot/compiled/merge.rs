//! Completing the table from the blocks that threads have decoded, in the order of the file.
//!
//! The rows have been written and indexed by then. One thread does what depends on several blocks:
//! it checks that they follow upon each other, and inserts the few rows that overflowed an index
//! partition or may share a key id.

use keyward_memory::{HugePages, HugeText, HugeVec};

use crate::snapshot::Builder;
use crate::snapshot::build::Conflict;
use crate::snapshot::compiled::buffers::Buffers;
use crate::snapshot::compiled::decode::{BlockDecoder, DecodedBlock};
use crate::snapshot::compiled::error::{CROWDED, OTHER_SIZES, OUT_OF_ORDER, ReadError};
use crate::snapshot::compiled::format::{MAX_RUN, Section, Sizes, SortKey};
use crate::snapshot::compiled::id_index::{FilledIds, HashPartitions, overflow};
use crate::snapshot::index::IndexHash;

/// Merges decoded blocks into a table.
pub struct Merge {
    /// The sizes in the header, and the sizes so far.
    expected: Sizes,
    so_far: Sizes,
    /// The sort key of the last row.
    last: Option<SortKey>,
    /// The first row of each block.
    first_rows: Vec<u32>,
    /// Rows that are not in the index by digest yet.
    overflow: Vec<(IndexHash, u32)>,
    filled_ids: FilledIds,
}

impl Merge {
    pub(super) fn new(expected: Sizes) -> Self {
        let Sizes { owners, owner_bytes, .. } = expected;
        let so_far = Sizes { owners, owner_bytes, ..Sizes::default() };
        let filled_ids = FilledIds::default();
        Self { expected, so_far, last: None, first_rows: Vec::new(), overflow: Vec::new(), filled_ids }
    }

    /// Adds a block. Blocks are added in their order.
    ///
    /// # Errors
    /// If a row is out of order, or there is more than the header says.
    pub fn add(&mut self, block: DecodedBlock, builder: &mut Builder) -> Result<(), ReadError> {
        if let Some([first, last]) = block.ends {
            if self.last.is_some_and(|before| before >= first) {
                return Err(ReadError::damaged(Section::Keys, Some(block.number), OUT_OF_ORDER));
            }
            self.last = Some(last);
        }
        self.first_rows.push(self.so_far.keys as u32);
        self.so_far.keys += block.rows;
        self.so_far.text_bytes += block.text_bytes;
        self.so_far.metadata_rows += block.metadata_starts.len();
        // Texts cannot exceed the sizes in the header: their buffers have that size, which the
        // reader checked against the file.
        if self.so_far.keys > self.expected.keys || self.so_far.metadata_rows > self.expected.metadata_rows {
            return Err(ReadError::damaged(Section::Keys, None, OTHER_SIZES));
        }
        let first_byte = self.so_far.metadata_bytes as u64;
        self.so_far.metadata_bytes += block.metadata.len();
        let keys = &mut builder.keys;
        keys.metadata.extend(block.metadata_starts.iter().map(|(row, start)| (*row, first_byte + start)));
        keys.metadata_texts.push_str(&block.metadata);
        self.overflow.extend(block.overflow);
        Ok(())
    }

    /// Adds the result of filling a part of the index by key id.
    pub fn add_ids(&mut self, filled: FilledIds) {
        self.filled_ids.inserted += filled.inserted;
        self.filled_ids.unresolved.extend(filled.unresolved);
    }

    /// Completes the table with the rows in `buffers` once all blocks have been added.
    ///
    /// # Errors
    /// If there are other sizes than the header says, an owner without a key, or rows that
    /// conflict.
    pub fn finish(
        mut self,
        buffers: Buffers,
        decoder: &BlockDecoder,
        partitions: &[HashPartitions],
        builder: &mut Builder,
    ) -> Result<(), ReadError> {
        if self.so_far != self.expected {
            return Err(ReadError::damaged(Section::Keys, None, OTHER_SIZES));
        }
        let Buffers { entries, texts, mut digest_index, mut key_id_index } = buffers;
        digest_index.count(self.so_far.keys - self.overflow.len());
        key_id_index.count(self.filled_ids.inserted);
        for (index_hash, row) in self.overflow {
            if digest_index.put_overflow(index_hash, row) > MAX_RUN {
                return Err(ReadError::damaged(
                    Section::Keys,
                    Some(block_of(&self.first_rows, row)),
                    CROWDED,
                ));
            }
        }
        // Over the whole index, because a run can continue past the end of a block.
        if digest_index.longest_run() > MAX_RUN {
            return Err(ReadError::damaged(Section::Keys, None, CROWDED));
        }
        let keys = &mut builder.keys;
        (keys.entries, keys.arena, keys.digest_index, keys.key_id_index) =
            (entries, texts.into_text(), digest_index, key_id_index);
        let owners = decoder.owners.first_rows();
        keys.owners =
            owners.ok_or_else(|| ReadError::damaged(Section::Owners, None, "one of them has no key"))?;

        self.filled_ids.unresolved.extend(overflow(partitions));
        // In the order of the file, so each row meets the first row of its key id.
        self.filled_ids.unresolved.sort_unstable();
        for row in self.filled_ids.unresolved {
            let inserted = builder.insert_or_rotate(row);
            inserted.map_err(|conflict| {
                ReadError::row(Section::Keys, block_of(&self.first_rows, row), conflict)
            })?;
        }
        Ok(())
    }
}

/// The number of the block that contains a row.
fn block_of(first_rows: &[u32], row: u32) -> u32 {
    first_rows.partition_point(|first| *first <= row).saturating_sub(1) as u32
}

impl Builder {
    /// A builder without entries, in which metadata of these sizes fits exactly.
    pub(super) fn with_metadata_room(seed: u64, sizes: Sizes) -> Self {
        let mut builder = Self::new(seed, 0);
        builder.keys.metadata = HugeVec::with_capacity_in(sizes.metadata_rows, HugePages);
        builder.keys.metadata_texts = HugeText::with_capacity(sizes.metadata_bytes);
        builder
    }

    /// Indexes an unresolved row by its key id, or adds it to the rotation of the first row with
    /// that key id. Unresolved rows come in the order of the file.
    fn insert_or_rotate(&mut self, row: u32) -> Result<(), Conflict> {
        let keys = &self.keys;
        let Some(entry) = keys.entries.get(row as usize) else { return Ok(()) };
        let key_id = keys.key_id(entry);
        let hash = self.hasher().text(key_id);
        let Some(other) = keys.find_by_id_hash(hash, key_id) else {
            self.index_key_id(row, hash);
            return Ok(());
        };
        keys.check_conflict(other, keys.owner(entry), entry.policy)?;
        // A row that was indexed at once can come after this one. It is then the only other row so
        // far.
        if other > row {
            self.keys.key_id_index.replace(IndexHash::of_hash(hash), other, row);
        }
        let (first, later) = (row.min(other), row.max(other));
        self.keys.rotated.push((first, later));
        if let Some(entry) = self.keys.entries.get_mut(later as usize) {
            entry.buckets = first;
        }
        Ok(())
    }
}
