//! Rows that cannot be understood: what is known of them, so that their keys can be kept out of force.

use memchr::memmem;

use crate::record::{Digest, Field, MAX_KEY_ID};

use super::field;
use super::finding::Findings;
use super::layout::Layout;

/// A row with findings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// The line at which it begins, counted from 1.
    pub line: u64,
    /// The hash of its key, if that can be read.
    pub hash: Option<Digest>,
    /// The id of its key, if that can be read.
    pub key_id: Option<Box<str>>,
}

/// The rows of an export that have findings: all of them counted, and the first of them kept.
#[derive(Clone, Debug, Default)]
pub(super) struct BadRows {
    /// How many are kept.
    most: usize,
    kept: Vec<BadRow>,
    total: u64,
    /// Findings that are in them.
    findings: u64,
}

impl Findings {
    /// Has up to `most` bad rows kept, beside what is wrong with them.
    #[must_use]
    pub fn keeping_bad_rows(mut self, most: usize) -> Self {
        self.bad_rows.most = most;
        self
    }

    /// How many rows have findings.
    pub fn bad_rows(&self) -> u64 {
        self.bad_rows.total
    }

    /// The first rows that have findings.
    pub fn kept_bad_rows(&self) -> &[BadRow] {
        &self.bad_rows.kept
    }

    /// Whether each finding is about one row, and every other row was read: nothing is wrong with the header, and the export does
    /// not look as if it were cut short.
    pub fn are_of_rows(&self) -> bool {
        self.bad_rows.findings == self.total()
    }

    /// The findings after the first `before` of them are those of the row that begins at `line`. `texts` are those of its
    /// hash and of its key id.
    pub(super) fn close_row(
        &mut self,
        line: u64,
        before: u64,
        texts: impl FnOnce() -> [Option<Box<str>>; 2],
    ) {
        let rows = &mut self.bad_rows;
        rows.total += 1;
        rows.findings += self.total - before;
        if rows.kept.len() < rows.most {
            let [hash, key_id] = texts();
            rows.kept.push(BadRow {
                line,
                hash: hash.and_then(|text| field::hash(text.trim_ascii()).ok()),
                key_id: key_id.filter(|text| field::required(text, MAX_KEY_ID).is_ok()),
            });
        }
    }
}

/// The texts of the hash and the key id in a line that is no JSON object: the first string behind each name.
pub(super) fn texts_in_line(line: &[u8], layout: &Layout) -> [Option<Box<str>>; 2] {
    [Field::KeyHash, Field::KeyId].map(|field| {
        let name = format!("\"{}\"", layout.column(field));
        let after = line.get(memmem::find(line, name.as_bytes())? + name.len()..)?.trim_ascii_start();
        let value = after.strip_prefix(b":")?.trim_ascii_start();
        let Some(text) = value.strip_prefix(b"\"") else {
            let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
            return str::from_utf8(&value[..digits]).ok().map(Into::into);
        };
        // With its quotes; an escaped quote is in neither of the two.
        serde_json::from_slice(value.get(..memchr::memchr(b'"', text)? + 2)?).ok()
    })
}
