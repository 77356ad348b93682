//! Checking a block of keys and writing its rows to the table, on any thread.

use std::io;
use std::sync::Arc;

use zerocopy::FromBytes;

use crate::record::{MAX_KEY_ID, is_metadata};
use crate::snapshot::build::TableHasher;
use crate::snapshot::compiled::buffers::BlockSlot;
use crate::snapshot::compiled::error::{OUT_OF_ORDER, ReadError};
use crate::snapshot::compiled::format::{BlockHeader, Record, Section, SortKey, has_control};
use crate::snapshot::compiled::id_index::HashPartitions;
use crate::snapshot::compiled::owners::Owners;
use crate::snapshot::entry::{AtomicExpiry, AtomicPepper, AtomicStatus, Entry, PriorRestrictions};
use crate::snapshot::index::IndexHash;

/// How many rows ahead the position of an owner's name is prefetched, and how many rows ahead the
/// name itself. A row takes some thirty nanoseconds, a read from memory at most a few hundred.
const PREFETCH_POSITION: usize = 24;
const PREFETCH_NAME: usize = 12;

/// A block of keys that is still to be read, and its slot in the table.
pub struct Block<'t> {
    pub(super) header: BlockHeader,
    /// The position of the payload in the file.
    pub(super) start: u64,
    pub(super) slot: BlockSlot<'t>,
}

/// Decodes blocks. Every thread has a clone.
#[derive(Clone)]
pub struct BlockDecoder {
    pub(super) hasher: TableHasher,
    /// The table's policy numbers, by the numbers in the file.
    pub(super) policies: Arc<[u32]>,
    pub(super) owners: Arc<Owners>,
}

/// What remains to be merged after a block's rows have been written.
pub struct DecodedBlock {
    pub(super) number: u32,
    pub(super) rows: usize,
    /// The sort keys of the first and the last row.
    pub(super) ends: Option<[SortKey; 2]>,
    /// Rows that overflow this block's part of the index.
    pub(super) overflow: Vec<(IndexHash, u32)>,
    pub(super) text_bytes: usize,
    pub(super) metadata: String,
    /// (row, start of its text in `metadata`)
    pub(super) metadata_starts: Vec<(u32, u64)>,
}

impl Block<'_> {
    /// The position of the payload in the file, and its length.
    pub fn range(&self) -> (u64, usize) {
        // The reader has refused longer blocks.
        (self.start, self.header.payload_bytes().unwrap_or(0))
    }

    /// The error if the payload cannot be read.
    pub fn read_error(&self, error: io::Error) -> ReadError {
        ReadError::from_read(error, Section::Keys, Some(self.header.number.get()))
    }
}

impl BlockDecoder {
    /// Checks a block with this `payload`, as far as it does not depend on other blocks, and writes
    /// its rows. The hashes of the key ids go to `hash_partitions`, which belongs to the thread.
    ///
    /// # Errors
    /// If the block is not as it was written, or has a row that cannot exist.
    pub fn decode(
        &self,
        block: Block<'_>,
        payload: &[u8],
        hash_partitions: &mut HashPartitions,
    ) -> Result<DecodedBlock, ReadError> {
        let number = block.header.number.get();
        let checked = block.header.check(payload);
        let decoded = checked.and_then(|()| self.rows(block, payload, hash_partitions));
        decoded.map_err(|problem| ReadError::damaged(Section::Keys, Some(number), problem))
    }

    fn rows(
        &self,
        block: Block<'_>,
        payload: &[u8],
        hash_partitions: &mut HashPartitions,
    ) -> Result<DecodedBlock, &'static str> {
        const SHORT: &str = "it is shorter than its rows";
        let BlockHeader { number, rows, texts, metadata, table_texts, .. } = &block.header;
        let (records, rest) =
            <[Record]>::ref_from_prefix_with_elems(payload, rows.get() as usize).map_err(|_| SHORT)?;
        let (texts, rest) = rest.split_at_checked(texts.get() as usize).ok_or(SHORT)?;
        let metadata = rest.get(..metadata.get() as usize).ok_or(SHORT)?;
        let texts = str::from_utf8(texts).map_err(|_| "a text is not UTF-8")?;
        let metadata = str::from_utf8(metadata).map_err(|_| "a text is not UTF-8")?;
        if has_control(texts) {
            return Err("there is a control character in a text");
        }
        let mut rows = Rows {
            slot: block.slot,
            texts,
            metadata,
            metadata_starts: Vec::new(),
            overflow: Vec::new(),
            hash_partitions,
        };
        let mut first = None;
        let mut last: Option<(IndexHash, &Record)> = None;
        for (at, record) in records.iter().enumerate() {
            if let Some(ahead) = records.get(at + PREFETCH_POSITION) {
                self.owners.prefetch(ahead.owner.get());
            }
            if let Some(ahead) = records.get(at + PREFETCH_NAME) {
                self.owners.prefetch_name(ahead.owner.get());
            }
            let index_hash = self.hasher.digest(&record.digest);
            // The common case first: the hashes differ.
            let is_after = |(before, other): (IndexHash, &Record)| {
                before < index_hash || (before == index_hash && other.digest < record.digest)
            };
            if !last.is_none_or(is_after) {
                return Err(OUT_OF_ORDER);
            }
            last = Some((index_hash, record));
            first.get_or_insert(index_hash);
            self.row(record, index_hash, metadata.len(), &mut rows)?;
        }
        if !(rows.texts.is_empty() && rows.metadata.is_empty() && rows.slot.is_full()) {
            return Err("there is more or less text in it than its rows have");
        }
        let ends = first
            .zip(records.first())
            .zip(last)
            .map(|((first, record), (last, other))| [(first, record.digest), (last, other.digest)]);
        Ok(DecodedBlock {
            number: number.get(),
            rows: records.len(),
            ends,
            overflow: rows.overflow,
            text_bytes: table_texts.get() as usize,
            metadata: metadata.to_owned(),
            metadata_starts: rows.metadata_starts,
        })
    }

    /// Takes the texts of a row, and writes the row.
    #[inline]
    fn row(
        &self,
        record: &Record,
        index_hash: IndexHash,
        all_metadata: usize,
        rows: &mut Rows<'_, '_>,
    ) -> Result<(), &'static str> {
        const WITHIN: &str = "a text ends within a character";
        let key_id = split_off(&mut rows.texts, record.key_id.into()).ok_or(WITHIN)?;
        if key_id.is_empty() || key_id.len() > MAX_KEY_ID {
            return Err("a key id is empty or too long");
        }
        let row = rows.slot.row();
        let has_metadata = record.metadata.get() > 0;
        if has_metadata {
            let start = all_metadata - rows.metadata.len();
            let own = split_off(&mut rows.metadata, record.metadata.get().into()).ok_or(WITHIN)?;
            if !is_metadata(own) {
                return Err("metadata is not a JSON object");
            }
            rows.metadata_starts.push((row, start as u64));
        }
        let prior_restrictions = PriorRestrictions::from_bits(record.prior_restrictions)
            .ok_or("it has restrictions that no key can have had")?;
        if record.reserved != [0; 3] {
            return Err("reserved bytes are set");
        }
        let policy = *self.policies.get(record.policy.get() as usize).ok_or("a policy is not there")?;
        let owner = self.owners.name_of_row(record.owner.get(), row).ok_or("an owner is not there")?;
        let status = AtomicStatus::from_code(record.status).ok_or("a status is none")?;
        if rows.slot.index(index_hash).is_none() {
            rows.overflow.push((index_hash, row));
        }
        rows.hash_partitions.put(self.hasher.text(key_id), row);
        let written = rows.slot.write(key_id, owner, |identity, buckets| Entry {
            digest: record.digest,
            identity,
            not_before: record.not_before.get(),
            expires_at: AtomicExpiry::new(record.expires_at.get()),
            owner: record.owner.get(),
            policy,
            buckets,
            status,
            has_metadata,
            prior_restrictions,
            pepper: AtomicPepper::default(),
        });
        written.ok_or("its texts take more than it says")
    }
}

/// The state of decoding a block: its slot, and the texts that remain.
struct Rows<'b, 't> {
    slot: BlockSlot<'t>,
    texts: &'b str,
    metadata: &'b str,
    metadata_starts: Vec<(u32, u64)>,
    overflow: Vec<(IndexHash, u32)>,
    hash_partitions: &'b mut HashPartitions,
}

fn split_off<'t>(text: &mut &'t str, at: usize) -> Option<&'t str> {
    let (first, rest) = text.split_at_checked(at)?;
    *text = rest;
    Some(first)
}
