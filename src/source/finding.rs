//! What is wrong with an export, and where: a diagnostic for each kind of mistake in each column, with its first row and how
//! many rows have it.
//!
//! An export with one mistake in a million rows has to be mended by somebody who sees the line; one with a
//! million mistakes is usually a single mistake. So a reader goes on after a bad row, and rows that are wrong in the same
//! way are one diagnostic: they do not hide what is wrong in another column. At most [`MAX_FINDINGS`] of them are kept, and
//! the messages of what lies beyond are not even written.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use keyward_engine::record::Escaped;

use super::bad_row::BadRows;

/// Diagnostics kept in full: a screenful. The others are counted.
pub const MAX_FINDINGS: usize = 20;

/// Where in its line a diagnostic is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Column {
    /// A column of a CSV file.
    Numbered {
        /// Counted from 1.
        number: usize,
        /// Its name in the header; of a column of the header itself, or one that it lacks, none.
        name: Option<Arc<str>>,
    },
    /// A field of a JSON object, by its name in the file.
    Named(Arc<str>),
    /// A field of a JSON object that is none of a key. It is only told from others: the message names it.
    Unknown(Arc<str>),
    /// A byte of the line, counted from 1.
    Byte(usize),
}

impl Column {
    /// Adds what tells diagnostics apart. The byte at which a line is no JSON differs from row to row.
    fn hash_kind(&self, hasher: &mut impl Hasher) {
        match self {
            Self::Byte(_) => Self::Byte(0).hash(hasher),
            column => column.hash(hasher),
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

/// One thing that is wrong with an export, in one row or in many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The line, counted from 1, at which the first row begins that has it; 0 where the diagnostic is about the whole export.
    pub line: u64,
    /// Where in the line, if it is about a part of it.
    pub column: Option<Column>,
    /// What is wrong, and how to write it instead. It never holds a whole text that might be a key.
    pub message: String,
    /// How often it is found, the first time among them.
    pub count: u64,
}

impl Diagnostic {
    /// Displays it after the name of its export, as in
    /// `keys.csv:17: column 4 (expires_at): "2026-13-01" is not a time; ...`.
    pub fn display<'a>(&'a self, source: &'a str) -> impl fmt::Display + 'a {
        Located { diagnostic: self, source }
    }
}

struct Located<'a> {
    diagnostic: &'a Diagnostic,
    source: &'a str,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diagnostic { line, column, message, count } = self.diagnostic;
        write!(f, "{}:", self.source)?;
        if *line > 0 {
            write!(f, "{line}:")?;
        }
        match column {
            None | Some(Column::Unknown(_)) => {}
            Some(column) => write!(f, " {column}:")?,
        }
        write!(f, " {message}{}", RepeatCount(*count))
    }
}

/// How many rows beside the first have a diagnostic, behind its message; nothing where there are none.
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

/// Collects the diagnostics of one export: the first [`MAX_FINDINGS`] kinds in full, the others as a number.
#[derive(Clone, Debug)]
pub struct Diagnostics {
    source: String,
    kept: Vec<Diagnostic>,
    /// What tells each of them from others.
    kinds: Vec<u64>,
    pub(super) total: u64,
    /// The rows that have them.
    pub(super) bad_rows: Box<BadRows>,
}

impl Diagnostics {
    /// No diagnostics yet; `source` names the export in front of each.
    pub fn new(source: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            kept: Vec::new(),
            kinds: Vec::new(),
            total: 0,
            bad_rows: Box::default(),
        }
    }

    /// Adds one; see [`Diagnostic`] for `line` and `column`. The message is written only if it is the first of its kind, and kept.
    pub fn add(&mut self, line: u64, column: Option<Column>, message: impl fmt::Display) {
        self.total += 1;
        let kind = kind(line == 0, column.as_ref(), &message);
        if let Some(known) = self.kinds.iter().position(|other| *other == kind) {
            self.kept[known].count += 1;
        } else if self.kept.len() < MAX_FINDINGS {
            self.kept.push(Diagnostic { line, column, message: message.to_string(), count: 1 });
            self.kinds.push(kind);
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// How many there are, kept or not.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The first of each kind, in the order of the export.
    pub fn kept(&self) -> &[Diagnostic] {
        &self.kept
    }

    /// How many are of other kinds than those that are kept.
    pub fn omitted(&self) -> u64 {
        self.total - self.kept.iter().map(|diagnostic| diagnostic.count).sum::<u64>()
    }

    /// The name of the export.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// One diagnostic a line, and in the last the number of those that were not kept.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.kept.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}", diagnostic.display(&self.source))?;
        }
        match self.omitted() {
            0 => Ok(()),
            more => write!(f, "\n{}: and {more} more of other kinds", self.source),
        }
    }
}

/// What tells a diagnostic from those of another kind: whether it is about the whole export, its column, and its message without
/// what differs from row to row.
fn kind(of_all: bool, column: Option<&Column>, message: &impl fmt::Display) -> u64 {
    let mut template = Template { hasher: DefaultHasher::new(), place: Place::Text, word: Word::default() };
    of_all.hash(&mut template.hasher);
    if let Some(column) = column {
        column.hash_kind(&mut template.hasher);
    }
    // A hasher takes every write.
    let _ = write!(template, "{message}");
    template.end_word();
    template.hasher.finish()
}

/// Hashes a message without the texts in quotes and the words with digits in it.
struct Template {
    hasher: DefaultHasher,
    place: Place,
    word: Word,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Text,
    Quoted,
    /// Behind a backslash in quotes.
    Escaped,
}

/// A word of a message, as far as it has been written.
#[derive(Default)]
struct Word {
    hash: DefaultHasher,
    has_digit: bool,
}

impl Template {
    fn end_word(&mut self) {
        let Word { hash, has_digit } = std::mem::take(&mut self.word);
        if !has_digit {
            self.hasher.write_u64(hash.finish());
        }
    }
}

impl Write for Template {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.place = match (self.place, byte) {
                (Place::Text, b'"') => Place::Quoted,
                (Place::Text, b' ' | b'\n') => {
                    self.end_word();
                    Place::Text
                }
                (Place::Text, _) => {
                    self.word.has_digit |= byte.is_ascii_digit();
                    self.word.hash.write_u8(byte);
                    Place::Text
                }
                (Place::Quoted, b'"') => Place::Text,
                (Place::Quoted, b'\\') => Place::Escaped,
                (Place::Quoted | Place::Escaped, _) => Place::Quoted,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_where_it_is() {
        let mut diagnostics = Diagnostics::new("keys.csv");
        assert!(diagnostics.is_empty());
        diagnostics.add(17, Some(Column::Numbered { number: 4, name: Some("until".into()) }), "wrong");
        diagnostics.add(1, Some(Column::Numbered { number: 4, name: None }), "wrong");
        diagnostics.add(2, Some(Column::Named("until".into())), "wrong");
        diagnostics.add(3, Some(Column::Byte(9)), "wrong");
        diagnostics.add(4, None, "wrong");
        diagnostics.add(0, None, "wrong");
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
    fn rows_that_are_wrong_in_the_same_way_are_one_finding() {
        let status = || Some(Column::Numbered { number: 3, name: Some("status".into()) });
        let mut diagnostics = Diagnostics::new("keys.csv");
        for line in 2..20_002 {
            let text = ["t", "f", "a \\\" b", "1"][line as usize % 4];
            diagnostics.add(line, status(), format_args!("\"{text}\" is not a status; it is active"));
        }
        diagnostics.add(
            7,
            Some(Column::Numbered { number: 4, name: None }),
            "\"t\" is not a status; it is active",
        );
        diagnostics.add(8, status(), "\"t\" is not a time");
        for line in [9, 10] {
            diagnostics.add(line, None, format_args!("the same key_hash as in line {}", line - 1));
        }
        for byte in [3, 4] {
            diagnostics.add(11, Some(Column::Byte(byte)), "it is not JSON: expected value");
        }
        for name in ["a", "b"] {
            let message = format_args!("\"{name}\" is not a field");
            diagnostics.add(12, Some(Column::Unknown(name.into())), message);
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
    fn twenty_kinds_are_kept_and_the_rest_counted() {
        let mut diagnostics = Diagnostics::new("keys.csv");
        let kinds: Vec<String> = (b'a'..=b'y').map(|letter| char::from(letter).to_string()).collect();
        for round in 0..3 {
            kinds.iter().zip(1..).for_each(|(kind, line)| diagnostics.add(100 * round + line, None, kind));
        }
        assert_eq!((diagnostics.total(), diagnostics.kept().len(), diagnostics.omitted()), (75, 20, 15));
        let text = diagnostics.to_string();
        assert!(
            text.ends_with("keys.csv:20: t (and 2 more like it)\nkeys.csv: and 15 more of other kinds"),
            "{text}"
        );
    }
}
