//! Where the rows of a compiled file go: made for all of them at once, and handed out block by block to the threads that write them.
//!
//! Every place is written to before it is looked at: a block that does not fill its own is refused, and with it the file.

use crate::memory::HugeVec;
use crate::snapshot::entry::{Entry, Identity};

/// The table's entries and texts.
pub struct Space {
    pub(super) entries: HugeVec<Entry>,
    pub(super) texts: HugeVec<u8>,
}

/// What of it has not been handed out.
pub struct Places<'t> {
    rest: Place<'t>,
}

/// The place of a block; what of it has not been written.
pub(super) struct Place<'t> {
    entries: &'t mut [Entry],
    texts: &'t mut [u8],
    /// The number of the first entry, and of the first byte.
    row: u32,
    byte: usize,
}

impl Space {
    /// Hands all of it out.
    pub fn places(&mut self) -> Places<'_> {
        Places { rest: Place { entries: &mut self.entries, texts: &mut self.texts, row: 0, byte: 0 } }
    }
}

impl<'t> Places<'t> {
    /// The next place for so many rows with so many bytes; `None` where there is less.
    pub(super) fn take(&mut self, rows: u32, bytes: u32) -> Option<Place<'t>> {
        let entries = self.rest.entries.split_off_mut(..rows as usize)?;
        let texts = self.rest.texts.split_off_mut(..bytes as usize)?;
        let place = Place { entries, texts, row: self.rest.row, byte: self.rest.byte };
        self.rest.row = self.rest.row.checked_add(rows)?;
        self.rest.byte += bytes as usize;
        Some(place)
    }
}

impl Place<'_> {
    /// The number of the entry that is written next.
    pub(super) fn row(&self) -> u32 {
        self.row
    }

    /// Whether all of it has been written.
    pub(super) fn is_full(&self) -> bool {
        self.entries.is_empty() && self.texts.is_empty()
    }

    /// Writes the next entry and its texts; `entry` is told where the texts are, and its own number. `None`: it has no room.
    pub(super) fn write(
        &mut self,
        key_id: &str,
        owner: &str,
        entry: impl FnOnce(Identity, u32) -> Entry,
    ) -> Option<()> {
        let place = self.entries.split_off_first_mut()?;
        for text in [key_id, owner] {
            self.texts.split_off_mut(..text.len())?.copy_from_slice(text.as_bytes());
        }
        *place = entry(Identity::new(self.byte, key_id.len(), owner.len()), self.row);
        self.byte += key_id.len() + owner.len();
        self.row = self.row.saturating_add(1);
        Some(())
    }
}
