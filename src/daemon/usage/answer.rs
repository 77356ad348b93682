//! What operators ask about usage, and what they are told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Keys that are listed in one answer, at most: it is one line of JSON, for people and for scripts that look at the top.
/// Who wants all of them reads usage.jsonl.
pub const MAX_LISTED: usize = 1000;

/// Whose usage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsageQuery {
    /// One key's.
    Key(String),
    /// All keys of an owner.
    Owner(String),
    /// The keys that cost most, so many of them.
    Top(usize),
}

/// How often, and how much.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageCounts {
    /// Requests that were allowed and charged.
    pub allowed: u64,
    /// Requests that were not, by verdict.
    pub denied: BTreeMap<String, u64>,
    /// What was charged.
    pub cost: u64,
    /// What was given back.
    pub refunded: u64,
    /// Requests that a limit in shadow mode would have refused.
    pub shadow_limited: u64,
    /// Requests that asked for the balance and were charged nothing.
    pub peeked: u64,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUsage {
    /// Its id.
    pub key_id: String,
    /// Whose it is; empty: nobody's.
    pub owner: String,
    /// What it used.
    #[serde(flatten)]
    pub counts: UsageCounts,
    /// Unix second of the first request, allowed or not.
    pub first_used: Option<u32>,
    /// Of the last.
    pub last_used: Option<u32>,
}

/// An answer. All of it is since the daemon's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// The start, RFC 3339.
    pub since: String,
    /// When the question was answered, RFC 3339.
    pub as_of: String,
    /// Keys that were asked for and used.
    pub matched: usize,
    /// What these used together.
    pub total: UsageCounts,
    /// Requests with keys that are not in the source, by verdict; of all that the daemon was asked.
    pub unknown: BTreeMap<String, u64>,
    /// The keys, those first that cost most; [`MAX_LISTED`] at most.
    pub keys: Vec<KeyUsage>,
}
