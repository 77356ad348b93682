//! Seeing that blocks which other threads have decoded make one table, in the order of the file.
//!
//! Rows have been written and are found by then; what is left to one thread is what depends on other blocks: that they follow upon each
//! other, the few rows whose places in the look-up lie among another block's, and those that may share a key id.

use crate::snapshot::build::{Builder, RowError};
use crate::snapshot::compiled::decode::{Decode, Decoded};
use crate::snapshot::compiled::ids::{Filled, Scatter, rest};
use crate::snapshot::compiled::read::{ReadError, damaged};
use crate::snapshot::compiled::space::Space;
use crate::snapshot::compiled::{CROWDED, Header, MAX_RUN, OUT_OF_ORDER, Rank, Section};
use crate::snapshot::index::Probe;
use keyward_memory::{Huge, HugeText, HugeVec};

/// Puts blocks together.
pub struct Merge {
    /// What there should be, and what there is.
    expected: Sizes,
    so_far: Sizes,
    /// Where the last row stands.
    last: Option<Rank>,
    /// The first row of each block.
    blocks: Vec<u32>,
    /// Rows that are not in the look-up yet.
    astray: Vec<(Probe, u32)>,
    /// And in that by key id: how many are, and those that may have the key id of one before, or found no room.
    ids: Filled,
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) keys: usize,
    pub(super) owners: usize,
    pub(super) owner_bytes: usize,
    pub(super) text_bytes: usize,
    pub(super) metadata_rows: usize,
    pub(super) metadata_bytes: usize,
}

impl Sizes {
    /// What a header says. It has been held against the length of the file.
    pub(super) fn of(header: &Header) -> Self {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            keys: size(header.keys.get()),
            owners: size(header.owners.get()),
            owner_bytes: size(header.owner_bytes.get()),
            text_bytes: size(header.text_bytes.get()),
            metadata_rows: size(header.metadata_rows.get()),
            metadata_bytes: size(header.metadata_bytes.get()),
        }
    }

    /// A table without entries in which the metadata fits exactly.
    pub(super) fn table(self, seed: u64) -> Builder {
        let mut builder = Builder::new(seed, 0);
        builder.keys.metadata = HugeVec::with_capacity_in(self.metadata_rows, Huge);
        builder.keys.metadata_texts = HugeText::with_capacity(self.metadata_bytes);
        builder
    }
}

impl Merge {
    pub(super) fn new(expected: Sizes) -> Self {
        let Sizes { owners, owner_bytes, .. } = expected;
        let so_far = Sizes { owners, owner_bytes, ..Sizes::default() };
        let ids = Filled::default();
        Self { expected, so_far, last: None, blocks: Vec::new(), astray: Vec::new(), ids }
    }

    /// Takes note of a block; blocks in their order.
    ///
    /// # Errors
    /// When a row is not where it should be.
    pub fn add(&mut self, decoded: Decoded, builder: &mut Builder) -> Result<(), ReadError> {
        if let Some([first, last]) = decoded.ends {
            if self.last.is_some_and(|before| before >= first) {
                return Err(damaged(Section::Keys, Some(decoded.number), OUT_OF_ORDER));
            }
            self.last = Some(last);
        }
        self.blocks.push(self.so_far.keys as u32);
        self.so_far.keys += decoded.rows;
        self.so_far.text_bytes += decoded.text_bytes;
        self.so_far.metadata_rows += decoded.metadata_at.len();
        // No more texts than the header says: what is reserved for them was held against the length of the file.
        if self.so_far.keys > self.expected.keys || self.so_far.metadata_rows > self.expected.metadata_rows {
            return Err(damaged(Section::Keys, None, OTHER_SIZES));
        }
        let first_byte = self.so_far.metadata_bytes as u64;
        self.so_far.metadata_bytes += decoded.metadata.len();
        let keys = &mut builder.keys;
        keys.metadata.extend(decoded.metadata_at.iter().map(|(row, at)| (*row, first_byte + at)));
        keys.metadata_texts.push_str(&decoded.metadata);
        self.astray.extend(decoded.astray);
        Ok(())
    }

    /// Takes note of a part of the look-up by key id.
    pub fn add_ids(&mut self, filled: Filled) {
        self.ids.put += filled.put;
        self.ids.in_doubt.extend(filled.in_doubt);
    }

    /// Completes the table with the rows in `space`, if all of them have been read. `scatters` are what key ids were put down in.
    ///
    /// # Errors
    /// When there are other keys than the header says, an owner who has none, or rows that contradict each other.
    pub fn finish(
        mut self,
        space: Space,
        decode: &Decode,
        scatters: &[Scatter],
        builder: &mut Builder,
    ) -> Result<(), ReadError> {
        if self.so_far != self.expected {
            return Err(damaged(Section::Keys, None, OTHER_SIZES));
        }
        let Space { entries, texts, mut index, mut ids } = space;
        index.fill(self.so_far.keys - self.astray.len());
        ids.fill(self.ids.put);
        for (probe, row) in self.astray {
            if index.put_astray(probe, row) > MAX_RUN {
                return Err(damaged(Section::Keys, Some(block_of(&self.blocks, row)), CROWDED));
            }
        }
        // Of the whole table: where a block ends, a run goes on.
        if index.longest_run() > MAX_RUN {
            return Err(damaged(Section::Keys, None, CROWDED));
        }
        let keys = &mut builder.keys;
        (keys.entries, keys.arena, keys.index, keys.ids) = (entries, texts.into_text(), index, ids);
        let owners = decode.owners.first_rows();
        keys.owners = owners.ok_or_else(|| damaged(Section::Owners, None, "one of them has no key"))?;

        self.ids.in_doubt.extend(rest(scatters));
        // In the order of the file: no row is put to one that is not the first.
        self.ids.in_doubt.sort_unstable();
        for row in self.ids.in_doubt {
            builder
                .join_row(row)
                .map_err(|error| ReadError::row(Section::Keys, block_of(&self.blocks, row), &error))?;
        }
        Ok(())
    }
}

/// The number of the block that a row is in.
fn block_of(blocks: &[u32], row: u32) -> u32 {
    blocks.partition_point(|first| *first <= row).saturating_sub(1) as u32
}

pub(super) const OTHER_SIZES: &str = "there are more or fewer, or other texts, than the header says";

impl Builder {
    /// Has a row found by its key id, if it is the first that has it, and otherwise puts it to that. Whatever has it and is in doubt comes
    /// in the order of the file.
    fn join_row(&mut self, row: u32) -> Result<(), RowError> {
        let keys = &self.keys;
        let Some(entry) = keys.entries.get(row as usize) else { return Ok(()) };
        let hash = self.hashes().text(keys.key_id(entry));
        let other = self.first_of_key(hash, keys.key_id(entry), keys.owner(entry), entry.policy)?;
        let Some(other) = other else {
            self.insert_id(row, hash);
            return Ok(());
        };
        // One that was not in doubt can be after this one. It is the only one so far.
        if other > row {
            self.keys.ids.replace(Probe::of_hash(hash), other, row);
        }
        let (first, later) = (row.min(other), row.max(other));
        self.keys.rotated.push((first, later));
        if let Some(entry) = self.keys.entries.get_mut(later as usize) {
            entry.buckets = first;
        }
        Ok(())
    }
}
