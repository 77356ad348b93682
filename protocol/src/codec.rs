//! The only place that knows which crate turns integers into bytes (SPEC.md section 2).
//!
//! bincode writes and reads structs of integers and byte arrays; texts are a length and a slice of the buffer.
//! Nothing here allocates, and no length is trusted before it has been compared with what is left.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

use crate::error::{ErrorCode, ProtocolError};
use crate::limits::MAX_ANSWER_LENGTH;

/// No frame is longer than this, so nothing inside one can be.
const LIMIT: usize = MAX_ANSWER_LENGTH as usize;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<LIMIT>> =
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>();

/// Reads a body's fields in order; remembers what a fault has to say.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    whole: usize,
    request_id: u32,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(body: &'a [u8], request_id: u32) -> Self {
        Self { rest: body, whole: body.len(), request_id }
    }

    /// A struct of integers and byte arrays.
    pub(crate) fn fixed<T: Decode<()>>(&mut self) -> Result<T, ProtocolError> {
        let (value, used) = bincode::decode_from_slice(self.rest, CONFIG).map_err(|_| self.too_short())?;
        self.rest = self.rest.get(used..).unwrap_or_default();
        Ok(value)
    }

    /// A `text8` of at most `max` bytes; `field` is its number in SPEC.md's table.
    pub(crate) fn text8(&mut self, max: usize, field: u32) -> Result<&'a str, ProtocolError> {
        let length: u8 = self.fixed()?;
        self.text(usize::from(length), max, field)
    }

    /// A `text16` of at most `max` bytes.
    pub(crate) fn text16(&mut self, max: usize, field: u32) -> Result<&'a str, ProtocolError> {
        let length: u16 = self.fixed()?;
        self.text(usize::from(length), max, field)
    }

    /// A `bytes16` of at most `max` bytes.
    pub(crate) fn bytes16(&mut self, max: usize, field: u32) -> Result<&'a [u8], ProtocolError> {
        let length: u16 = self.fixed()?;
        self.take(usize::from(length), max, field)
    }

    /// SPEC.md section 3: a body must be consumed exactly.
    pub(crate) fn end(self) -> Result<(), ProtocolError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(ProtocolError::new(ErrorCode::TrailingBytes, left as u32, self.request_id)),
        }
    }

    pub(crate) fn invalid(&self, field: u32) -> ProtocolError {
        ProtocolError::new(ErrorCode::InvalidField, field, self.request_id)
    }

    fn text(&mut self, length: usize, max: usize, field: u32) -> Result<&'a str, ProtocolError> {
        let bytes = self.take(length, max, field)?;
        std::str::from_utf8(bytes).map_err(|_| self.invalid(field))
    }

    fn take(&mut self, length: usize, max: usize, field: u32) -> Result<&'a [u8], ProtocolError> {
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.too_short())?;
        if length > max {
            return Err(self.invalid(field));
        }
        self.rest = rest;
        Ok(bytes)
    }

    fn too_short(&self) -> ProtocolError {
        ProtocolError::new(ErrorCode::BodyTooShort, self.whole as u32, self.request_id)
    }
}

/// Bytes of the largest struct that is written at once: a header and an ordinary VERIFY take 48.
const MAX_FIXED: usize = 64;

/// Appends a struct of integers and byte arrays. It is put together on the stack first, because the vector would be asked for
/// room field by field.
#[inline]
pub(crate) fn put(value: impl Encode, out: &mut Vec<u8>) {
    let mut bytes = [0; MAX_FIXED];
    let written = bincode::encode_into_slice(value, &mut bytes, CONFIG);
    debug_assert!(written.is_ok(), "no struct is larger");
    out.extend_from_slice(bytes.get(..written.unwrap_or(0)).unwrap_or_default());
}

/// Appends a `text8`, cut at a character if it is longer than `max`.
pub(crate) fn put_text8(text: &str, max: usize, out: &mut Vec<u8>) {
    let text = cut(text, max.min(usize::from(u8::MAX)));
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

/// Appends a `text16` or `bytes16`; the caller has checked the length.
pub(crate) fn put_bytes16(bytes: &[u8], out: &mut Vec<u8>) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    put(bytes.len() as u16, out);
    out.extend_from_slice(bytes);
}

/// The longest beginning of `text` that has at most `max` bytes.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let mut end = max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
