//! What the targets of both text formats check about an export.
//!
//! * The records and the diagnostics do not depend on how the input arrives.
//! * Chunks join to the whole export. Reading chunk by chunk, which skips all messages, accepts an
//!   export exactly if the reader with messages does, and finds the same records.
//! * Diagnostics are lines without control characters, and not longer than a screen can show.
//! * The records of an accepted export build a table. Compiled and loaded, the table is the same.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::OnceLock;

use keyward_engine::record::{Field, KeyRecord};
use keyward_engine::snapshot::{Builder, RowError};
use keyward_source::{
    ChunkReader, ChunkSplitter, ColumnMapping, Diagnostics, Format, MAX_DIAGNOSTICS, SplitError, read,
};

use super::{Outcome, compiled_snapshots};
use crate::input::Input;

/// The size of the splitter's chunks.
const CHUNK_SIZE: usize = 128 << 10;

/// An input is placed so that the first chunk ends in one of its first bytes.
const MAX_BEFORE_CHUNK_END: usize = 1 << 10;

/// One in this many inputs is placed there: it takes ten times as long as others.
const BEHIND_FILLER: u8 = 16;

/// The byte order mark.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// A column of every export that is not a field.
const IGNORED: &str = "x";

/// Longest diagnostic. Messages quote little of an export: at most the beginning of a text.
const MAX_DIAGNOSTIC: usize = 4 << 10;

/// The result of [`read`].
#[derive(Debug, PartialEq)]
struct ReadExport {
    rows: u64,
    records: Vec<String>,
    diagnostics: String,
}

/// Checks the export in `data`. The first two bytes place it: at the beginning of the file, or
/// behind a row that fills the first chunk nearly.
pub(crate) fn check(data: &[u8], format: Format) -> Outcome {
    let mut input = Input::new(data);
    let (placement, distance) = (input.byte(), input.byte());
    let text = if placement % BEHIND_FILLER == 1 {
        let distance = usize::from(placement / BEHIND_FILLER) << 8 | usize::from(distance);
        let distance = distance % MAX_BEFORE_CHUNK_END;
        after_filler(format, distance, input.rest())
    } else {
        input.rest().to_vec()
    };
    let whole = read_export(&*text, format);
    let pieces = Pieces { rest: &text, next: 1 + usize::from(distance) };
    assert_eq!(read_export(pieces, format), whole, "read in pieces");
    check_diagnostics(&whole);
    let is_accepted = whole.diagnostics.is_empty();
    match read_chunks(&text, format) {
        Ok(Some(records)) => {
            assert!(is_accepted, "accepted in chunks, but: {}", whole.diagnostics);
            assert_eq!(records, whole.records, "read in chunks");
        }
        Ok(None) => assert!(!is_accepted, "refused in chunks"),
        // The daemon then reads the whole export.
        Err(NoRowEnd) => assert!(text.len() + BOM.len() >= CHUNK_SIZE),
    }
    if is_accepted {
        build(&text, format);
    }
    Outcome::accepted_if(is_accepted && !whole.records.is_empty())
}

fn mapping() -> &'static ColumnMapping {
    static MAPPING: OnceLock<ColumnMapping> = OnceLock::new();
    MAPPING.get_or_init(|| {
        ColumnMapping::new(&BTreeMap::new(), vec![IGNORED.into()]).expect("a mapping").ignoring_unknown()
    })
}

/// `rows` behind a row so long that the first chunk ends `distance` bytes after the beginning of
/// `rows`.
fn after_filler(format: Format, distance: usize, rows: &[u8]) -> Vec<u8> {
    let hash = "f".repeat(64);
    let (before, after) = match format {
        Format::Csv => {
            let names: Vec<&str> = Field::ALL.iter().map(|field| field.name()).collect();
            let head =
                format!("{},{IGNORED}\n{hash},filler{}", names.join(","), ",".repeat(Field::COUNT - 1));
            (head, "\n")
        }
        _ => (format!("{{\"key_hash\":\"{hash}\",\"key_id\":\"filler\",\"{IGNORED}\":\""), "\"}\n"),
    };
    let filler = CHUNK_SIZE - distance - before.len() - after.len();
    let mut text = before.into_bytes();
    text.resize(text.len() + filler, b'a');
    text.extend(after.bytes());
    text.extend(rows);
    text
}

fn read_export(input: impl Read, format: Format) -> ReadExport {
    let mut records = Vec::new();
    let mut diagnostics = Diagnostics::new("keys");
    let mut sink = |line: u64, record: &KeyRecord<'_>| {
        assert!(line > 0);
        records.push(format!("{record:?}"));
        Ok(())
    };
    let rows = read(input, format, mapping(), &mut sink, &mut diagnostics).expect("memory is readable");
    assert!(records.len() as u64 <= rows);
    assert!(diagnostics.retained().len() <= MAX_DIAGNOSTICS);
    ReadExport { rows, records, diagnostics: diagnostics.to_string() }
}

/// No row ends within a chunk.
struct NoRowEnd;

/// The records of all chunks; `None` if the export is refused.
fn read_chunks(text: &[u8], format: Format) -> Result<Option<Vec<String>>, NoRowEnd> {
    let mut splitter = ChunkSplitter::new(text, format);
    let (mut records, mut joined, mut reader) = (Vec::new(), Vec::new(), None);
    let mut is_accepted = true;
    loop {
        let chunk = match splitter.next_chunk() {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break,
            Err(SplitError::NoRowEnd) => return Err(NoRowEnd),
            Err(SplitError::Io(error)) => panic!("memory is readable: {error}"),
        };
        assert!(chunk.len() <= CHUNK_SIZE && !chunk.is_empty());
        joined.extend_from_slice(&chunk);
        let start = match &reader {
            Some(_) => 0,
            None => {
                let Some((first, start)) = ChunkReader::new(format, mapping(), &chunk) else {
                    return Ok(None);
                };
                reader = Some(first);
                start
            }
        };
        let reader = reader.as_mut().expect("it was made for the first chunk");
        is_accepted &= reader.read(&chunk[start..], |record| records.push(format!("{record:?}")));
    }
    assert_eq!(joined, text.strip_prefix(BOM).unwrap_or(text), "a byte is lost");
    Ok((is_accepted && reader.is_some()).then_some(records))
}

fn check_diagnostics(export: &ReadExport) {
    let lines: Vec<&str> = export.diagnostics.lines().collect();
    assert!(lines.len() <= MAX_DIAGNOSTICS + 1);
    for line in lines {
        assert!(line.starts_with("keys:"), "{line:?}");
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(line.len() <= MAX_DIAGNOSTIC, "{line:?}");
    }
}

/// Builds the table of an accepted export, and compiles it.
fn build(text: &[u8], format: Format) {
    let mut builder = Builder::new(1, 0);
    let mut diagnostics = Diagnostics::new("keys");
    let mut sink = |line: u64, record: &KeyRecord<'_>| match builder.add(line, record) {
        Ok(())
        | Err(RowError::DuplicateHash { .. } | RowError::OtherLimits { .. } | RowError::OtherOwner { .. }) => {
            Ok(())
        }
        Err(error) => panic!("{error}"),
    };
    read(text, format, mapping(), &mut sink, &mut diagnostics).expect("memory is readable");
    compiled_snapshots::check_round_trip(&builder);
}

/// Yields some bytes at a time, with an interruption before each.
struct Pieces<'a> {
    rest: &'a [u8],
    /// The number of bytes that come next; 0: the interruption.
    next: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.next.min(buffer.len());
        self.next = if self.next == 0 { 1 + self.rest.len() % 61 } else { 0 };
        if count == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.rest.read(&mut buffer[..count])
    }
}
