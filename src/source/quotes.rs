//! Quotes that RFC 4180 does not allow: behind a closing quote something else than the end of the field, or a quote in a
//! field that does not begin with one.
//!
//! `csv-core` reads such fields all the same, and other readers read them differently: what is `acme` and `x` here is one
//! word there, and a quote that a backslash was to protect moves the ends of all fields behind it. So the bytes of a row
//! are followed beside `csv-core`, only as far as quotes and separators go.

use memchr::{memchr, memchr_iter};

/// Where in a row its bytes have led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    FieldStart,
    Unquoted,
    Quoted,
    /// Behind a quote inside of quotes: the first of two, or the closing one.
    QuoteInQuoted,
}

/// A quote in the wrong place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum QuoteError {
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

/// Follows the bytes of one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quotes {
    state: State,
    /// The column at hand, counted from 0.
    column: usize,
    last: u8,
    /// The byte before the quote that was seen last.
    before_quote: u8,
    wrong: Option<(usize, QuoteError)>,
}

impl Quotes {
    /// At the beginning of a row.
    pub(super) fn new() -> Self {
        Self { state: State::FieldStart, column: 0, last: 0, before_quote: 0, wrong: None }
    }

    /// The first quote in the wrong place, and its column, counted from 0.
    pub(super) fn wrong(&self) -> Option<(usize, QuoteError)> {
        self.wrong
    }

    /// The column whose quotes are open.
    pub(super) fn open(&self) -> Option<usize> {
        (self.state == State::Quoted).then_some(self.column)
    }

    /// The next bytes of the row, up to its end and no further.
    pub(super) fn follow(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while let Some(&byte) = bytes.first() {
            let run = self.run(bytes);
            if run > 0 {
                self.last = bytes[run - 1];
                bytes = &bytes[run..];
                continue;
            }
            self.byte(byte);
            self.last = byte;
            bytes = &bytes[1..];
        }
    }

    /// How many of the bytes change nothing but the column: those without a quote.
    fn run(&mut self, bytes: &[u8]) -> usize {
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

    fn byte(&mut self, byte: u8) {
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
                self.found(if is_backslash { QuoteError::Backslash } else { QuoteError::AfterClosing });
                State::Unquoted
            }
            (State::Unquoted, b'"') => {
                self.found(QuoteError::Bare);
                State::Unquoted
            }
            (state, _) => state,
        };
    }

    fn found(&mut self, error: QuoteError) {
        self.wrong = self.wrong.or(Some((self.column, error)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn followed(row: &str) -> Quotes {
        let mut quotes = Quotes::new();
        quotes.follow(row.as_bytes());
        quotes
    }

    #[test]
    fn quotes_of_rfc_4180_are_in_order() {
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
            assert_eq!(followed(row).wrong(), None, "{row}");
        }
        assert_eq!(followed("a,\"b").open(), Some(1));
        assert_eq!(followed("a,\"b\"").open(), None);
    }

    #[test]
    fn a_quote_in_the_wrong_place_is_found_with_its_column() {
        for (row, wrong) in [
            ("\"acme\"x", (0, QuoteError::AfterClosing)),
            ("a,\"acme\" ,b", (1, QuoteError::AfterClosing)),
            ("a,\"\"b", (1, QuoteError::AfterClosing)),
            ("a,b,\"O\\\"Brien\"", (2, QuoteError::Backslash)),
            ("ac\"me", (0, QuoteError::Bare)),
            ("a, \"b\"", (1, QuoteError::Bare)),
            ("\"a\\\",b\"", (1, QuoteError::Bare)),
            ("\"a\"x,b\"c", (0, QuoteError::AfterClosing)),
        ] {
            assert_eq!(followed(row).wrong(), Some(wrong), "{row}");
        }
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_the_bytes_are_cut(row in "[a,\"\\\\]{0,20}", cuts in prop::collection::vec(0_usize..20, 0..4)) {
            let whole = followed(&row);
            let mut quotes = Quotes::new();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(row.len())).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts.into_iter().chain([row.len()]) {
                quotes.follow(&row.as_bytes()[from..cut]);
                from = cut;
            }
            prop_assert_eq!((quotes.wrong(), quotes.open()), (whole.wrong(), whole.open()));
        }
    }
}
