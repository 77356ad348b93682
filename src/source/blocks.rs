//! Reading the pieces that a [`Splitter`](super::Splitter) makes of an export, on any thread.
//!
//! Only for an export with which nothing is wrong: the first thing that is ends it, and [`read`](super::read) has to be asked what
//! it is. So there is one place that knows lines and words findings, and what is fast need not.

use std::sync::Arc;

use crate::record::KeyRecord;

use super::csv::{self, Header};
use super::finding::Findings;
use super::layout::Layout;
use super::row::{Assembler, Rows};
use super::scan::Scanner;
use super::{Format, jsonl};

/// Reads pieces of one export. A clone remembers its own lists: one for each thread.
#[derive(Debug)]
pub struct Blocks {
    shape: Shape,
    assembler: Assembler,
    scanner: Scanner,
}

#[derive(Clone, Debug)]
enum Shape {
    Csv(Arc<Header>),
    JsonLines(Arc<Layout>),
}

impl Blocks {
    /// Takes the header off the first piece, and returns how many bytes it has. `None` where something is wrong with it.
    pub fn new(format: Format, layout: &Layout, first: &[u8]) -> Option<(Self, usize)> {
        let (shape, length) = match format {
            Format::Csv => {
                let (header, length) = csv::header(first, layout)?;
                (Shape::Csv(Arc::new(header)), length)
            }
            Format::JsonLines => (Shape::JsonLines(Arc::new(layout.clone())), 0),
            Format::Compiled => return None,
        };
        Some((Self::of(shape), length))
    }

    fn of(shape: Shape) -> Self {
        Self { shape, assembler: Assembler::new(), scanner: Scanner::default() }
    }

    /// Hands the records of a piece to `sink`; `false` if something is wrong with any.
    pub fn read(&mut self, piece: &[u8], mut sink: impl FnMut(&KeyRecord<'_>)) -> bool {
        let mut findings = Findings::new("");
        let mut sink = |_: u64, record: &KeyRecord<'_>| {
            sink(record);
            Ok(())
        };
        let mut rows = Rows::new(&mut self.assembler, &mut sink, &mut findings);
        let read = match &self.shape {
            Shape::Csv(header) => {
                let Ok(text) = str::from_utf8(piece) else { return false };
                header.scan(text, &mut self.scanner, &mut rows)
            }
            Shape::JsonLines(layout) => jsonl::read(piece, layout, &mut rows),
        };
        read.is_ok() && findings.is_empty()
    }
}

impl Clone for Blocks {
    fn clone(&self) -> Self {
        Self::of(self.shape.clone())
    }
}
