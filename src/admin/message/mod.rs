//! The messages of the admin socket: one JSON object in one line each way, so that `socat` can
//! serve as a client.
//!
//! ```text
//! {"command":"status"}                  -> {"ok":true,"status":{…}}
//! {"command":"metrics"}                 -> {"ok":true,"metrics":{…}}
//! {"command":"reload","force":false}    -> {"ok":true,"reload":{…}}
//! {"command":"check","source":"/a.csv"} -> {"ok":true,"check":{…}}
//! {"command":"usage","key_id":"…"}      -> {"ok":true,"usage":{…}}
//! {"command":"revoke","key_id":"key_1"} -> {"ok":true,"revocation":{…}}
//! {"command":"unrevoke","owner":"acme"} -> {"ok":true,"revocation":{…}}
//! {"command":"revocations"}             -> {"ok":true,"revocations":{…}}
//! {"command":"balance","key_id":"key_1"} -> {"ok":true,"balances":{…}}
//! {"command":"reset_balance","key_id":"key_1","limit":"tokens"} -> {"ok":true,"balances":{…}}
//! {"command":"reset_calendar"}          -> {"ok":true,"calendar":{…}}
//! {"command":"version"}                 -> {"ok":true,"version":{…}}
//! anything else                         -> {"ok":false,"error":"…"}
//! ```
//!
//! A refused reload is `"ok":true` with `"accepted":false`, because the command itself was carried
//! out.

use serde::{Deserialize, Serialize};

mod balance;
mod check;
mod diagnostic;
mod diff;
mod metrics;
mod reload;
mod revocation;
mod status;
mod usage;
mod withheld;

pub use balance::{CalendarReset, KeyBalances, LimitBalance, LimitKind};
pub use check::{Check, CheckDiff};
pub use diagnostic::{Diagnostic, Diagnostics};
pub use diff::{AccessExamples, ChangeCounts, Difference, Example, Examples};
pub use metrics::{Answers, Connections, Histogram, Metrics, Process, Reloads, UsageMetrics};
pub use reload::Reload;
pub use revocation::{LATEST_REVOCATIONS, REVOCATIONS_PER_PAGE, Revocation, Revocations, Revoked, Target};
pub use status::{LastGood, LogStatus, SocketStatus, Status, Unwritten, Version};
pub use usage::{KeyUsage, LimitUsage, MAX_LISTED, UsageCounts, UsageReport};
pub use withheld::Withheld;

/// A command to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Reports the state of the daemon.
    Status,
    /// Reports what a monitoring system collects.
    Metrics,
    /// Reads the source again. Answered when the outcome is in force on every connection.
    Reload {
        /// Publishes even what the guard refuses: a set that is empty, has shrunk, or needs a
        /// pepper that is missing.
        #[serde(default)]
        force: bool,
    },
    /// Reads a source and reports what reloading it would do. Nothing is published.
    Check {
        /// An absolute path, instead of the daemon's own source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// Reports what keys have used since the start: one key, the keys of an owner, or the keys with
    /// the highest cost.
    Usage {
        /// The key to report.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_id: Option<String>,
        /// The owner whose keys to report.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        /// The number of keys to report.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        top: Option<usize>,
    },
    /// Revokes a key, or all keys of an owner. Answered when the revocation is in force on every
    /// connection.
    Revoke(Target),
    /// Removes a revocation. Answered when that is in force on every connection.
    Unrevoke(Target),
    /// Lists a page of the revocations, in the order of their names.
    Revocations {
        /// The last entry of the previous page. Absent for the first page.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Target>,
    },
    /// Reports the balances of a key.
    Balance {
        /// The key.
        key_id: String,
    },
    /// Makes the limits of a key unspent. In force when it is answered.
    ResetBalance {
        /// The key.
        key_id: String,
        /// The name of the only limit to reset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<String>,
    },
    /// Sets the calendar of the quotas back to the system's clock, if it is ahead.
    ResetCalendar,
    /// Reports the versions of the daemon and the protocol.
    Version,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Whether the command was carried out.
    pub ok: bool,
    /// Why it was not carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The answer to `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// The answer to `metrics`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// The answer to `reload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<Reload>,
    /// The answer to `check`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// The answer to `usage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageReport>,
    /// The answer to `revoke` and `unrevoke`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<Revocation>,
    /// The answer to `revocations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<Revocations>,
    /// The answer to `balance` and `reset_balance`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balances: Option<KeyBalances>,
    /// The answer to `reset_calendar`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calendar: Option<CalendarReset>,
    /// The answer to `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

impl Reply {
    /// The answer to a command that was not carried out.
    pub fn error(message: impl Into<String>) -> Self {
        Self { ok: false, error: Some(message.into()), ..Self::empty() }
    }

    fn empty() -> Self {
        Self {
            ok: true,
            error: None,
            status: None,
            metrics: None,
            reload: None,
            check: None,
            usage: None,
            revocation: None,
            revocations: None,
            balances: None,
            calendar: None,
            version: None,
        }
    }
}

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        Self { status: Some(status), ..Self::empty() }
    }
}

impl From<Metrics> for Reply {
    fn from(metrics: Metrics) -> Self {
        Self { metrics: Some(metrics), ..Self::empty() }
    }
}

impl From<Reload> for Reply {
    fn from(reload: Reload) -> Self {
        Self { reload: Some(reload), ..Self::empty() }
    }
}

impl From<Check> for Reply {
    fn from(check: Check) -> Self {
        Self { check: Some(check), ..Self::empty() }
    }
}

impl From<UsageReport> for Reply {
    fn from(usage: UsageReport) -> Self {
        Self { usage: Some(usage), ..Self::empty() }
    }
}

impl From<Revocation> for Reply {
    fn from(revocation: Revocation) -> Self {
        Self { revocation: Some(revocation), ..Self::empty() }
    }
}

impl From<Revocations> for Reply {
    fn from(revocations: Revocations) -> Self {
        Self { revocations: Some(revocations), ..Self::empty() }
    }
}

impl From<KeyBalances> for Reply {
    fn from(balances: KeyBalances) -> Self {
        Self { balances: Some(balances), ..Self::empty() }
    }
}

impl From<CalendarReset> for Reply {
    fn from(calendar: CalendarReset) -> Self {
        Self { calendar: Some(calendar), ..Self::empty() }
    }
}

impl From<Version> for Reply {
    fn from(version: Version) -> Self {
        Self { version: Some(version), ..Self::empty() }
    }
}
