//! The status and the expiry of an entry, which can change while the snapshot is served. Both are
//! only ever narrowed; the exception is an operator's revocation, which can be undone.
//!
//! A change is made here only when no worker reads the entry for its status: before the snapshot is
//! published, or while an [overlay](crate::snapshot::Overlay) covers the row.
//!
//! All accesses are relaxed: publishing the view without the overlay orders the changes before the
//! answers that depend on them.

use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use zerocopy::FromZeros;

use crate::record::Status;
use crate::snapshot::Takeaway;

/// A key's status: the row's own, an operator's revocation, and what a refused source takes away.
/// One byte:
///
/// ```text
/// 0x80      an operator has revoked the key
/// 0x40      a refused source revokes the key
/// 0x20      a refused source disables the key
/// 0x10      a refused source brings the expiry forward; `AtomicExpiry` holds it
/// 0x08      the row has an expiry of its own, later than that one
/// 0x07      the row's status, with a code of its own if the row is set aside
/// ```
#[derive(FromZeros)]
pub(in crate::snapshot) struct AtomicStatus(AtomicU8);

const OPERATOR_REVOKED: u8 = 0x80;
const TAKEN_REVOKED: u8 = 0x40;
const TAKEN_DISABLED: u8 = 0x20;
const TAKEN_EXPIRY: u8 = 0x10;
const TAKEN: u8 = TAKEN_REVOKED | TAKEN_DISABLED | TAKEN_EXPIRY;
const ROW_HAD_EXPIRY: u8 = 0x08;

/// The mask of the row's status: a [`Status`], or one of the following codes.
const ROW_STATUS: u8 = 0x07;
/// The row is set aside; the key was active before, or unknown.
const SET_ASIDE: u8 = 3;
/// The row is set aside; the key was disabled before.
const SET_ASIDE_DISABLED: u8 = 4;
/// The row is set aside; the key was revoked before.
const SET_ASIDE_REVOKED: u8 = 5;

const ACTIVE: u8 = Status::Active as u8;

impl AtomicStatus {
    pub(in crate::snapshot) fn new(of_row: Status) -> Self {
        Self(AtomicU8::new(of_row as u8))
    }

    /// The status of a row that is set aside: disabled. Its key was active before, or unknown.
    pub(in crate::snapshot) fn set_aside() -> Self {
        Self::set_aside_from(Status::Active)
    }

    /// The status of a row that is set aside and whose key had the status `before`.
    pub(in crate::snapshot) fn set_aside_from(before: Status) -> Self {
        Self(AtomicU8::new(match before {
            Status::Active => SET_ASIDE,
            Status::Disabled => SET_ASIDE_DISABLED,
            Status::Revoked => SET_ASIDE_REVOKED,
        }))
    }

    /// The status of the key before its row was set aside. The row's status if it is not set aside.
    pub(in crate::snapshot) fn before_set_aside(&self) -> Status {
        match self.code() {
            SET_ASIDE => Status::Active,
            SET_ASIDE_REVOKED => Status::Revoked,
            _ => self.of_row(),
        }
    }

    /// The code of the row's status in a compiled file.
    pub(in crate::snapshot) fn code(&self) -> u8 {
        self.0.load(Ordering::Relaxed) & ROW_STATUS
    }

    /// The status with this code in a compiled file; `None` if there is none.
    pub(in crate::snapshot) fn from_code(code: u8) -> Option<Self> {
        (code <= SET_ASIDE_REVOKED).then(|| Self(AtomicU8::new(code)))
    }

    /// The row's status.
    pub(in crate::snapshot) fn of_row(&self) -> Status {
        decode(self.code())
    }

    pub(in crate::snapshot) fn is_set_aside(&self) -> bool {
        self.code() >= SET_ASIDE
    }

    /// The status in force.
    #[inline]
    pub(in crate::snapshot) fn in_force(&self) -> Status {
        in_force(self.0.load(Ordering::Relaxed))
    }

    /// The status that would be in force without an operator's revocation.
    pub(in crate::snapshot) fn without_operator(&self) -> Status {
        self.with_changes(Some(false), None)
    }

    /// The status that would be in force with an operator's revocation, or without it, and with a
    /// takeaway. `None` leaves either as it is.
    pub(in crate::snapshot) fn with_changes(
        &self,
        revoked_by_operator: Option<bool>,
        takeaway: Option<Takeaway>,
    ) -> Status {
        let mut byte = self.0.load(Ordering::Relaxed);
        match revoked_by_operator {
            Some(true) => byte |= OPERATOR_REVOKED,
            Some(false) => byte &= !OPERATOR_REVOKED,
            None => {}
        }
        match takeaway {
            Some(Takeaway::Revoked) => byte |= TAKEN_REVOKED,
            Some(Takeaway::Disabled) => byte |= TAKEN_DISABLED,
            // The expiry is not part of the status.
            Some(Takeaway::ExpiresAt(_)) | None => {}
        }
        in_force(byte)
    }
}

#[inline]
fn in_force(byte: u8) -> Status {
    match byte {
        ACTIVE => Status::Active,
        TAKEN_REVOKED.. => Status::Revoked,
        // A revoked row stays revoked. The last known good keys may predate the takeaway, so their
        // row may already be revoked.
        TAKEN_DISABLED.. if decode(byte & ROW_STATUS) == Status::Active => Status::Disabled,
        byte => decode(byte & ROW_STATUS),
    }
}

/// An operator's revocation.
impl AtomicStatus {
    pub(in crate::snapshot) fn is_revoked_by_operator(&self) -> bool {
        self.0.load(Ordering::Relaxed) & OPERATOR_REVOKED != 0
    }

    /// Revokes the key for an operator, or undoes that.
    pub(in crate::snapshot) fn set_revoked_by_operator(&self, revoked: bool) {
        if revoked {
            self.0.fetch_or(OPERATOR_REVOKED, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!OPERATOR_REVOKED, Ordering::Relaxed);
        }
    }
}

/// What a refused source takes away, for as long as the snapshot is served.
impl AtomicStatus {
    pub(in crate::snapshot) fn is_taken_away(&self) -> bool {
        self.0.load(Ordering::Relaxed) & TAKEN != 0
    }

    /// Whether a refused source has brought the expiry forward.
    pub(in crate::snapshot) fn has_taken_expiry(&self) -> bool {
        self.0.load(Ordering::Relaxed) & TAKEN_EXPIRY != 0
    }

    /// Whether the row itself has an expiry, given that `expires_at` is in force.
    pub(in crate::snapshot) fn row_has_expiry(&self, expires_at: u32) -> bool {
        expires_at != u32::MAX
            && self.0.load(Ordering::Relaxed) & (TAKEN_EXPIRY | ROW_HAD_EXPIRY) != TAKEN_EXPIRY
    }

    pub(in crate::snapshot) fn take_revoked(&self) {
        self.0.fetch_or(TAKEN_REVOKED, Ordering::Relaxed);
    }

    pub(in crate::snapshot) fn take_disabled(&self) {
        self.0.fetch_or(TAKEN_DISABLED, Ordering::Relaxed);
    }

    /// Brings `expiry` forward.
    pub(in crate::snapshot) fn take_expiry(&self, expiry: &AtomicExpiry, earlier: u32) {
        if self.row_has_expiry(expiry.get()) {
            self.0.fetch_or(ROW_HAD_EXPIRY, Ordering::Relaxed);
        }
        // The new expiry is stored before the bit that says so.
        expiry.bring_forward(earlier);
        self.0.fetch_or(TAKEN_EXPIRY, Ordering::Relaxed);
    }
}

fn decode(row_status: u8) -> Status {
    const DISABLED: u8 = Status::Disabled as u8;
    match row_status {
        ACTIVE => Status::Active,
        DISABLED | SET_ASIDE.. => Status::Disabled,
        _ => Status::Revoked,
    }
}

/// The first Unix second at which a key is no longer valid; `u32::MAX` if it never expires.
#[derive(FromZeros)]
pub(in crate::snapshot) struct AtomicExpiry(AtomicU32);

impl AtomicExpiry {
    pub(in crate::snapshot) fn new(expires_at: u32) -> Self {
        Self(AtomicU32::new(expires_at))
    }

    #[inline]
    pub(in crate::snapshot) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn bring_forward(&self, to: u32) {
        self.0.fetch_min(to, Ordering::Relaxed);
    }
}
