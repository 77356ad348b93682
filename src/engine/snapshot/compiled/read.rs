//! Reading a compiled file, block by block.
//!
//! [`Reader`] finds the blocks and the slot of each in the table. A [`BlockDecoder`] checks a block
//! and writes its rows, on any thread, and partitions the hashes of its key ids in the thread's
//! [`HashPartitions`]. [`Merge`] checks that the blocks follow upon each other.
//! [`IdPartition`](super::IdPartition) fills the index by key id. The table is complete when
//! [`Merge::finish`] returns `Ok`, and unusable otherwise.
//!
//! The thread that reads a block also decodes it, and no other thread touches its rows: fetching a
//! row from another processor's cache takes longer than decoding it.

use std::io;

use zerocopy::{FromZeros, IntoBytes};

use crate::record::{Digest, FieldSet, MAX_OWNER};
use crate::snapshot::Builder;
use crate::snapshot::compiled::buffers::{BlockSlots, Buffers, NoSlot};
use crate::snapshot::compiled::decode::{Block, BlockDecoder};
use crate::snapshot::compiled::error::{CUT_SHORT, OTHER_SIZES, OUT_OF_ORDER, ReadError};
use crate::snapshot::compiled::format::{
    BLOCK_BYTES, BYTE_ORDER, BlockHeader, Header, MAGIC, MAX_ITEM_BYTES, Record, Section, Sizes, VERSION,
    checksummed,
};
use crate::snapshot::compiled::id_index::HashPartitions;
use crate::snapshot::compiled::merge::Merge;
use crate::snapshot::compiled::owners::Owners;
use crate::snapshot::index::IndexHash;
use crate::snapshot::memory_estimate::rows_bytes;
use crate::snapshot::row_policy::RowPolicy;

/// Finds the blocks of a file, one after another. `F` fills a buffer with the bytes from a position
/// on, or fails.
pub struct Reader<F> {
    read: F,
    header: Header,
    /// The position of the next block, and the end of the section.
    at: u64,
    end: u64,
    /// The number of the next block.
    number: u32,
}

impl<F: FnMut(u64, &mut [u8]) -> io::Result<()>> Reader<F> {
    /// Reads the header of a file of `length` bytes.
    ///
    /// # Errors
    /// If there is no header that this version understands, or the lengths do not match.
    pub fn open(mut read: F, length: u64) -> Result<Self, ReadError> {
        let mut header = Header::new_zeroed();
        let available = header.as_mut_bytes().len().min(usize::try_from(length).unwrap_or(usize::MAX));
        read(0, &mut header.as_mut_bytes()[..available])
            .map_err(|error| ReadError::from_read(error, Section::Header, None))?;
        if header.magic != MAGIC {
            return Err(ReadError::NotCompiled);
        }
        if available < size_of::<Header>() {
            return Err(ReadError::damaged(Section::Header, None, CUT_SHORT));
        }
        let wrong = |problem| Err(ReadError::damaged(Section::Header, None, problem));
        match &header {
            Header { byte_order, .. } if byte_order.get() == BYTE_ORDER.swap_bytes() => {
                return wrong("its bytes are in another order than a little-endian machine's");
            }
            Header { version, .. } if version.get() != VERSION => {
                return Err(ReadError::Version(version.get()));
            }
            header if crc32fast::hash(checksummed(header)) != header.crc.get() => {
                return wrong("the checksum is wrong");
            }
            Header { byte_order, .. } if byte_order.get() != BYTE_ORDER => {
                return wrong("the order of bytes is wrong");
            }
            Header { present_fields, prior_restrictions, .. }
                if [present_fields, prior_restrictions]
                    .iter()
                    .any(|bits| FieldSet::from_bits(bits.get()).bits() != bits.get()) =>
            {
                return wrong("it names fields that no row can have");
            }
            Header { reserved, .. } if *reserved != [0; 20] => return wrong("reserved bytes are set"),
            Header { keys, .. } if keys.get() > u64::from(u32::MAX) => {
                return wrong("there are too many keys");
            }
            Header { owners, keys, .. } if owners > keys => return wrong("there are too many owners"),
            _ => {}
        }
        let sections = [&header.policy_bytes, &header.owner_bytes, &header.key_bytes];
        let total = sections
            .into_iter()
            .try_fold(size_of::<Header>() as u64, |sum, section| sum.checked_add(section.get()));
        // A row takes at least its record, so the memory reserved by the number of rows is in
        // proportion to the file.
        let least = header.keys.get().checked_mul(size_of::<Record>() as u64);
        if total != Some(length) || least.is_none_or(|least| least > header.key_bytes.get()) {
            return wrong("the file is longer or shorter than it says; it was cut short, or is not one file");
        }
        // So is the memory reserved for texts: key ids are part of the file, and each row adds at
        // most one owner's name.
        let most = header.key_bytes.get().saturating_add(header.keys.get().saturating_mul(MAX_OWNER as u64));
        if header.text_bytes.get() > most
            || header.metadata_bytes > header.key_bytes
            || header.metadata_rows > header.keys
        {
            return wrong("there are longer texts than it can have");
        }
        Ok(Self { read, header, at: size_of::<Header>() as u64, end: 0, number: 0 })
    }

    /// Checks the checksums of all blocks, without decoding any.
    ///
    /// # Errors
    /// If a block is damaged or cannot be read.
    pub fn check_blocks(mut self) -> Result<(), ReadError> {
        let Header { policy_bytes, owner_bytes, key_bytes, .. } = &self.header;
        let sections = [
            (Section::Policies, policy_bytes.get()),
            (Section::Owners, owner_bytes.get()),
            (Section::Keys, key_bytes.get()),
        ];
        for (section, bytes) in sections {
            self.begin(bytes);
            while self.read_block(section)?.is_some() {}
        }
        Ok(())
    }

    /// An empty table for the rows.
    pub fn builder(&self) -> Builder {
        let mut builder = Builder::with_metadata_room(self.header.seed.get(), Sizes::of(&self.header));
        builder.keys.present_fields = FieldSet::from_bits(self.header.present_fields.get());
        builder.keys.prior_restrictions = FieldSet::from_bits(self.header.prior_restrictions.get());
        builder
    }

    /// Bytes that the whole table can take while `threads` threads read it, except for what finds
    /// policies, and for policies under their plans: [`read_policies`](Self::read_policies) asks
    /// for those.
    pub fn memory_bytes(&self, threads: usize) -> usize {
        /// For each policy: where its bytes end, and its number in the table, in a list that
        /// doubles.
        const POLICY: usize = 8 + 3 * 4;
        /// For each thread, the block that it decodes, with its rows and what remains to be merged;
        /// and as much again for blocks that wait to be decoded or merged.
        const BLOCKS: usize = 4 * (BLOCK_BYTES + MAX_ITEM_BYTES);
        let sizes = Sizes::of(&self.header);
        let policies = usize::try_from(self.header.policies.get()).unwrap_or(usize::MAX);
        let policy_bytes = usize::try_from(self.header.policy_bytes.get()).unwrap_or(usize::MAX);
        let texts = sizes.text_bytes.saturating_add(sizes.metadata_bytes).saturating_add(sizes.owner_bytes);
        [
            rows_bytes(sizes.keys),
            texts,
            // Starts of metadata, hashes of key ids, and numbers of rows and owners.
            sizes.keys.saturating_mul(16 + 2 * 12 + 4 * 4),
            sizes.owners.saturating_mul(2 * 16),
            policies.saturating_mul(POLICY),
            policy_bytes,
            threads.saturating_mul(BLOCKS),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// Buffers for all rows.
    pub fn buffers(&self) -> Buffers {
        let Sizes { keys, text_bytes, .. } = Sizes::of(&self.header);
        Buffers::new(keys, text_bytes)
    }

    /// The partitions for key id hashes, one for each of `threads` threads.
    pub fn hash_partitions(&self, threads: usize) -> Vec<HashPartitions> {
        let Sizes { keys, .. } = Sizes::of(&self.header);
        (0..threads).map(|_| HashPartitions::new(keys, threads)).collect()
    }

    /// The Unix second at which the source was written.
    pub fn source_time(&self) -> u32 {
        self.header.source_time.get()
    }

    /// Reads policies and owners, and continues with the keys. The plans have to be set in
    /// `builder` before. `require` is called with the bytes that the next policies can allocate.
    ///
    /// # Errors
    /// If a section is damaged, a plan is not defined in the configuration, or `require` fails.
    pub fn read_policies(
        &mut self,
        builder: &mut Builder,
        mut require: impl FnMut(usize) -> io::Result<()>,
    ) -> Result<BlockDecoder, ReadError> {
        self.begin(self.header.policy_bytes.get());
        // The section is part of the file, so what is reserved is in proportion to it.
        let bytes = usize::try_from(self.header.policy_bytes.get()).unwrap_or(usize::MAX);
        let count = usize::try_from(self.header.policies.get()).unwrap_or(usize::MAX).min(bytes);
        builder.interner.reserve_if_possible(count, bytes);
        let mut policies = Vec::new();
        while let Some((header, payload)) = self.read_block(Section::Policies)? {
            let number = header.number.get();
            let mut bytes = &*payload;
            // A policy has several bytes, so a number of them that is not true is not trusted.
            let growth = builder.policy_growth(payload.len().min(header.rows.get() as usize), payload.len());
            if growth > 0 {
                require(growth)?;
            }
            for _ in 0..header.rows.get() {
                let policy = RowPolicy::take_valid(&mut bytes).ok_or_else(|| {
                    ReadError::damaged(
                        Section::Policies,
                        Some(number),
                        "a policy is none that a row can have",
                    )
                })?;
                let interned = builder.intern(policy);
                policies
                    .push(interned.map_err(|unknown| ReadError::row(Section::Policies, number, unknown))?);
            }
            if !bytes.is_empty() {
                let problem = "there is more in it than its policies";
                return Err(ReadError::damaged(Section::Policies, Some(number), problem));
            }
        }
        if policies.len() as u64 != self.header.policies.get() {
            return Err(ReadError::damaged(
                Section::Policies,
                None,
                "there are more or fewer than the header says",
            ));
        }
        let owners = self.read_owners()?.into();
        self.begin(self.header.key_bytes.get());
        Ok(BlockDecoder { hasher: builder.hasher(), policies: policies.into(), owners })
    }

    fn read_owners(&mut self) -> Result<Owners, ReadError> {
        self.begin(self.header.owner_bytes.get());
        let Sizes { owners, owner_bytes, .. } = Sizes::of(&self.header);
        let mut owners = Owners::with_capacity(owners, owner_bytes);
        while let Some((header, payload)) = self.read_block(Section::Owners)? {
            let added = owners.add(&payload, header.rows.get());
            added
                .map_err(|problem| ReadError::damaged(Section::Owners, Some(header.number.get()), problem))?;
        }
        if owners.len() as u64 != self.header.owners.get() {
            let problem = "there are more or fewer than the header says";
            return Err(ReadError::damaged(Section::Owners, None, problem));
        }
        Ok(owners)
    }

    /// Begins a section of `bytes` bytes.
    fn begin(&mut self, bytes: u64) {
        self.end = self.at.saturating_add(bytes);
        self.number = 0;
    }

    /// The next block of keys, with its slot; `None` after the last.
    ///
    /// # Errors
    /// If the block cannot be read, is too long, or has no slot.
    pub fn next_block<'t>(&mut self, slots: &mut BlockSlots<'t>) -> Result<Option<Block<'t>>, ReadError> {
        let Some((header, start, _)) = self.next(Section::Keys)? else { return Ok(None) };
        let next = self.next_block_hash()?;
        let slot = slots.take(header.rows.get(), header.table_texts.get(), next);
        let slot = slot.map_err(|no_slot| match no_slot {
            NoSlot::Full => ReadError::damaged(Section::Keys, None, OTHER_SIZES),
            NoSlot::OutOfOrder => ReadError::damaged(Section::Keys, Some(self.number), OUT_OF_ORDER),
        })?;
        Ok(Some(Block { header, start, slot }))
    }

    /// The hash of the first row of the following block of keys. It is checked later, with its
    /// block.
    fn next_block_hash(&mut self) -> Result<Option<IndexHash>, ReadError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let mut digest = Digest::default();
        // A record begins with its digest.
        (self.read)(self.at + size_of::<BlockHeader>() as u64, &mut digest)
            .map_err(|error| ReadError::from_read(error, Section::Keys, Some(self.number)))?;
        Ok(Some(IndexHash::of_digest(&digest, self.header.seed.get())))
    }

    /// The next block, read and checked.
    fn read_block(&mut self, section: Section) -> Result<Option<(BlockHeader, Vec<u8>)>, ReadError> {
        let Some((header, start, length)) = self.next(section)? else { return Ok(None) };
        let mut payload = vec![0; length];
        (self.read)(start, &mut payload)
            .map_err(|error| ReadError::from_read(error, section, Some(header.number.get())))?;
        header
            .check(&payload)
            .map_err(|problem| ReadError::damaged(section, Some(header.number.get()), problem))?;
        Ok(Some((header, payload)))
    }

    /// The header of the next block, and the position and the length of its payload.
    fn next(&mut self, section: Section) -> Result<Option<(BlockHeader, u64, usize)>, ReadError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let number = self.number;
        let wrong = |problem| ReadError::damaged(section, Some(number), problem);
        let mut header = BlockHeader::new_zeroed();
        (self.read)(self.at, header.as_mut_bytes())
            .map_err(|error| ReadError::from_read(error, section, Some(number)))?;
        if (header.kind.get(), header.number.get()) != (section.kind(), number) {
            return Err(wrong("another block is in its place"));
        }
        if header.rows.get() == 0 {
            return Err(wrong("there is nothing in it"));
        }
        let start = self.at + size_of::<BlockHeader>() as u64;
        let length = header.payload_bytes().ok_or_else(|| wrong("it is longer than it can be"))?;
        let next = start + length as u64;
        if next > self.end {
            return Err(wrong("it is longer than it can be"));
        }
        self.at = next;
        self.number += 1;
        Ok(Some((header, start, length)))
    }

    /// Merges the decoded blocks.
    pub fn merge(&self) -> Merge {
        Merge::new(Sizes::of(&self.header))
    }
}
