//! Reading a compiled file: block by block, checked, and into a [`Builder`] as any other rows.
//!
//! [`Reader`] reads, [`Decode`] checks a block and makes rows of it (on any thread), and [`Merge`] puts them into the table, in the
//! file's order. The table is complete when [`Merge::finish`] says so, and to be thrown away otherwise.

use std::io::{self, Read};
use std::sync::Arc;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::record::{Digest, MAX_KEY_ID, MAX_OWNER, Status, is_metadata};
use crate::snapshot::batch::{Batch, Hashes, Row};
use crate::snapshot::build::{Builder, RowError};
use crate::snapshot::compiled::write::checked;
use crate::snapshot::compiled::{
    BLOCK_BYTES, BYTE_ORDER, BlockHeader, Header, MAGIC, MAX_BEYOND, MAX_ORDER_BITS, Order, Record, Section,
    VERSION, policy,
};

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
    fn row(section: Section, block: u32, error: &RowError) -> Self {
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

fn damaged(section: Section, block: Option<u32>, problem: &'static str) -> ReadError {
    ReadError::Damaged { section, block, problem }
}

/// Reads the blocks of a file, one after another.
pub struct Reader<R> {
    input: R,
    header: Header,
    /// Bytes of the section that are still to be read.
    left: u64,
    /// The block that is next.
    number: u32,
}

/// Puts blocks together.
pub struct Merge {
    expected: u64,
    rows: u64,
    /// Where the last row stands.
    last: Option<(u64, Digest)>,
}

/// A block, as it is in the file.
pub struct Block {
    header: BlockHeader,
    payload: Vec<u8>,
    section: Section,
}

/// What makes rows of a block.
#[derive(Clone)]
pub struct Decode {
    hashes: Hashes,
    order: Order,
    /// The table's own numbers of the file's policies.
    policies: Arc<[u32]>,
}

/// The rows of a block.
pub struct Decoded {
    batch: Batch,
    number: u32,
    /// Where the first and the last row stand.
    ends: Option<[(u64, Digest); 2]>,
}

impl<R: Read> Reader<R> {
    /// Reads the header of a file of `length` bytes.
    ///
    /// # Errors
    /// When there is none that this version understands, or it says another length.
    pub fn open(mut input: R, length: u64) -> Result<Self, ReadError> {
        let mut header = Header::new_zeroed();
        match input.read_exact(header.as_mut_bytes()) {
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof && !header.magic.starts_with(&MAGIC) =>
            {
                return Err(ReadError::NotOne);
            }
            Err(error) => return Err(cut_short(error, Section::Header, None)),
            Ok(()) => {}
        }
        let wrong = |problem| Err(damaged(Section::Header, None, problem));
        match &header {
            Header { magic, .. } if *magic != MAGIC => return Err(ReadError::NotOne),
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
            Header { reserved, .. } if *reserved != [0; 60] => return wrong("reserved bytes are set"),
            Header { keys, .. } if keys.get() > u64::from(u32::MAX) => {
                return wrong("there are too many keys");
            }
            Header { order_bits, .. } if !(1..=MAX_ORDER_BITS).contains(&order_bits.get()) => {
                return wrong("the order of keys is wrong");
            }
            _ => {}
        }
        let sections = header.policy_bytes.get().checked_add(header.key_bytes.get());
        let said = sections.and_then(|bytes| bytes.checked_add(size_of::<Header>() as u64));
        // A row has at least its record: what is reserved for them by their number is in proportion to the file.
        let least = header.keys.get().checked_mul(size_of::<Record>() as u64);
        if said != Some(length) || least.is_none_or(|least| least > header.key_bytes.get()) {
            return wrong("the file is longer or shorter than it says; it was cut short, or is not one file");
        }
        Ok(Self { input, header, left: 0, number: 0 })
    }

    /// An empty table for the keys.
    pub fn builder(&self) -> Builder {
        Builder::new(self.header.seed.get(), usize::try_from(self.header.keys.get()).unwrap_or(0))
    }

    /// Unix second at which the source was written.
    pub fn source_time(&self) -> u32 {
        self.header.source_time.get()
    }

    /// Reads the policies, and goes on to the keys. `builder` may have got its plans since.
    ///
    /// # Errors
    /// When the section is damaged, or a plan is not there.
    pub fn policies(&mut self, builder: &mut Builder) -> Result<Decode, ReadError> {
        self.left = self.header.policy_bytes.get();
        let mut policies = Vec::new();
        while let Some(block) = self.block(Section::Policies)? {
            let number = block.header.number.get();
            block.check()?;
            let mut bytes = &*block.payload;
            for _ in 0..block.header.rows.get() {
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
        self.left = self.header.key_bytes.get();
        self.number = 0;
        let order = Order { bits: self.header.order_bits.get() };
        Ok(Decode { hashes: builder.hashes(), order, policies: policies.into() })
    }

    /// The next block of keys; `None` after the last.
    ///
    /// # Errors
    /// When it cannot be read, or is longer than any.
    pub fn keys(&mut self) -> Result<Option<Block>, ReadError> {
        self.block(Section::Keys)
    }

    fn block(&mut self, section: Section) -> Result<Option<Block>, ReadError> {
        if self.left == 0 {
            return Ok(None);
        }
        let number = self.number;
        let wrong = |problem| damaged(section, Some(number), problem);
        let mut header = BlockHeader::new_zeroed();
        self.input
            .read_exact(header.as_mut_bytes())
            .map_err(|error| cut_short(error, section, Some(number)))?;
        if (header.kind.get(), header.number.get()) != (section.kind(), number) {
            return Err(wrong("another block is in its place"));
        }
        let length = header.payload_bytes();
        let left =
            length.and_then(|length| self.left.checked_sub((length + size_of::<BlockHeader>()) as u64));
        let (Some(length), Some(left)) = (length, left) else {
            return Err(wrong("it is longer than it can be"));
        };
        let mut payload = vec![0; length];
        self.input.read_exact(&mut payload).map_err(|error| cut_short(error, section, Some(number)))?;
        self.left = left;
        self.number += 1;
        Ok(Some(Block { header, payload, section }))
    }

    /// For what [`Decode`] makes of the blocks.
    pub fn merging(&self) -> Merge {
        Merge { expected: self.header.keys.get(), rows: 0, last: None }
    }
}

impl Merge {
    /// Puts the rows of a block into the table; blocks in their order.
    ///
    /// # Errors
    /// When a row contradicts one before it, or is not where it should be.
    pub fn add(&mut self, decoded: Decoded, builder: &mut Builder) -> Result<(), ReadError> {
        let Decoded { batch, number, ends } = decoded;
        if let Some([first, last]) = ends {
            if self.last.is_some_and(|before| before >= first) {
                return Err(damaged(Section::Keys, Some(number), OUT_OF_ORDER));
            }
            self.last = Some(last);
        }
        self.rows += batch.rows.len() as u64;
        builder.add_batch(batch).map_err(|error| ReadError::row(Section::Keys, number, &error))
    }

    /// Whether all of it has been read, and is there.
    ///
    /// # Errors
    /// When there are other keys than the header says.
    pub fn finish(&self) -> Result<(), ReadError> {
        match self.rows == self.expected {
            true => Ok(()),
            false => Err(damaged(Section::Keys, None, "there are more or fewer than the header says")),
        }
    }
}

const OUT_OF_ORDER: &str = "the rows are not in the order of the table, or one is there twice";

fn cut_short(error: io::Error, section: Section, block: Option<u32>) -> ReadError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(section, block, "the file ends in it"),
        _ => ReadError::Io(error),
    }
}

impl BlockHeader {
    /// Bytes that follow it; `None` where no block has as many.
    fn payload_bytes(&self) -> Option<usize> {
        let records = match self.kind.get() == Section::Keys.kind() {
            true => (self.rows.get() as usize).checked_mul(size_of::<Record>())?,
            false => 0,
        };
        let texts = (self.texts.get() as usize).checked_add(self.metadata.get() as usize)?;
        records.checked_add(texts).filter(|bytes| *bytes <= BLOCK_BYTES + MAX_BEYOND)
    }
}

impl Block {
    /// Bytes of it in the file.
    pub fn bytes(&self) -> usize {
        self.payload.len() + size_of::<BlockHeader>()
    }

    fn check(&self) -> Result<(), ReadError> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(checked(&self.header));
        crc.update(&self.payload);
        let problem = match crc.finalize() == self.header.crc.get() {
            false => "the checksum is wrong",
            true if self.header.reserved != [0; 8] => "reserved bytes are set",
            true => return Ok(()),
        };
        Err(damaged(self.section, Some(self.header.number.get()), problem))
    }
}

impl Decode {
    /// Checks a block, and everything in it that is not about other blocks.
    ///
    /// # Errors
    /// When anything of it is not as it was written, or none that a row can have.
    pub fn decode(&self, block: &Block) -> Result<Decoded, ReadError> {
        block.check()?;
        let number = block.header.number.get();
        self.rows(block).map_err(|problem| damaged(Section::Keys, Some(number), problem))
    }

    fn rows(&self, block: &Block) -> Result<Decoded, &'static str> {
        const SHORT: &str = "it is shorter than its rows";
        let BlockHeader { number, rows, texts, metadata, .. } = &block.header;
        let (records, rest) =
            <[Record]>::ref_from_prefix_with_elems(&block.payload, rows.get() as usize).map_err(|_| SHORT)?;
        let (texts, rest) = rest.split_at_checked(texts.get() as usize).ok_or(SHORT)?;
        let all_metadata = rest.get(..metadata.get() as usize).ok_or(SHORT)?;
        let texts = str::from_utf8(texts).map_err(|_| "a text is not UTF-8")?;
        let all_metadata = str::from_utf8(all_metadata).map_err(|_| "a text is not UTF-8")?;
        if has_control(texts) {
            return Err("there is a control character in a text");
        }
        let mut batch = Batch::with_capacity(records.len(), texts.to_owned(), all_metadata.to_owned());
        let (mut text, mut metadata) = (texts, all_metadata);
        let mut ends: Option<[(u64, Digest); 2]> = None;
        for record in records {
            let row = self.row(record, &mut text, &mut metadata)?;
            let at = (self.order.key(row.probe), row.digest);
            ends = match ends {
                None => Some([at, at]),
                Some([_, last]) if last >= at => return Err(OUT_OF_ORDER),
                Some([first, _]) => Some([first, at]),
            };
            batch.rows.push(row);
        }
        if !(text.is_empty() && metadata.is_empty()) {
            return Err("there is more text in it than its rows have");
        }
        Ok(Decoded { batch, number: number.get(), ends })
    }

    fn row(&self, record: &Record, texts: &mut &str, metadata: &mut &str) -> Result<Row, &'static str> {
        let mut take = |length: u8| split_off(texts, length.into()).ok_or("a text ends within a character");
        let (key_id, owner) = (take(record.key_id)?, take(record.owner)?);
        let own_metadata =
            split_off(metadata, record.metadata.get().into()).ok_or("a text ends within a character")?;
        if key_id.is_empty() || key_id.len() > MAX_KEY_ID || owner.len() > MAX_OWNER {
            return Err("a key id or owner is empty or too long");
        }
        if !own_metadata.is_empty() && !is_metadata(own_metadata) {
            return Err("metadata is not a JSON object");
        }
        if record.reserved != [0; 7] {
            return Err("reserved bytes are set");
        }
        let policy = self.policies.get(record.policy.get() as usize).ok_or("a policy is not there")?;
        Ok(Row {
            digest: record.digest,
            probe: self.hashes.probe(&record.digest),
            id_hash: self.hashes.text(key_id),
            owner_hash: self.hashes.text(owner),
            not_before: record.not_before.get(),
            expires_at: record.expires_at.get(),
            policy: *policy,
            metadata: record.metadata.get(),
            key_id: record.key_id,
            owner: record.owner,
            status: status(record.status).ok_or("a status is none")?,
        })
    }
}

fn split_off<'t>(text: &mut &'t str, at: usize) -> Option<&'t str> {
    let (first, rest) = text.split_at_checked(at)?;
    *text = rest;
    Some(first)
}

/// The common text is ASCII, and all of it is looked at without a branch.
fn has_control(text: &str) -> bool {
    let seen = text
        .bytes()
        .fold(0_u8, |seen, b| seen | u8::from(b < b' ') | u8::from(b == 0x7f) | (u8::from(b >= 0x80) << 1));
    seen & 1 != 0 || (seen & 2 != 0 && text.chars().any(char::is_control))
}

fn status(number: u8) -> Option<Status> {
    [Status::Active, Status::Disabled, Status::Revoked].into_iter().find(|status| *status as u8 == number)
}
