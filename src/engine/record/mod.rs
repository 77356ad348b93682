//! One row of an export, parsed and range-checked: what a source yields and a [snapshot](crate::snapshot) is
//! built from.
//!
//! Parse, don't validate: a `KeyRecord` that exists is one that can be served. Texts borrow from the reader's
//! buffer. The lists are shared (`Arc`), because an export repeats the same few scopes and limits in millions
//! of rows: equal texts are parsed once and compared by pointer first.

use std::sync::Arc;

use ipnet::IpNet;

use crate::limiter::Rate;

mod field;
mod limits;
mod origin;
mod parts;
mod plan;
mod quoted;
mod visible;

pub use field::{Field, FieldSet};
pub use limits::{LimitError, is_limit_name, parse_limits, parse_rate};
pub use origin::{Origin, OriginError};
pub use parts::{is_metadata, is_scope, is_text};
pub(crate) use plan::merge_limits;
pub use plan::{Plans, PlansError, UnknownPlanError};
pub use quoted::Quoted;
pub use visible::{Escaped, escape_json, is_invisible};

/// SHA-256 of a key.
pub type Digest = [u8; 32];

/// Longest `key_id`, in bytes: it is shown in logs and metrics, and an answer's text length is one byte.
pub const MAX_KEY_ID: usize = keyward_protocol::MAX_KEY_ID;
/// Longest `owner`, in bytes.
pub const MAX_OWNER: usize = keyward_protocol::MAX_OWNER;
/// Longest `environment`, `plan` or name of a limit, in bytes.
pub const MAX_NAME: usize = keyward_protocol::MAX_NAME;
/// Longest `metadata`, in bytes of its JSON text.
pub const MAX_METADATA: usize = keyward_protocol::MAX_METADATA;
/// Longest single scope, in bytes: as long as a request's whole scope field could ask for.
pub const MAX_SCOPE: usize = keyward_protocol::MAX_SCOPES;
/// Most limits of a row, and most of a plan: each is charged by every request, so this bounds a verify.
pub const MAX_LIMITS: usize = 8;

// A key has at most its plan's limits and its row's own.
const _: () = assert!(2 * MAX_LIMITS <= crate::limiter::MAX_CHARGES);

/// Whether a key is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Status {
    /// In force.
    #[default]
    Active,
    /// Switched off for now; may come back.
    Disabled,
    /// Withdrawn for good.
    Revoked,
}

/// One named limit: a token bucket for each key, or one for all keys of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Unique among the limits of its key; named in the answer that it decides.
    pub name: Box<str>,
    /// Its refill and its size.
    pub rate: Rate,
    /// Who shares its bucket.
    pub per: Per,
    /// It counts and reports, and refuses nobody.
    pub shadow: bool,
}

/// Who shares the bucket of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Per {
    /// The rows of one key id.
    #[default]
    Key,
    /// The keys of one owner, whatever plans they are on. A key without an owner is an owner of its own.
    Owner,
}

impl Limit {
    /// A limit of a key alone, in force.
    pub fn new(name: impl Into<Box<str>>, rate: Rate) -> Self {
        Self { name: name.into(), rate, per: Per::Key, shadow: false }
    }
}

/// The name of a limit that was written without one.
pub const DEFAULT_LIMIT_NAME: &str = "default";

/// One key, borrowing its texts from the reader's buffer. An empty text means that the row has none.
#[derive(Clone, Debug)]
pub struct KeyRecord<'a> {
    /// SHA-256 of the key; unique in an export.
    pub hash: Digest,
    /// 1..=[`MAX_KEY_ID`] bytes. Rows that share one are one key in rotation: they share buckets.
    pub key_id: &'a str,
    /// Who the key belongs to.
    pub owner: &'a str,
    /// Where the key may be used, as in `live` and `test`.
    pub environment: &'a str,
    /// The plan that the key is on, as the row has it: empty stands for the default plan, if there is one.
    pub plan: &'a str,
    /// Active, disabled or revoked.
    pub status: Status,
    /// First Unix second at which the key is valid; 0 where it always was.
    pub not_before: u32,
    /// First Unix second at which the key is no longer valid; `u32::MAX` (the year 2106) where it never ends.
    pub expires_at: u32,
    /// What the key may do; `orders:*` stands for every scope that begins with `orders:`.
    pub scopes: Arc<[Box<str>]>,
    /// Networks that requests may come from. `None`: any address is allowed. An empty list allows no address.
    pub allowed_ips: Option<Arc<[IpNet]>>,
    /// Web origins that may use the key. `None`: any origin is allowed. An empty list allows no origin.
    pub allowed_origins: Option<Arc<[Origin]>>,
    /// The row's own limits, in the order written; names are unique. They come on top of the plan's.
    pub limits: Arc<[Limit]>,
    /// A JSON object as it was written, or empty.
    pub metadata: &'a str,
    /// The fields that the row has a value for, whatever the value is.
    pub given: FieldSet,
}

impl<'a> KeyRecord<'a> {
    /// The record of a row that says no more than it must: in force for ever, whoever asks, and as often as they ask.
    pub fn new(hash: Digest, key_id: &'a str) -> Self {
        Self {
            hash,
            key_id,
            owner: "",
            environment: "",
            plan: "",
            status: Status::Active,
            not_before: 0,
            expires_at: u32::MAX,
            scopes: Arc::default(),
            allowed_ips: None,
            allowed_origins: None,
            limits: Arc::default(),
            metadata: "",
            given: FieldSet::ALL,
        }
    }
}

/// A Unix second in RFC 3339, in UTC.
pub fn rfc3339(seconds: u32) -> String {
    // Every second that a record can have is in a year that has four digits.
    jiff::Timestamp::from_second(seconds.into()).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_written_in_utc() {
        assert_eq!(rfc3339(1_795_255_200), "2026-11-21T10:00:00Z");
        assert_eq!([0, u32::MAX].map(rfc3339), ["1970-01-01T00:00:00Z", "2106-02-07T06:28:15Z"]);
    }
}
