//! Cutting an export into pieces that begin and end with rows, without reading the rows.
//!
//! A line of JSON Lines ends at a newline. One of CSV does too, unless the newline is inside of quotes; and a quote is one only at
//! the beginning of a field. [`csv-core`](super::records) says the same at greater length, and a test compares the two. A piece is
//! looked at from its beginning, which is a row's, so that there is never a doubt whether a quote opens or closes.

use std::io::{self, Read};

use memchr::{memchr, memrchr};

use super::{BOM, Format};

/// Bytes of a piece, or a little less: several of them, and the rows that are made of them, stay in a processor's own cache.
const PIECE: usize = 128 << 10;

/// Why there is no next piece.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The input fails.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No row ends within a piece: something is wrong with it, or its lines end in carriage returns alone.
    #[error("a row does not end where it should")]
    NoRow,
}

/// Cuts an export.
pub struct ChunkSplitter<R> {
    input: R,
    format: Format,
    /// What has been read of the next piece.
    rest: Vec<u8>,
    is_first: bool,
}

impl<R: Read> ChunkSplitter<R> {
    /// Cuts `input`.
    pub fn new(input: R, format: Format) -> Self {
        Self { input, format, rest: Vec::new(), is_first: true }
    }

    /// The next piece; `None` after the last, which is what is left: it may not end as it should.
    ///
    /// # Errors
    /// When the input fails, or it cannot be cut.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, SplitError> {
        let mut piece = std::mem::take(&mut self.rest);
        let missing = PIECE.saturating_sub(piece.len()) as u64;
        piece.reserve_exact(missing as usize);
        self.input.by_ref().take(missing).read_to_end(&mut piece)?;
        if std::mem::take(&mut self.is_first) && piece.starts_with(BOM) {
            piece.drain(..BOM.len());
        }
        if piece.is_empty() {
            return Ok(None);
        }
        if piece.len() + BOM.len() < PIECE {
            return Ok(Some(piece));
        }
        let end = match self.format {
            Format::Csv => end_of_rows(&piece),
            Format::JsonLines | Format::Compiled => memrchr(b'\n', &piece).map(|at| at + 1),
        };
        let end = end.ok_or(SplitError::NoRow)?;
        self.rest = piece.split_off(end);
        Ok(Some(piece))
    }
}

/// Where the last row ends that ends in `text`, which begins with a row.
fn end_of_rows(text: &[u8]) -> Option<usize> {
    let (mut end, mut at) = (None, 0);
    loop {
        let plain = &text[at..];
        let quote = memchr(b'"', plain);
        let plain = &plain[..quote.unwrap_or(plain.len())];
        end = memrchr(b'\n', plain).map(|newline| at + newline + 1).or(end);
        let quote = at + quote.unwrap_or(text.len());
        if quote >= text.len() {
            return end;
        }
        let opens = quote == 0 || matches!(text[quote - 1], b',' | b'\n' | b'\r');
        at = if opens { closed(text, quote + 1) } else { quote + 1 };
        if at >= text.len() {
            return end;
        }
    }
}

/// Where the quotes end whose inside begins at `at`: after the first quote that is not doubled.
fn closed(text: &[u8], mut at: usize) -> usize {
    while let Some(quote) = text.get(at..).and_then(|inside| memchr(b'"', inside)) {
        let after = at + quote + 1;
        match text.get(after) {
            Some(b'"') => at = after + 1,
            Some(_) => return after,
            // Whether it is doubled is not to be seen yet.
            None => break,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::records::{Next, Records};
    use super::*;

    /// Where `csv-core` says that rows end which a newline ends.
    fn ends(text: &[u8]) -> Vec<usize> {
        let mut ends = Vec::new();
        for end in 1..=text.len() {
            if text[end - 1] != b'\n' {
                continue;
            }
            let (mut records, mut rest) = (Records::default(), &text[..end]);
            loop {
                match records.next(&mut rest).expect("a slice") {
                    Next::Record(_) => {}
                    Next::End => break ends.push(end),
                    Next::FramingError(..) | Next::TooLong(_) => break,
                }
            }
        }
        ends
    }

    #[test]
    fn a_newline_in_quotes_ends_no_row() {
        let cases: [(&str, Option<usize>); 9] = [
            ("a,b\nc,d\ne", Some(8)),
            ("a,\"x\ny\"\nb", Some(8)),
            ("a,\"x\"\"\ny\"\nb", Some(10)),
            ("a,x\"y\nb\"\nc", Some(9)),
            ("a,\"x\"y\"\nb", Some(8)),
            ("\"a\n", None),
            ("ab", None),
            ("a\n\"b\"", Some(2)),
            ("a\r\n\"b\n\"\r\nc", Some(9)),
        ];
        for (text, end) in cases {
            assert_eq!(end_of_rows(text.as_bytes()), end, "{text:?}");
            assert_eq!(ends(text.as_bytes()).last().copied(), end, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn rows_end_where_the_reader_ends_them(text in "[a\u{feff},\"\r\n]{0,40}") {
            prop_assert_eq!(end_of_rows(text.as_bytes()), ends(text.as_bytes()).last().copied());
        }

        #[test]
        fn the_pieces_are_the_text(rows in prop::collection::vec("[a-z]{0,9}(,\"[a\n]{0,5000}\")?", 0..900)) {
            let text = rows.join("\n").into_bytes();
            let mut splitter = ChunkSplitter::new(&*text, Format::Csv);
            let (mut joined, mut pieces) = (Vec::new(), Vec::new());
            while let Some(piece) = splitter.next_chunk().expect("rows are short") {
                joined.extend_from_slice(&piece);
                pieces.push(piece);
            }
            prop_assert_eq!(joined, text);
            let Some((_, whole)) = pieces.split_last() else { return Ok(()) };
            prop_assert!(whole.iter().all(|piece| piece.ends_with(b"\n") && piece.len() <= PIECE));
        }
    }
}
