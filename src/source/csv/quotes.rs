//! Detects quotes that RFC 4180 does not allow: a closing quote that is not followed by the end of
//! the field, and a quote in a field that does not begin with one.
//!
//! `csv-core` accepts such fields, but other readers interpret them differently, and a quote
//! escaped by a backslash moves the ends of all following fields. This state machine runs next to
//! `csv-core` and tracks only quotes and separators.

use memchr::{memchr, memchr_iter};

/// The position in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    FieldStart,
    Unquoted,
    Quoted,
    /// After a quote inside quotes, which is either the first of a pair or the closing quote.
    QuoteInQuoted,
}

/// A misplaced quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QuoteError {
    #[error(
        "the closing quote is followed by more text; a quote inside of a quoted field is written twice, as in \
         \"O\"\"Brien\" (RFC 4180)"
    )]
    AfterClosing,
    #[error(
        "a quote behind a backslash ends the field, because CSV knows no backslash escapes; export quotes written \
         twice, as in \"O\"\"Brien\" (RFC 4180; MySQL: ESCAPED BY '\"')"
    )]
    Backslash,
    #[error(
        "there is a quote in a field that does not begin with one; put the whole field in quotes and write the quote \
         twice, as in \"O\"\"Brien\" (RFC 4180)"
    )]
    Bare,
}

/// Tracks the quotes of one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quotes {
    state: State,
    /// The index of the current column.
    column: usize,
    last: u8,
    /// The byte before the last quote inside quotes.
    before_quote: u8,
    misplaced: Option<(usize, QuoteError)>,
}

impl Quotes {
    /// Starts at the beginning of a row.
    pub(crate) fn new() -> Self {
        Self { state: State::FieldStart, column: 0, last: 0, before_quote: 0, misplaced: None }
    }

    /// The first misplaced quote, with the index of its column.
    pub(crate) fn misplaced(&self) -> Option<(usize, QuoteError)> {
        self.misplaced
    }

    /// The index of the current column, if it is inside quotes.
    pub(crate) fn open_column(&self) -> Option<usize> {
        (self.state == State::Quoted).then_some(self.column)
    }

    /// Consumes the next bytes of the row. The caller must not pass bytes beyond its end.
    pub(crate) fn consume(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while let Some(&byte) = bytes.first() {
            let run = self.consume_plain(bytes);
            if run > 0 {
                self.last = bytes[run - 1];
                bytes = &bytes[run..];
                continue;
            }
            self.consume_byte(byte);
            self.last = byte;
            bytes = &bytes[1..];
        }
    }

    /// Consumes the bytes before the next quote, which affect only the column. Returns their
    /// number.
    fn consume_plain(&mut self, bytes: &[u8]) -> usize {
        match self.state {
            State::Quoted => memchr(b'"', bytes).unwrap_or(bytes.len()),
            State::FieldStart | State::Unquoted => {
                let plain = &bytes[..memchr(b'"', bytes).unwrap_or(bytes.len())];
                if let Some(last) = plain.last() {
                    self.column += memchr_iter(b',', plain).count();
                    self.state = if *last == b',' { State::FieldStart } else { State::Unquoted };
                }
                plain.len()
            }
            State::QuoteInQuoted => 0,
        }
    }

    fn consume_byte(&mut self, byte: u8) {
        self.state = match (self.state, byte) {
            (State::FieldStart, b'"') => State::Quoted,
            (State::Quoted, b'"') => {
                self.before_quote = self.last;
                State::QuoteInQuoted
            }
            (State::QuoteInQuoted, b'"') => State::Quoted,
            (State::QuoteInQuoted, b',') => {
                self.column += 1;
                State::FieldStart
            }
            (State::QuoteInQuoted, b'\r' | b'\n') => State::FieldStart,
            (State::QuoteInQuoted, _) => {
                let is_backslash = self.before_quote == b'\\';
                self.report(if is_backslash { QuoteError::Backslash } else { QuoteError::AfterClosing });
                State::Unquoted
            }
            (State::Unquoted, b'"') => {
                self.report(QuoteError::Bare);
                State::Unquoted
            }
            (state, _) => state,
        };
    }

    fn report(&mut self, error: QuoteError) {
        self.misplaced = self.misplaced.or(Some((self.column, error)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn consume(row: &str) -> Quotes {
        let mut quotes = Quotes::new();
        quotes.consume(row.as_bytes());
        quotes
    }

    #[test]
    fn quotes_of_rfc_4180_are_accepted() {
        for row in [
            "",
            "a,b",
            "\"a\",\"\"",
            "\"a\"\"b\",c",
            "a,\"b,\n\"\"\"",
            "\"\"\"\"\r",
            "\"a\"\n",
            "\"a\\\\\",b",
        ] {
            assert_eq!(consume(row).misplaced(), None, "{row}");
        }
        assert_eq!(consume("a,\"b").open_column(), Some(1));
        assert_eq!(consume("a,\"b\"").open_column(), None);
    }

    #[test]
    fn misplaced_quote_is_reported_with_its_column() {
        for (row, misplaced) in [
            ("\"acme\"x", (0, QuoteError::AfterClosing)),
            ("a,\"acme\" ,b", (1, QuoteError::AfterClosing)),
            ("a,\"\"b", (1, QuoteError::AfterClosing)),
            ("a,b,\"O\\\"Brien\"", (2, QuoteError::Backslash)),
            ("ac\"me", (0, QuoteError::Bare)),
            ("a, \"b\"", (1, QuoteError::Bare)),
            ("\"a\\\",b\"", (1, QuoteError::Bare)),
            ("\"a\"x,b\"c", (0, QuoteError::AfterClosing)),
        ] {
            assert_eq!(consume(row).misplaced(), Some(misplaced), "{row}");
        }
    }

    proptest! {
        #[test]
        fn result_does_not_depend_on_the_division_of_the_input(row in "[a,\"\\\\]{0,20}", cuts in prop::collection::vec(0_usize..20, 0..4)) {
            let whole = consume(&row);
            let mut quotes = Quotes::new();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(row.len())).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts.into_iter().chain([row.len()]) {
                quotes.consume(&row.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!((quotes.misplaced(), quotes.open_column()), (whole.misplaced(), whole.open_column()));
        }
    }
}
