//! Reading the pieces that a [`ChunkSplitter`](super::ChunkSplitter) makes of an export, on any thread.
//!
//! Only for an export with which nothing is wrong: the first thing that is ends it, and [`read`](super::read) has to be asked what
//! it is. So there is one place that knows lines and words diagnostics, and what is fast need not.

use std::sync::Arc;

use keyward_engine::record::KeyRecord;

use super::csv::{self, Header};
use super::finding::Diagnostics;
use super::layout::ColumnMapping;
use super::null::NullTexts;
use super::row::{Assembler, Rows};
use super::scan::Scanner;
use super::{Format, jsonl};

/// Reads pieces of one export. A clone remembers its own lists: one for each thread.
#[derive(Debug)]
pub struct ChunkReader {
    shape: Shape,
    assembler: Assembler,
    scanner: Scanner,
}

#[derive(Clone, Debug)]
enum Shape {
    Csv(Arc<Header>),
    JsonLines(Arc<ColumnMapping>),
}

impl ChunkReader {
    /// Takes the header off the first piece, and returns how many bytes it has. `None` where something is wrong with it.
    pub fn new(format: Format, mapping: &ColumnMapping, first: &[u8]) -> Option<(Self, usize)> {
        let (shape, length) = match format {
            Format::Csv => {
                let (header, length) = csv::header(first, mapping)?;
                (Shape::Csv(Arc::new(header)), length)
            }
            Format::JsonLines => (Shape::JsonLines(Arc::new(mapping.clone())), 0),
            Format::Compiled => return None,
        };
        Some((Self::of(shape, mapping.nulls()), length))
    }

    fn of(shape: Shape, nulls: &NullTexts) -> Self {
        Self { shape, assembler: Assembler::new(nulls.clone()), scanner: Scanner::default() }
    }

    /// Hands the records of a piece to `sink`; `false` if something is wrong with any.
    pub fn read(&mut self, piece: &[u8], mut sink: impl FnMut(&KeyRecord<'_>)) -> bool {
        let mut diagnostics = Diagnostics::new("");
        let mut sink = |_: u64, record: &KeyRecord<'_>| {
            sink(record);
            Ok(())
        };
        let mut rows = Rows::new(&mut self.assembler, &mut sink, &mut diagnostics);
        let read = match &self.shape {
            Shape::Csv(header) => {
                let Ok(text) = str::from_utf8(piece) else { return false };
                header.scan(text, &mut self.scanner, &mut rows)
            }
            Shape::JsonLines(mapping) => jsonl::read(piece, mapping, &mut rows),
        };
        read.is_ok() && diagnostics.is_empty()
    }
}

impl Clone for ChunkReader {
    fn clone(&self) -> Self {
        Self::of(self.shape.clone(), self.assembler.nulls())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::read;

    const HEADER: &str = "x,key_hash,key_id,y,owner,environment,scopes,allowed_ips\n";

    /// Texts of the last four columns: values, and texts that stand for none, or for an empty list.
    const LAST: [&str; 8] = ["", "NULL", "\\N", "null", "a", "{}", "\"{a,NULL}\"", "10.0.0.0/8"];

    /// Two columns that hold anything, around those that hold a key.
    fn mapping() -> ColumnMapping {
        ColumnMapping::new(&BTreeMap::new(), vec!["x".into(), "y".into()]).expect("a mapping")
    }

    /// The records of a piece, if nothing is wrong with it.
    fn in_a_piece(rows: &str) -> Option<Vec<String>> {
        let mut records = Vec::new();
        let (mut blocks, header) =
            ChunkReader::new(Format::Csv, &mapping(), HEADER.as_bytes()).expect("a header");
        assert_eq!(header, HEADER.len());
        blocks.read(rows.as_bytes(), |record| records.push(format!("{record:?}"))).then_some(records)
    }

    /// The same row by row.
    fn in_order(rows: &str) -> Option<Vec<String>> {
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
    fn a_byte_order_mark_further_down_is_text() {
        let rows = format!("\u{feff}x,{:064x},one,b,,,,\n\u{feff}k,{:064x},two,yy,,,,\n", 1, 2);
        assert_eq!(in_order(&rows).map(|records| records.len()), Some(2));
        assert_eq!(in_a_piece(&rows), in_order(&rows));
    }

    proptest! {
        #[test]
        fn a_piece_has_the_rows_that_are_read_in_order(
            rows in prop::collection::vec(
                ("\u{feff}?\"?[a\",\r\n]{0,2}", "\"a?\"a?|\"a\"\"\"|[a\u{feff}\",\r\n]{0,4}", prop::array::uniform4(0_usize..8)),
                1..4,
            )
        ) {
            let row = |(n, (x, y, last)): (usize, (String, String, [usize; 4]))| {
                let [owner, environment, scopes, ips] = last.map(|at| LAST[at]);
                format!("{x},{n:064x},k{n},{y},{owner},{environment},{scopes},{ips}\n")
            };
            let rows: String = (0..).zip(rows).map(row).collect();
            prop_assert_eq!(in_a_piece(&rows), in_order(&rows));
        }
    }
}
