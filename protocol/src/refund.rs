//! REFUND (SPEC.md section 5): what a key was charged is given back.

use crate::codec::{Fields, put, put_bytes16, put_text8};
use crate::error::ProtocolError;
use crate::frame::{FrameHeader, FrameKind, put_frame};
use crate::limits::{MAX_KEY, MAX_NAME};
use crate::request::{Credential, FieldTooLongError};

/// Flags of REFUND.
pub mod refund_flag {
    /// `key` instead of `digest`: the same bit as VERIFY's.
    pub const RAW_KEY: u16 = crate::verify_flag::RAW_KEY;
    /// `limit` is there.
    pub const LIMIT: u16 = 0x0002;
    /// All of the above.
    pub const ALL: u16 = 0x0003;
}

/// Numbers of REFUND's fields, as INVALID_FIELD tells them.
pub mod refund_field {
    /// `cost`
    pub const COST: u32 = 1;
    /// `key`
    pub const KEY: u32 = 3;
    /// `limit`
    pub const LIMIT: u32 = 4;
}

/// What this key was charged came to nothing: it is to have it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refund<'a> {
    /// Returned in the answer.
    pub request_id: u32,
    /// What to give back; at least 1, and never above a limit's burst. Zero is no REFUND: the daemon refuses the frame.
    pub cost: u32,
    /// The key.
    pub credential: Credential<'a>,
    /// Name of the only limit to give back to; `None`: every limit of the key.
    pub limit: Option<&'a str>,
}

impl<'a> Refund<'a> {
    /// Appends the frame.
    ///
    /// # Errors
    /// When a field is over its limit; nothing has been appended then.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FieldTooLongError> {
        self.check_lengths()?;
        put_frame(FrameKind::Refund, self.flags(), self.request_id, self.cost, out, |out| {
            match self.credential {
                Credential::Digest(digest) => put(digest, out),
                Credential::RawKey(key) => put_bytes16(key, out),
            }
            if let Some(limit) = self.limit {
                put_text8(limit, MAX_NAME, out);
            }
        });
        Ok(())
    }

    fn flags(&self) -> u16 {
        let set = |flag, on| if on { flag } else { 0 };
        set(refund_flag::RAW_KEY, matches!(self.credential, Credential::RawKey(_)))
            | set(refund_flag::LIMIT, self.limit.is_some())
    }

    fn check_lengths(&self) -> Result<(), FieldTooLongError> {
        let key = if let Credential::RawKey(key) = self.credential { key.len() } else { 0 };
        for (field, length, max) in
            [("key", key, MAX_KEY), ("limit", self.limit.map_or(0, str::len), MAX_NAME)]
        {
            if length > max {
                return Err(FieldTooLongError { field, length, max });
            }
        }
        Ok(())
    }

    pub(crate) fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.flags(refund_flag::ALL)?;
        let has = |flag| flags & flag != 0;
        let mut fields = Fields::new(body, header.request_id);
        let cost = fields.fixed()?;
        if cost == 0 {
            return Err(fields.invalid(refund_field::COST));
        }
        let credential = if has(refund_flag::RAW_KEY) {
            Credential::RawKey(fields.bytes16(MAX_KEY, refund_field::KEY)?)
        } else {
            Credential::Digest(fields.fixed()?)
        };
        let limit =
            if has(refund_flag::LIMIT) { Some(fields.text8(MAX_NAME, refund_field::LIMIT)?) } else { None };
        fields.end()?;
        Ok(Self { request_id: header.request_id, cost, credential, limit })
    }
}
