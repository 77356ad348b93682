//! Texts in huge pages.

use super::huge_pages::{HugePages, HugeVec};
use super::vector::{growth, push_bytes, reserve_if_possible, trim, zeroed};

/// A string in huge pages that only grows.
pub struct HugeText(HugeVec<u8>);

impl HugeText {
    /// An empty text with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self(HugeVec::with_capacity_in(capacity, HugePages))
    }

    /// See [`reserve_if_possible`].
    pub fn reserve_if_possible(&mut self, bytes: usize) {
        reserve_if_possible(&mut self.0, bytes);
    }

    /// Appends `text`.
    pub fn push_str(&mut self, text: &str) {
        push_bytes(&mut self.0, text.as_bytes());
    }

    /// See [`trim`].
    pub fn trim(&mut self) {
        trim(&mut self.0);
    }

    /// Bytes that are allocated.
    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    /// See [`growth`].
    pub fn growth(&self, bytes: usize) -> usize {
        growth::<u8>(self.0.len(), self.0.capacity(), bytes)
    }

    /// The text.
    #[inline]
    pub fn as_str(&self) -> &str {
        // SAFETY: The bytes are UTF-8, because only `push_str` and `TextBuffer::into_text` provide
        // them. The check is skipped because this is called for each text that is read.
        unsafe { str::from_utf8_unchecked(&self.0) }
    }
}

/// A text of known length that several threads write. It initially consists of NUL characters.
pub struct TextBuffer {
    bytes: HugeVec<u8>,
    has_writer: bool,
}

/// Writes a part of a [`TextBuffer`] from its beginning.
pub struct TextWriter<'t>(&'t mut [u8]);

impl TextBuffer {
    /// A buffer of `length` NUL characters.
    pub fn new(length: usize) -> Self {
        Self { bytes: zeroed(length), has_writer: false }
    }

    /// A writer for the whole buffer. The second and later calls return a writer without room.
    pub fn writer(&mut self) -> TextWriter<'_> {
        if std::mem::replace(&mut self.has_writer, true) {
            TextWriter(&mut [])
        } else {
            TextWriter(&mut self.bytes)
        }
    }

    /// The text, with NUL characters where nothing was written.
    pub fn into_text(self) -> HugeText {
        // `HugeText::as_str` relies on UTF-8. Each byte has at most one writer, which writes whole
        // texts one after the other, so every byte is part of a whole text or NUL.
        HugeText(self.bytes)
    }
}

impl<'t> TextWriter<'t> {
    /// Splits off a writer for the next `bytes` bytes. Returns `None` if there are fewer.
    pub fn split(&mut self, bytes: usize) -> Option<TextWriter<'t>> {
        self.0.split_off_mut(..bytes).map(TextWriter)
    }

    /// Writes `text`. Returns `None` if there is no room for it.
    #[inline]
    pub fn write(&mut self, text: &str) -> Option<()> {
        self.0.split_off_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(())
    }

    /// Whether there is no room left.
    pub fn is_full(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushed_texts_are_concatenated() {
        let mut text = HugeText::with_capacity(0);
        for _ in 0..300_000 {
            text.push_str("äöü-日本");
        }
        text.trim();
        assert_eq!(text.as_str(), "äöü-日本".repeat(300_000));
    }

    #[test]
    fn buffer_written_in_parts_is_a_valid_text() {
        let mut buffer = TextBuffer::new(9);
        let mut rest = buffer.writer();
        let mut first = rest.split(4).expect("there is room");
        assert!(rest.split(6).is_none());
        assert_eq!((rest.write("日"), first.write("äö"), first.write("a")), (Some(()), Some(()), None));
        assert!(first.is_full() && !rest.is_full());
        assert!(buffer.writer().is_full(), "the second writer has no room");
        assert_eq!(buffer.into_text().as_str(), "äö日\0\0");
    }
}
