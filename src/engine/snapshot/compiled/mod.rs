//! A table of keys in a file that needs no parsing (`.kwc`): rows of a fixed size, in the order of
//! the index.
//!
//! ```text
//! header    128 bytes: format, sizes, the seed of the index, when the source was written
//! policies  blocks of row policies, as the source states them; plans are stored by name, and
//!           origins in lower case
//! owners    blocks of owners' names, ascending; rows refer to them by number, counted from 1
//! keys      blocks: 56 bytes for each row, then the rows' key ids, then their metadata
//! ```
//!
//! * All numbers are little-endian. The header and each block have a CRC-32 of their own, so damage
//!   is located before anything of the block is used. The checksum protects against accidents only:
//!   anyone who can write the file can write any checksum, and any keys. A SHA-256 would protect
//!   from no more, and would cost as much as all the rest of loading.
//! * Blocks are independent of each other, and each states how much it takes in the table. The
//!   table is allocated in its final size, and threads read blocks, check them and write their rows
//!   in place ([`read`], [`decode`], [`buffers`]). What depends on several blocks is left to one
//!   thread ([`merge`]). In addition to the table, loading holds one block per thread and, until
//!   the index by key id is filled ([`id_index`]), 13 bytes per row. Nothing in the file is
//!   trusted: every length, number and text is checked as in a source, and conflicts are refused as
//!   the [builder](super::Builder) refuses them.
//! * Rows are sorted by hash (`SortKey`), which is their order in the index. Each block therefore
//!   fills groups of its own, from the first to the last. Hashes depend on the seed, which is drawn
//!   when the file is written and stored in it.
//! * The file is read, not mapped: truncating a mapped file raises SIGBUS.

mod buffers;
mod decode;
mod error;
mod format;
mod id_index;
mod merge;
mod owners;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use buffers::{BlockSlots, Buffers};
pub use decode::{Block, BlockDecoder, DecodedBlock};
pub use error::{ReadError, RowProblem};
pub use format::{Section, has_magic};
pub use id_index::{FilledIds, HashPartitions, IdPartition};
pub use merge::Merge;
pub use read::Reader;
