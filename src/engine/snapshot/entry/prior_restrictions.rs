//! The restrictions that a key had before its row was set aside.

use zerocopy::FromZeros;

use crate::record::{Field, FieldSet};

/// A set of [`TRACKED`] fields in one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
pub(in crate::snapshot) struct PriorRestrictions(u8);

/// The restrictions that the status does not imply. The position is the bit number, also in a
/// compiled file.
const TRACKED: [Field; 7] = [
    Field::Environment,
    Field::Plan,
    Field::ExpiresAt,
    Field::Scopes,
    Field::AllowedIps,
    Field::AllowedOrigins,
    Field::Limits,
];

const _: () = assert!(TRACKED.len() <= u8::BITS as usize);

impl PriorRestrictions {
    pub(in crate::snapshot) fn of(fields: FieldSet) -> Self {
        let bits = (0..).zip(TRACKED);
        Self(bits.fold(0, |byte, (bit, field)| byte | u8::from(fields.contains(field)) << bit))
    }

    pub(in crate::snapshot) fn fields(self) -> FieldSet {
        let set = (0..).zip(TRACKED).filter(|(bit, _)| self.0 >> bit & 1 == 1);
        set.map(|(_, field)| field).collect()
    }

    /// The byte in a compiled file.
    pub(in crate::snapshot) fn bits(self) -> u8 {
        self.0
    }

    /// The set of a byte in a compiled file; `None` if unknown bits are set.
    pub(in crate::snapshot) fn from_bits(bits: u8) -> Option<Self> {
        (u16::from(bits) >> TRACKED.len() == 0).then_some(Self(bits))
    }
}
