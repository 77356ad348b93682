//! What is wrong with an export, and where: the first few findings in full, the rest as a number.
//!
//! An export with one mistake in a million rows has to be mended by somebody who sees the line; one with a
//! million mistakes is usually a single mistake. So a reader goes on after a bad row, and the messages of
//! what lies beyond the first [`MAX_FINDINGS`] are not even written.

use std::fmt;
use std::sync::Arc;

/// Findings kept in full: a screenful. The others are counted.
pub const MAX_FINDINGS: usize = 20;

/// Where in its line a finding is.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// A byte of the line, counted from 1.
    Byte(usize),
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbered { number, name: Some(name) } => write!(f, "column {number} ({name})"),
            Self::Numbered { number, name: None } => write!(f, "column {number}"),
            Self::Named(name) => write!(f, "{name}"),
            Self::Byte(byte) => write!(f, "byte {byte}"),
        }
    }
}

/// One thing that is wrong with an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The line, counted from 1, at which the row begins; 0 where the finding is about the whole export.
    pub line: u64,
    /// Where in the line, if it is about a part of it.
    pub column: Option<Column>,
    /// What is wrong, and how to write it instead. It never holds a whole text that might be a key.
    pub message: String,
}

impl Finding {
    /// Displays it after the name of its export, as in
    /// `keys.csv:17: column 4 (expires_at): "2026-13-01" is not a time; ...`.
    pub fn display<'a>(&'a self, source: &'a str) -> impl fmt::Display + 'a {
        Located { finding: self, source }
    }
}

struct Located<'a> {
    finding: &'a Finding,
    source: &'a str,
}

impl fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { line, column, message } = self.finding;
        write!(f, "{}:", self.source)?;
        if *line > 0 {
            write!(f, "{line}:")?;
        }
        if let Some(column) = column {
            write!(f, " {column}:")?;
        }
        write!(f, " {message}")
    }
}

/// Collects the findings of one export: the first [`MAX_FINDINGS`] in full, the others as a number.
#[derive(Clone, Debug)]
pub struct Findings {
    source: String,
    kept: Vec<Finding>,
    total: u64,
}

impl Findings {
    /// No findings yet; `source` names the export in front of each.
    pub fn new(source: impl Into<String>) -> Self {
        Self { source: source.into(), kept: Vec::new(), total: 0 }
    }

    /// Adds one; see [`Finding`] for `line` and `column`. The message is written only if it is kept.
    pub fn add(&mut self, line: u64, column: Option<Column>, message: impl fmt::Display) {
        self.total += 1;
        if self.kept.len() < MAX_FINDINGS {
            self.kept.push(Finding { line, column, message: message.to_string() });
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

    /// The ones that are kept, in the order of the export.
    pub fn kept(&self) -> &[Finding] {
        &self.kept
    }

    /// The name of the export.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// One finding a line, and in the last the number of those that were not kept.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.kept.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}", finding.display(&self.source))?;
        }
        match self.total - self.kept.len() as u64 {
            0 => Ok(()),
            more => write!(f, "\n{}: and {more} more", self.source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_where_it_is() {
        let mut findings = Findings::new("keys.csv");
        assert!(findings.is_empty());
        findings.add(17, Some(Column::Numbered { number: 4, name: Some("until".into()) }), "wrong");
        findings.add(1, Some(Column::Numbered { number: 4, name: None }), "wrong");
        findings.add(2, Some(Column::Named("until".into())), "wrong");
        findings.add(3, Some(Column::Byte(9)), "wrong");
        findings.add(4, None, "wrong");
        findings.add(0, None, "wrong");
        assert_eq!(
            findings.to_string(),
            "keys.csv:17: column 4 (until): wrong\n\
             keys.csv:1: column 4: wrong\n\
             keys.csv:2: until: wrong\n\
             keys.csv:3: byte 9: wrong\n\
             keys.csv:4: wrong\n\
             keys.csv: wrong"
        );
    }

    #[test]
    fn the_first_twenty_are_kept_and_the_rest_counted() {
        struct Unwritten;
        impl fmt::Display for Unwritten {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                unreachable!("a message that is not kept is not written")
            }
        }
        let mut findings = Findings::new("keys.csv");
        (1..=20).for_each(|line| findings.add(line, None, line));
        (21..=25).for_each(|line| findings.add(line, None, Unwritten));
        assert_eq!((findings.total(), findings.kept().len()), (25, 20));
        let text = findings.to_string();
        assert!(text.ends_with("keys.csv:20: 20\nkeys.csv: and 5 more"), "{text}");
    }
}
