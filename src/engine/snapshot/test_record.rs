//! Key records for this module's unit tests. They own their texts and are built without a parser.

use ipnet::IpNet;

use crate::record::{Digest, KeyRecord, Limit, Origin, Status, parse_limits};
use crate::snapshot::{Builder, KeyTable};

/// The seed of every table that these helpers build.
pub(super) const SEED: u64 = 7;

/// An owned [`KeyRecord`]: an active key without an owner, restrictions or metadata, until a test
/// sets some.
#[derive(Clone)]
pub(super) struct TestRecord {
    pub(super) hash: Digest,
    pub(super) key_id: String,
    pub(super) owner: &'static str,
    pub(super) environment: &'static str,
    pub(super) plan: &'static str,
    pub(super) status: Status,
    pub(super) not_before: u32,
    pub(super) expires_at: u32,
    pub(super) scopes: Vec<Box<str>>,
    pub(super) allowed_ips: Option<Vec<IpNet>>,
    pub(super) allowed_origins: Option<Vec<Origin>>,
    pub(super) limits: Vec<Limit>,
    pub(super) metadata: &'static str,
}

impl TestRecord {
    /// The key `k{number}`, whose digest is `number` as a big-endian integer.
    pub(super) fn numbered(number: usize) -> Self {
        let mut hash = Digest::default();
        hash[24..].copy_from_slice(&(number as u64).to_be_bytes());
        Self::new(hash, format!("k{number}"))
    }

    pub(super) fn new(hash: Digest, key_id: String) -> Self {
        Self {
            hash,
            key_id,
            owner: "",
            environment: "",
            plan: "",
            status: Status::Active,
            not_before: 0,
            expires_at: u32::MAX,
            scopes: Vec::new(),
            allowed_ips: None,
            allowed_origins: None,
            limits: Vec::new(),
            metadata: "",
        }
    }

    fn as_record(&self) -> KeyRecord<'_> {
        KeyRecord {
            owner: self.owner,
            environment: self.environment,
            plan: self.plan,
            status: self.status,
            not_before: self.not_before,
            expires_at: self.expires_at,
            scopes: self.scopes.clone().into(),
            allowed_ips: self.allowed_ips.clone().map(Into::into),
            allowed_origins: self.allowed_origins.clone().map(Into::into),
            limits: self.limits.clone().into(),
            metadata: self.metadata,
            ..KeyRecord::new(self.hash, &self.key_id)
        }
    }
}

/// A builder that holds `records`. The first is on line 2, as in a CSV file with a header.
pub(super) fn builder(records: &[TestRecord]) -> Builder {
    let mut builder = Builder::new(SEED, 0);
    for (record, line) in records.iter().zip(2..) {
        builder.add(line, &record.as_record()).expect("a valid record");
    }
    builder
}

/// The table of `records`.
pub(super) fn keys(records: &[TestRecord]) -> KeyTable {
    builder(records).finish()
}

pub(super) fn networks(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("a network")).collect()
}

pub(super) fn origins(texts: &[&str]) -> Vec<Origin> {
    texts.iter().map(|text| Origin::parse(text).expect("an origin")).collect()
}

pub(super) fn limits(text: &str) -> Vec<Limit> {
    parse_limits(text).expect("limits")
}
