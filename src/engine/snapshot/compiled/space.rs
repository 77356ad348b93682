//! Where the rows of a compiled file go: made for all of them at once, and handed out block by block to the threads that write them.
//!
//! Every place is written to before it is looked at: a block that does not fill its own is refused, and with it the file. Nor is it
//! cleared before: it comes into memory as it is written to.

use crate::snapshot::entry::{Entry, Identity};
use crate::snapshot::index::{Index, Probe, Stretch};
use keyward_memory::{HugeVec, TextPlace, TextSpace, zeroed};

/// The table's parts that threads write to.
pub struct Space {
    pub(super) entries: HugeVec<Entry>,
    pub(super) texts: TextSpace,
    /// Digest to entry, and key id to the first entry that has it.
    pub(super) index: Index,
    pub(super) ids: Index,
}

/// What of it has not been handed out.
pub struct Places<'t> {
    rest: Place<'t>,
}

/// The place of a block; what of it has not been written.
pub(super) struct Place<'t> {
    entries: &'t mut [Entry],
    texts: TextPlace<'t>,
    /// The lines that its rows belong to, but for those that belong to the next block's first as well.
    lines: Stretch<'t>,
    /// The number of the first entry, and of the first byte.
    row: u32,
    byte: usize,
}

impl Space {
    /// For so many rows, and as many bytes of texts.
    pub(super) fn new(rows: usize, bytes: usize) -> Self {
        Self {
            entries: zeroed(rows),
            texts: TextSpace::new(bytes),
            index: Index::with_capacity(rows),
            ids: Index::with_capacity(rows),
        }
    }

    /// Hands all of it out, but for the look-up by key id.
    pub fn places(&mut self) -> Places<'_> {
        let (entries, texts) = (&mut self.entries[..], self.texts.place());
        Places { rest: Place { entries, texts, lines: self.index.stretch(), row: 0, byte: 0 } }
    }
}

/// Why there is no place for a block.
pub(super) enum NoPlace {
    /// There are fewer entries or bytes left.
    Full,
    /// The next block's rows belong before this one's.
    NotBefore,
}

impl<'t> Places<'t> {
    /// The next place for so many rows with so many bytes, whose homes are not after that of `next`.
    pub(super) fn take(&mut self, rows: u32, bytes: u32, next: Option<Probe>) -> Result<Place<'t>, NoPlace> {
        let rest = &mut self.rest;
        let entries = rest.entries.split_off_mut(..rows as usize).ok_or(NoPlace::Full)?;
        let texts = rest.texts.take(bytes as usize).ok_or(NoPlace::Full)?;
        let lines = match next {
            Some(next) => rest.lines.take_before(next),
            None => rest.lines.take(usize::MAX),
        };
        let place =
            Place { entries, texts, lines: lines.ok_or(NoPlace::NotBefore)?, row: rest.row, byte: rest.byte };
        rest.row = rest.row.checked_add(rows).ok_or(NoPlace::Full)?;
        rest.byte += bytes as usize;
        Ok(place)
    }
}

impl Place<'_> {
    /// The number of the entry that is written next.
    pub(super) fn row(&self) -> u32 {
        self.row
    }

    /// Whether all of it has been written.
    pub(super) fn is_full(&self) -> bool {
        self.entries.is_empty() && self.texts.is_full()
    }

    /// Has the entry that is written next found by its digest. `None`: it has no room here.
    #[inline]
    pub(super) fn index(&mut self, probe: Probe) -> Option<()> {
        self.lines.push(probe, self.row)
    }

    /// Writes the next entry and its texts; `entry` is told where the texts are, and its own number. `None`: it has no room.
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
