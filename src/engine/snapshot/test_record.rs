//! Key records for this module's unit tests, built without a parser.

use std::sync::Arc;

use ipnet::IpNet;

use crate::record::{Digest, KeyRecord, Limit, Origin, parse_limits};
use crate::snapshot::{Builder, KeyTable};

/// The seed of every table that these helpers build.
pub(super) const SEED: u64 = 7;

/// An active key without an owner, restrictions or metadata. Its id is leaked, so a test can pass
/// the record on.
pub(super) fn record(hash: Digest, key_id: String) -> KeyRecord<'static> {
    KeyRecord::new(hash, key_id.leak())
}

/// The key `k{number}`, whose digest is `number` as a big-endian integer.
pub(super) fn numbered(number: usize) -> KeyRecord<'static> {
    let mut hash = Digest::default();
    hash[24..].copy_from_slice(&(number as u64).to_be_bytes());
    record(hash, format!("k{number}"))
}

/// A builder that holds `records`. The first is on line 2, as in a CSV file with a header.
pub(super) fn builder(records: &[KeyRecord<'_>]) -> Builder {
    let mut builder = Builder::new(SEED, 0);
    for (record, line) in records.iter().zip(2..) {
        builder.add(line, record).expect("a valid record");
    }
    builder
}

/// The table of `records`.
pub(super) fn keys(records: &[KeyRecord<'_>]) -> KeyTable {
    builder(records).finish()
}

pub(super) fn networks(texts: &[&str]) -> Arc<[IpNet]> {
    texts.iter().map(|text| text.parse().expect("a network")).collect()
}

pub(super) fn origins(texts: &[&str]) -> Arc<[Origin]> {
    texts.iter().map(|text| Origin::parse(text).expect("an origin")).collect()
}

pub(super) fn limits(text: &str) -> Arc<[Limit]> {
    parse_limits(text).expect("limits").into()
}

/// What a record states in its policy: equal texts for equal policies.
pub(super) fn described_policy(record: &KeyRecord<'_>) -> String {
    let KeyRecord { environment, plan, scopes, allowed_ips, allowed_origins, limits, .. } = record;
    format!("{environment} {plan} {scopes:?} {allowed_ips:?} {allowed_origins:?} {limits:?}")
}
