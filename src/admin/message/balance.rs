//! The answers to `balance`, `reset_balance` and `reset_calendar`.

use serde::{Deserialize, Serialize};

/// The balances of a key. A reset reports them as it has left them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBalances {
    /// The key's id.
    pub key_id: String,
    /// Its limits, in their order.
    pub limits: Vec<LimitBalance>,
}

/// The kind of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitKind {
    /// It refills at a rate.
    TokenBucket,
    /// It starts anew in each part of the calendar.
    CalendarQuota,
    /// It does not refill.
    Credits,
}

/// The balance of a limit of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitBalance {
    /// The name of the limit.
    pub name: String,
    /// Its kind.
    pub kind: LimitKind,
    /// Its burst, its count in a window, or the credits granted.
    pub limit: u64,
    /// How far a debit can bring the balance below zero.
    pub overdraft: u32,
    /// What is left. Below zero if the limit is overdrawn.
    pub balance: i64,
    /// Milliseconds until nothing counts as spent any more, rounded up. `None` for credits, which do
    /// not refill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_ms: Option<u64>,
    /// The owner, if all keys of the owner share the balance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Whether the limit is only observed.
    pub shadow: bool,
    /// The balance before it was reset. `None`: it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<i64>,
}

/// The outcome of setting the calendar back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalendarReset {
    /// Seconds that it was ahead of the system's clock.
    pub ahead_s: u32,
    /// Balances of calendar quotas that were in a later window.
    pub moved: usize,
}
