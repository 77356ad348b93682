//! Rows that cannot be parsed: what is known about their keys, so that the keys can be set aside.

use keyward_engine::record::{Digest, MAX_KEY_ID};

use crate::diagnostic::{Diagnostics, Location};
use crate::field;
use crate::key_texts::{KeyTexts, parse_hash};

/// A row with a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// The line at which the row begins, counted from 1.
    pub line: u64,
    /// The digest of its key, if it can be read.
    pub hash: Option<Digest>,
    /// The id of its key, if it can be read.
    pub key_id: Option<Box<str>>,
}

/// The bad rows of an export: their number, and the first of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct BadRows {
    /// How many rows are retained at most.
    capacity: usize,
    retained: Vec<BadRow>,
    total: u64,
    /// How many problems the rows have together.
    problems: u64,
}

impl Diagnostics {
    /// Retains up to `capacity` bad rows, besides the diagnostics.
    #[must_use]
    pub fn retaining_bad_rows(mut self, capacity: usize) -> Self {
        self.bad_rows.capacity = capacity;
        self
    }

    /// Number of rows with a problem.
    pub fn bad_row_count(&self) -> u64 {
        self.bad_rows.total
    }

    /// The first rows with a problem.
    pub fn retained_bad_rows(&self) -> &[BadRow] {
        &self.bad_rows.retained
    }

    /// Whether every problem is confined to a row, and every other row was read: the header is
    /// correct, the file is not truncated, and it is certain where each bad row ends and which key
    /// it belongs to.
    pub fn are_confined_to_rows(&self) -> bool {
        self.bad_rows.problems == self.total()
    }

    /// Attributes the problems found since the total was `total_before` to the row that begins at
    /// `line`. `texts` is `None` if it is uncertain where the row ends or which digest belongs to
    /// it.
    pub(crate) fn close_row(&mut self, line: u64, total_before: u64, texts: Option<KeyTexts>) {
        self.bad_rows.total += 1;
        let Some([hash, key_id]) = texts else {
            if self.bad_rows.capacity > 0 {
                let message = "it is not certain where this row ends, or which hash in it is its own, so that it \
                               cannot be set aside; a quote may be missing or in the wrong place";
                self.add(Location::Row { line }, message);
            }
            return;
        };
        let rows = &mut self.bad_rows;
        rows.problems += self.total - total_before;
        if rows.retained.len() < rows.capacity {
            rows.retained.push(BadRow {
                line,
                hash: hash.and_then(|text| parse_hash(&text)),
                key_id: key_id.filter(|text| field::required(text, MAX_KEY_ID).is_ok()),
            });
        }
    }
}
