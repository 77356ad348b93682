//! A key as an export describes it: parsed, range-checked, and ready to be added to a
//! [snapshot](crate::snapshot).
//!
//! Every [`KeyRecord`] can be served; a row that cannot is refused when it is parsed. The texts of
//! a record borrow from the reader's buffer. Its lists are shared (`Arc`): an export repeats a few
//! scopes and limits in millions of rows, so each distinct text is parsed once, and lists are first
//! compared by pointer.

use std::sync::Arc;

use ipnet::IpNet;

mod escape;
mod field;
mod limit;
mod limit_syntax;
mod origin;
mod plan;
mod quoted;
mod validation;

pub use escape::{Escaped, Printable, escape_json, is_invisible};
pub use field::{Field, FieldSet};
pub use limit::{CREDITS_NAME, DEFAULT_LIMIT_NAME, Limit, LimitRef, MAX_LIMITS, Per};
pub use limit_syntax::{LimitError, is_limit_name, parse_limits, parse_rate, parse_rule};
pub(crate) use origin::OriginRef;
pub use origin::{Origin, OriginError};
pub(crate) use plan::merge_limits;
pub use plan::{Plans, PlansError, UnknownPlanError};
pub use quoted::Quoted;
pub(crate) use validation::{is_metadata, is_printable, is_scope};

/// The digest of a key: its SHA-256, or its HMAC-SHA256 under a [pepper](crate::pepper).
pub type Digest = [u8; 32];

/// Longest `key_id`, in bytes. Logs and metrics show it, and an answer stores the length of a text
/// in one byte.
pub const MAX_KEY_ID: usize = keyward_protocol::MAX_KEY_ID;
/// Longest `owner`, in bytes.
pub const MAX_OWNER: usize = keyward_protocol::MAX_OWNER;
/// Longest `environment`, `plan` or name of a limit, in bytes.
pub const MAX_NAME: usize = keyward_protocol::MAX_NAME;
/// Longest `metadata`, in bytes of its JSON text.
pub const MAX_METADATA: usize = keyward_protocol::MAX_METADATA;
/// Longest single scope, in bytes: the longest that fits into the scope field of a request.
pub const MAX_SCOPE: usize = keyward_protocol::MAX_SCOPES;

/// Whether a key is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Status {
    /// In force.
    #[default]
    Active,
    /// Suspended; it may become active again.
    Disabled,
    /// Withdrawn permanently.
    Revoked,
}

/// One key. Its texts borrow from the reader's buffer; an empty text means that the row has no
/// value.
#[derive(Clone, Debug)]
pub struct KeyRecord<'a> {
    /// The digest of the key; unique in an export.
    pub hash: Digest,
    /// 1..=[`MAX_KEY_ID`] bytes. Rows with the same id belong to one key in rotation and share its
    /// balances.
    pub key_id: &'a str,
    /// The owner of the key.
    pub owner: &'a str,
    /// The environment that the key belongs to, such as `live` or `test`.
    pub environment: &'a str,
    /// The plan named by the row. Empty selects the default plan, if there is one.
    pub plan: &'a str,
    /// Whether the key is active, disabled or revoked.
    pub status: Status,
    /// First Unix second at which the key is valid; 0 if it has no start.
    pub not_before: u32,
    /// First Unix second at which the key is no longer valid; `u32::MAX` (in the year 2106) if it
    /// never expires.
    pub expires_at: u32,
    /// The scopes of the key. `orders:*` covers every scope that begins with `orders:`.
    pub scopes: Arc<[Box<str>]>,
    /// Networks that requests may come from. `None` allows any address, an empty list none.
    pub allowed_ips: Option<Arc<[IpNet]>>,
    /// Web origins that may use the key. `None` allows any origin, an empty list none.
    pub allowed_origins: Option<Arc<[Origin]>>,
    /// The limits of the row, in the order written. Each replaces the limit of the plan with the
    /// same name, or is added to the limits of the plan.
    pub limits: Arc<[Limit]>,
    /// A JSON object as written, or empty.
    pub metadata: &'a str,
    /// The fields for which the row has a value. The fields that no row of a source has a value for
    /// tell the guard that a column was lost.
    pub present_fields: FieldSet,
}

impl<'a> KeyRecord<'a> {
    /// A record with the required fields only: an active key without restrictions, which never
    /// expires.
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
            // A record that is made in code lacks no column: no field may count as lost.
            present_fields: FieldSet::ALL,
        }
    }
}

/// Formats a Unix second as RFC 3339 in UTC.
pub fn rfc3339(seconds: u32) -> String {
    // A record's seconds end in the year 2106, so this cannot fail.
    jiff::Timestamp::from_second(seconds.into()).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_second_is_formatted_in_utc() {
        assert_eq!(rfc3339(1_795_255_200), "2026-11-21T10:00:00Z");
        assert_eq!([0, u32::MAX].map(rfc3339), ["1970-01-01T00:00:00Z", "2106-02-07T06:28:15Z"]);
    }
}
