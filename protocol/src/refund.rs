//! REFUND (SPEC.md section 5): gives back what a key was charged.

use crate::codec::{BodyReader, append_text8};
use crate::credential::{Credential, RAW_KEY_FLAG};
use crate::error::{FieldTooLongError, ProtocolError};
use crate::frame::{FrameHeader, FrameKind, append_frame};
use crate::limits::{MAX_KEY, MAX_NAME};

/// Flags of REFUND.
pub mod refund_flag {
    /// The frame has `key` instead of `digest`.
    pub const RAW_KEY: u16 = super::RAW_KEY_FLAG;
    /// `limit` is present.
    pub const LIMIT: u16 = 0x0002;
    /// All of the above.
    pub const ALL: u16 = 0x0003;
}

/// Numbers of REFUND's fields, as reported by INVALID_FIELD.
mod refund_field {
    pub(super) const COST: u32 = 1;
    pub(super) const KEY: u32 = 3;
    pub(super) const LIMIT: u32 = 4;
}

/// Gives back what a request was charged, for a request that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refund<'a> {
    /// Returned in the response.
    pub request_id: u32,
    /// What to give back: at least 1, because the daemon rejects a REFUND of 0. No limit rises
    /// above its burst.
    pub cost: u32,
    /// The key.
    pub credential: Credential<'a>,
    /// Name of the only limit to give back to; `None` means every limit of the key.
    pub limit: Option<&'a str>,
}

impl<'a> Refund<'a> {
    /// Appends the frame.
    ///
    /// # Errors
    /// If a field is over its limit; `out` is unchanged then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FieldTooLongError> {
        self.check_lengths()?;
        append_frame(FrameKind::Refund, self.flags(), self.request_id, self.cost, out, |out| {
            self.credential.append(out);
            if let Some(limit) = self.limit {
                append_text8(limit, MAX_NAME, out);
            }
        });
        Ok(())
    }

    fn flags(&self) -> u16 {
        let flag_if = |flag, condition| if condition { flag } else { 0 };
        flag_if(refund_flag::RAW_KEY, matches!(self.credential, Credential::RawKey(_)))
            | flag_if(refund_flag::LIMIT, self.limit.is_some())
    }

    fn check_lengths(&self) -> Result<(), FieldTooLongError> {
        for (field, length, max) in [
            ("key", self.credential.raw_key_length(), MAX_KEY),
            ("limit", self.limit.map_or(0, str::len), MAX_NAME),
        ] {
            if length > max {
                return Err(FieldTooLongError { field, length, max });
            }
        }
        Ok(())
    }

    pub(crate) fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.check_flags(refund_flag::ALL)?;
        let has = |flag| flags & flag != 0;
        let mut reader = BodyReader::new(body, header.request_id);
        let cost = reader.read_fixed()?;
        if cost == 0 {
            return Err(reader.invalid_field(refund_field::COST));
        }
        let credential = if has(refund_flag::RAW_KEY) {
            Credential::RawKey(reader.read_bytes16(MAX_KEY, refund_field::KEY)?)
        } else {
            Credential::Digest(reader.read_fixed()?)
        };
        let limit = if has(refund_flag::LIMIT) {
            Some(reader.read_text8(MAX_NAME, refund_field::LIMIT)?)
        } else {
            None
        };
        reader.finish()?;
        Ok(Self { request_id: header.request_id, cost, credential, limit })
    }
}
