//! Reads the records of a CSV text one at a time, into buffers of a fixed size.
//!
//! This uses `csv-core`, the state machine of the `csv` crate, because the reader of `csv` grows
//! its buffer until the row ends. With a fixed buffer, an unclosed quote costs bounded memory. The
//! state machine also shows how the text ends, which that reader hides. It tolerates quotes where
//! RFC 4180 allows none; [`quotes`](super::quotes) detects them.

use std::io::{self, BufRead};

use csv_core::{ReadRecordResult, Reader};

use super::quotes::{QuoteError, Quotes};
use crate::{FramingError, MAX_ROW, fill};

/// Maximum number of columns in a row: twenty times the fields of a record, which is enough for
/// exports of whole tables.
pub(crate) const MAX_COLUMNS: usize = 256;

/// Reads records. Reuse it for several texts: allocating its buffers takes longer than reading most
/// rows.
#[derive(Debug)]
pub(crate) struct Records {
    machine: Reader,
    bytes: Box<[u8]>,
    ends: Box<[usize]>,
    /// The last byte read.
    last: u8,
}

/// The next item of a text.
pub(crate) enum Next<'r> {
    Record(Record<'r>),
    End,
    /// The rest of the text cannot be divided into records. The record at fault begins at `line`.
    Broken {
        line: u64,
        error: FramingError,
    },
    /// The record exceeds [`MAX_ROW`], so the rest of the text cannot be read.
    TooLong(TooLong),
}

/// What is known about a record that exceeds [`MAX_ROW`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct TooLong {
    /// The line at which it begins.
    pub(crate) line: u64,
    /// The index of its largest column, and the size of that column in bytes.
    pub(crate) largest: (usize, usize),
    /// Whether that column is inside quotes.
    pub(crate) in_quotes: bool,
}

/// One record: its columns one after another, and the end of each.
pub(crate) struct Record<'r> {
    /// The line at which it begins, counted from 1.
    pub(crate) line: u64,
    bytes: &'r [u8],
    ends: &'r [usize],
    quotes: Quotes,
}

impl Default for Records {
    fn default() -> Self {
        let machine = Reader::new();
        let mut records =
            Self { machine, bytes: vec![0; MAX_ROW].into(), ends: vec![0; MAX_COLUMNS].into(), last: 0 };
        records.restart();
        records
    }
}

impl Records {
    /// Prepares to read from the beginning of another text, or of a row inside one.
    pub(crate) fn restart(&mut self) {
        self.machine.reset();
        // The machine removes a byte order mark from its first input. The one at the beginning of a
        // file is already removed, and at the beginning of a row it is ordinary text. An empty line
        // as the first input disables this and has no other effect.
        let _ = self.machine.read_record(b"\n", &mut self.bytes, &mut self.ends);
        self.machine.set_line(1);
        self.last = 0;
    }

    /// Reads the next record. Consumes no input beyond it.
    pub(crate) fn next(&mut self, input: &mut impl BufRead) -> io::Result<Next<'_>> {
        self.skip_blank_lines(input)?;
        let line = self.machine.line();
        let (mut bytes, mut columns) = (0, 0);
        let mut quotes = Quotes::new();
        loop {
            let text = fill(input)?;
            let at_end = text.is_empty();
            let (result, read, written, ended) =
                self.machine.read_record(text, &mut self.bytes[bytes..], &mut self.ends[columns..]);
            self.last = read.checked_sub(1).and_then(|n| text.get(n)).copied().unwrap_or(self.last);
            quotes.consume(&text[..read]);
            input.consume(read);
            bytes += written;
            columns += ended;
            return Ok(match result {
                ReadRecordResult::InputEmpty => continue,
                // The record is not terminated.
                ReadRecordResult::Record if at_end => Next::Broken { line, error: self.truncation() },
                ReadRecordResult::Record => {
                    let (bytes, ends) = (&self.bytes[..bytes], &self.ends[..columns]);
                    Next::Record(Record { line, bytes, ends, quotes })
                }
                // Half of a CRLF: the record is complete, but the text is truncated.
                ReadRecordResult::End if self.last == b'\r' => {
                    Next::Broken { line, error: FramingError::NoNewline }
                }
                ReadRecordResult::End => Next::End,
                ReadRecordResult::OutputFull => {
                    let largest = largest(&self.ends[..columns], bytes);
                    let in_quotes = quotes.open_column() == Some(largest.0);
                    Next::TooLong(TooLong { line, largest, in_quotes })
                }
                ReadRecordResult::OutputEndsFull => {
                    Next::Broken { line, error: FramingError::TooManyColumns }
                }
            });
        }
    }

    fn truncation(&self) -> FramingError {
        if self.last == b'\n' { FramingError::OpenQuote } else { FramingError::NoNewline }
    }

    /// Skips blank lines. The machine skips them too, but does not report the line at which the
    /// record begins.
    fn skip_blank_lines(&mut self, input: &mut impl BufRead) -> io::Result<()> {
        while let Some(&byte @ (b'\n' | b'\r')) = fill(input)?.first() {
            self.machine.set_line(self.machine.line() + u64::from(byte == b'\n'));
            self.last = byte;
            input.consume(1);
        }
        Ok(())
    }
}

/// The index and the size of the largest column of a record whose last column is incomplete and
/// ends at `bytes`.
fn largest(ends: &[usize], bytes: usize) -> (usize, usize) {
    let lengths = ends.iter().copied().chain([bytes]).enumerate();
    let lengths = lengths.map(|(index, end)| (index, end - start(ends, index)));
    lengths.max_by_key(|(_, length)| *length).unwrap_or_default()
}

impl<'r> Record<'r> {
    /// The first misplaced quote, with the index of its column.
    pub(crate) fn misplaced_quote(&self) -> Option<(usize, QuoteError)> {
        self.quotes.misplaced()
    }

    /// Number of columns.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of the column at `index`.
    pub(crate) fn bytes(&self, index: usize) -> Option<&'r [u8]> {
        let end = *self.ends.get(index)?;
        self.bytes.get(start(self.ends, index)..end)
    }

    /// The column at `index`, if it is UTF-8.
    pub(crate) fn text(&self, index: usize) -> Option<&'r str> {
        str::from_utf8(self.bytes(index)?).ok()
    }

    /// The columns as texts.
    ///
    /// # Errors
    /// If a column is not UTF-8.
    pub(crate) fn texts(&self) -> Result<Columns<'r>, NotUtf8> {
        // One pass over the whole record. A column must also end at a character boundary.
        match str::from_utf8(self.bytes) {
            Ok(text) if self.ends.iter().all(|&end| text.is_char_boundary(end)) => {
                Ok(Columns { text, ends: self.ends })
            }
            _ => Err(self.not_utf8()),
        }
    }

    fn not_utf8(&self) -> NotUtf8 {
        let bytes = |index| self.bytes.get(start(self.ends, index)..self.ends[index]).unwrap_or_default();
        (0..self.ends.len())
            .find_map(|index| {
                let byte = str::from_utf8(bytes(index)).err()?.valid_up_to();
                Some(NotUtf8 { column: index, byte })
            })
            .unwrap_or_default()
    }
}

/// A column that is not UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NotUtf8 {
    /// The index of the column.
    pub(crate) column: usize,
    /// The index of the first byte in it that is not UTF-8.
    pub(crate) byte: usize,
}

/// The texts of one record.
pub(crate) struct Columns<'r> {
    text: &'r str,
    ends: &'r [usize],
}

impl<'r> Columns<'r> {
    /// The column at `index`; empty beyond the last one.
    pub(crate) fn get(&self, index: usize) -> &'r str {
        let range = self.ends.get(index).map(|&end| start(self.ends, index)..end);
        range.and_then(|range| self.text.get(range)).unwrap_or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'r str> {
        (0..self.ends.len()).map(|index| self.get(index))
    }
}

fn start(ends: &[usize], index: usize) -> usize {
    index.checked_sub(1).map_or(0, |before| ends[before])
}
