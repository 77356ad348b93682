//! The memory of the table: allocated at once, and handed out block by block to the threads that
//! fill it.
//!
//! It is not cleared first, and is faulted in as it is written. Every byte is written before it is
//! read: a block that does not fill its slot is refused, and the file with it.

use keyward_memory::{HugeVec, TextBuffer, TextWriter, zeroed};

use crate::snapshot::entry::{Entry, Identity};
use crate::snapshot::index::{Index, IndexHash, IndexPartition};

/// The parts of the table that threads write to.
pub struct Buffers {
    pub(super) entries: HugeVec<Entry>,
    pub(super) texts: TextBuffer,
    /// Digest to entry number.
    pub(super) digest_index: Index,
    /// Key id to the number of the first entry that has it.
    pub(super) key_id_index: Index,
}

impl Buffers {
    /// Room for `rows` rows and `bytes` bytes of texts.
    pub(super) fn new(rows: usize, bytes: usize) -> Self {
        Self {
            entries: zeroed(rows),
            texts: TextBuffer::new(bytes),
            digest_index: Index::with_capacity(rows),
            key_id_index: Index::with_capacity(rows),
        }
    }

    /// Everything except the index by key id, to be divided into slots.
    pub fn block_slots(&mut self) -> BlockSlots<'_> {
        let (entries, texts) = (&mut self.entries[..], self.texts.writer());
        BlockSlots {
            rest: BlockSlot { entries, texts, index: self.digest_index.partition(), row: 0, byte: 0 },
        }
    }
}

/// The part of the buffers that has not been handed out.
pub struct BlockSlots<'t> {
    rest: BlockSlot<'t>,
}

/// Why there is no slot for a block.
pub(super) enum NoSlot {
    /// Too few entries or bytes are left.
    Full,
    /// The next block's rows sort before this one's.
    OutOfOrder,
}

impl<'t> BlockSlots<'t> {
    /// The slot of a block with `rows` rows and `bytes` bytes of texts. `next`: first hash of the
    /// next block; all home groups of this block lie before it.
    pub(super) fn take(
        &mut self,
        rows: u32,
        bytes: u32,
        next: Option<IndexHash>,
    ) -> Result<BlockSlot<'t>, NoSlot> {
        let rest = &mut self.rest;
        let entries = rest.entries.split_off_mut(..rows as usize).ok_or(NoSlot::Full)?;
        let texts = rest.texts.split(bytes as usize).ok_or(NoSlot::Full)?;
        let index = match next {
            Some(next) => rest.index.take_before(next),
            None => rest.index.take(usize::MAX),
        };
        let index = index.ok_or(NoSlot::OutOfOrder)?;
        let slot = BlockSlot { entries, texts, index, row: rest.row, byte: rest.byte };
        rest.row = rest.row.checked_add(rows).ok_or(NoSlot::Full)?;
        rest.byte += bytes as usize;
        Ok(slot)
    }
}

/// The part of the buffers that one block fills; what is left of it.
pub(super) struct BlockSlot<'t> {
    entries: &'t mut [Entry],
    texts: TextWriter<'t>,
    /// The home groups of the rows, except the home group of the next block's first row.
    index: IndexPartition<'t>,
    /// The number of the first entry left, and the position of the first byte left.
    row: u32,
    byte: usize,
}

impl BlockSlot<'_> {
    /// The number of the entry that is written next.
    pub(super) fn row(&self) -> u32 {
        self.row
    }

    /// Whether everything has been written.
    pub(super) fn is_full(&self) -> bool {
        self.entries.is_empty() && self.texts.is_full()
    }

    /// Indexes the entry that is written next by its digest. `None` if it overflows this partition.
    #[inline]
    pub(super) fn index(&mut self, index_hash: IndexHash) -> Option<()> {
        self.index.push(index_hash, self.row)
    }

    /// Writes the next entry and its texts. `entry` receives the position of the texts and the
    /// entry's own number. `None` if there is no room.
    #[inline]
    pub(super) fn write(
        &mut self,
        key_id: &str,
        owner: &str,
        entry: impl FnOnce(Identity, u32) -> Entry,
    ) -> Option<()> {
        let place = self.entries.split_off_first_mut()?;
        self.texts.write(key_id)?;
        self.texts.write(owner)?;
        *place = entry(Identity::new(self.byte, key_id.len(), owner.len()), self.row);
        self.byte += key_id.len() + owner.len();
        self.row = self.row.saturating_add(1);
        Some(())
    }
}
