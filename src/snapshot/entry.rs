//! A key in one cache line.

use std::ops::Range;

use crate::record::{Digest, Status};

/// Where a text is in the arena: offset in the upper 56 bits, length in the lower 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Text(u64);

impl Text {
    /// `length` must fit in 8 bits; the record's own limits see to it.
    pub(super) fn new(offset: usize, length: usize) -> Self {
        debug_assert!(length <= 0xff);
        Self((offset as u64) << 8 | (length as u64 & 0xff))
    }

    pub(super) fn range(self) -> Range<usize> {
        let start = (self.0 >> 8) as usize;
        start..start + (self.0 & 0xff) as usize
    }
}

/// A row of the export. What is not decided by the row alone is a number that says where to look.
#[repr(C, align(64))]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) key_id: Text,
    pub(super) not_before: u32,
    pub(super) expires_at: u32,
    /// In `Keys::owners`.
    pub(super) owner: u32,
    /// In `Keys::policies`.
    pub(super) policy: u32,
    /// One limit: its slot. Several: where their run begins in `Snapshot::runs`. While the table is being built: the
    /// first entry with the same key id.
    pub(super) buckets: u32,
    pub(super) status: Status,
    /// Whether `Keys::metadata` has some; few keys do, and fewer answers ask for it.
    pub(super) has_metadata: bool,
}

const _: () = assert!(size_of::<Entry>() == 64 && align_of::<Entry>() == 64);
