//! Parses exports into key records.
//!
//! An *export* is a text file with one *row* per key, in CSV or JSON Lines. [`read`] passes the
//! [`KeyRecord`] of each row to a *sink*, so memory use does not depend on the length of the
//! export. A problem of a row becomes a *diagnostic* with its location, and reading continues, so
//! that one pass reports all problems. Callers must not serve an export with diagnostics unless
//! they set its bad rows aside. They also decide what to do about an export that is empty or has
//! shrunk.
//!
//! ```text
//! Read -> csv::records -> csv::read   \
//!                                      row::Rows -> field -> KeyRecord -> sink
//! Read -> lines        -> jsonl::read /          \-> Diagnostics
//! ```
//!
//! Several threads read a large export: [`ChunkSplitter`] cuts it into chunks at the ends of rows,
//! and a [`ChunkReader`] per thread parses them, using [`csv::scanner`] for CSV. This fast path
//! rejects any problem without a reason; only [`read`] produces diagnostics.
//!
//! An export that was truncated while it was written looks like a shorter one, so the last row must
//! end in a newline. A file truncated exactly between two rows cannot be recognised; the daemon's
//! guard against shrinking covers that case.
//!
//! [`lint`] reports rows that are valid but suspicious.

#![forbid(unsafe_code)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for readers of the source, links included"
)]

use std::io::{self, BufRead, BufReader, Cursor, Read};

use keyward_engine::record::KeyRecord;

mod chunk_reader;
mod chunk_splitter;
mod column_hint;
mod column_mapping;
mod csv;
mod diagnostic;
mod field;
mod format;
mod jsonl;
mod key_texts;
pub mod lint;
mod row;
#[cfg(test)]
mod tests;

pub use chunk_reader::ChunkReader;
pub use chunk_splitter::{ChunkSplitter, SplitError};
pub use column_mapping::{ColumnMapping, ColumnMappingError};
pub use diagnostic::{BadRow, Column, Diagnostic, Diagnostics, Location, MAX_DIAGNOSTICS, RepeatCount};
pub use field::null::{MAX_NULL_TEXT, MAX_NULL_TEXTS, NullTexts};
pub use format::{Format, FormatError};
pub use keyward_engine::record::Field;

use row::{Assembler, Rows};

/// Longest row, in bytes, including ignored columns: exports of whole tables contain long texts and
/// images. The bound also limits the memory that an unclosed quote can take.
pub const MAX_ROW: usize = 1 << 20;

/// Maximum number of bytes that the fields of a row may have together. Fields with a limit of their
/// own take less than 5 KiB; the rest is for lists. The records of a compiled snapshot are large
/// enough for lists of this size.
pub const MAX_FIELDS: usize = 64 << 10;

/// Size of the read buffer, in bytes.
const BUFFER: usize = 64 << 10;

/// The byte order mark that some spreadsheets write before UTF-8.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// Receives the records of an export, each with the line at which its row begins, counted from 1.
/// An error becomes a diagnostic of that row, and reading continues.
pub type RecordSink<'s> = dyn FnMut(u64, &KeyRecord<'_>) -> Result<(), SinkError> + 's;

/// Why a sink refuses a record.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Reads an export to its end. Returns the number of its rows, good and bad.
///
/// Passes each good row to `sink`, including those after a bad row, and adds problems to
/// `diagnostics`. Two problems end the reading early: a header that does not match `mapping`, and a
/// row without a recognisable end, such as one that exceeds [`MAX_ROW`].
///
/// # Errors
/// If `input` cannot be read.
pub fn read<R: Read>(
    input: R,
    format: Format,
    mapping: &ColumnMapping,
    sink: &mut RecordSink<'_>,
    diagnostics: &mut Diagnostics,
) -> io::Result<u64> {
    let mut input = without_bom(input)?;
    if fill(&mut input)?.is_empty() {
        diagnostics.add(Location::File, "the file is empty");
        return Ok(0);
    }
    let mut assembler = Assembler::new(mapping.nulls().clone());
    let mut rows = Rows::new(&mut assembler, sink, diagnostics);
    match format {
        Format::Csv => csv::read(input, mapping, &mut rows)?,
        Format::JsonLines => jsonl::read(input, mapping, &mut rows)?,
        Format::Compiled => {
            rows.diagnostics.add(Location::File, "a compiled snapshot cannot be read as text");
        }
    }
    Ok(rows.count())
}

/// Reads the names of the columns of a CSV export; none if there is no header.
///
/// # Errors
/// If `input` cannot be read.
pub fn column_names<R: Read>(input: R) -> io::Result<Vec<String>> {
    csv::column_names(without_bom(input)?)
}

fn without_bom<R: Read>(mut input: R) -> io::Result<impl BufRead> {
    let mut head = Vec::with_capacity(BOM.len());
    input.by_ref().take(BOM.len() as u64).read_to_end(&mut head)?;
    if head == BOM {
        head.clear();
    }
    Ok(BufReader::with_capacity(BUFFER, Cursor::new(head).chain(input)))
}

/// The buffered input, refilled if necessary. Empty only at the end.
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

/// Why the rest of an export cannot be divided into rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum FramingError {
    #[error("the last line does not end in a newline; the file may be truncated")]
    NoNewline,
    #[error("the file ends inside quotes; it may be truncated")]
    OpenQuote,
    #[error("the row has more than {} columns", csv::records::MAX_COLUMNS)]
    TooManyColumns,
}
