//! CSV exports: a header that says which column is which, then rows that all have its shape.

use std::io::{self, BufRead};
use std::sync::Arc;

use keyward_engine::record::{Field, Quoted};

use super::bad_row::{KeyTexts, hash_of};
use super::finding::{Column, Diagnostics};
use super::layout::{ColumnMapping, ColumnRole, Texts};
use super::records::{Columns, Next, Record, Records, TooLong};
use super::row::Rows;
use super::scan::Scanner;
use super::unknown::{MissingColumn, UnknownColumn};
use super::{FramingError, MAX_ROW};

/// Reads a CSV export; what is wrong goes to the diagnostics of `rows`.
pub(super) fn read(mut input: impl BufRead, mapping: &ColumnMapping, rows: &mut Rows<'_>) -> io::Result<()> {
    let mut records = Records::default();
    let header = match records.next(&mut input)? {
        Next::Record(record) => Header::read(&record, mapping, rows.diagnostics),
        Next::End => {
            rows.diagnostics.add(0, None, "there is no header; its columns are key_hash, key_id and others");
            None
        }
        Next::FramingError(line, why) => {
            rows.diagnostics.add(line, None, why);
            None
        }
        Next::TooLong(row) => {
            too_long(&row, None, rows.diagnostics);
            None
        }
    };
    let Some(header) = header else { return Ok(()) };
    while header.next(&mut records, &mut input, rows)? {}
    Ok(())
}

/// The names of the columns, whatever they are; none where the first record is none.
pub(super) fn names(mut input: impl BufRead) -> io::Result<Vec<String>> {
    let mut records = Records::default();
    let names = match records.next(&mut input)? {
        Next::Record(record) => {
            record.texts().map(|names| names.iter().map(str::to_owned).collect()).unwrap_or_default()
        }
        Next::End | Next::FramingError(..) | Next::TooLong(_) => Vec::new(),
    };
    Ok(names)
}

/// Reads the header at the front of a text, and how many bytes it takes; `None` where anything is wrong with it.
pub(super) fn header(text: &[u8], mapping: &ColumnMapping) -> Option<(Header, usize)> {
    let (mut records, mut rest) = (Records::default(), text);
    let mut diagnostics = Diagnostics::new("");
    let header = match records.next(&mut rest).ok()? {
        Next::Record(record) => Header::read(&record, mapping, &mut diagnostics)?,
        Next::End | Next::FramingError(..) | Next::TooLong(_) => return None,
    };
    Some((header, text.len() - rest.len()))
}

impl Header {
    /// Reads a row of a text that has this header; `false`: there is none, or none that can be read.
    fn next(&self, records: &mut Records, input: &mut impl BufRead, rows: &mut Rows<'_>) -> io::Result<bool> {
        match records.next(input)? {
            Next::Record(record) => {
                self.row(&record, rows);
                return Ok(true);
            }
            Next::End => {}
            Next::FramingError(line, why) => rows.diagnostics.add(line, None, why),
            Next::TooLong(row) => too_long(&row, self.name(row.largest.0), rows.diagnostics),
        }
        Ok(false)
    }

    /// Reads all rows of a text in memory, with `scanner`, and with lines that mean nothing.
    pub(super) fn scan(&self, text: &str, scanner: &mut Scanner, rows: &mut Rows<'_>) -> io::Result<()> {
        if text.ends_with('\r') {
            rows.diagnostics.add(0, None, FramingError::NoNewline);
        }
        let quotes = memchr::memchr(b'"', text.as_bytes()).is_some();
        let mut rest = text.trim_start_matches(LINE_ENDS);
        while !rest.is_empty() {
            let length = match scanner.row(rest, quotes) {
                Some((columns, length)) => {
                    rows.count();
                    self.columns(0, columns.len(), columns.iter(), rows);
                    length
                }
                None => {
                    let mut left = rest.as_bytes();
                    if !self.next(scanner.others(), &mut left, rows)? {
                        return Ok(());
                    }
                    rest.len() - left.len()
                }
            };
            rest = rest.get(length..).unwrap_or_default().trim_start_matches(LINE_ENDS);
        }
        Ok(())
    }
}

/// What ends a row; and where nothing else is between two of them, they are not another row's.
const LINE_ENDS: [char; 2] = ['\n', '\r'];

/// Which column holds which field.
#[derive(Debug)]
pub(super) struct Header {
    columns: Vec<(Arc<str>, Option<Field>)>,
}

impl Header {
    /// `None` where a column is wrong or missing: no row would make sense.
    fn read(record: &Record<'_>, mapping: &ColumnMapping, diagnostics: &mut Diagnostics) -> Option<Self> {
        let before = diagnostics.total();
        let mut header = Self { columns: Vec::with_capacity(record.len()) };
        match record.texts() {
            Ok(names) => header.take(record, &names, mapping, diagnostics),
            Err(place) => not_utf8(record.line, place, None, diagnostics),
        }
        (diagnostics.total() == before).then_some(header)
    }

    fn take(
        &mut self,
        record: &Record<'_>,
        names: &Columns<'_>,
        mapping: &ColumnMapping,
        diagnostics: &mut Diagnostics,
    ) {
        let line = record.line;
        if names.get(0).contains([';', '\t']) {
            return diagnostics.add(line, None, "the columns of a CSV file are separated by commas");
        }
        if names.get(0).trim_start().starts_with('{') {
            let message = "this looks like JSON Lines, and is read as CSV: name the file .jsonl, or set \
                           source.format to \"jsonl\"";
            return diagnostics.add(line, None, message);
        }
        if record.wrong_quote().is_some() {
            return wrong_quote(record, None, diagnostics);
        }
        for (index, name) in names.iter().enumerate() {
            let place = Some(Column::Numbered { number: index + 1, name: None });
            let field = match mapping.role(name) {
                ColumnRole::Field(field) if self.index(field).is_some() => {
                    diagnostics.add(line, place, format_args!("there are two columns {}", Quoted(name)));
                    None
                }
                ColumnRole::Field(field) => Some(field),
                ColumnRole::Ignored => None,
                ColumnRole::Unknown => {
                    diagnostics.add(line, place, UnknownColumn(name));
                    None
                }
            };
            self.columns.push((name.into(), field));
        }
        for field in Field::ALL {
            if mapping.expects(field) && self.index(field).is_none() {
                let column = mapping.column(field);
                diagnostics.add(line, None, MissingColumn { field, column: &column });
            }
        }
    }

    /// The name of a column, counted from 0.
    fn name(&self, index: usize) -> Option<Arc<str>> {
        self.columns.get(index).map(|(name, _)| Arc::clone(name))
    }

    fn index(&self, field: Field) -> Option<usize> {
        self.columns.iter().position(|&(_, column)| column == Some(field))
    }

    fn row(&self, record: &Record<'_>, rows: &mut Rows<'_>) {
        rows.count();
        let before = rows.diagnostics.total();
        self.read_row(record, rows);
        if rows.diagnostics.total() > before {
            rows.diagnostics.close_row(record.line, before, self.texts_in_row(record));
        }
    }

    /// The texts of the hash and the key id of a bad row. In one that has another number of columns than the header, they are
    /// where the header says, counted from its beginning or from its end. `None`: it is not certain where the row ends, or which
    /// of several hashes is its own.
    fn texts_in_row(&self, record: &Record<'_>) -> Option<KeyTexts> {
        // After a quote in the wrong place, the rows may be others than those that were exported.
        if record.wrong_quote().is_some() || self.swallows_rows(record) {
            return None;
        }
        let shift = record.len() as isize - self.columns.len() as isize;
        let at = |field: Field, shift: isize| record.text(self.index(field)?.checked_add_signed(shift)?);
        let mut hashes = (shift.min(0)..=shift.max(0)).filter_map(|shift| {
            let text = at(Field::KeyHash, shift)?;
            Some((shift, text, hash_of(text)?))
        });
        let first = hashes.next();
        if hashes.any(|(.., hash)| first.is_some_and(|(.., first)| first != hash)) {
            return None;
        }
        let key_id = at(Field::KeyId, first.map_or(0, |(shift, ..)| shift));
        Some([first.map(|(_, text, _)| text.into()), key_id.map(Into::into)])
    }

    /// Whether a column has several lines, and one of them a hash where rows have theirs: a quote that is not closed has taken in
    /// the rows behind it.
    fn swallows_rows(&self, record: &Record<'_>) -> bool {
        let Some(at) = self.index(Field::KeyHash) else { return false };
        let has_hash = |line: &[u8]| {
            let column =
                line.split(|byte| *byte == b',').nth(at).and_then(|column| str::from_utf8(column).ok());
            column.is_some_and(|column| hash_of(column.trim_matches(['"', ' '])).is_some())
        };
        (0..record.len())
            .filter_map(|column| record.bytes(column))
            .any(|column| column.split(|byte| matches!(byte, b'\n' | b'\r')).skip(1).any(has_hash))
    }

    fn read_row(&self, record: &Record<'_>, rows: &mut Rows<'_>) {
        let line = record.line;
        if let Some((column, _)) = record.wrong_quote() {
            return wrong_quote(record, self.name(column), rows.diagnostics);
        }
        match record.texts() {
            Ok(columns) => self.columns(line, record.len(), columns.iter(), rows),
            // A row of another shape has no columns of these names.
            Err(_) if record.len() != self.columns.len() => {
                self.columns(line, record.len(), [].into_iter(), rows)
            }
            Err(place) => {
                not_utf8(line, place, self.name(place.0), rows.diagnostics);
            }
        }
    }

    fn columns<'r>(
        &self,
        line: u64,
        count: usize,
        columns: impl Iterator<Item = &'r str>,
        rows: &mut Rows<'_>,
    ) {
        let expected = self.columns.len();
        if count != expected {
            let message = format_args!("the row has {count} columns, the header {expected}");
            return rows.diagnostics.add(line, None, message);
        }
        let mut texts = Texts::default();
        for ((_, field), text) in self.columns.iter().zip(columns) {
            if let Some(field) = field {
                texts[*field as usize] = text;
            }
        }
        rows.deliver(line, &texts, |field| self.place(field));
    }

    /// Where a field is. One without a column has no text, and nothing is wrong with that.
    fn place(&self, field: Field) -> Column {
        let column = self.index(field).and_then(|index| Some((index + 1, self.columns.get(index)?)));
        match column {
            Some((number, (name, _))) => Column::Numbered { number, name: Some(Arc::clone(name)) },
            None => Column::Named(field.name().into()),
        }
    }
}

fn wrong_quote(record: &Record<'_>, name: Option<Arc<str>>, diagnostics: &mut Diagnostics) {
    if let Some((index, error)) = record.wrong_quote() {
        diagnostics.add(record.line, Some(Column::Numbered { number: index + 1, name }), error);
    }
}

/// `name` is that of the row's largest column.
fn too_long(row: &TooLong, name: Option<Arc<str>>, diagnostics: &mut Diagnostics) {
    let TooLong { line, largest: (index, bytes), in_quotes } = *row;
    let column = Column::Numbered { number: index + 1, name };
    let ends = if in_quotes { "a closing quote may be missing" } else { "a newline may be missing" };
    let message = format_args!(
        "the row that begins in this line is longer than {MAX_ROW} bytes, and this is its largest column, with {bytes} \
         bytes so far: {ends}, or the column is as large as that and has to be left out of the export"
    );
    diagnostics.add(line, Some(column), message);
}

/// `place` is the column and the byte in it, counted from 0.
fn not_utf8(line: u64, place: (usize, usize), name: Option<Arc<str>>, diagnostics: &mut Diagnostics) {
    let column = Column::Numbered { number: place.0 + 1, name };
    let message = format_args!("byte {} of it is not UTF-8; export the file as UTF-8", place.1 + 1);
    diagnostics.add(line, Some(column), message);
}
