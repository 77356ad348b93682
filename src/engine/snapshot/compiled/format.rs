//! The layout of a compiled file, and the limits of what it can contain.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::record::{Digest, MAX_KEY_ID, MAX_METADATA, MAX_OWNER};
use crate::snapshot::index::IndexHash;

/// Not text, and visibly damaged by any conversion of line ends, as in PNG.
pub(super) const MAGIC: [u8; 8] = *b"\x89KWC\r\n\x1a\n";

/// Whether a file that begins with `head` is meant to be a compiled snapshot.
pub fn has_magic(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Increased with every change of the format.
pub(super) const VERSION: u32 = 4;

/// A file with another byte order has another value here.
pub(super) const BYTE_ORDER: u32 = 0x0102_0304;

/// A block ends with the row that reaches this size. Several blocks, and the rows made of them, fit
/// in a processor's own cache.
pub(super) const BLOCK_BYTES: usize = 128 << 10;

/// The largest row or policy, and so the most by which a block exceeds [`BLOCK_BYTES`]. A policy
/// comes from fields of at most 64 KiB together, and what grows most is an address: `::,` takes 18
/// bytes instead of three.
pub(super) const MAX_ITEM_BYTES: usize = 1 << 20;

const _: () = assert!(size_of::<Record>() + MAX_KEY_ID + MAX_METADATA <= MAX_ITEM_BYTES && MAX_OWNER <= 0xff);

/// The longest accepted run of full groups in the index, which a look-up may have to scan. By
/// chance a run reaches forty in a table of billions. A longer run means that the digests were
/// chosen for the seed, and a look-up could scan all of them.
pub(super) const MAX_RUN: usize = 128;

/// The beginning of the file.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    pub(super) byte_order: U32,
    pub(super) seed: U64,
    pub(super) keys: U64,
    pub(super) policies: U64,
    pub(super) policy_bytes: U64,
    pub(super) owners: U64,
    pub(super) owner_bytes: U64,
    pub(super) key_bytes: U64,
    /// Total length of key id and owner over all rows.
    pub(super) text_bytes: U64,
    pub(super) metadata_rows: U64,
    pub(super) metadata_bytes: U64,
    pub(super) source_time: U32,
    /// The fields for which any row of the source has a value, as bits.
    pub(super) present_fields: U16,
    /// The restrictions that keys had before their rows were set aside, as bits.
    pub(super) prior_restrictions: U16,
    pub(super) reserved: [u8; 20],
    /// Of everything before it.
    pub(super) crc: U32,
}

pub(super) const HEADER_BYTES: usize = 128;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES && align_of::<Header>() == 1);

/// The beginning of a block. A block of policies or owners continues with `texts` bytes; a block of
/// keys with `rows` records, `texts` bytes and `metadata` bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct BlockHeader {
    pub(super) kind: U32,
    /// Counted from 0 within the section.
    pub(super) number: U32,
    pub(super) rows: U32,
    pub(super) texts: U32,
    pub(super) metadata: U32,
    /// Bytes that the key ids and owners of the rows take in the table.
    pub(super) table_texts: U32,
    pub(super) reserved: [u8; 4],
    /// Of everything before it, and of the payload.
    pub(super) crc: U32,
}

const _: () = assert!(size_of::<BlockHeader>() == 32 && align_of::<BlockHeader>() == 1);

/// A row as stored on disk.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Record {
    pub(super) digest: Digest,
    pub(super) not_before: U32,
    pub(super) expires_at: U32,
    pub(super) policy: U32,
    /// 0 if the key has no owner.
    pub(super) owner: U32,
    /// Lengths. The texts follow the records of the block, in order.
    pub(super) metadata: U16,
    pub(super) key_id: u8,
    /// As in [`Status`](crate::record::Status). From 3 on, the row is set aside and disabled, and
    /// its key was active, disabled or revoked before.
    pub(super) status: u8,
    /// If the row is set aside: the restrictions that its key had before.
    pub(super) prior_restrictions: u8,
    pub(super) reserved: [u8; 3],
}

const _: () = assert!(size_of::<Record>() == 56 && align_of::<Record>() == 1);

/// The position of a row in the file: by hash, and among equal hashes by digest.
pub(super) type SortKey = (IndexHash, Digest);

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The fixed-size header at the beginning.
    Header,
    /// The row policies, which rows refer to by number.
    Policies,
    /// The names of the owners.
    Owners,
    /// The rows, in the order of the index.
    Keys,
}

impl Section {
    /// The `kind` of its blocks.
    pub(super) fn kind(self) -> u32 {
        match self {
            Self::Header => 0,
            Self::Policies => 1,
            Self::Keys => 2,
            Self::Owners => 3,
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Policies => "policies",
            Self::Owners => "owners",
            Self::Keys => "keys",
        })
    }
}

impl BlockHeader {
    /// The length of the payload; `None` if no block can be that long.
    pub(super) fn payload_bytes(&self) -> Option<usize> {
        let records = if self.kind.get() == Section::Keys.kind() {
            (self.rows.get() as usize).checked_mul(size_of::<Record>())?
        } else {
            0
        };
        let texts = (self.texts.get() as usize).checked_add(self.metadata.get() as usize)?;
        records.checked_add(texts).filter(|bytes| *bytes <= BLOCK_BYTES + MAX_ITEM_BYTES)
    }

    /// Checks that the header and `payload` are as they were written.
    pub(super) fn check(&self, payload: &[u8]) -> Result<(), &'static str> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(checksummed(self));
        crc.update(payload);
        if crc.finalize() != self.crc.get() {
            return Err("the checksum is wrong");
        }
        if self.reserved == [0; 4] { Ok(()) } else { Err("reserved bytes are set") }
    }
}

/// The bytes of a header that the checksum at its end covers.
pub(super) fn checksummed(header: &(impl IntoBytes + Immutable)) -> &[u8] {
    let bytes = header.as_bytes();
    &bytes[..bytes.len() - size_of::<u32>()]
}

/// The sizes of a table.
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
    /// The sizes in a header. The reader has checked them against the length of the file.
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
}

/// Whether a text contains a control character. The common text is ASCII and is scanned without
/// branches.
pub(super) fn has_control(text: &str) -> bool {
    let seen = text
        .bytes()
        .fold(0_u8, |seen, b| seen | u8::from(b < b' ') | u8::from(b == 0x7f) | (u8::from(b >= 0x80) << 1));
    seen & 1 != 0 || (seen & 2 != 0 && text.chars().any(char::is_control))
}
