//! REFUND and DEBIT (SPEC.md section 5): change what a key was charged, after the fact. Their
//! fields and flags are the same.

use crate::codec::BodyReader;
use crate::costs::Costs;
use crate::credential::{Credential, RAW_KEY_FLAG};
use crate::error::{FieldTooLongError, ProtocolError};
use crate::frame::{FrameHeader, FrameKind, append_frame};
use crate::limits::MAX_KEY;
use crate::verify::{BALANCES_FLAG, COSTS_FLAG};

/// Flags of REFUND and DEBIT.
pub mod adjustment_flag {
    /// The frame has `key` instead of `digest`.
    pub const RAW_KEY: u16 = super::RAW_KEY_FLAG;
    /// `costs` is present.
    pub const COSTS: u16 = super::COSTS_FLAG;
    /// The answer shall carry the balances.
    pub const BALANCES: u16 = super::BALANCES_FLAG;
    /// All of the above.
    pub const ALL: u16 = RAW_KEY | COSTS | BALANCES;
}

/// Numbers of the fields, as reported by INVALID_FIELD.
mod adjustment_field {
    pub(super) const COST: u32 = 1;
    pub(super) const KEY: u32 = 3;
    pub(super) const COSTS: u32 = 4;
}

/// A REFUND or a DEBIT. `KIND` is its [`FrameKind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjustment<'a, const KIND: u8> {
    /// Returned in the response.
    pub request_id: u32,
    /// What to give back to, or to charge, each limit of the key that `costs` does not name. The
    /// daemon rejects 0 if there are no `costs`.
    pub cost: u32,
    /// The key.
    pub credential: Credential<'a>,
    /// What to give back to, or to charge, the limits with these names.
    pub costs: Option<Costs<'a>>,
    /// Whether the answer shall carry the balance of every limit.
    pub want_balances: bool,
}

/// Gives back what a request was charged, for a request that came to nothing. No limit rises above
/// its burst, its count or its grant.
pub type Refund<'a> = Adjustment<'a, { FrameKind::Refund as u8 }>;

/// Charges what a response has cost, down to the floor of each limit.
pub type Debit<'a> = Adjustment<'a, { FrameKind::Debit as u8 }>;

impl<'a, const KIND: u8> Adjustment<'a, KIND> {
    /// The same amount for every limit of the key.
    pub fn new(request_id: u32, cost: u32, credential: Credential<'a>) -> Self {
        Self { request_id, cost, credential, costs: None, want_balances: false }
    }

    /// Appends the frame.
    ///
    /// # Errors
    /// If a field is over its limit; `out` is unchanged then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FieldTooLongError> {
        let length = self.credential.raw_key_length();
        if length > MAX_KEY {
            return Err(FieldTooLongError { field: "key", length, max: MAX_KEY });
        }
        append_frame(KIND, self.flags(), self.request_id, self.cost, out, |out| {
            self.credential.append(out);
            if let Some(costs) = self.costs {
                costs.append(out);
            }
        });
        Ok(())
    }

    fn flags(&self) -> u16 {
        let flag_if = |flag, condition| if condition { flag } else { 0 };
        flag_if(adjustment_flag::RAW_KEY, matches!(self.credential, Credential::RawKey(_)))
            | flag_if(adjustment_flag::COSTS, self.costs.is_some())
            | flag_if(adjustment_flag::BALANCES, self.want_balances)
    }

    pub(crate) fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.check_flags(adjustment_flag::ALL)?;
        let has = |flag| flags & flag != 0;
        let mut reader = BodyReader::new(body, header.request_id);
        let cost = reader.read_fixed()?;
        if cost == 0 && !has(adjustment_flag::COSTS) {
            return Err(reader.invalid_field(adjustment_field::COST));
        }
        let credential = if has(adjustment_flag::RAW_KEY) {
            Credential::RawKey(reader.read_bytes16(MAX_KEY, adjustment_field::KEY)?)
        } else {
            Credential::Digest(reader.read_fixed()?)
        };
        let mut adjustment = Self::new(header.request_id, cost, credential);
        if has(adjustment_flag::COSTS) {
            adjustment.costs = Some(Costs::read(&mut reader, adjustment_field::COSTS)?);
        }
        adjustment.want_balances = has(adjustment_flag::BALANCES);
        reader.finish()?;
        Ok(adjustment)
    }
}
