//! Reading a compiled file, block by block.
//!
//! [`Reader`] finds the blocks, and the [place](Places) of each in the table; [`Decode`](super::Decode) checks a block and writes its
//! rows there, on any thread, and puts down its key ids in the thread's [`Scatter`]; [`Merge`] sees that blocks follow upon each other;
//! and [`IdsPart`](super::IdsPart) fills the look-up by key id. The table is complete when [`Merge::finish`] says so, and to be
//! thrown away otherwise.
//!
//! A thread that decodes a block has read it too, and nobody else looks at its rows: to fetch a row from another processor's
//! cache takes longer than to decode it.

use std::io;

use zerocopy::{FromZeros, IntoBytes};

use crate::record::{Digest, FieldSet, MAX_OWNER};
use crate::snapshot::build::{Builder, RowError};
use crate::snapshot::compiled::decode::{Block, Decode};
use crate::snapshot::compiled::ids::Scatter;
use crate::snapshot::compiled::merge::{Merge, OTHER_SIZES, Sizes};
use crate::snapshot::compiled::owners::Owners;
use crate::snapshot::compiled::space::{NoPlace, Places, Space};
use crate::snapshot::compiled::write::checked;
use crate::snapshot::compiled::{
    BLOCK_BYTES, BYTE_ORDER, BlockHeader, Header, MAGIC, MAX_BEYOND, OUT_OF_ORDER, Record, Section, VERSION,
    policy,
};
use crate::snapshot::index::Probe;
use crate::snapshot::room::{heaps, rows_bytes};

/// Why a compiled file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is something else.
    #[error(
        "it is not a compiled snapshot; write one with `keyward compile`, or name the format that it has"
    )]
    NotOne,
    /// Less of it is on the disk than its length says.
    #[error("it has holes, which nobody wrote: it was not written to its end; compile the source again")]
    Holes,
    /// Another version of keyward wrote it, or will.
    #[error(
        "it is a compiled snapshot of version {0}, and this keyward reads version {VERSION}; compile the source again"
    )]
    Version(u32),
    /// It is not what was written.
    #[error("{section}{}: {problem}; the file is damaged: compile the source again", Numbered(*block))]
    Damaged {
        /// Where.
        section: Section,
        /// Which block of it, counted from 0.
        block: Option<u32>,
        /// What is wrong.
        problem: &'static str,
    },
    /// What it says cannot be served.
    #[error("{section}, block {block}: {problem}")]
    Row {
        /// Where.
        section: Section,
        /// Which block of it, counted from 0.
        block: u32,
        /// Why not.
        problem: String,
    },
}

impl ReadError {
    /// Rows have no lines here. What two of them contradict each other in can be the plans that they are on now.
    pub(super) fn row(section: Section, block: u32, error: &RowError) -> Self {
        let problem = match error {
            RowError::DuplicateHash { .. } => "two rows have the same key_hash: compile the source again".to_owned(),
            RowError::OtherLimits { .. } => {
                "two rows have the same key_id and different limits, of their own or by their plans; rows that share a \
                 key_id share its limits"
                    .to_owned()
            }
            RowError::OtherOwner { .. } => {
                "two rows have the same key_id and different owners: compile the source again".to_owned()
            }
            error => error.to_string(),
        };
        Self::Row { section, block, problem }
    }
}

struct Numbered(Option<u32>);

impl std::fmt::Display for Numbered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |number| write!(f, ", block {number}"))
    }
}

pub(super) fn damaged(section: Section, block: Option<u32>, problem: &'static str) -> ReadError {
    ReadError::Damaged { section, block, problem }
}

/// Finds the blocks of a file, one after another. `F` fills a buffer with the bytes from a place on, or fails.
pub struct Reader<F> {
    read: F,
    header: Header,
    /// Where the next block begins, and the section ends.
    at: u64,
    end: u64,
    /// The block that is next.
    number: u32,
}

impl<F: FnMut(u64, &mut [u8]) -> io::Result<()>> Reader<F> {
    /// Reads the header of a file of `length` bytes.
    ///
    /// # Errors
    /// When there is none that this version understands, or it says another length.
    pub fn open(mut read: F, length: u64) -> Result<Self, ReadError> {
        let mut header = Header::new_zeroed();
        let there = header.as_mut_bytes().len().min(usize::try_from(length).unwrap_or(usize::MAX));
        read(0, &mut header.as_mut_bytes()[..there])
            .map_err(|error| cut_short(error, Section::Header, None))?;
        if header.magic != MAGIC {
            return Err(ReadError::NotOne);
        }
        if there < size_of::<Header>() {
            return Err(damaged(Section::Header, None, CUT_SHORT));
        }
        let wrong = |problem| Err(damaged(Section::Header, None, problem));
        match &header {
            Header { byte_order, .. } if byte_order.get() == BYTE_ORDER.swap_bytes() => {
                return wrong("its bytes are in another order than a little-endian machine's");
            }
            Header { version, .. } if version.get() != VERSION => {
                return Err(ReadError::Version(version.get()));
            }
            header if crc32fast::hash(checked(header)) != header.crc.get() => {
                return wrong("the checksum is wrong");
            }
            Header { byte_order, .. } if byte_order.get() != BYTE_ORDER => {
                return wrong("the order of bytes is wrong");
            }
            Header { given, set_aside_given, .. }
                if [given, set_aside_given]
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
        let said = sections
            .into_iter()
            .try_fold(size_of::<Header>() as u64, |sum, section| sum.checked_add(section.get()));
        // A row has at least its record: what is reserved for them by their number is in proportion to the file.
        let least = header.keys.get().checked_mul(size_of::<Record>() as u64);
        if said != Some(length) || least.is_none_or(|least| least > header.key_bytes.get()) {
            return wrong("the file is longer or shorter than it says; it was cut short, or is not one file");
        }
        // And so is what is reserved for their texts: there are no more key ids than bytes, and an owner's name for each row.
        let most = header.key_bytes.get().saturating_add(header.keys.get().saturating_mul(MAX_OWNER as u64));
        if header.text_bytes.get() > most
            || header.metadata_bytes > header.key_bytes
            || header.metadata_rows > header.keys
        {
            return wrong("there are longer texts than it can have");
        }
        Ok(Self { read, header, at: size_of::<Header>() as u64, end: 0, number: 0 })
    }

    /// An empty table for the keys.
    pub fn builder(&self) -> Builder {
        let mut builder = Sizes::of(&self.header).table(self.header.seed.get());
        builder.keys.given = FieldSet::from_bits(self.header.given.get());
        builder.keys.set_aside_given = FieldSet::from_bits(self.header.set_aside_given.get());
        builder
    }

    /// Bytes that the whole table can take, and reading it by so many threads.
    pub fn bytes(&self, threads: usize) -> usize {
        /// A policy as the file has it, as the table has it, and in a list of each that doubles.
        const POLICY: usize = 1 << 10;
        /// A block, its rows and what is left of them to be done, for each thread, and as many that wait.
        const BLOCKS: usize = 4 * (BLOCK_BYTES + MAX_BEYOND);
        let sizes = Sizes::of(&self.header);
        let policies = usize::try_from(self.header.policies.get()).unwrap_or(usize::MAX);
        let texts = sizes.text_bytes.saturating_add(sizes.metadata_bytes).saturating_add(sizes.owner_bytes);
        [
            rows_bytes(sizes.keys),
            texts,
            // Metadata's places, the hashes of key ids, and numbers of rows and owners.
            sizes.keys.saturating_mul(16 + 2 * 12 + 4 * 4),
            sizes.owners.saturating_mul(2 * 16),
            policies.saturating_mul(POLICY),
            threads.saturating_mul(BLOCKS),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }

    /// Address space that reading it takes beside that.
    pub fn heaps(&self) -> usize {
        heaps(usize::try_from(self.header.policies.get()).unwrap_or(usize::MAX), 1)
    }

    /// Room for all rows.
    pub fn space(&self) -> Space {
        let Sizes { keys, text_bytes, .. } = Sizes::of(&self.header);
        Space::new(keys, text_bytes)
    }

    /// What so many threads need to put key ids down.
    pub fn scatters(&self, threads: usize) -> Vec<Scatter> {
        let Sizes { keys, .. } = Sizes::of(&self.header);
        (0..threads).map(|_| Scatter::new(keys, threads)).collect()
    }

    /// Unix second at which the source was written.
    pub fn source_time(&self) -> u32 {
        self.header.source_time.get()
    }

    /// Reads policies and owners, and goes on to the keys. `builder` may have got its plans since.
    ///
    /// # Errors
    /// When a section is damaged, or a plan is not there.
    pub fn policies(&mut self, builder: &mut Builder) -> Result<Decode, ReadError> {
        self.begin(self.header.policy_bytes.get());
        let mut policies = Vec::new();
        while let Some((header, payload)) = self.block(Section::Policies)? {
            let number = header.number.get();
            let mut bytes = &*payload;
            for _ in 0..header.rows.get() {
                let key = policy::decode(&mut bytes).ok_or_else(|| {
                    damaged(Section::Policies, Some(number), "a policy is none that a row can have")
                })?;
                let own = builder.intern(key);
                policies
                    .push(own.map_err(|unknown| ReadError::row(Section::Policies, number, &unknown.into()))?);
            }
            if !bytes.is_empty() {
                return Err(damaged(
                    Section::Policies,
                    Some(number),
                    "there is more in it than its policies",
                ));
            }
        }
        if policies.len() as u64 != self.header.policies.get() {
            return Err(damaged(Section::Policies, None, "there are more or fewer than the header says"));
        }
        let owners = self.owners()?.into();
        self.begin(self.header.key_bytes.get());
        Ok(Decode { hashes: builder.hashes(), policies: policies.into(), owners })
    }

    fn owners(&mut self) -> Result<Owners, ReadError> {
        self.begin(self.header.owner_bytes.get());
        let Sizes { owners, owner_bytes, .. } = Sizes::of(&self.header);
        let mut owners = Owners::with_capacity(owners, owner_bytes);
        while let Some((header, payload)) = self.block(Section::Owners)? {
            let added = owners.add(&payload, header.rows.get());
            added.map_err(|problem| damaged(Section::Owners, Some(header.number.get()), problem))?;
        }
        match owners.len() as u64 == self.header.owners.get() {
            true => Ok(owners),
            false => Err(damaged(Section::Owners, None, "there are more or fewer than the header says")),
        }
    }

    /// Goes on to a section of so many bytes.
    fn begin(&mut self, bytes: u64) {
        self.end = self.at.saturating_add(bytes);
        self.number = 0;
    }

    /// The next block of keys, and its place among those that are left; `None` after the last.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than any, or has no place.
    pub fn keys<'t>(&mut self, places: &mut Places<'t>) -> Result<Option<Block<'t>>, ReadError> {
        let Some((header, at, _)) = self.next(Section::Keys)? else { return Ok(None) };
        let next = self.first_of_next()?;
        let place = places.take(header.rows.get(), header.table_texts.get(), next);
        let place = place.map_err(|no| match no {
            NoPlace::Full => damaged(Section::Keys, None, OTHER_SIZES),
            NoPlace::NotBefore => damaged(Section::Keys, Some(self.number), OUT_OF_ORDER),
        })?;
        Ok(Some(Block { header, at, place }))
    }

    /// Where the first row of the block of keys belongs that has not been found yet. It is checked with its block, later.
    fn first_of_next(&mut self) -> Result<Option<Probe>, ReadError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let mut digest = Digest::default();
        // Rows begin with it.
        (self.read)(self.at + size_of::<BlockHeader>() as u64, &mut digest)
            .map_err(|error| cut_short(error, Section::Keys, Some(self.number)))?;
        Ok(Some(Probe::of_digest(&digest, self.header.seed.get())))
    }

    /// The next block, read and checked.
    fn block(&mut self, section: Section) -> Result<Option<(BlockHeader, Vec<u8>)>, ReadError> {
        let Some((header, at, length)) = self.next(section)? else { return Ok(None) };
        let mut payload = vec![0; length];
        (self.read)(at, &mut payload)
            .map_err(|error| cut_short(error, section, Some(header.number.get())))?;
        header.check(section, &payload)?;
        Ok(Some((header, payload)))
    }

    /// The header of the next block, and where what follows it begins, and how long it is.
    fn next(&mut self, section: Section) -> Result<Option<(BlockHeader, u64, usize)>, ReadError> {
        if self.at >= self.end {
            return Ok(None);
        }
        let number = self.number;
        let wrong = |problem| damaged(section, Some(number), problem);
        let mut header = BlockHeader::new_zeroed();
        (self.read)(self.at, header.as_mut_bytes())
            .map_err(|error| cut_short(error, section, Some(number)))?;
        if (header.kind.get(), header.number.get()) != (section.kind(), number) {
            return Err(wrong("another block is in its place"));
        }
        if header.rows.get() == 0 {
            return Err(wrong("there is nothing in it"));
        }
        let at = self.at + size_of::<BlockHeader>() as u64;
        let length = header.payload_bytes().ok_or_else(|| wrong("it is longer than it can be"))?;
        let next = at + length as u64;
        if next > self.end {
            return Err(wrong("it is longer than it can be"));
        }
        self.at = next;
        self.number += 1;
        Ok(Some((header, at, length)))
    }

    /// For what [`Decode`] makes of the blocks.
    pub fn merging(&self) -> Merge {
        Merge::new(Sizes::of(&self.header))
    }
}

const CUT_SHORT: &str = "the file ends in it";

pub(super) fn cut_short(error: io::Error, section: Section, block: Option<u32>) -> ReadError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(section, block, CUT_SHORT),
        _ => ReadError::Io(error),
    }
}

impl BlockHeader {
    /// Bytes that follow it; `None` where no block has as many.
    pub(super) fn payload_bytes(&self) -> Option<usize> {
        let records = match self.kind.get() == Section::Keys.kind() {
            true => (self.rows.get() as usize).checked_mul(size_of::<Record>())?,
            false => 0,
        };
        let texts = (self.texts.get() as usize).checked_add(self.metadata.get() as usize)?;
        records.checked_add(texts).filter(|bytes| *bytes <= BLOCK_BYTES + MAX_BEYOND)
    }

    /// Whether it is what was written, `payload` following it.
    pub(super) fn check(&self, section: Section, payload: &[u8]) -> Result<(), ReadError> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(checked(self));
        crc.update(payload);
        let problem = match crc.finalize() == self.crc.get() {
            false => "the checksum is wrong",
            true if self.reserved != [0; 4] => "reserved bytes are set",
            true => return Ok(()),
        };
        Err(damaged(section, Some(self.number.get()), problem))
    }
}
