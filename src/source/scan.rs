//! The rows of a CSV text that lies in memory, found by their separators and borrowed from it.
//!
//! [`csv-core`](super::records) goes byte by byte and copies what it reads, because it must be able to stop anywhere; that takes several
//! times as long as everything else that is done with a row. Here a column is looked for as a whole. A row of which that is not
//! enough (it is cut short, longer than any may be, or a quote is in a place where RFC 4180 has none) is left to `csv-core`, from
//! its beginning. A test compares the two.

use memchr::{memchr, memchr_iter, memchr3};

use super::MAX_ROW;
use super::records::Records;

/// Finds rows. It can be used again, for what it has allocated.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    columns: Vec<Span>,
    /// Columns in which quotes were doubled, as they are meant.
    unquoted: String,
    others: Records,
}

/// Where a column is: in the text, or where quotes are doubled in it, in [`Scanner::unquoted`].
#[derive(Clone, Copy, Debug)]
struct Span {
    start: usize,
    end: usize,
    doubled: bool,
}

/// The columns of one row.
pub(super) struct Columns<'t> {
    text: &'t str,
    unquoted: &'t str,
    columns: &'t [Span],
}

impl Scanner {
    /// The columns of the row that `text` begins with, and the bytes that it takes up to and with the end of its line: where that
    /// is two bytes, with the first. `quotes`: there may be quotes in it. `None`: it has to be read in another way.
    pub(super) fn row<'t>(&'t mut self, text: &'t str, quotes: bool) -> Option<(Columns<'t>, usize)> {
        self.columns.clear();
        self.unquoted.clear();
        let mut at = 0;
        loop {
            let (column, after) = match text.as_bytes().get(at)? {
                b'"' => self.quoted(text, at + 1)?,
                _ => {
                    let end = at + memchr3(b',', b'\n', b'\r', &text.as_bytes()[at..])?;
                    if quotes && memchr(b'"', &text.as_bytes()[at..end]).is_some() {
                        return None;
                    }
                    (Span { start: at, end, doubled: false }, end)
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

    /// What reads a row that has to be read in another way, from its beginning.
    pub(super) fn others(&mut self) -> &mut Records {
        self.others.restart();
        &mut self.others
    }

    /// The column whose inside begins at `start`, and where its closing quote is behind.
    fn quoted(&mut self, text: &str, start: usize) -> Option<(Span, usize)> {
        let mut at = start;
        loop {
            let quote = at + memchr(b'"', &text.as_bytes()[at..])?;
            if text.as_bytes().get(quote + 1) != Some(&b'"') {
                let column = match at == start {
                    true => Span { start, end: quote, doubled: false },
                    false => self.undouble(text.get(start..quote)?),
                };
                return Some((column, quote + 1));
            }
            at = quote + 2;
        }
    }

    #[cold]
    fn undouble(&mut self, inside: &str) -> Span {
        let (start, mut rest) = (self.unquoted.len(), 0);
        let mut quotes = memchr_iter(b'"', inside.as_bytes());
        // The first of each two is kept.
        while let (Some(quote), Some(_second)) = (quotes.next(), quotes.next()) {
            self.unquoted.push_str(inside.get(rest..=quote).unwrap_or_default());
            rest = quote + 2;
        }
        self.unquoted.push_str(inside.get(rest..).unwrap_or_default());
        Span { start, end: self.unquoted.len(), doubled: true }
    }
}

impl<'t> Columns<'t> {
    pub(super) fn len(&self) -> usize {
        self.columns.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &'t str> {
        let Self { text, unquoted, columns } = *self;
        // Quotes and separators are characters of their own, so that a column begins and ends with one.
        columns.iter().map(move |column| {
            let text = if column.doubled { unquoted } else { text };
            text.get(column.start..column.end).unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::records::Next;
    use super::*;

    fn scanned(text: &str) -> Option<(Vec<String>, usize)> {
        let mut scanner = Scanner::default();
        let (columns, length) = scanner.row(text, true)?;
        assert_eq!(columns.len(), columns.iter().count());
        Some((columns.iter().map(str::to_owned).collect(), length))
    }

    /// What `csv-core` makes of the same.
    fn read(text: &str) -> Option<(Vec<String>, usize)> {
        let (mut records, mut rest) = (Records::default(), text.as_bytes());
        let columns = match records.next(&mut rest).expect("a slice") {
            Next::Record(record) if record.wrong_quote().is_some() => return None,
            Next::Record(record) => record.texts().expect("a text").iter().map(str::to_owned).collect(),
            Next::End | Next::FramingError(..) | Next::TooLong(_) => return None,
        };
        Some((columns, text.len() - rest.len()))
    }

    #[test]
    fn columns_are_found_as_they_are_meant() {
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
                scanned(text).map(|row| row.0).as_deref(),
                read(text).map(|row| row.0).as_deref(),
                "{text:?}"
            );
            assert!(scanned(text).is_some_and(|row| row.0 == columns), "{text:?}");
        }
    }

    #[test]
    fn what_is_out_of_the_ordinary_is_left() {
        let long = format!("{}\n", "x".repeat(MAX_ROW));
        for text in ["a", "a,", "a,\"b", "a,\"b\"", "\"a\"b\n", "\"a\"\"", "", &long] {
            assert_eq!(scanned(text), None, "{text:?}");
        }
        for text in ["a\"b,c\n", "b,c\"\n", " \"a\" ,b\n", "\"O\\\"Brien\"\n", "\"a\",\"b\" \n"] {
            assert_eq!((scanned(text), read(text)), (None, None), "{text:?}");
        }
        assert!(scanned(&long[1..]).is_some());
    }

    proptest! {
        #[test]
        fn a_row_is_what_csv_core_makes_of_it(text in "[aä\u{feff},\"\r\n]{1,30}") {
            prop_assume!(!text.starts_with(['\r', '\n']));
            if let Some(row) = scanned(&text) {
                prop_assert_eq!(Some(row), read(&text));
            }
            // What both read, the fast way reads as well.
            if let Some((_, length)) = read(&text) && text[..length].ends_with(['\r', '\n']) {
                prop_assert!(scanned(&text).is_some());
            }
        }
    }
}
