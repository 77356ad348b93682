//! Assembles the record of a row from the texts of its fields. Both formats end here.
//!
//! Every field is parsed even if another one is wrong, so that all problems of a row are reported
//! at once.

use std::fmt::Display;

use ipnet::IpNet;

use keyward_engine::record::{
    Field, FieldSet, KeyRecord, Limit, MAX_KEY_ID, MAX_NAME, MAX_OWNER, Origin, parse_limits,
};

use crate::column_mapping::FieldTexts;
use crate::diagnostic::{Column, Diagnostics, Location};
use crate::field::cache::{ListCache, TimeCache};
use crate::field::null::NullTexts;
use crate::field::{self, list, time};
use crate::{MAX_FIELDS, RecordSink};

/// The destination of the rows of an export: records go to the sink, problems to the diagnostics.
pub(crate) struct Rows<'s> {
    assembler: &'s mut Assembler,
    sink: &'s mut RecordSink<'s>,
    pub(crate) diagnostics: &'s mut Diagnostics,
    count: u64,
}

impl<'s> Rows<'s> {
    pub(crate) fn new(
        assembler: &'s mut Assembler,
        sink: &'s mut RecordSink<'s>,
        diagnostics: &'s mut Diagnostics,
    ) -> Self {
        Self { assembler, sink, diagnostics, count: 0 }
    }

    /// Begins a row, good or bad, and returns its number, counted from 1.
    pub(crate) fn begin(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Number of rows begun.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Assembles the row that begins at `line` and passes its record to the sink. `column` locates
    /// a field.
    pub(crate) fn deliver(&mut self, line: u64, texts: &FieldTexts<'_>, column: impl Fn(Field) -> Column) {
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        if bytes > MAX_FIELDS {
            return self.report_too_large(line, bytes, texts, column);
        }
        let diagnostics = &mut *self.diagnostics;
        let mut report = |field, message: &dyn Display| {
            diagnostics.add(Location::Column { line, column: column(field) }, message);
        };
        let Some(record) = self.assembler.assemble(texts, &mut report) else { return };
        if let Err(error) = (self.sink)(line, &record) {
            self.diagnostics.add(Location::Row { line }, error);
        }
    }

    #[cold]
    fn report_too_large(
        &mut self,
        line: u64,
        bytes: usize,
        texts: &FieldTexts<'_>,
        column: impl Fn(Field) -> Column,
    ) {
        let Some(largest) = Field::ALL.into_iter().max_by_key(|field| texts[*field as usize].len()) else {
            return;
        };
        let message = format_args!(
            "the fields of the row have {bytes} bytes, and at most {MAX_FIELDS} are read; this is the largest, with {}",
            texts[largest as usize].len()
        );
        self.diagnostics.add(Location::Column { line, column: column(largest) }, message);
    }
}

/// Assembles records, and caches the lists and times that it has parsed.
#[derive(Debug)]
pub(crate) struct Assembler {
    nulls: NullTexts,
    scopes: ListCache<Box<str>>,
    networks: ListCache<IpNet>,
    origins: ListCache<Origin>,
    limits: ListCache<Limit>,
    not_before: TimeCache,
    expires_at: TimeCache,
}

impl Assembler {
    pub(crate) fn new(nulls: NullTexts) -> Self {
        Self {
            nulls,
            scopes: ListCache::new(),
            networks: ListCache::new(),
            origins: ListCache::new(),
            limits: ListCache::new(),
            not_before: TimeCache::default(),
            expires_at: TimeCache::default(),
        }
    }

    /// The null texts of the export.
    pub(crate) fn nulls(&self) -> &NullTexts {
        &self.nulls
    }

    /// Parses `texts` into a record. Calls `report` for each field that is wrong, and returns
    /// `None` if there is one.
    fn assemble<'a>(
        &mut self,
        texts: &FieldTexts<'a>,
        report: &mut dyn FnMut(Field, &dyn Display),
    ) -> Option<KeyRecord<'a>> {
        let Self { nulls, scopes, networks, origins, limits, not_before, expires_at } = self;
        let mut row = RowParser { nulls, texts, report };
        let hash = row.parse(Field::KeyHash, field::hash);
        let key_id = row.parse(Field::KeyId, |text| field::required(text, MAX_KEY_ID));
        let owner = row.parse(Field::Owner, |text| field::optional(text, MAX_OWNER));
        let environment = row.parse(Field::Environment, |text| field::optional(text, MAX_NAME));
        let plan = row.parse(Field::Plan, |text| field::optional(text, MAX_NAME));
        let status = row.parse(Field::Status, field::status);
        let not_before = row.parse(Field::NotBefore, |text| not_before.get(text, time::not_before));
        let expires_at = row.parse(Field::ExpiresAt, |text| expires_at.get(text, time::expires_at));
        let scopes = row.parse(Field::Scopes, |text| scopes.get(text, |text| list::scopes(text, nulls)));
        let allowed_ips = row
            .parse(Field::AllowedIps, |text| networks.get_optional(text, |text| list::networks(text, nulls)));
        let allowed_origins = row.parse(Field::AllowedOrigins, |text| {
            origins.get_optional(text, |text| list::origins(text, nulls))
        });
        let limits = row.parse(Field::Limits, |text| limits.get(text, parse_limits));
        let metadata = row.parse(Field::Metadata, field::metadata);
        let (owner, metadata) = (owner?, metadata?);
        // A null text in one of these fields is not a value.
        let null_fields = FieldSet::NONE
            .with_if(Field::Owner, owner.is_empty())
            .with_if(Field::Metadata, metadata.is_empty());
        Some(KeyRecord {
            hash: hash?,
            key_id: key_id?,
            owner,
            environment: environment?,
            plan: plan?,
            status: status?,
            not_before: not_before?,
            expires_at: expires_at?,
            scopes: scopes?,
            allowed_ips: allowed_ips?,
            allowed_origins: allowed_origins?,
            limits: limits?,
            metadata,
            present_fields: nonempty_fields(texts).difference(null_fields),
        })
    }
}

fn nonempty_fields(texts: &FieldTexts<'_>) -> FieldSet {
    let bits = texts.iter().rev().fold(0, |bits, text| bits << 1 | u16::from(!text.is_empty()));
    FieldSet::from_bits(bits)
}

/// The texts of one row, and the callback for its problems.
struct RowParser<'r, 'a> {
    nulls: &'r NullTexts,
    texts: &'r FieldTexts<'a>,
    report: &'r mut dyn FnMut(Field, &dyn Display),
}

impl<'a> RowParser<'_, 'a> {
    /// Parses a field with `parse`. Reports the error if there is one.
    fn parse<T, E: Display>(
        &mut self,
        field: Field,
        parse: impl FnOnce(&'a str) -> Result<T, E>,
    ) -> Option<T> {
        let text = match self.nulls.resolve(field, self.texts[field as usize]) {
            Ok(text) => text,
            Err(error) => {
                (self.report)(field, &error);
                return None;
            }
        };
        parse(text).map_err(|error| (self.report)(field, &error)).ok()
    }
}
