//! Reads CSV exports: a header that names the columns, then rows of the same shape.

use std::io::{self, BufRead};
use std::sync::Arc;

use keyward_engine::record::{Field, Quoted};

mod quotes;
pub(crate) mod records;
pub(crate) mod scanner;

use crate::column_hint::{MissingColumn, UnknownColumn};
use crate::column_mapping::{ColumnMapping, ColumnRole, FieldTexts};
use crate::diagnostic::{Column, Diagnostics, Location};
use crate::key_texts::{KeyTexts, parse_hash};
use crate::row::Rows;
use crate::{FramingError, MAX_ROW};
use records::{Columns, Next, NotUtf8, Record, Records, TooLong};
use scanner::Scanner;

/// Reads a CSV export into `rows`.
pub(crate) fn read(mut input: impl BufRead, mapping: &ColumnMapping, rows: &mut Rows<'_>) -> io::Result<()> {
    let mut records = Records::default();
    let header = match records.next(&mut input)? {
        Next::Record(record) => Header::parse(&record, mapping, rows.diagnostics),
        Next::End => {
            let message = "there is no header; its columns are key_hash, key_id and others";
            rows.diagnostics.add(Location::File, message);
            None
        }
        Next::Broken { line, error } => {
            rows.diagnostics.add(Location::Row { line }, error);
            None
        }
        Next::TooLong(row) => {
            report_too_long(&row, None, rows.diagnostics);
            None
        }
    };
    if let Some(header) = header {
        while header.read_row(&mut records, &mut input, rows)? {}
    }
    Ok(())
}

/// Reads the names of the columns without checking them; none if the first record is broken.
pub(crate) fn column_names(mut input: impl BufRead) -> io::Result<Vec<String>> {
    let mut records = Records::default();
    let names = match records.next(&mut input)? {
        Next::Record(record) => {
            record.texts().map(|names| names.iter().map(str::to_owned).collect()).unwrap_or_default()
        }
        Next::End | Next::Broken { .. } | Next::TooLong(_) => Vec::new(),
    };
    Ok(names)
}

/// The columns of a CSV export: their names, and the fields that they hold.
#[derive(Debug)]
pub(crate) struct Header {
    columns: Vec<(Arc<str>, Option<Field>)>,
}

impl Header {
    /// Reads the header at the beginning of a text. Returns it with its length in bytes, or `None`
    /// if it has a problem.
    pub(crate) fn read(text: &[u8], mapping: &ColumnMapping) -> Option<(Self, usize)> {
        let (mut records, mut rest) = (Records::default(), text);
        let mut diagnostics = Diagnostics::new("");
        let header = match records.next(&mut rest).ok()? {
            Next::Record(record) => Self::parse(&record, mapping, &mut diagnostics)?,
            Next::End | Next::Broken { .. } | Next::TooLong(_) => return None,
        };
        // The first chunk is the whole text then, and its last line has no newline.
        if rest.is_empty() && text.ends_with(b"\r") {
            return None;
        }
        Some((header, text.len() - rest.len()))
    }

    /// Parses the first record. Returns `None` after adding the problems of the header to
    /// `diagnostics`: without a correct header, no row has a meaning.
    fn parse(record: &Record<'_>, mapping: &ColumnMapping, diagnostics: &mut Diagnostics) -> Option<Self> {
        let total_before = diagnostics.total();
        let mut header = Self { columns: Vec::with_capacity(record.len()) };
        match record.texts() {
            Ok(names) => header.add_columns(record, &names, mapping, diagnostics),
            Err(error) => report_not_utf8(record.line, error, None, diagnostics),
        }
        (diagnostics.total() == total_before).then_some(header)
    }

    fn add_columns(
        &mut self,
        record: &Record<'_>,
        names: &Columns<'_>,
        mapping: &ColumnMapping,
        diagnostics: &mut Diagnostics,
    ) {
        let line = record.line;
        if names.get(0).contains([';', '\t']) {
            let message = "the columns of a CSV file are separated by commas";
            return diagnostics.add(Location::Row { line }, message);
        }
        if names.get(0).trim_start().starts_with('{') {
            let message = "this looks like JSON Lines, and is read as CSV: name the file .jsonl, or set \
                           source.format to \"jsonl\"";
            return diagnostics.add(Location::Row { line }, message);
        }
        if record.misplaced_quote().is_some() {
            return report_misplaced_quote(record, None, diagnostics);
        }
        for (index, name) in names.iter().enumerate() {
            let column = Column::Numbered { number: index + 1, name: None };
            let field = match mapping.role(name) {
                ColumnRole::Field(field) if self.index(field).is_some() => {
                    let message = format_args!("there are two columns {}", Quoted(name));
                    diagnostics.add(Location::Column { line, column }, message);
                    None
                }
                ColumnRole::Field(field) => Some(field),
                ColumnRole::Ignored => None,
                ColumnRole::Unknown => {
                    diagnostics.add(Location::Column { line, column }, UnknownColumn(name));
                    None
                }
            };
            self.columns.push((name.into(), field));
        }
        for field in Field::ALL {
            if mapping.expects(field) && self.index(field).is_none() {
                let column = mapping.column(field);
                diagnostics.add(Location::Row { line }, MissingColumn { field, column: &column });
            }
        }
    }

    /// Reads all rows of a chunk in memory. The numbers of rows stand in for their lines, which are
    /// unknown.
    pub(crate) fn read_chunk(
        &self,
        text: &str,
        scanner: &mut Scanner,
        rows: &mut Rows<'_>,
    ) -> io::Result<()> {
        if text.ends_with('\r') {
            rows.diagnostics.add(Location::File, FramingError::NoNewline);
        }
        let may_have_quotes = memchr::memchr(b'"', text.as_bytes()).is_some();
        let mut rest = text.trim_start_matches(LINE_ENDS);
        while !rest.is_empty() {
            let length = match scanner.row(rest, may_have_quotes) {
                Some((columns, length)) => {
                    let number = rows.begin();
                    self.deliver(number, columns.len(), columns.iter(), rows);
                    length
                }
                None => {
                    let mut input = rest.as_bytes();
                    if !self.read_row(scanner.fallback(), &mut input, rows)? {
                        return Ok(());
                    }
                    rest.len() - input.len()
                }
            };
            rest = rest.get(length..).unwrap_or_default().trim_start_matches(LINE_ENDS);
        }
        Ok(())
    }

    /// Reads the next row. Returns `false` if there is none, or if the rest of the input cannot be
    /// read.
    fn read_row(
        &self,
        records: &mut Records,
        input: &mut impl BufRead,
        rows: &mut Rows<'_>,
    ) -> io::Result<bool> {
        match records.next(input)? {
            Next::Record(record) => {
                self.deliver_record(&record, rows);
                return Ok(true);
            }
            Next::End => {}
            Next::Broken { line, error } => rows.diagnostics.add(Location::Row { line }, error),
            Next::TooLong(row) => report_too_long(&row, self.name(row.largest.0), rows.diagnostics),
        }
        Ok(false)
    }

    fn deliver_record(&self, record: &Record<'_>, rows: &mut Rows<'_>) {
        rows.begin();
        let total_before = rows.diagnostics.total();
        self.deliver_columns(record, rows);
        if rows.diagnostics.total() > total_before {
            rows.diagnostics.close_row(record.line, total_before, self.key_texts(record));
        }
    }

    fn deliver_columns(&self, record: &Record<'_>, rows: &mut Rows<'_>) {
        let line = record.line;
        if let Some((column, _)) = record.misplaced_quote() {
            return report_misplaced_quote(record, self.name(column), rows.diagnostics);
        }
        match record.texts() {
            Ok(columns) => self.deliver(line, record.len(), columns.iter(), rows),
            // In a row of another shape, the names of the header do not apply.
            Err(_) if record.len() != self.columns.len() => {
                self.deliver(line, record.len(), [].into_iter(), rows);
            }
            Err(error) => report_not_utf8(line, error, self.name(error.column), rows.diagnostics),
        }
    }

    fn deliver<'r>(
        &self,
        line: u64,
        count: usize,
        columns: impl Iterator<Item = &'r str>,
        rows: &mut Rows<'_>,
    ) {
        let expected = self.columns.len();
        if count != expected {
            let message = format_args!("the row has {count} columns, the header {expected}");
            return rows.diagnostics.add(Location::Row { line }, message);
        }
        let mut texts = FieldTexts::default();
        for ((_, field), text) in self.columns.iter().zip(columns) {
            if let Some(field) = field {
                texts[*field as usize] = text;
            }
        }
        rows.deliver(line, &texts, |field| self.column(field));
    }

    /// The texts of the digest and the key id of a bad row. If its number of columns differs from
    /// that of the header, the columns are counted from the beginning of the row, and from its end.
    /// Returns `None` if it is uncertain where the row ends, or which of several digests belongs to
    /// it.
    fn key_texts(&self, record: &Record<'_>) -> Option<KeyTexts> {
        // After a misplaced quote, the records read may differ from the rows exported.
        if record.misplaced_quote().is_some() || self.contains_rows(record) {
            return None;
        }
        let shift = record.len() as isize - self.columns.len() as isize;
        let text = |field: Field, shift: isize| record.text(self.index(field)?.checked_add_signed(shift)?);
        let mut hashes = (shift.min(0)..=shift.max(0)).filter_map(|shift| {
            let text = text(Field::KeyHash, shift)?;
            Some((shift, text, parse_hash(text)?))
        });
        let first = hashes.next();
        if hashes.any(|(.., hash)| first.is_some_and(|(.., first)| first != hash)) {
            return None;
        }
        let key_id = text(Field::KeyId, first.map_or(0, |(shift, ..)| shift));
        Some([first.map(|(_, text, _)| text.into()), key_id.map(Into::into)])
    }

    /// Whether a column contains further lines with a digest in the column of digests: an unclosed
    /// quote has swallowed the following rows.
    fn contains_rows(&self, record: &Record<'_>) -> bool {
        let Some(index) = self.index(Field::KeyHash) else { return false };
        let has_hash = |line: &[u8]| {
            let column = line.split(|byte| *byte == b',').nth(index);
            let column = column.and_then(|column| str::from_utf8(column).ok());
            column.is_some_and(|column| parse_hash(column.trim_matches(['"', ' '])).is_some())
        };
        (0..record.len())
            .filter_map(|column| record.bytes(column))
            .any(|column| column.split(|byte| matches!(byte, b'\n' | b'\r')).skip(1).any(has_hash))
    }

    /// The name of the column at `index`.
    fn name(&self, index: usize) -> Option<Arc<str>> {
        self.columns.get(index).map(|(name, _)| Arc::clone(name))
    }

    /// The index of the column that holds `field`.
    fn index(&self, field: Field) -> Option<usize> {
        self.columns.iter().position(|&(_, column)| column == Some(field))
    }

    /// The column that holds `field`, for a diagnostic.
    fn column(&self, field: Field) -> Column {
        let column = self.index(field).and_then(|index| Some((index + 1, self.columns.get(index)?)));
        match column {
            Some((number, (name, _))) => Column::Numbered { number, name: Some(Arc::clone(name)) },
            // A field without a column has no text, so this does not occur.
            None => Column::Named(field.name().into()),
        }
    }
}

/// The bytes that end a row. Several of them with nothing in between are blank lines.
const LINE_ENDS: [char; 2] = ['\n', '\r'];

fn report_misplaced_quote(record: &Record<'_>, name: Option<Arc<str>>, diagnostics: &mut Diagnostics) {
    if let Some((index, error)) = record.misplaced_quote() {
        let column = Column::Numbered { number: index + 1, name };
        diagnostics.add(Location::Column { line: record.line, column }, error);
    }
}

/// `name` is the name of the largest column of the row.
fn report_too_long(row: &TooLong, name: Option<Arc<str>>, diagnostics: &mut Diagnostics) {
    let TooLong { line, largest: (index, bytes), in_quotes } = *row;
    let column = Column::Numbered { number: index + 1, name };
    let cause = if in_quotes { "a closing quote may be missing" } else { "a newline may be missing" };
    let message = format_args!(
        "the row that begins in this line is longer than {MAX_ROW} bytes, and this is its largest column, with {bytes} \
         bytes so far: {cause}, or the column is as large as that and has to be left out of the export"
    );
    diagnostics.add(Location::Column { line, column }, message);
}

/// `name` is the name of the column.
fn report_not_utf8(line: u64, error: NotUtf8, name: Option<Arc<str>>, diagnostics: &mut Diagnostics) {
    let column = Column::Numbered { number: error.column + 1, name };
    let message = format_args!("byte {} of it is not UTF-8; export the file as UTF-8", error.byte + 1);
    diagnostics.add(Location::Column { line, column }, message);
}
