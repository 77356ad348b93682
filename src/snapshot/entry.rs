//! A key in one cache line.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

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

/// A key's status: what the row says, and whether an operator has revoked the key beside it. The only thing in a snapshot
/// that changes.
///
/// Relaxed throughout: what orders a revocation before the answers that must heed it is the
/// [epoch](crate::publish::Epochs) that ends after it.
pub(super) struct StatusByte(AtomicU8);

/// An operator has revoked the key, whatever its row says.
const BY_OPERATOR: u8 = 0x80;

impl StatusByte {
    pub(super) fn new(of_row: Status) -> Self {
        Self(AtomicU8::new(of_row as u8))
    }

    /// What the row says.
    pub(super) fn of_row(&self) -> Status {
        decode(self.0.load(Ordering::Relaxed) & !BY_OPERATOR)
    }

    /// What is in force.
    #[inline]
    pub(super) fn in_force(&self) -> Status {
        match self.0.load(Ordering::Relaxed) {
            BY_OPERATOR.. => Status::Revoked,
            of_row => decode(of_row),
        }
    }

    /// Has an operator revoke the key, or take that back.
    pub(super) fn set_by_operator(&self, revoked: bool) {
        match revoked {
            true => self.0.fetch_or(BY_OPERATOR, Ordering::Relaxed),
            false => self.0.fetch_and(!BY_OPERATOR, Ordering::Relaxed),
        };
    }
}

fn decode(status: u8) -> Status {
    const ACTIVE: u8 = Status::Active as u8;
    const DISABLED: u8 = Status::Disabled as u8;
    match status {
        ACTIVE => Status::Active,
        DISABLED => Status::Disabled,
        _ => Status::Revoked,
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
    pub(super) status: StatusByte,
    /// Whether `Keys::metadata` has some; few keys do, and fewer answers ask for it.
    pub(super) has_metadata: bool,
}

const _: () = assert!(size_of::<Entry>() == 64 && align_of::<Entry>() == 64);
