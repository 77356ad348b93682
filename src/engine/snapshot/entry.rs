//! A key in one cache line.

use std::ops::Range;

use zerocopy::FromZeros;

use crate::record::{Digest, MAX_KEY_ID, MAX_OWNER};
use crate::snapshot::peppers::PepperByte;
use crate::snapshot::set_aside::Had;
use crate::snapshot::status::{End, StatusByte};

/// Where a key's id and, right after it, its owner's name are in the arena, so that an answer fetches them together: offset
/// in the upper 48 bits, then the length of each in 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
pub(super) struct Identity(u64);

// Each length is one byte, and the two lie within one range.
const _: () = assert!(MAX_KEY_ID <= 0xff && MAX_OWNER <= 0xff);

impl Identity {
    /// The lengths must fit in 8 bits; the record's own limits see to it.
    pub(super) fn new(offset: usize, key_id: usize, owner: usize) -> Self {
        debug_assert!(key_id <= 0xff && owner <= 0xff && offset < 1 << 48);
        Self((offset as u64) << 16 | (key_id as u64 & 0xff) << 8 | (owner as u64 & 0xff))
    }

    fn start(self) -> usize {
        (self.0 >> 16) as usize
    }

    /// The same in a text that has `offset` bytes before.
    pub(super) fn moved(self, offset: usize) -> Self {
        Self(self.0 + ((offset as u64) << 16))
    }

    /// Bytes of both.
    pub(super) fn length(self) -> usize {
        self.both().len()
    }

    /// Where both are.
    #[inline]
    pub(super) fn both(self) -> Range<usize> {
        let start = self.start();
        start..start + self.key_id_length() + (self.0 & 0xff) as usize
    }

    /// Bytes of the id.
    #[inline]
    pub(super) fn key_id_length(self) -> usize {
        (self.0 >> 8 & 0xff) as usize
    }

    /// Where the id is.
    pub(super) fn key_id(self) -> Range<usize> {
        self.start()..self.start() + (self.0 >> 8 & 0xff) as usize
    }

    /// Where the owner's name is; empty where nobody is named.
    pub(super) fn owner(self) -> Range<usize> {
        let start = self.key_id().end;
        start..start + (self.0 & 0xff) as usize
    }
}

/// A row of the export. What is not decided by the row alone is a number that says where to look.
#[derive(FromZeros)]
#[repr(C, align(64))]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) identity: Identity,
    pub(super) not_before: u32,
    pub(super) expires_at: End,
    /// In `Keys::owners`: for what is the owner's and not in the answer.
    pub(super) owner: u32,
    /// In `Keys::policies`.
    pub(super) policy: u32,
    /// One limit: its slot. Several: where their run begins in `Snapshot::runs`. While the table is being built: the
    /// first entry with the same key id.
    pub(super) buckets: u32,
    pub(super) status: StatusByte,
    /// Whether `Keys::metadata` has some; few keys do, and fewer answers ask for it.
    pub(super) has_metadata: bool,
    /// Of a row that is set aside: the restrictions that its key had before.
    pub(super) had: Had,
    /// What the digest was found by, while there are two peppers.
    pub(super) pepper: PepperByte,
}

const _: () = assert!(size_of::<Entry>() == 64 && align_of::<Entry>() == 64);
