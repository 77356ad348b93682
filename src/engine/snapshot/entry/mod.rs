//! A key in one cache line.

use std::ops::Range;

use zerocopy::FromZeros;

use crate::record::{Digest, MAX_KEY_ID, MAX_OWNER};

mod pepper;
mod prior_restrictions;
mod status;

pub(super) use pepper::AtomicPepper;
pub use pepper::HashedWith;
pub(super) use prior_restrictions::PriorRestrictions;
pub(super) use status::{AtomicExpiry, AtomicStatus};

/// A row of the source. Whatever the row shares with other rows is a number that locates it.
#[derive(FromZeros)]
#[repr(C, align(64))]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) identity: Identity,
    pub(super) not_before: u32,
    pub(super) expires_at: AtomicExpiry,
    /// Index into `KeyTable::owners`; 0 if the key has no owner.
    pub(super) owner: u32,
    /// Index into `KeyTable::policies`.
    pub(super) policy: u32,
    /// Until buckets are allocated: the number of the first entry with the same `key_id`. After
    /// that, by the number of the key's limits:
    ///
    /// * one: the slot of its bucket
    /// * several: where the list of their slots starts in `Snapshot::slot_lists`
    /// * none: 0, unused
    pub(super) buckets: u32,
    pub(super) status: AtomicStatus,
    /// Whether `KeyTable::metadata` lists this entry. Few keys have metadata, and fewer answers ask
    /// for it.
    pub(super) has_metadata: bool,
    /// If the row is set aside: the restrictions that its key had before.
    pub(super) prior_restrictions: PriorRestrictions,
    /// Which pepper the digest was found with, while there are two.
    pub(super) pepper: AtomicPepper,
}

const _: () = assert!(size_of::<Entry>() == 64 && align_of::<Entry>() == 64);

/// Where a key id and, right after it, the owner's name are in the arena. An answer fetches both
/// together. The offset takes the upper 48 bits, the length of each text 8 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
pub(super) struct Identity(u64);

const _: () = assert!(MAX_KEY_ID <= 0xff && MAX_OWNER <= 0xff);

impl Identity {
    /// Both lengths must fit in 8 bits; a record bounds them.
    pub(super) fn new(offset: usize, key_id: usize, owner: usize) -> Self {
        debug_assert!(key_id <= 0xff && owner <= 0xff && offset < 1 << 48);
        Self((offset as u64) << 16 | (key_id as u64 & 0xff) << 8 | (owner as u64 & 0xff))
    }

    fn start(self) -> usize {
        (self.0 >> 16) as usize
    }

    /// The same texts in an arena that has `offset` more bytes in front.
    pub(super) fn moved(self, offset: usize) -> Self {
        Self(self.0 + ((offset as u64) << 16))
    }

    /// Length of both texts in bytes.
    pub(super) fn length(self) -> usize {
        self.both().len()
    }

    /// Range of both texts.
    #[inline]
    pub(super) fn both(self) -> Range<usize> {
        let start = self.start();
        start..start + self.key_id_length() + (self.0 & 0xff) as usize
    }

    /// Length of the key id in bytes.
    #[inline]
    pub(super) fn key_id_length(self) -> usize {
        (self.0 >> 8 & 0xff) as usize
    }

    /// Range of the key id.
    pub(super) fn key_id(self) -> Range<usize> {
        self.start()..self.start() + (self.0 >> 8 & 0xff) as usize
    }

    /// Range of the owner's name; empty if there is no owner.
    pub(super) fn owner(self) -> Range<usize> {
        let start = self.key_id().end;
        start..start + (self.0 & 0xff) as usize
    }
}
