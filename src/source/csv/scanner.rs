//! Finds the rows and columns of a CSV text in memory, and borrows them from it.
//!
//! [`csv-core`](super::records) reads byte by byte and copies, because it can be interrupted
//! anywhere. That takes several times as long as everything else done with a row. This scanner
//! searches for the end of each column instead. It leaves the exceptional rows to `csv-core`: those
//! that are truncated, exceed [`MAX_ROW`], or have a quote where RFC 4180 allows none. A test
//! compares the two.

use memchr::{memchr, memchr_iter, memchr3};

use super::records::Records;
use crate::MAX_ROW;

/// Scans rows. Reusing a scanner reuses its buffers.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    columns: Vec<Span>,
    /// The content of columns with doubled quotes, with each pair replaced by one quote.
    unquoted: String,
    fallback: Records,
}

/// The range of a column, in the text or in [`Scanner::unquoted`].
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
    is_unquoted: bool,
}

/// The columns of one row.
pub(crate) struct Columns<'t> {
    text: &'t str,
    unquoted: &'t str,
    columns: &'t [Span],
}

impl Scanner {
    /// Scans the row at the beginning of `text`. Returns its columns, and its length up to and
    /// including the first byte of the line end. Returns `None` if the row must be read with the
    /// [fallback](Self::fallback). `may_have_quotes` is `false` if the text is known to have no
    /// quotes.
    pub(crate) fn row<'t>(
        &'t mut self,
        text: &'t str,
        may_have_quotes: bool,
    ) -> Option<(Columns<'t>, usize)> {
        self.columns.clear();
        self.unquoted.clear();
        let mut at = 0;
        loop {
            let (column, after) = match text.as_bytes().get(at)? {
                b'"' => self.quoted(text, at + 1)?,
                _ => {
                    let end = at + memchr3(b',', b'\n', b'\r', &text.as_bytes()[at..])?;
                    if may_have_quotes && memchr(b'"', &text.as_bytes()[at..end]).is_some() {
                        return None;
                    }
                    (Span { start: at, end, is_unquoted: false }, end)
                }
            };
            self.columns.push(column);
            at = after + 1;
            match text.as_bytes().get(after)? {
                b',' => {}
                b'\n' | b'\r' => break,
                _ => return None,
            }
        }
        (at <= MAX_ROW).then_some(())?;
        Some((Columns { text, unquoted: &self.unquoted, columns: &self.columns }, at))
    }

    /// The reader for a row that cannot be scanned; it reads the row from its beginning.
    pub(crate) fn fallback(&mut self) -> &mut Records {
        self.fallback.restart();
        &mut self.fallback
    }

    /// Scans the quoted column whose content begins at `start`. Returns it and the position after
    /// its closing quote.
    fn quoted(&mut self, text: &str, start: usize) -> Option<(Span, usize)> {
        let mut at = start;
        loop {
            let quote = at + memchr(b'"', &text.as_bytes()[at..])?;
            if text.as_bytes().get(quote + 1) != Some(&b'"') {
                let column = if at == start {
                    Span { start, end: quote, is_unquoted: false }
                } else {
                    self.unquote(text.get(start..quote)?)
                };
                return Some((column, quote + 1));
            }
            at = quote + 2;
        }
    }

    /// Replaces doubled quotes by single ones.
    #[cold]
    fn unquote(&mut self, content: &str) -> Span {
        let (start, mut rest) = (self.unquoted.len(), 0);
        let mut quotes = memchr_iter(b'"', content.as_bytes());
        // The first quote of each pair is kept.
        while let (Some(quote), Some(_second)) = (quotes.next(), quotes.next()) {
            self.unquoted.push_str(content.get(rest..=quote).unwrap_or_default());
            rest = quote + 2;
        }
        self.unquoted.push_str(content.get(rest..).unwrap_or_default());
        Span { start, end: self.unquoted.len(), is_unquoted: true }
    }
}

impl<'t> Columns<'t> {
    pub(crate) fn len(&self) -> usize {
        self.columns.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &'t str> {
        let Self { text, unquoted, columns } = *self;
        // Quotes and separators are ASCII, so every column begins and ends at a character boundary.
        columns.iter().map(move |column| {
            let text = if column.is_unquoted { unquoted } else { text };
            text.get(column.start..column.end).unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::csv::records::Next;

    fn scan(text: &str) -> Option<(Vec<String>, usize)> {
        let mut scanner = Scanner::default();
        let (columns, length) = scanner.row(text, true)?;
        assert_eq!(columns.len(), columns.iter().count());
        Some((columns.iter().map(str::to_owned).collect(), length))
    }

    /// Reads the same row with `csv-core`.
    fn read(text: &str) -> Option<(Vec<String>, usize)> {
        let (mut records, mut rest) = (Records::default(), text.as_bytes());
        let columns = match records.next(&mut rest).expect("a slice") {
            Next::Record(record) if record.misplaced_quote().is_some() => return None,
            Next::Record(record) => record.texts().expect("a text").iter().map(str::to_owned).collect(),
            Next::End | Next::Broken { .. } | Next::TooLong(_) => return None,
        };
        Some((columns, text.len() - rest.len()))
    }

    #[test]
    fn columns_equal_those_of_csv_core() {
        let cases: [(&str, &[&str]); 6] = [
            ("a,b\nc", &["a", "b"]),
            ("a,b\r\nc", &["a", "b"]),
            (",\n", &["", ""]),
            ("\"a,\n\",\"\"\n", &["a,\n", ""]),
            ("\"\"\"\",\"a\"\"b\"\"\",\"\"\"c\"\n", &["\"", "a\"b\"", "\"c"]),
            ("ä,\"ö\"\"\"\n", &["ä", "ö\""]),
        ];
        for (text, columns) in cases {
            assert_eq!(
                scan(text).map(|row| row.0).as_deref(),
                read(text).map(|row| row.0).as_deref(),
                "{text:?}"
            );
            assert!(scan(text).is_some_and(|row| row.0 == columns), "{text:?}");
        }
    }

    #[test]
    fn exceptional_rows_are_not_scanned() {
        let long = format!("{}\n", "x".repeat(MAX_ROW));
        for text in ["a", "a,", "a,\"b", "a,\"b\"", "\"a\"b\n", "\"a\"\"", "", &long] {
            assert_eq!(scan(text), None, "{text:?}");
        }
        for text in ["a\"b,c\n", "b,c\"\n", " \"a\" ,b\n", "\"O\\\"Brien\"\n", "\"a\",\"b\" \n"] {
            assert_eq!((scan(text), read(text)), (None, None), "{text:?}");
        }
        assert!(scan(&long[1..]).is_some());
    }

    proptest! {
        #[test]
        fn scanned_row_equals_that_of_csv_core(text in "[aä\u{feff},\"\r\n]{1,30}") {
            prop_assume!(!text.starts_with(['\r', '\n']));
            if let Some(row) = scan(&text) {
                prop_assert_eq!(Some(row), read(&text));
            }
            // Every correct row with a line end is scanned.
            if let Some((_, length)) = read(&text) && text[..length].ends_with(['\r', '\n']) {
                prop_assert!(scan(&text).is_some());
            }
        }
    }
}
