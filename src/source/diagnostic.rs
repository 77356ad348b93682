//! What is wrong with an export, and where.
//!
//! A reader continues after a bad row, so that one pass reports everything. Rows that are wrong in
//! the same way make one diagnostic, with the location of the first row and a count: a million
//! errors usually have one cause, and must not hide what is wrong in another column. At most
//! [`MAX_DIAGNOSTICS`] are retained; the messages of the others are not even formatted.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use keyward_engine::record::Escaped;

mod bad_row;

pub use bad_row::BadRow;
use bad_row::BadRows;

/// Diagnostics retained in full: a screenful. The others are only counted.
pub const MAX_DIAGNOSTICS: usize = 20;

/// Where in an export a problem is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// The file as a whole.
    File,
    /// A row.
    Row {
        /// The line at which the row begins, counted from 1.
        line: u64,
    },
    /// A part of a row.
    Column {
        /// The line at which the row begins, counted from 1.
        line: u64,
        /// The part.
        column: Column,
    },
}

/// A part of a row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// A column of a CSV file.
    Numbered {
        /// Counted from 1.
        number: usize,
        /// Its name in the header; `None` if the problem is in the header, or if the header has no
        /// such column.
        name: Option<Arc<str>>,
    },
    /// A field of a JSON object, by its name in the file.
    Named(Arc<str>),
    /// A field of a JSON object that is not a field of a key. It only distinguishes diagnostics:
    /// the message contains the name.
    Unknown(Arc<str>),
    /// A byte of the line, counted from 1.
    Byte(usize),
}

impl Location {
    /// The line at which the row begins, counted from 1; `None` for the file as a whole.
    pub fn line(&self) -> Option<u64> {
        match self {
            Self::File => None,
            Self::Row { line } | Self::Column { line, .. } => Some(*line),
        }
    }

    /// The part of the row, if the problem is confined to one.
    pub fn column(&self) -> Option<&Column> {
        match self {
            Self::File | Self::Row { .. } => None,
            Self::Column { column, .. } => Some(column),
        }
    }

    /// Hashes what rows with the same problem have in common: neither the line, nor the byte at
    /// which the JSON of a line is malformed.
    fn hash_kind(&self, hasher: &mut impl Hasher) {
        matches!(self, Self::File).hash(hasher);
        match self.column() {
            None => {}
            Some(Column::Byte(_)) => Column::Byte(0).hash(hasher),
            Some(column) => column.hash(hasher),
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbered { number, name: Some(name) } => write!(f, "column {number} ({})", Escaped(name)),
            Self::Numbered { number, name: None } => write!(f, "column {number}"),
            Self::Named(name) | Self::Unknown(name) => write!(f, "{}", Escaped(name)),
            Self::Byte(byte) => write!(f, "byte {byte}"),
        }
    }
}

/// A problem of an export, in one row or in many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where the problem occurs first.
    pub location: Location,
    /// What is wrong, and how to write it instead. It never contains the whole of a text that may
    /// be a key.
    pub message: String,
    /// How often the problem occurs, including the first time.
    pub count: u64,
}

impl Diagnostic {
    /// Displays the diagnostic after the name of its source, as in `keys.csv:17: column 4
    /// (expires_at): "2026-13-01" is not a time; ...`.
    pub fn display<'a>(&'a self, source: &'a str) -> impl fmt::Display + 'a {
        InSource { diagnostic: self, source }
    }
}

struct InSource<'a> {
    diagnostic: &'a Diagnostic,
    source: &'a str,
}

impl fmt::Display for InSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { location, message, count } = self.diagnostic;
        write!(f, "{}:", self.source)?;
        if let Some(line) = location.line() {
            write!(f, "{line}:")?;
        }
        match location.column() {
            None | Some(Column::Unknown(_)) => {}
            Some(column) => write!(f, " {column}:")?,
        }
        write!(f, " {message}{}", RepeatCount(*count))
    }
}

/// Displays the number of further occurrences after a message, or nothing if there are none. Holds
/// the number of all occurrences.
#[derive(Clone, Copy, Debug)]
pub struct RepeatCount(pub u64);

impl fmt::Display for RepeatCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.saturating_sub(1) {
            0 => Ok(()),
            more => write!(f, " (and {more} more like it)"),
        }
    }
}

/// Collects the diagnostics of one export.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    source: String,
    retained: Vec<Diagnostic>,
    /// The hash of the kind of each retained diagnostic.
    kinds: Vec<u64>,
    total: u64,
    bad_rows: Box<BadRows>,
}

impl Diagnostics {
    /// Creates an empty collection. `source` is displayed in front of each diagnostic.
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            retained: Vec::new(),
            kinds: Vec::new(),
            total: 0,
            bad_rows: Box::default(),
        }
    }

    /// Adds a problem. Formats the message only if the problem is the first of its kind and is
    /// retained.
    pub fn add(&mut self, location: Location, message: impl fmt::Display) {
        self.total += 1;
        let kind = kind(&location, &message);
        if let Some(known) = self.kinds.iter().position(|other| *other == kind) {
            self.retained[known].count += 1;
        } else if self.retained.len() < MAX_DIAGNOSTICS {
            self.retained.push(Diagnostic { location, message: message.to_string(), count: 1 });
            self.kinds.push(kind);
        }
    }

    /// Whether no problem was found.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Number of occurrences of all problems.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The first of each kind, in the order of the export; at most [`MAX_DIAGNOSTICS`].
    pub fn retained(&self) -> &[Diagnostic] {
        &self.retained
    }

    /// Number of occurrences of problems that are not retained.
    pub fn omitted(&self) -> u64 {
        self.total - self.retained.iter().map(|diagnostic| diagnostic.count).sum::<u64>()
    }

    /// The name of the source.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// Writes one diagnostic per line, and a last line with the number of those omitted.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.retained.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}", diagnostic.display(&self.source))?;
        }
        match self.omitted() {
            0 => Ok(()),
            more => write!(f, "\n{}: and {more} more of other kinds", self.source),
        }
    }
}

/// Identifies the kind of a problem: whether it concerns the whole file, its column, and the
/// template of its message.
fn kind(location: &Location, message: &impl fmt::Display) -> u64 {
    let mut template =
        TemplateHasher { hasher: DefaultHasher::new(), state: State::Text, word: Word::default() };
    location.hash_kind(&mut template.hasher);
    // Writing to a hasher does not fail.
    let _ = write!(template, "{message}");
    template.end_word();
    template.hasher.finish()
}

/// Hashes the template of a message: the message without quoted texts and without words that
/// contain digits, which differ from row to row.
struct TemplateHasher {
    hasher: DefaultHasher,
    state: State,
    word: Word,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Text,
    Quoted,
    /// After a backslash inside quotes.
    Escaped,
}

/// The current word of a message.
#[derive(Default)]
struct Word {
    hash: DefaultHasher,
    has_digit: bool,
}

impl TemplateHasher {
    fn end_word(&mut self) {
        let Word { hash, has_digit } = std::mem::take(&mut self.word);
        if !has_digit {
            self.hasher.write_u64(hash.finish());
        }
    }
}

impl Write for TemplateHasher {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.state = match (self.state, byte) {
                (State::Text, b'"') => State::Quoted,
                (State::Text, b' ' | b'\n') => {
                    self.end_word();
                    State::Text
                }
                (State::Text, _) => {
                    self.word.has_digit |= byte.is_ascii_digit();
                    self.word.hash.write_u8(byte);
                    State::Text
                }
                (State::Quoted, b'"') => State::Text,
                (State::Quoted, b'\\') => State::Escaped,
                (State::Quoted | State::Escaped, _) => State::Quoted,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(line: u64, number: usize, name: Option<&str>) -> Location {
        Location::Column { line, column: Column::Numbered { number, name: name.map(Arc::from) } }
    }

    #[test]
    fn location_is_displayed_before_the_message() {
        let mut diagnostics = Diagnostics::new("keys.csv");
        assert!(diagnostics.is_empty());
        diagnostics.add(numbered(17, 4, Some("until")), "wrong");
        diagnostics.add(numbered(1, 4, None), "wrong");
        diagnostics.add(Location::Column { line: 2, column: Column::Named("until".into()) }, "wrong");
        diagnostics.add(Location::Column { line: 3, column: Column::Byte(9) }, "wrong");
        diagnostics.add(Location::Row { line: 4 }, "wrong");
        diagnostics.add(Location::File, "wrong");
        assert_eq!(
            diagnostics.to_string(),
            "keys.csv:17: column 4 (until): wrong\n\
             keys.csv:1: column 4: wrong\n\
             keys.csv:2: until: wrong\n\
             keys.csv:3: byte 9: wrong\n\
             keys.csv:4: wrong\n\
             keys.csv: wrong"
        );
    }

    #[test]
    fn rows_with_the_same_problem_make_one_diagnostic() {
        let status = |line| numbered(line, 3, Some("status"));
        let mut diagnostics = Diagnostics::new("keys.csv");
        for line in 2..20_002 {
            let text = ["t", "f", "a \\\" b", "1"][line as usize % 4];
            diagnostics.add(status(line), format_args!("\"{text}\" is not a status; it is active"));
        }
        diagnostics.add(numbered(7, 4, None), "\"t\" is not a status; it is active");
        diagnostics.add(status(8), "\"t\" is not a time");
        for line in [9, 10] {
            let message = format_args!("the same key_hash as in line {}", line - 1);
            diagnostics.add(Location::Row { line }, message);
        }
        for byte in [3, 4] {
            let location = Location::Column { line: 11, column: Column::Byte(byte) };
            diagnostics.add(location, "it is not JSON: expected value");
        }
        for name in ["a", "b"] {
            let location = Location::Column { line: 12, column: Column::Unknown(name.into()) };
            diagnostics.add(location, format_args!("\"{name}\" is not a field"));
        }
        assert_eq!(diagnostics.total(), 20_008);
        assert_eq!(
            diagnostics.to_string(),
            "keys.csv:2: column 3 (status): \"a \\\" b\" is not a status; it is active (and 19999 more like it)\n\
             keys.csv:7: column 4: \"t\" is not a status; it is active\n\
             keys.csv:8: column 3 (status): \"t\" is not a time\n\
             keys.csv:9: the same key_hash as in line 8 (and 1 more like it)\n\
             keys.csv:11: byte 3: it is not JSON: expected value (and 1 more like it)\n\
             keys.csv:12: \"a\" is not a field\n\
             keys.csv:12: \"b\" is not a field"
        );
    }

    #[test]
    fn twenty_kinds_are_retained_and_the_others_are_counted() {
        let mut diagnostics = Diagnostics::new("keys.csv");
        let kinds: Vec<String> = (b'a'..=b'y').map(|letter| char::from(letter).to_string()).collect();
        for round in 0..3 {
            for (kind, line) in kinds.iter().zip(1..) {
                diagnostics.add(Location::Row { line: 100 * round + line }, kind);
            }
        }
        let retained = diagnostics.retained().len();
        assert_eq!((diagnostics.total(), retained, diagnostics.omitted()), (75, 20, 15));
        let text = diagnostics.to_string();
        assert!(
            text.ends_with("keys.csv:20: t (and 2 more like it)\nkeys.csv: and 15 more of other kinds"),
            "{text}"
        );
    }
}
