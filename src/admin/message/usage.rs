//! The answer to `usage`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Maximum number of keys in one report: it is one line of JSON, for people and for scripts that
/// need the top keys. `usage.jsonl` has all of them.
pub const MAX_LISTED: usize = 1000;

/// Counts of requests and cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCounts {
    /// Requests that were allowed and charged.
    pub allowed: u64,
    /// Requests that were denied, by verdict.
    pub denied: BTreeMap<String, u64>,
    /// General cost of these requests: what they charged on each limit that they did not name.
    pub cost: u64,
    /// General amount that was to be refunded.
    pub refunded: u64,
    /// General amount that was to be debited.
    #[serde(default)]
    pub debited: u64,
    /// Requests that a limit in shadow mode would have refused.
    pub shadow_limited: u64,
    /// Requests for the balance, which charge nothing.
    pub peeked: u64,
    /// What was really charged, debited and refunded on each limit, by name. `None`: every limit
    /// was charged `cost`, and none was debited or refunded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<BTreeMap<String, LimitUsage>>,
}

/// What was charged, debited and refunded on one limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitUsage {
    /// Charged by requests that were allowed.
    pub charged: u64,
    /// Debited, which ends at the floor of the limit.
    pub debited: u64,
    /// Refunded, as far as it had been spent.
    pub refunded: u64,
}

/// The usage of one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUsage {
    /// The key's id.
    pub key_id: String,
    /// The key's owner; empty if it has none.
    pub owner: String,
    /// Its counts.
    #[serde(flatten)]
    pub counts: UsageCounts,
    /// Unix second of the first request, allowed or denied.
    pub first_used: Option<u32>,
    /// Unix second of the last request.
    pub last_used: Option<u32>,
}

/// The usage since the daemon's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// When the daemon started, RFC 3339.
    pub since: String,
    /// When the report was made, RFC 3339.
    pub as_of: String,
    /// Keys that match the query and were used.
    pub matched: usize,
    /// The sums over these keys.
    pub total: UsageCounts,
    /// Requests with unknown keys, by verdict, independent of the query.
    pub unknown: BTreeMap<String, u64>,
    /// The keys, by descending cost; [`MAX_LISTED`] at most.
    pub keys: Vec<KeyUsage>,
}
