//! One row, whatever it was written in: texts by field, from which a record is assembled and handed on.
//!
//! Every field is looked at even when another is wrong, so that a row says all that is wrong with it at once.

use std::fmt::Display;

use ipnet::IpNet;

use keyward_engine::record::{
    Field, FieldSet, KeyRecord, Limit, MAX_KEY_ID, MAX_NAME, MAX_OWNER, Origin, parse_limits,
};

use super::finding::{Column, Diagnostics};
use super::layout::Texts;
use super::memo::{ListCache, TimeCache};
use super::null::NullTexts;
use super::{MAX_FIELDS, RecordSink, field, list, time};

/// Where the rows of an export go: good ones to the sink, what is wrong with the others to the diagnostics.
pub(super) struct Rows<'s> {
    assembler: &'s mut Assembler,
    sink: &'s mut RecordSink<'s>,
    pub(super) diagnostics: &'s mut Diagnostics,
    seen: u64,
}

impl<'s> Rows<'s> {
    pub(super) fn new(
        assembler: &'s mut Assembler,
        sink: &'s mut RecordSink<'s>,
        diagnostics: &'s mut Diagnostics,
    ) -> Self {
        Self { assembler, sink, diagnostics, seen: 0 }
    }

    /// Counts a row, whatever will be found in it.
    pub(super) fn count(&mut self) {
        self.seen += 1;
    }

    /// How many were counted.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Hands on the row that begins at `line`; `column` says where a field of it is.
    pub(super) fn deliver(&mut self, line: u64, texts: &Texts<'_>, column: impl Fn(Field) -> Column) {
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        if bytes > MAX_FIELDS {
            return self.too_large(line, bytes, texts, column);
        }
        let diagnostics = &mut *self.diagnostics;
        let mut report = |field, message: &dyn Display| diagnostics.add(line, Some(column(field)), message);
        let Some(record) = self.assembler.assemble(texts, &mut report) else { return };
        if let Err(message) = (self.sink)(line, &record) {
            self.diagnostics.add(line, None, message);
        }
    }
}

impl Rows<'_> {
    #[cold]
    fn too_large(&mut self, line: u64, bytes: usize, texts: &Texts<'_>, column: impl Fn(Field) -> Column) {
        let Some(largest) = Field::ALL.into_iter().max_by_key(|field| texts[*field as usize].len()) else {
            return;
        };
        let message = format_args!(
            "the fields of the row have {bytes} bytes, and at most {MAX_FIELDS} are read; this is the largest, with {}",
            texts[largest as usize].len()
        );
        self.diagnostics.add(line, Some(column(largest)), message);
    }
}

/// Assembles records, and remembers the lists that it has parsed.
#[derive(Debug)]
pub(super) struct Assembler {
    nulls: NullTexts,
    scopes: ListCache<Box<str>>,
    networks: ListCache<IpNet>,
    origins: ListCache<Origin>,
    limits: ListCache<Limit>,
    not_before: TimeCache,
    expires_at: TimeCache,
}

impl Assembler {
    pub(super) fn new(nulls: NullTexts) -> Self {
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

    /// The texts that stand for no value.
    pub(super) fn nulls(&self) -> &NullTexts {
        &self.nulls
    }

    /// The record that `texts` make, or `None` after having told `report` of each field that is wrong.
    fn assemble<'a>(
        &mut self,
        texts: &Texts<'a>,
        report: &mut dyn FnMut(Field, &dyn Display),
    ) -> Option<KeyRecord<'a>> {
        let Self { nulls, scopes, networks, origins, limits, not_before, expires_at } = self;
        let mut row = Row { nulls, texts, report };
        let hash = row.take(Field::KeyHash, field::hash);
        let key_id = row.take(Field::KeyId, |text| field::required(text, MAX_KEY_ID));
        let owner = row.take(Field::Owner, |text| field::optional(text, MAX_OWNER));
        let environment = row.take(Field::Environment, |text| field::optional(text, MAX_NAME));
        let plan = row.take(Field::Plan, |text| field::optional(text, MAX_NAME));
        let status = row.take(Field::Status, field::status);
        let not_before = row.take(Field::NotBefore, |text| not_before.get(text, time::not_before));
        let expires_at = row.take(Field::ExpiresAt, |text| expires_at.get(text, time::expires_at));
        let scopes = row.take(Field::Scopes, |text| scopes.get(text, |text| list::scopes(text, nulls)));
        let allowed_ips = row
            .take(Field::AllowedIps, |text| networks.get_optional(text, |text| list::networks(text, nulls)));
        let allowed_origins = row.take(Field::AllowedOrigins, |text| {
            origins.get_optional(text, |text| list::origins(text, nulls))
        });
        let limits = row.take(Field::Limits, |text| limits.get(text, parse_limits));
        let metadata = row.take(Field::Metadata, field::metadata);
        let (owner, metadata) = (owner?, metadata?);
        // A text that stands for no value gives none.
        let none = FieldSet::NONE
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
            given: given(texts).difference(none),
        })
    }
}

/// The fields that have a text.
fn given(texts: &Texts<'_>) -> FieldSet {
    let bits = texts.iter().rev().fold(0, |bits, text| bits << 1 | u16::from(!text.is_empty()));
    FieldSet::from_bits(bits)
}

/// The texts of one row, and where what is wrong with them is reported.
struct Row<'r, 'a> {
    nulls: &'r NullTexts,
    texts: &'r Texts<'a>,
    report: &'r mut dyn FnMut(Field, &dyn Display),
}

impl<'a> Row<'_, 'a> {
    /// What `parse` makes of a field's text.
    fn take<T, E: Display>(
        &mut self,
        field: Field,
        parse: impl FnOnce(&'a str) -> Result<T, E>,
    ) -> Option<T> {
        let text = match self.nulls.read(field, self.texts[field as usize]) {
            Ok(text) => text,
            Err(error) => {
                (self.report)(field, &error);
                return None;
            }
        };
        parse(text).map_err(|error| (self.report)(field, &error)).ok()
    }
}
