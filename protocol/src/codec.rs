//! Integers and texts as bytes, in both directions (SPEC.md section 2).
//!
//! Only this module and [`layout`](crate::layout) know which crate does the encoding. bincode reads
//! and writes structures of integers and byte arrays; a text is a length followed by a slice of the
//! buffer. Decoding allocates nothing, and every length is checked against the bytes that are left
//! before it is used.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use crate::error::{ErrorCode, ProtocolError};
use crate::layout::WireSize;
use crate::limits::MAX_ANSWER_LENGTH;

/// No frame is longer than this, so nothing inside a frame is either.
const LIMIT: usize = MAX_ANSWER_LENGTH as usize;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<LIMIT>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>();

/// Reads the fields of a body in order, and builds the errors that a body can have.
pub(crate) struct BodyReader<'a> {
    rest: &'a [u8],
    body_size: usize,
    request_id: u32,
}

impl<'a> BodyReader<'a> {
    pub(crate) fn new(body: &'a [u8], request_id: u32) -> Self {
        Self { rest: body, body_size: body.len(), request_id }
    }

    /// Reads an integer, a byte array or a structure of them.
    pub(crate) fn read_fixed<T: Decode<()>>(&mut self) -> Result<T, ProtocolError> {
        let (value, used) =
            bincode::decode_from_slice(self.rest, CONFIG).map_err(|_| self.body_too_short())?;
        self.rest = self.rest.get(used..).unwrap_or_default();
        Ok(value)
    }

    /// The bytes that have not been read.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads a `text8` of at most `max` bytes; `field` is its number in SPEC.md's table.
    pub(crate) fn read_text8(&mut self, max: usize, field: u32) -> Result<&'a str, ProtocolError> {
        let length: u8 = self.read_fixed()?;
        self.read_text(usize::from(length), max, field)
    }

    /// Reads the bytes of a `text8` that has been validated.
    pub(crate) fn read_bytes8(&mut self, max: usize, field: u32) -> Result<&'a [u8], ProtocolError> {
        let length: u8 = self.read_fixed()?;
        self.take(usize::from(length), max, field)
    }

    /// Reads a `text16` of at most `max` bytes.
    pub(crate) fn read_text16(&mut self, max: usize, field: u32) -> Result<&'a str, ProtocolError> {
        let length: u16 = self.read_fixed()?;
        self.read_text(usize::from(length), max, field)
    }

    /// Reads a `bytes16` of at most `max` bytes.
    pub(crate) fn read_bytes16(&mut self, max: usize, field: u32) -> Result<&'a [u8], ProtocolError> {
        let length: u16 = self.read_fixed()?;
        self.take(usize::from(length), max, field)
    }

    /// Checks that the whole body has been read (SPEC.md section 3).
    pub(crate) fn finish(self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(ProtocolError::new(ErrorCode::TrailingBytes, left as u32, self.request_id)),
        }
    }

    pub(crate) fn invalid_field(&self, field: u32) -> ProtocolError {
        ProtocolError::new(ErrorCode::InvalidField, field, self.request_id)
    }

    fn read_text(&mut self, length: usize, max: usize, field: u32) -> Result<&'a str, ProtocolError> {
        let bytes = self.take(length, max, field)?;
        std::str::from_utf8(bytes).map_err(|_| self.invalid_field(field))
    }

    fn take(&mut self, length: usize, max: usize, field: u32) -> Result<&'a [u8], ProtocolError> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.body_too_short())?;
        if length > max {
            return Err(self.invalid_field(field));
        }
        self.rest = rest;
        Ok(bytes)
    }

    fn body_too_short(&self) -> ProtocolError {
        ProtocolError::new(ErrorCode::BodyTooShort, self.body_size as u32, self.request_id)
    }
}

/// Size of the stack buffer of [`append_fixed`]. The largest structures are a header with the fixed
/// part of an ANSWER (37 bytes) and a digest (32).
const MAX_FIXED: usize = 64;

/// Appends an integer, a byte array or a structure of them.
///
/// The value is encoded on the stack and copied once. Encoding into `out` directly would check its
/// capacity for each field.
#[inline]
pub(crate) fn append_fixed<T: Encode + WireSize>(value: T, out: &mut Vec<u8>) {
    const { assert!(T::WIRE_SIZE <= MAX_FIXED) };
    let mut bytes = [0; MAX_FIXED];
    let written = bincode::encode_into_slice(value, &mut bytes, CONFIG);
    debug_assert!(written.is_ok(), "the value fits into MAX_FIXED");
    out.extend_from_slice(bytes.get(..written.unwrap_or(0)).unwrap_or_default());
}

/// Appends a `text8`. A text of more than `max` bytes is truncated at a character boundary.
pub(crate) fn append_text8(text: &str, max: usize, out: &mut Vec<u8>) {
    let text = truncate_text(text, max.min(usize::from(u8::MAX)));
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

/// Appends a `text16` or `bytes16`. The caller has checked the length.
pub(crate) fn append_bytes16(bytes: &[u8], out: &mut Vec<u8>) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    append_fixed(bytes.len() as u16, out);
    out.extend_from_slice(bytes);
}

/// The longest prefix of `text` that has at most `max` bytes and ends at a character boundary.
pub(crate) fn truncate_text(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
