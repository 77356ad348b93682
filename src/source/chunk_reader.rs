//! Reads the chunks that a [`ChunkSplitter`](crate::ChunkSplitter) cuts an export into, on any
//! thread.
//!
//! A chunk with any problem is rejected without a reason. The caller then reads the whole export
//! with [`read`](crate::read), which produces the diagnostics. So the fast path needs neither line
//! numbers nor messages.

use std::sync::Arc;

use keyward_engine::record::KeyRecord;

use crate::column_mapping::ColumnMapping;
use crate::csv::Header;
use crate::csv::scanner::Scanner;
use crate::diagnostic::Diagnostics;
use crate::field::null::NullTexts;
use crate::row::{Assembler, Rows};
use crate::{Format, jsonl};

/// Reads chunks of one export. Each thread has a clone, which has a cache of its own.
#[derive(Debug)]
pub struct ChunkReader {
    rows: RowFormat,
    assembler: Assembler,
    scanner: Scanner,
}

#[derive(Clone, Debug)]
enum RowFormat {
    Csv(Arc<Header>),
    JsonLines(Arc<ColumnMapping>),
}

impl ChunkReader {
    /// Creates a reader for an export that begins with the chunk `first`, and returns the length of
    /// its header in bytes. Returns `None` if the header has a problem, or if the format is not
    /// text.
    pub fn new(format: Format, mapping: &ColumnMapping, first: &[u8]) -> Option<(Self, usize)> {
        let (rows, length) = match format {
            Format::Csv => {
                let (header, length) = Header::read(first, mapping)?;
                (RowFormat::Csv(Arc::new(header)), length)
            }
            Format::JsonLines => (RowFormat::JsonLines(Arc::new(mapping.clone())), 0),
            Format::Compiled => return None,
        };
        Some((Self::with_format(rows, mapping.nulls()), length))
    }

    fn with_format(rows: RowFormat, nulls: &NullTexts) -> Self {
        Self { rows, assembler: Assembler::new(nulls.clone()), scanner: Scanner::default() }
    }

    /// Passes the records of `chunk` to `sink`. Returns `false` if there is any problem; some
    /// records may have been passed by then.
    pub fn read(&mut self, chunk: &[u8], mut sink: impl FnMut(&KeyRecord<'_>)) -> bool {
        let mut diagnostics = Diagnostics::new("");
        let mut sink = |_: u64, record: &KeyRecord<'_>| {
            sink(record);
            Ok(())
        };
        let mut rows = Rows::new(&mut self.assembler, &mut sink, &mut diagnostics);
        let read = match &self.rows {
            RowFormat::Csv(header) => {
                let Ok(text) = str::from_utf8(chunk) else { return false };
                header.read_chunk(text, &mut self.scanner, &mut rows)
            }
            RowFormat::JsonLines(mapping) => jsonl::read(chunk, mapping, &mut rows),
        };
        read.is_ok() && diagnostics.is_empty()
    }
}

impl Clone for ChunkReader {
    fn clone(&self) -> Self {
        Self::with_format(self.rows.clone(), self.assembler.nulls())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::read;

    const HEADER: &str = "x,key_hash,key_id,y,owner,environment,scopes,allowed_ips\n";

    /// Texts of the last four columns: values, null texts and empty lists.
    const VALUES: [&str; 8] = ["", "NULL", "\\N", "null", "a", "{}", "\"{a,NULL}\"", "10.0.0.0/8"];

    /// Ignores two columns, next to those of a key.
    fn mapping() -> ColumnMapping {
        ColumnMapping::new(&BTreeMap::new(), vec!["x".into(), "y".into()]).expect("a mapping")
    }

    /// Reads the rows as a chunk. Returns the records, if there is no problem.
    fn read_chunk(rows: &str) -> Option<Vec<String>> {
        let mut records = Vec::new();
        let (mut reader, header) =
            ChunkReader::new(Format::Csv, &mapping(), HEADER.as_bytes()).expect("a header");
        assert_eq!(header, HEADER.len());
        reader.read(rows.as_bytes(), |record| records.push(format!("{record:?}"))).then_some(records)
    }

    /// Reads the same rows with [`read`].
    fn read_rows(rows: &str) -> Option<Vec<String>> {
        let (mut records, mut diagnostics) = (Vec::new(), Diagnostics::new(""));
        let mut sink = |_: u64, record: &KeyRecord<'_>| {
            records.push(format!("{record:?}"));
            Ok(())
        };
        let text = format!("{HEADER}{rows}");
        read(text.as_bytes(), Format::Csv, &mapping(), &mut sink, &mut diagnostics).expect("a slice");
        diagnostics.is_empty().then_some(records)
    }

    #[test]
    fn header_without_rows_is_refused_as_in_the_whole_file() {
        for (end, is_accepted) in [
            ("", false),
            ("\r", false),
            ("\n\r", false),
            ("\r\r", false),
            ("\n", true),
            ("\r\n", true),
            ("\r\n\n", true),
        ] {
            let text = format!("{}{end}", HEADER.trim_end());
            let mut diagnostics = Diagnostics::new("keys");
            let mut sink = |_: u64, _: &KeyRecord<'_>| Ok(());
            read(text.as_bytes(), Format::Csv, &mapping(), &mut sink, &mut diagnostics).expect("reads");
            assert_eq!(diagnostics.is_empty(), is_accepted, "{end:?}: {diagnostics}");
            let chunk = ChunkReader::new(Format::Csv, &mapping(), text.as_bytes());
            let read =
                chunk.is_some_and(|(mut reader, start)| reader.read(&text.as_bytes()[start..], |_| {}));
            assert_eq!(read, is_accepted, "{end:?}");
        }
    }

    #[test]
    fn byte_order_mark_inside_the_file_is_text() {
        let rows = format!("\u{feff}x,{:064x},one,b,,,,\n\u{feff}k,{:064x},two,yy,,,,\n", 1, 2);
        assert_eq!(read_rows(&rows).map(|records| records.len()), Some(2));
        assert_eq!(read_chunk(&rows), read_rows(&rows));
    }

    proptest! {
        #[test]
        fn chunk_has_the_same_records_as_the_whole_file(
            rows in prop::collection::vec(
                ("\u{feff}?\"?[a\",\r\n]{0,2}", "\"a?\"a?|\"a\"\"\"|[a\u{feff}\",\r\n]{0,4}", prop::array::uniform4(0_usize..8)),
                1..4,
            )
        ) {
            let row = |(n, (x, y, last)): (usize, (String, String, [usize; 4]))| {
                let [owner, environment, scopes, ips] = last.map(|at| VALUES[at]);
                format!("{x},{n:064x},k{n},{y},{owner},{environment},{scopes},{ips}\n")
            };
            let rows: String = (0..).zip(rows).map(row).collect();
            prop_assert_eq!(read_chunk(&rows), read_rows(&rows));
        }
    }
}
