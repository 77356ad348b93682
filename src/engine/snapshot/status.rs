//! The two parts of an entry that change while it is served: its status and its end. Both are only ever narrowed, but for an
//! operator who takes a revocation back.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use zerocopy::FromZeros;

use crate::record::Status;
use crate::snapshot::take_away::Takeaway;

/// A key's status: what its row says, whether an operator has revoked the key beside it, and what an export that was refused
/// takes away from it.
///
/// Relaxed throughout: what orders a change before the answers that must heed it is the
/// publication epoch that ends after it.
#[derive(FromZeros)]
pub(super) struct StatusByte(AtomicU8);

/// An operator has revoked the key, whatever its row says.
const BY_OPERATOR: u8 = 0x80;

/// An export that was refused says revoked, or disabled, or an earlier end. The [`End`] has that end.
const TAKEN_REVOKED: u8 = 0x40;
const TAKEN_DISABLED: u8 = 0x20;
const TAKEN_END: u8 = 0x10;
/// The row itself has an end, too, which was later.
const HAD_END: u8 = 0x08;
const TAKEN: u8 = TAKEN_REVOKED | TAKEN_DISABLED | TAKEN_END;

/// What the row says: a [`Status`]; or that it cannot be understood, and what the key was before.
const OF_ROW: u8 = 0x07;
const SET_ASIDE: u8 = 3;
const SET_ASIDE_DISABLED: u8 = 4;
const SET_ASIDE_REVOKED: u8 = 5;

impl StatusByte {
    pub(super) fn new(of_row: Status) -> Self {
        Self(AtomicU8::new(of_row as u8))
    }

    /// Of a row that cannot be understood: disabled. Its key was active before, or not there.
    pub(super) fn set_aside() -> Self {
        Self::set_aside_from(Status::Active)
    }

    /// The same of a key that was in `before`.
    pub(super) fn set_aside_from(before: Status) -> Self {
        Self(AtomicU8::new(match before {
            Status::Active => SET_ASIDE,
            Status::Disabled => SET_ASIDE_DISABLED,
            Status::Revoked => SET_ASIDE_REVOKED,
        }))
    }

    /// What the key was in before its row was set aside; else what its row says.
    pub(super) fn before_set_aside(&self) -> Status {
        match self.code() {
            SET_ASIDE => Status::Active,
            SET_ASIDE_REVOKED => Status::Revoked,
            _ => self.of_row(),
        }
    }

    /// The code of what the row says, as in a compiled file.
    pub(super) fn code(&self) -> u8 {
        self.0.load(Ordering::Relaxed) & OF_ROW
    }

    /// The status that has this code in a compiled file, if there is one.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        (code <= SET_ASIDE_REVOKED).then(|| Self(AtomicU8::new(code)))
    }

    /// What the row says.
    pub(super) fn of_row(&self) -> Status {
        decode(self.code())
    }

    pub(super) fn is_set_aside(&self) -> bool {
        self.code() >= SET_ASIDE
    }

    /// Whether an export that was refused has taken something away.
    pub(super) fn is_taken_away(&self) -> bool {
        self.0.load(Ordering::Relaxed) & TAKEN != 0
    }

    /// Whether its end is one that an export that was refused has brought forward.
    pub(super) fn has_taken_end(&self) -> bool {
        self.0.load(Ordering::Relaxed) & TAKEN_END != 0
    }

    /// Whether the row itself has an end, where `end` is in force.
    pub(super) fn has_end_of_row(&self, end: u32) -> bool {
        end != u32::MAX && self.0.load(Ordering::Relaxed) & (TAKEN_END | HAD_END) != TAKEN_END
    }

    /// The row has an end: to be said before one that is earlier is taken from an export that was refused.
    pub(super) fn note_end_of_row(&self) {
        self.0.fetch_or(HAD_END, Ordering::Relaxed);
    }

    pub(super) fn is_by_operator(&self) -> bool {
        self.0.load(Ordering::Relaxed) & BY_OPERATOR != 0
    }

    /// What is in force.
    #[inline]
    pub(super) fn in_force(&self) -> Status {
        match self.0.load(Ordering::Relaxed) {
            ACTIVE => Status::Active,
            TAKEN_REVOKED.. => Status::Revoked,
            // A row that says revoked stays revoked. Last good keys may be older than what was taken away from their successors.
            byte @ TAKEN_DISABLED.. if decode(byte & OF_ROW) == Status::Active => Status::Disabled,
            byte => decode(byte & OF_ROW),
        }
    }

    /// What would be in force without the operator.
    pub(super) fn without_operator(&self) -> Status {
        Self(AtomicU8::new(self.0.load(Ordering::Relaxed) & !BY_OPERATOR)).in_force()
    }

    /// Has an operator revoke the key, or take that back.
    pub(super) fn set_by_operator(&self, revoked: bool) {
        match revoked {
            true => self.0.fetch_or(BY_OPERATOR, Ordering::Relaxed),
            false => self.0.fetch_and(!BY_OPERATOR, Ordering::Relaxed),
        };
    }

    /// Narrows the status for as long as the snapshot is served. The end itself is brought forward in [`End`].
    pub(super) fn take_away(&self, takeaway: Takeaway) {
        let bit = match takeaway {
            Takeaway::Revoked => TAKEN_REVOKED,
            Takeaway::Disabled => TAKEN_DISABLED,
            Takeaway::End(_) => TAKEN_END,
        };
        self.0.fetch_or(bit, Ordering::Relaxed);
    }
}

const ACTIVE: u8 = Status::Active as u8;

fn decode(of_row: u8) -> Status {
    const DISABLED: u8 = Status::Disabled as u8;
    match of_row {
        ACTIVE => Status::Active,
        DISABLED | SET_ASIDE.. => Status::Disabled,
        _ => Status::Revoked,
    }
}

/// First Unix second at which a key is no longer valid; `u32::MAX`: never. It can be brought forward, as a [status](StatusByte) can
/// be narrowed.
#[derive(FromZeros)]
pub(super) struct End(AtomicU32);

impl End {
    pub(super) fn new(expires_at: u32) -> Self {
        Self(AtomicU32::new(expires_at))
    }

    #[inline]
    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn bring_forward(&self, to: u32) {
        self.0.fetch_min(to, Ordering::Relaxed);
    }
}
