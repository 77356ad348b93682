//! Frames in a stream of bytes (SPEC.md section 3): the header, and where one frame ends and the
//! next begins.

use bincode::Encode;

use crate::codec::{BodyReader, append_fixed};
use crate::error::{ErrorCode, ProtocolError};
use crate::layout::{WireSize, wire_struct};
use crate::limits::{HEADER_BYTES, LENGTH_BYTES, MIN_LENGTH, VERSION};

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// A client's greeting, or a ping.
    Hello = 0x01,
    /// Asks whether a key may do something now.
    Verify = 0x02,
    /// Gives back what a key was charged.
    Refund = 0x03,
    /// Charges what a response has cost.
    Debit = 0x04,
    /// The daemon's response to HELLO.
    Welcome = 0x81,
    /// The daemon's response to VERIFY, REFUND and DEBIT.
    Answer = 0x82,
    /// The daemon's response to a request that it cannot answer.
    Error = 0xff,
}

wire_struct! {
    /// The first 12 bytes of every frame, in every version of the protocol.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FrameHeader: 12 bytes {
        /// Bytes of the frame after this field.
        0 => pub length: u32,
        /// Version of the protocol that the frame is written in.
        4 => pub version: u8,
        /// A [`FrameKind`], or an unknown value.
        5 => pub kind: u8,
        /// Flags of the kind.
        6 => pub flags: u16,
        /// The client's number for the request.
        8 => pub request_id: u32,
    }
}

const _: () = assert!(FrameHeader::WIRE_SIZE == HEADER_BYTES);

/// The result of [`parse_frame`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParsedFrame<'a> {
    /// The buffer begins with a complete frame.
    Complete {
        /// The header of the frame.
        header: FrameHeader,
        /// The body of the frame.
        body: &'a [u8],
        /// Bytes of the whole frame, at least [`HEADER_BYTES`].
        size: usize,
    },
    /// More bytes are needed.
    Incomplete,
    /// The buffer does not begin with a frame, and the start of the next one is unknown.
    Invalid(ProtocolError),
}

/// Parses the frame at the front of `buffer`. A `length` over `max_length` is an error.
///
/// A header whose length is out of range is not trusted any further: the error has no request id,
/// even if its bytes have arrived. Otherwise the error would depend on how the stream was divided
/// into reads.
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
    let (header, body) = frame.split_at(HEADER_BYTES);
    match BodyReader::new(header, 0).read_fixed() {
        Ok(header) => ParsedFrame::Complete { header, body, size },
        Err(error) => ParsedFrame::Invalid(error),
    }
}

/// The error of a stream that ends with `rest`, which is not empty and for which [`parse_frame`]
/// returned [`ParsedFrame::Incomplete`].
pub fn truncated_frame(rest: &[u8]) -> ProtocolError {
    let request_id =
        rest.get(8..HEADER_BYTES).and_then(|id| id.try_into().ok()).map_or(0, u32::from_le_bytes);
    ProtocolError::new(ErrorCode::TruncatedFrame, rest.len() as u32, request_id)
}

impl FrameHeader {
    /// The flags, unless there is one that is not in `known`.
    pub(crate) fn check_flags(&self, known: u16) -> Result<u16, ProtocolError> {
        match self.flags & !known {
            0 => Ok(self.flags),
            unknown => Err(self.error(ErrorCode::UnknownFlag, u32::from(unknown))),
        }
    }

    pub(crate) fn check_version(&self) -> Result<(), ProtocolError> {
        match self.version {
            VERSION => Ok(()),
            other => Err(self.error(ErrorCode::UnsupportedVersion, u32::from(other))),
        }
    }

    pub(crate) fn error(&self, code: ErrorCode, detail: u32) -> ProtocolError {
        ProtocolError::new(code, detail, self.request_id)
    }
}

/// A header, and the part of the body that has a fixed size.
#[derive(Encode)]
struct FrameStart<T: Encode> {
    header: FrameHeader,
    body: T,
}

impl<T: Encode + WireSize> WireSize for FrameStart<T> {
    const WIRE_SIZE: usize = FrameHeader::WIRE_SIZE + T::WIRE_SIZE;
}

/// Appends a frame of a [`FrameKind`] whose body is `fixed`, followed by what `append_rest` appends.
#[inline]
pub(crate) fn append_frame<T: Encode + WireSize>(
    kind: u8,
    flags: u16,
    request_id: u32,
    fixed: T,
    out: &mut Vec<u8>,
    append_rest: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    let header = FrameHeader { length: 0, version: VERSION, kind, flags, request_id };
    append_fixed(FrameStart { header, body: fixed }, out);
    append_rest(out);
    let length = (out.len() - start - LENGTH_BYTES) as u32;
    if let Some(field) = out.get_mut(start..start + LENGTH_BYTES) {
        field.copy_from_slice(&length.to_le_bytes());
    }
}
