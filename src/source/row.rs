//! One row, whatever it was written in: texts by field, from which a record is assembled and handed on.
//!
//! Every field is looked at even when another is wrong, so that a row says all that is wrong with it at once.

use std::fmt::Display;
use std::sync::Arc;

use ipnet::IpNet;

use crate::record::{
    Field, Fields, KeyRecord, Limit, LimitError, MAX_KEY_ID, MAX_NAME, MAX_OWNER, Origin, parse_limits,
};

use super::finding::{Column, Findings};
use super::layout::Texts;
use super::memo::{Memo, Times};
use super::{Sink, field, list, time};

/// Where the rows of an export go: good ones to the sink, what is wrong with the others to the findings.
pub(super) struct Rows<'s> {
    assembler: &'s mut Assembler,
    sink: &'s mut Sink<'s>,
    pub(super) findings: &'s mut Findings,
    seen: u64,
}

impl<'s> Rows<'s> {
    pub(super) fn new(
        assembler: &'s mut Assembler,
        sink: &'s mut Sink<'s>,
        findings: &'s mut Findings,
    ) -> Self {
        Self { assembler, sink, findings, seen: 0 }
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
        let findings = &mut *self.findings;
        let mut report = |field, message: &dyn Display| findings.add(line, Some(column(field)), message);
        let Some(record) = self.assembler.assemble(texts, &mut report) else { return };
        if let Err(message) = (self.sink)(line, &record) {
            self.findings.add(line, None, message);
        }
    }
}

/// Assembles records, and remembers the lists that it has parsed.
#[derive(Debug)]
pub(super) struct Assembler {
    scopes: Memo<Box<str>>,
    networks: Memo<IpNet>,
    origins: Memo<Origin>,
    limits: Memo<Limit>,
    not_before: Times,
    expires_at: Times,
}

impl Assembler {
    pub(super) fn new() -> Self {
        Self {
            scopes: Memo::new(),
            networks: Memo::new(),
            origins: Memo::new(),
            limits: Memo::new(),
            not_before: Times::default(),
            expires_at: Times::default(),
        }
    }

    /// The record that `texts` make, or `None` after having told `report` of each field that is wrong.
    fn assemble<'a>(
        &mut self,
        texts: &Texts<'a>,
        report: &mut dyn FnMut(Field, &dyn Display),
    ) -> Option<KeyRecord<'a>> {
        let text = |field: Field| texts[field as usize];
        let mut row = Row { report };
        let hash = row.take(Field::KeyHash, field::hash(text(Field::KeyHash)));
        let key_id = row.take(Field::KeyId, field::required(text(Field::KeyId), MAX_KEY_ID));
        let owner = row.take(Field::Owner, field::optional(text(Field::Owner), MAX_OWNER));
        let environment = row.take(Field::Environment, field::optional(text(Field::Environment), MAX_NAME));
        let plan = row.take(Field::Plan, field::optional(text(Field::Plan), MAX_NAME));
        let status = row.take(Field::Status, field::status(text(Field::Status)));
        let not_before =
            row.take(Field::NotBefore, self.not_before.get(text(Field::NotBefore), time::not_before));
        let expires_at =
            row.take(Field::ExpiresAt, self.expires_at.get(text(Field::ExpiresAt), time::expires_at));
        let scopes = row.take(Field::Scopes, self.scopes.get(text(Field::Scopes), list::scopes));
        let allowed_ips =
            row.take(Field::AllowedIps, self.networks.get_optional(text(Field::AllowedIps), list::networks));
        let allowed_origins = self.origins.get_optional(text(Field::AllowedOrigins), list::origins);
        let allowed_origins = row.take(Field::AllowedOrigins, allowed_origins);
        let limits = row.take(Field::Limits, self.limits(text(Field::Limits)));
        let metadata = row.take(Field::Metadata, field::metadata(text(Field::Metadata)));
        Some(KeyRecord {
            hash: hash?,
            key_id: key_id?,
            owner: owner?,
            environment: environment?,
            plan: plan?,
            status: status?,
            not_before: not_before?,
            expires_at: expires_at?,
            scopes: scopes?,
            allowed_ips: allowed_ips?,
            allowed_origins: allowed_origins?,
            limits: limits?,
            metadata: metadata?,
            given: given(texts),
        })
    }

    fn limits(&mut self, text: &str) -> Result<Arc<[Limit]>, LimitError> {
        self.limits.get(text, parse_limits)
    }
}

/// The fields that have a text.
fn given(texts: &Texts<'_>) -> Fields {
    let bits = texts.iter().rev().fold(0, |bits, text| bits << 1 | u16::from(!text.is_empty()));
    Fields::from_bits(bits)
}

struct Row<'r> {
    report: &'r mut dyn FnMut(Field, &dyn Display),
}

impl Row<'_> {
    fn take<T, E: Display>(&mut self, field: Field, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| (self.report)(field, &error)).ok()
    }
}
