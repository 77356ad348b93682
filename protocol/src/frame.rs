//! Frames in a stream (SPEC.md section 3): the header, and where one frame ends and the next begins.

use bincode::{Decode, Encode};

use crate::codec::{Fields, put};
use crate::error::{ErrorCode, ProtocolError};
use crate::limits::{HEADER_BYTES, LENGTH_BYTES, MIN_LENGTH, VERSION};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A client's greeting, or ping.
    Hello = 0x01,
    /// A question about a key.
    Verify = 0x02,
    /// What a key was charged goes back to it.
    Refund = 0x03,
    /// The daemon's answer to HELLO.
    Welcome = 0x81,
    /// The daemon's answer to VERIFY and REFUND.
    Answer = 0x82,
    /// What the daemon says where it cannot answer.
    Error = 0xff,
}

/// The first 12 bytes of every frame, in every version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct FrameHeader {
    /// Bytes of the frame after this field.
    pub length: u32,
    /// Version that the frame is written in.
    pub version: u8,
    /// A [`FrameKind`], or something unknown.
    pub kind: u8,
    /// Depends on the kind.
    pub flags: u16,
    /// The client's own number for the request.
    pub request_id: u32,
}

/// What is at the front of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParsedFrame<'a> {
    /// A whole frame.
    Complete {
        /// Its header.
        header: FrameHeader,
        /// Its body.
        body: &'a [u8],
        /// Bytes of the whole frame, at least [`HEADER_BYTES`].
        size: usize,
    },
    /// Not all of a frame is there yet.
    Incomplete,
    /// No frame can begin like this, and where the next one begins is not known.
    Invalid(ProtocolError),
}

/// Looks at the front of `buffer`; a frame's `length` must not be over `max_length`.
///
/// Nothing is believed of a header whose length is out of range: a lying length costs the peer its connection and
/// the reader nothing. Not its request id either, which may or may not have arrived with the length: the fault must
/// not depend on how the stream was cut into reads.
pub fn parse_frame(buffer: &[u8], max_length: u32) -> ParsedFrame<'_> {
    let Some(prefix) = buffer.first_chunk::<LENGTH_BYTES>() else {
        return ParsedFrame::Incomplete;
    };
    let length = u32::from_le_bytes(*prefix);
    if length < MIN_LENGTH {
        return ParsedFrame::Invalid(ProtocolError::new(ErrorCode::FrameTooShort, length, 0));
    }
    if length > max_length {
        return ParsedFrame::Invalid(ProtocolError::new(ErrorCode::FrameTooLong, length, 0));
    }
    let size = LENGTH_BYTES + length as usize;
    let Some(frame) = buffer.get(..size) else {
        return ParsedFrame::Incomplete;
    };
    let (head, body) = frame.split_at(HEADER_BYTES);
    match Fields::new(head, 0).fixed() {
        Ok(header) => ParsedFrame::Complete { header, body, size },
        Err(fault) => ParsedFrame::Invalid(fault),
    }
}

/// The fault of a stream that ends with `rest`, which [`parse_frame`] called incomplete and which is not empty.
pub fn truncated_frame(rest: &[u8]) -> ProtocolError {
    let request_id =
        rest.get(8..HEADER_BYTES).and_then(|id| id.try_into().ok()).map_or(0, u32::from_le_bytes);
    ProtocolError::new(ErrorCode::TruncatedFrame, rest.len() as u32, request_id)
}

impl FrameHeader {
    /// The flags, if all of them are among `known`.
    pub(crate) fn flags(&self, known: u16) -> Result<u16, ProtocolError> {
        match self.flags & !known {
            0 => Ok(self.flags),
            unknown => Err(self.fault(ErrorCode::UnknownFlag, u32::from(unknown))),
        }
    }

    pub(crate) fn version(&self) -> Result<(), ProtocolError> {
        match self.version {
            VERSION => Ok(()),
            other => Err(self.fault(ErrorCode::UnsupportedVersion, u32::from(other))),
        }
    }

    pub(crate) fn fault(&self, code: ErrorCode, detail: u32) -> ProtocolError {
        ProtocolError::new(code, detail, self.request_id)
    }
}

/// A header, and the part of the body that is of fixed size.
#[derive(Encode)]
struct Head<T: Encode> {
    header: FrameHeader,
    body: T,
}

/// Appends a frame whose body is `head` and what `write` appends to it.
#[inline]
pub(crate) fn put_frame(
    kind: FrameKind,
    flags: u16,
    request_id: u32,
    head: impl Encode,
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let header = FrameHeader { length: 0, version: VERSION, kind: kind as u8, flags, request_id };
    put(Head { header, body: head }, out);
    write(out);
    let length = (out.len() - start - LENGTH_BYTES) as u32;
    if let Some(field) = out.get_mut(start..start + LENGTH_BYTES) {
        field.copy_from_slice(&length.to_le_bytes());
    }
}
