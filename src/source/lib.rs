//! Everything that turns an export into key records.
//!
//! An *export* is a text with one *row* for each key, in CSV or JSON Lines. [`read`] takes it from any `Read`
//! and hands the [`KeyRecord`] of each row to a *sink*, one at a time: memory stays the same however long the
//! export is. What is wrong with a row is a *diagnostic* with its place; reading goes on, so that one pass says
//! what there is to mend. An export with diagnostics must not be served: that decision, and what to do about a
//! set that is empty or has shrunk, is the caller's.
//!
//! ```text
//! Read -> csv::Records  -> csv::read   \
//!                                       row::Rows -> field, list, time -> KeyRecord -> sink
//! Read -> lines         -> jsonl::read /       \-> finding::Diagnostics
//! ```
//!
//! A large export is read by several threads: [`ChunkSplitter`] cuts it between rows, and [`ChunkReader`] reads the pieces, as long as nothing
//! is wrong. What is, only [`read`] says. Rows of CSV are found in a piece as a whole, by [`scan`].
//!
//! An export that was cut short while it was written looks like a shorter one, so the last row has to end in
//! a newline. One cut exactly between two rows cannot be told from a whole one; the guard against shrinking
//! is there for that.

#![forbid(unsafe_code)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for readers of the source, links included"
)]

use std::fmt;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;
use std::str::FromStr;

use keyward_engine::record::{KeyRecord, Quoted};

mod bad_row;
mod blocks;
mod csv;
mod field;
mod finding;
mod hash_form;
mod jsonl;
mod layout;
pub mod lint;
mod list;
mod memo;
mod null;
mod quotes;
mod records;
mod row;
mod scan;
mod split;
#[cfg(test)]
mod tests;
mod time;
mod unknown;

pub use bad_row::BadRow;
pub use blocks::ChunkReader;
pub use finding::{Column, Diagnostic, Diagnostics, MAX_FINDINGS, RepeatCount};
pub use keyward_engine::record::Field;
pub use layout::{ColumnMapping, ColumnMappingError};
pub use null::{MAX_NULL_TEXT, MAX_NULL_TEXTS, NullTexts};
pub use split::{ChunkSplitter, SplitError};

use row::{Assembler, Rows};

/// Longest row, in bytes, with columns that are ignored: exports of whole tables have texts and pictures in them. A quote that
/// is never closed ends here too, and not at the end of memory.
pub const MAX_ROW: usize = 1 << 20;

/// Most bytes that the fields of a row have together. Those with a limit of their own take less than 5 KiB; the rest is for
/// lists, and a compiled snapshot has room for what comes of as many.
pub const MAX_FIELDS: usize = 64 << 10;

/// Bytes read at once.
const BUFFER: usize = 64 << 10;

/// The byte order mark that some spreadsheets put in front of UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Takes the records of an export, with the line (counted from 1) at which each begins. What it returns as an
/// error becomes a diagnostic at that line, and reading goes on.
pub type RecordSink<'s> = dyn FnMut(u64, &KeyRecord<'_>) -> Result<(), String> + 's;

/// How an export is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values (RFC 4180) with a header.
    Csv,
    /// A JSON object in each line.
    JsonLines,
    /// What `keyward compile` writes. No text: [`read`] is not for it.
    Compiled,
}

/// A format that cannot be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// The name of a file does not say its format.
    #[error("the name {} does not say the format; end it in .csv, .jsonl or .kwc, or name the format", Quoted(.0))]
    Path(String),
    /// Not the name of a format.
    #[error("{} is not a format; it is csv, jsonl or compiled", Quoted(.0))]
    Name(String),
}

impl Format {
    /// The format that a file's name ends in: `.csv`, or `.jsonl`, `.ndjson` and `.json`, or `.kwc`, in any case.
    ///
    /// # Errors
    /// When it ends in something else.
    pub fn from_path(path: &Path) -> Result<Self, FormatError> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "csv" => Ok(Self::Csv),
            "jsonl" | "ndjson" | "json" => Ok(Self::JsonLines),
            "kwc" => Ok(Self::Compiled),
            _ => Err(FormatError::Path(path.file_name().unwrap_or_default().to_string_lossy().into_owned())),
        }
    }
}

/// `csv`, `jsonl` or `ndjson`, and `compiled`.
impl FromStr for Format {
    type Err = FormatError;

    fn from_str(name: &str) -> Result<Self, FormatError> {
        match name {
            "csv" => Ok(Self::Csv),
            "jsonl" | "ndjson" => Ok(Self::JsonLines),
            "compiled" => Ok(Self::Compiled),
            _ => Err(FormatError::Name(name.to_owned())),
        }
    }
}

/// As [`FromStr`] takes it.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Csv => "csv",
            Self::JsonLines => "jsonl",
            Self::Compiled => "compiled",
        })
    }
}

/// Reads an export to its end, and returns how many rows it has, good and bad. Each good row goes to `sink`,
/// also after a bad one; what is wrong goes to `diagnostics`. Only a row that cannot be told from the next
/// one ([`MAX_ROW`]) and a header that does not fit `layout` end the reading early.
///
/// # Errors
/// Those of `input` only: an export that cannot be read says nothing about its rows.
pub fn read<R: Read>(
    input: R,
    format: Format,
    mapping: &ColumnMapping,
    sink: &mut RecordSink<'_>,
    diagnostics: &mut Diagnostics,
) -> io::Result<u64> {
    let mut input = without_bom(input)?;
    if fill(&mut input)?.is_empty() {
        diagnostics.add(0, None, "the file is empty");
        return Ok(0);
    }
    let mut assembler = Assembler::new(mapping.nulls().clone());
    let mut rows = Rows::new(&mut assembler, sink, diagnostics);
    match format {
        Format::Csv => csv::read(input, mapping, &mut rows)?,
        Format::JsonLines => jsonl::read(input, mapping, &mut rows)?,
        Format::Compiled => {
            rows.diagnostics.add(0, None, "it is read as text, and would be a compiled snapshot")
        }
    }
    Ok(rows.seen())
}

/// The names in the header of a CSV export; none where there is no header.
///
/// # Errors
/// Those of `input` only.
pub fn header<R: Read>(input: R) -> io::Result<Vec<String>> {
    csv::names(without_bom(input)?)
}

fn without_bom<R: Read>(mut input: R) -> io::Result<impl BufRead> {
    let mut head = Vec::with_capacity(BOM.len());
    input.by_ref().take(BOM.len() as u64).read_to_end(&mut head)?;
    if head == BOM {
        head.clear();
    }
    Ok(BufReader::with_capacity(BUFFER, Cursor::new(head).chain(input)))
}

/// What is buffered, or the next that can be read; empty at the end only.
fn fill(input: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match input.fill_buf() {
            Ok([]) => return Ok(&[]),
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    input.fill_buf()
}

/// Why the rest of an export cannot be read as rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum FramingError {
    #[error("the last line does not end in a newline; the file may be cut short")]
    NoNewline,
    #[error("the file ends inside of quotes; it may be cut short")]
    OpenQuote,
    #[error("the row has more than {} columns", records::MAX_COLUMNS)]
    TooManyColumns,
}
