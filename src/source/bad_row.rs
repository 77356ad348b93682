//! Rows that cannot be understood: what is known of them, so that their keys can be kept out of force.

use memchr::memmem;

use keyward_engine::record::{Digest, Field, MAX_KEY_ID};

use super::field;
use super::finding::Diagnostics;
use super::layout::ColumnMapping;

/// A row with diagnostics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// The line at which it begins, counted from 1.
    pub line: u64,
    /// The hash of its key, if that can be read.
    pub hash: Option<Digest>,
    /// The id of its key, if that can be read.
    pub key_id: Option<Box<str>>,
}

/// The rows of an export that have diagnostics: all of them counted, and the first of them kept.
#[derive(Clone, Debug, Default)]
pub(super) struct BadRows {
    /// How many are kept.
    most: usize,
    kept: Vec<BadRow>,
    total: u64,
    /// Diagnostics that are in them.
    diagnostics: u64,
}

impl Diagnostics {
    /// Has up to `most` bad rows kept, beside what is wrong with them.
    #[must_use]
    pub fn retaining_bad_rows(mut self, most: usize) -> Self {
        self.bad_rows.most = most;
        self
    }

    /// How many rows have diagnostics.
    pub fn bad_row_count(&self) -> u64 {
        self.bad_rows.total
    }

    /// The first rows that have diagnostics.
    pub fn retained_bad_rows(&self) -> &[BadRow] {
        &self.bad_rows.kept
    }

    /// Whether each diagnostic is about one row, and every other row was read: nothing is wrong with the header, the export does not
    /// look as if it were cut short, and it is certain where each bad row ends and whose it is.
    pub fn are_confined_to_rows(&self) -> bool {
        self.bad_rows.diagnostics == self.total()
    }

    /// The diagnostics after the first `before` of them are those of the row that begins at `line`. `texts` are those of its hash
    /// and of its key id; `None`: it is not certain which they are, or where the row ends.
    pub(super) fn close_row(&mut self, line: u64, before: u64, texts: Option<KeyTexts>) {
        self.bad_rows.total += 1;
        let Some([hash, key_id]) = texts else {
            if self.bad_rows.most > 0 {
                let message = "it is not certain where this row ends, or which hash in it is its own, so that it \
                               cannot be set aside; a quote may be missing or in the wrong place";
                self.add(line, None, message);
            }
            return;
        };
        let rows = &mut self.bad_rows;
        rows.diagnostics += self.total - before;
        if rows.kept.len() < rows.most {
            rows.kept.push(BadRow {
                line,
                hash: hash.and_then(|text| hash_of(&text)),
                key_id: key_id.filter(|text| field::required(text, MAX_KEY_ID).is_ok()),
            });
        }
    }
}

/// The texts of the hash and of the key id of a row, as far as it has them.
pub(super) type KeyTexts = [Option<Box<str>>; 2];

/// The hash that a text is.
pub(super) fn hash_of(text: &str) -> Option<Digest> {
    field::decoded(text.trim_ascii())
}

/// What separates words in a line of JSON, whatever is wrong with it. Hashes of PostgreSQL begin with an `x` behind backslashes.
const SEPARATORS: [u8; 9] = *b",;\t\r\n \"'\\";

/// The texts in `line` that are hashes.
fn hashes_in(line: &[u8]) -> impl Iterator<Item = (&str, Digest)> {
    let words = line.split(|byte| SEPARATORS.contains(byte));
    words.filter_map(|word| {
        let word = str::from_utf8(word).ok()?;
        let word = word.strip_prefix('x').filter(|digits| digits.len() == 64).unwrap_or(word);
        Some((word, hash_of(word)?))
    })
}

/// The texts in a line that is no JSON object: the only hash in it, and the string behind the only name of the key id. `None`: there
/// is more than one hash.
pub(super) fn texts_in_line(line: &[u8], mapping: &ColumnMapping) -> Option<KeyTexts> {
    let mut hashes = hashes_in(line);
    let first = hashes.next();
    if hashes.any(|(_, hash)| first.is_some_and(|(_, first)| first != hash)) {
        return None;
    }
    Some([first.map(|(text, _)| text.into()), key_id_in_line(line, mapping)])
}

fn key_id_in_line(line: &[u8], mapping: &ColumnMapping) -> Option<Box<str>> {
    let name = format!("\"{}\"", mapping.column(Field::KeyId));
    let mut places = memmem::find_iter(line, name.as_bytes());
    let (at, None) = (places.next()?, places.next()) else { return None };
    let after = line.get(at + name.len()..)?.trim_ascii_start();
    let value = after.strip_prefix(b":")?.trim_ascii_start();
    let Some(text) = value.strip_prefix(b"\"") else {
        let digits = value.iter().take_while(|byte| byte.is_ascii_digit()).count();
        return str::from_utf8(&value[..digits]).ok().map(Into::into);
    };
    // With its quotes. An id with an escaped quote in it is not read.
    serde_json::from_slice(value.get(..memchr::memchr(b'"', text)? + 2)?).ok()
}
