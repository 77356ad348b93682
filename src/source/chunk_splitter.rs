//! Cuts an export into chunks at the ends of rows, without parsing the rows.
//!
//! A row of JSON Lines ends at a newline. So does a row of CSV, unless the newline is inside
//! quotes, which only open at the beginning of a field. A chunk always begins with a row and is
//! scanned from its beginning, so it is always known whether a quote opens or closes. A test
//! compares the result with [`csv-core`](crate::csv::records).

use std::io::{self, Read};

use memchr::{memchr, memrchr};

use crate::{BOM, Format};

/// Maximum size of a chunk, in bytes. Several chunks and the records parsed from them fit into the
/// cache of a core.
const CHUNK_SIZE: usize = 128 << 10;

/// Why an export cannot be cut into chunks.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The input cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No row ends within a chunk: a row is too long or a quote is not closed, or the lines end in
    /// carriage returns only.
    #[error("no row ends within {CHUNK_SIZE} bytes")]
    NoRowEnd,
}

/// Cuts an export into chunks.
pub struct ChunkSplitter<R> {
    input: R,
    format: Format,
    /// The beginning of the next chunk.
    rest: Vec<u8>,
    is_first: bool,
}

impl<R: Read> ChunkSplitter<R> {
    /// Creates a splitter for `input`.
    pub fn new(input: R, format: Format) -> Self {
        Self { input, format, rest: Vec::new(), is_first: true }
    }

    /// Returns the next chunk, or `None` at the end. The last chunk may end with an incomplete row.
    ///
    /// # Errors
    /// If the input cannot be read, or no row ends within a chunk.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, SplitError> {
        let mut chunk = std::mem::take(&mut self.rest);
        let missing = CHUNK_SIZE.saturating_sub(chunk.len()) as u64;
        chunk.reserve_exact(missing as usize);
        self.input.by_ref().take(missing).read_to_end(&mut chunk)?;
        if std::mem::take(&mut self.is_first) && chunk.starts_with(BOM) {
            chunk.drain(..BOM.len());
        }
        if chunk.is_empty() {
            return Ok(None);
        }
        if chunk.len() + BOM.len() < CHUNK_SIZE {
            return Ok(Some(chunk));
        }
        let end = match self.format {
            Format::Csv => end_of_last_row(&chunk),
            Format::JsonLines | Format::Compiled => memrchr(b'\n', &chunk).map(|at| at + 1),
        };
        let end = end.ok_or(SplitError::NoRowEnd)?;
        self.rest = chunk.split_off(end);
        Ok(Some(chunk))
    }
}

/// The end of the last complete row of `text`, which begins with a row.
fn end_of_last_row(text: &[u8]) -> Option<usize> {
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
        at = if opens { end_of_quotes(text, quote + 1) } else { quote + 1 };
        if at >= text.len() {
            return end;
        }
    }
}

/// The end of the quoted text whose content begins at `at`: after the first quote that is not
/// doubled.
fn end_of_quotes(text: &[u8], mut at: usize) -> usize {
    while let Some(quote) = text.get(at..).and_then(|inside| memchr(b'"', inside)) {
        let after = at + quote + 1;
        match text.get(after) {
            Some(b'"') => at = after + 1,
            Some(_) => return after,
            // The text ends here, so it is unknown whether the quote is doubled.
            None => break,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::csv::records::{Next, Records};

    /// The ends of rows that end in a newline, as `csv-core` finds them.
    fn row_ends(text: &[u8]) -> Vec<usize> {
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
                    Next::Broken { .. } | Next::TooLong(_) => break,
                }
            }
        }
        ends
    }

    #[test]
    fn newline_in_quotes_does_not_end_a_row() {
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
            assert_eq!(end_of_last_row(text.as_bytes()), end, "{text:?}");
            assert_eq!(row_ends(text.as_bytes()).last().copied(), end, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn last_row_ends_where_csv_core_ends_it(text in "[a\u{feff},\"\r\n]{0,40}") {
            prop_assert_eq!(end_of_last_row(text.as_bytes()), row_ends(text.as_bytes()).last().copied());
        }

        #[test]
        fn chunks_join_to_the_whole_text(rows in prop::collection::vec("[a-z]{0,9}(,\"[a\n]{0,5000}\")?", 0..900)) {
            let text = rows.join("\n").into_bytes();
            let mut splitter = ChunkSplitter::new(&*text, Format::Csv);
            let (mut joined, mut chunks) = (Vec::new(), Vec::new());
            while let Some(chunk) = splitter.next_chunk().expect("rows are short") {
                joined.extend_from_slice(&chunk);
                chunks.push(chunk);
            }
            prop_assert_eq!(joined, text);
            let Some((_, whole)) = chunks.split_last() else { return Ok(()) };
            prop_assert!(whole.iter().all(|chunk| chunk.ends_with(b"\n") && chunk.len() <= CHUNK_SIZE));
        }
    }
}
