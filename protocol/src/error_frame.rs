//! ERROR (SPEC.md section 8): a [`ProtocolError`] as a frame.

use crate::codec::{BodyReader, append_text8};
use crate::error::ProtocolError;
use crate::frame::{FrameHeader, FrameKind, append_frame};
use crate::layout::wire_struct;
use crate::limits::MAX_MESSAGE;

/// Flags of ERROR.
pub mod error_flag {
    /// The connection ends after this frame.
    pub const CLOSING: u16 = 0x0001;
}

/// Number of the field `message`, as reported by INVALID_FIELD.
const MESSAGE_FIELD: u32 = 3;

/// The daemon's response to a request that it cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorFrame<'a> {
    /// The request that caused the error; 0 if there is none.
    pub request_id: u32,
    /// An [`ErrorCode`](crate::ErrorCode), or one of a later version.
    pub code: u8,
    /// The offending value; its meaning depends on the code.
    pub detail: u32,
    /// Whether the connection ends after this frame.
    pub closing: bool,
    /// A message for people.
    pub message: &'a str,
}

wire_struct! {
    /// The body up to `message`.
    struct ErrorFixed: 5 bytes {
        0 => code: u8,
        1 => detail: u32,
    }
}

impl ProtocolError {
    /// Appends the ERROR frame for this error.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let message = self.message();
        let frame = ErrorFrame {
            request_id: self.request_id,
            code: self.code as u8,
            detail: self.detail,
            closing: self.code.closes(),
            message: &message,
        };
        frame.encode(out);
    }
}

impl<'a> ErrorFrame<'a> {
    /// Appends the frame. A message of more than [`MAX_MESSAGE`] bytes is truncated.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let flags = if self.closing { error_flag::CLOSING } else { 0 };
        let fixed = ErrorFixed { code: self.code, detail: self.detail };
        append_frame(FrameKind::Error as u8, flags, self.request_id, fixed, out, |out| {
            append_text8(self.message, MAX_MESSAGE, out);
        });
    }

    pub(crate) fn decode(header: &FrameHeader, body: &'a [u8]) -> Result<Self, ProtocolError> {
        let flags = header.check_flags(error_flag::CLOSING)?;
        let mut reader = BodyReader::new(body, header.request_id);
        let ErrorFixed { code, detail } = reader.read_fixed()?;
        let message = reader.read_text8(MAX_MESSAGE, MESSAGE_FIELD)?;
        reader.finish()?;
        let closing = flags & error_flag::CLOSING != 0;
        Ok(Self { request_id: header.request_id, code, detail, closing, message })
    }
}
