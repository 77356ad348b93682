//! The records of a CSV text, one at a time, in buffers of a fixed size.
//!
//! This sits on `csv-core`, the state machine inside of the crate `csv`, because the latter's reader grows its
//! record until the row ends. Here the row has to fit: an unclosed quote stops at the end of the buffer. The
//! machine also says how the text ended, which a reader that only yields records hides. Quotes in places where RFC 4180
//! has none, which the machine reads over, are found beside it ([`quotes`](super::quotes)).

use std::io::{self, BufRead};

use csv_core::{ReadRecordResult, Reader};

use super::quotes::{QuoteError, Quotes};
use super::{FramingError, MAX_ROW, fill};

/// Most columns in a row: twenty times the fields of a record, for exports of whole tables.
pub(super) const MAX_COLUMNS: usize = 256;

/// Reads records, from one text after another: its buffers take longer to make than most rows to read.
#[derive(Debug)]
pub(super) struct Records {
    machine: Reader,
    bytes: Box<[u8]>,
    ends: Box<[usize]>,
    /// The last byte read.
    last: u8,
}

/// What comes next in the text.
pub(super) enum Next<'r> {
    Record(Record<'r>),
    End,
    /// Nothing more can be read from here on.
    FramingError(u64, FramingError),
    /// Nor here, because the row does not fit.
    TooLong(TooLong),
}

/// A row that does not end where every row has ended: what is known of it so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct TooLong {
    /// The line at which it begins.
    pub(super) line: u64,
    /// Its largest column, counted from 0, and the bytes of that.
    pub(super) largest: (usize, usize),
    /// Whether the quotes of that column are open.
    pub(super) in_quotes: bool,
}

/// One record: its columns one after another, and where each ends.
pub(super) struct Record<'r> {
    /// The line at which it begins, counted from 1.
    pub(super) line: u64,
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
    /// What is read next is the beginning of another text, or of a row in it.
    pub(super) fn restart(&mut self) {
        self.machine.reset();
        // The machine takes a byte order mark off the first bytes that it is given, if they come at once. One at the beginning of a
        // file is taken off before they come here, and at the beginning of a row it is a character like others. An empty line
        // changes nothing else.
        let _nothing = self.machine.read_record(b"\n", &mut self.bytes, &mut self.ends);
        self.machine.set_line(1);
        self.last = 0;
    }

    /// The next record of `input`, of which no more than that is taken.
    pub(super) fn next(&mut self, input: &mut impl BufRead) -> io::Result<Next<'_>> {
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
            quotes.follow(&text[..read]);
            input.consume(read);
            bytes += written;
            columns += ended;
            return Ok(match result {
                ReadRecordResult::InputEmpty => continue,
                // A record that only the end of the text has ended.
                ReadRecordResult::Record if at_end => Next::FramingError(line, self.cut_short()),
                ReadRecordResult::Record => {
                    let (bytes, ends) = (&self.bytes[..bytes], &self.ends[..columns]);
                    Next::Record(Record { line, bytes, ends, quotes })
                }
                // Half a CRLF: the record is whole, but the text is not.
                ReadRecordResult::End if self.last == b'\r' => {
                    Next::FramingError(line, FramingError::NoNewline)
                }
                ReadRecordResult::End => Next::End,
                ReadRecordResult::OutputFull => {
                    let largest = largest(&self.ends[..columns], bytes);
                    let in_quotes = quotes.open() == Some(largest.0);
                    Next::TooLong(TooLong { line, largest, in_quotes })
                }
                ReadRecordResult::OutputEndsFull => Next::FramingError(line, FramingError::TooManyColumns),
            });
        }
    }

    fn cut_short(&self) -> FramingError {
        if self.last == b'\n' { FramingError::OpenQuote } else { FramingError::NoNewline }
    }

    /// The machine skips blank lines too, but then the line at which the record begins is lost.
    fn skip_blank_lines(&mut self, input: &mut impl BufRead) -> io::Result<()> {
        while let Some(&byte @ (b'\n' | b'\r')) = fill(input)?.first() {
            self.machine.set_line(self.machine.line() + u64::from(byte == b'\n'));
            self.last = byte;
            input.consume(1);
        }
        Ok(())
    }
}

/// The largest column of a row whose last one is not at its end, and the bytes of it.
fn largest(ends: &[usize], bytes: usize) -> (usize, usize) {
    let lengths = ends.iter().copied().chain([bytes]).enumerate();
    let lengths = lengths.map(|(index, end)| (index, end - start(ends, index)));
    lengths.max_by_key(|(_, length)| *length).unwrap_or_default()
}

impl<'r> Record<'r> {
    /// The first quote in the wrong place, and its column, counted from 0.
    pub(super) fn wrong_quote(&self) -> Option<(usize, QuoteError)> {
        self.quotes.wrong()
    }

    /// How many columns it has.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of a column, counted from 0; `None` where there is none.
    pub(super) fn bytes(&self, index: usize) -> Option<&'r [u8]> {
        let end = *self.ends.get(index)?;
        self.bytes.get(start(self.ends, index)..end)
    }

    /// The text of a column, whatever the others are; `None` where it is none.
    pub(super) fn text(&self, index: usize) -> Option<&'r str> {
        str::from_utf8(self.bytes(index)?).ok()
    }

    /// Its columns as texts.
    ///
    /// # Errors
    /// The column, counted from 0, that is not UTF-8, and the byte in it.
    pub(super) fn texts(&self) -> Result<Columns<'r>, (usize, usize)> {
        // One pass over the whole record; a column that ends within a character is no text either.
        match str::from_utf8(self.bytes) {
            Ok(text) if self.ends.iter().all(|&end| text.is_char_boundary(end)) => {
                Ok(Columns { text, ends: self.ends })
            }
            _ => Err(self.not_utf8()),
        }
    }

    fn not_utf8(&self) -> (usize, usize) {
        let column = |index| self.bytes.get(start(self.ends, index)..self.ends[index]).unwrap_or_default();
        (0..self.ends.len())
            .find_map(|index| Some((index, str::from_utf8(column(index)).err()?.valid_up_to())))
            .unwrap_or_default()
    }
}

/// The texts of one record.
pub(super) struct Columns<'r> {
    text: &'r str,
    ends: &'r [usize],
}

impl<'r> Columns<'r> {
    /// The text of a column, counted from 0; empty beyond the last.
    pub(super) fn get(&self, index: usize) -> &'r str {
        let range = self.ends.get(index).map(|&end| start(self.ends, index)..end);
        range.and_then(|range| self.text.get(range)).unwrap_or_default()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'r str> {
        (0..self.ends.len()).map(|index| self.get(index))
    }
}

fn start(ends: &[usize], index: usize) -> usize {
    index.checked_sub(1).map_or(0, |before| ends[before])
}
