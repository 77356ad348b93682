//! A set of keys in a file that takes no parsing (`.kwc`): rows of a fixed size, in the order in which the table wants them.
//!
//! ```text
//! header    128 bytes: what it is, how much there is, the table's seed, when the source was written
//! policies  blocks of them: what the rows have in common, as the export has it; plans by their names
//! owners    blocks of their names, ascending; rows have their numbers, which count from 1
//! keys      blocks: 56 bytes for each row, then their key ids, then their metadata
//! ```
//!
//! * Every number is little-endian. Header and blocks each end in or hold a CRC-32 of their own, so that damage is found where it
//!   is, before anything of the block is used. It is there against accidents: who can write the file could write any checksum,
//!   and any keys; a SHA-256 would protect from no more, and cost as much as all the rest of loading.
//! * Blocks are independent of each other, and each says how much it takes in the table, which is made in its final size: threads
//!   read blocks, check them, and write their rows to where they stay ([`read`], [`decode`], [`space`]); what is left depends on other
//!   blocks ([`merge`]). Beside the table, a block for each thread is held, and until the look-up by key id is filled ([`ids`]) 13
//!   bytes for each row. Nothing is believed: every length, number and text is checked as a row of an export is, and the builder refuses
//!   the same contradictions.
//! * Rows are in the order of their hashes ([`Rank`]), which is that of their places in the table: each block has lines of its own, that
//!   are filled from the first to the last. Hashes depend on the seed, which is drawn when the file is written, and is in it.
//! * It is read, not mapped: a mapped file that is cut short kills who reads it.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::record::{Digest, MAX_KEY_ID, MAX_METADATA, MAX_OWNER};
use crate::snapshot::index::Probe;

mod decode;
mod ids;
mod merge;
mod owners;
mod policy;
mod read;
mod space;
#[cfg(test)]
mod tests;
mod write;

pub use decode::{Block, Decode, Decoded};
pub use ids::{Filled, IdsPart, Scatter};
pub use merge::Merge;
pub use read::{ReadError, Reader};
pub use space::{Places, Space};

/// Not text, and damaged visibly by whatever takes it for some (as PNG's).
const MAGIC: [u8; 8] = *b"\x89KWC\r\n\x1a\n";

/// Whether a file that begins with `head` is meant to be a compiled snapshot.
pub fn is_one(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Changes with anything in the format.
const VERSION: u32 = 3;

/// What a little-endian file says here; another order of bytes reads differently.
const BYTE_ORDER: u32 = 0x0102_0304;

/// A block ends with the row that reaches this: several of them, and the rows that are made of them, stay in a processor's own
/// cache.
const BLOCK_BYTES: usize = 128 << 10;

/// The largest row, or policy, beyond that. A policy comes of a row of at most 64 KiB, whose shortest items (`a,`) grow to
/// eight times their length.
const MAX_BEYOND: usize = 1 << 20;

const _: () = assert!(size_of::<Record>() + MAX_KEY_ID + MAX_METADATA <= MAX_BEYOND && MAX_OWNER <= 0xff);

/// The beginning of the file.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    byte_order: U32,
    seed: U64,
    keys: U64,
    policies: U64,
    policy_bytes: U64,
    owners: U64,
    owner_bytes: U64,
    key_bytes: U64,
    /// Of all rows: key id and owner.
    text_bytes: U64,
    metadata_rows: U64,
    metadata_bytes: U64,
    source_time: U32,
    /// The fields that any row of the export has a value for, by their bits.
    given: U16,
    /// The restrictions that keys had whose rows could not be understood.
    set_aside_given: U16,
    reserved: [u8; 20],
    /// Of everything before it.
    crc: U32,
}

const HEADER_BYTES: usize = 128;
const _: () = assert!(size_of::<Header>() == HEADER_BYTES && align_of::<Header>() == 1);

/// The beginning of a block. What follows it: of policies and owners, `texts` bytes; of keys, `rows` records, `texts` bytes, and
/// `metadata` bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlockHeader {
    kind: U32,
    /// Counted from 0 in its section.
    number: U32,
    rows: U32,
    texts: U32,
    metadata: U32,
    /// Bytes that key ids and owners of its rows have together: what they take in the table.
    table_texts: U32,
    reserved: [u8; 4],
    /// Of everything before it, and of what follows.
    crc: U32,
}

const _: () = assert!(size_of::<BlockHeader>() == 32 && align_of::<BlockHeader>() == 1);

/// A row of the export.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    digest: Digest,
    not_before: U32,
    expires_at: U32,
    policy: U32,
    /// 0: nobody.
    owner: U32,
    /// Lengths: the texts themselves are in order after the block's records.
    metadata: U16,
    key_id: u8,
    /// As of [`Status`](crate::record::Status); from 3 on, a row that could not be understood and is
    /// disabled, and whose key was active, disabled or revoked before.
    status: u8,
    /// Of a row that could not be understood: the restrictions that its key had before.
    had: u8,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<Record>() == 56 && align_of::<Record>() == 1);

/// What a file consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// At its beginning.
    Header,
    /// What rows have in common.
    Policies,
    /// Whose they are.
    Owners,
    /// The rows.
    Keys,
}

impl Section {
    fn kind(self) -> u32 {
        match self {
            Self::Header => 0,
            Self::Policies => 1,
            Self::Keys => 2,
            Self::Owners => 3,
        }
    }
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Header => "header",
            Self::Policies => "policies",
            Self::Owners => "owners",
            Self::Keys => "keys",
        })
    }
}

const OUT_OF_ORDER: &str = "the rows are not in the order of the table, or one is there twice";

/// How many lines of the table may be full, one after another: a look-up may have to go through them. Chance makes it forty in a table of
/// billions; a file that makes it more has digests that were chosen for its seed, and a look-up among them would go through all.
const MAX_RUN: usize = 128;

const CROWDED: &str = "more rows than chance allows have one place in the table";

/// Where a row stands: by its hash, and if that is another's, by its digest.
type Rank = (Probe, Digest);
