//! What goes over the admin socket: one JSON object in one line each way, so that `socat` is a client.
//!
//! ```text
//! {"command":"status"}                  -> {"ok":true,"status":{…}}
//! {"command":"reload","force":false}    -> {"ok":true,"reload":{…}}
//! {"command":"check","source":"/a.csv"} -> {"ok":true,"check":{…}}
//! {"command":"usage","key_id":"…"}      -> {"ok":true,"usage":{…}}
//! {"command":"revoke","key_id":"key_1"} -> {"ok":true,"revocation":{…}}
//! {"command":"unrevoke","owner":"acme"} -> {"ok":true,"revocation":{…}}
//! {"command":"revocations"}             -> {"ok":true,"revocations":{…}}
//! {"command":"version"}                 -> {"ok":true,"version":{…}}
//! anything else                         -> {"ok":false,"error":"…"}
//! ```
//!
//! A reload that was refused is `"ok":true` with `"accepted":false`: the daemon did what it was asked to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::check::{Check, Example};
use super::withheld::Withheld;
use crate::usage::UsageReport;

/// Revocations in a status, at most.
pub const LATEST_REVOCATIONS: usize = 100;

/// Revocations in a page of the whole list, at most: some 100 KB.
pub const PAGE_OF_REVOCATIONS: usize = 1_000;

/// What the daemon is asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Says how it is.
    Status,
    /// Reads the source again, and answers when the outcome is in force on every connection.
    Reload {
        /// Publish even what the guard refuses: a set that is empty, has shrunk, or needs a pepper that is gone.
        #[serde(default)]
        force: bool,
    },
    /// Reads a source, and says what reloading it would do; nothing is published.
    Check {
        /// An absolute path, in place of the daemon's own source.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<String>,
    },
    /// Says what keys have used since the start: one key, an owner's, or those that cost most.
    Usage {
        /// Of this key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key_id: Option<String>,
        /// Of this owner's keys.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<String>,
        /// Of so many keys.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        top: Option<usize>,
    },
    /// Takes a key or all keys of an owner out of force; answers when that is so on every connection.
    Revoke(Target),
    /// Takes a revocation back, and answers likewise.
    Unrevoke(Target),
    /// Lists revocations, in the order of their names: a page.
    Revocations {
        /// The last entry of the page before; none for the first page.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<Target>,
    },
    /// Says what it is.
    Version,
}

/// A key or an owner: one of the two is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// All rows with this key id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// All rows of this owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// Whether the command was carried out.
    pub ok: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// To `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// To `reload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<Reload>,
    /// To `check`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<Check>,
    /// To `usage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageReport>,
    /// To `revoke` and `unrevoke`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocation: Option<Revocation>,
    /// To `revocations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revocations: Option<Revocations>,
    /// To `version`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
}

/// A page of the list of revocations: owners, then keys, each in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocations {
    /// Entries on the whole list.
    pub total: usize,
    /// Those of this page.
    pub entries: Vec<Revoked>,
    /// Whether there is a page after this one.
    pub more: bool,
}

/// What a revocation, or taking one back, came to. It is in force on every connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// What was named.
    #[serde(flatten)]
    pub target: Target,
    /// It was on the list before.
    pub already: bool,
    /// Rows of the export that have this key id or owner: 0 where no keys are loaded yet.
    pub keys: usize,
    /// Those of them that are revoked now, whether by this command, by another or by the source.
    pub revoked: usize,
    /// The snapshot in force; 0: none yet.
    pub generation: u64,
    /// Whether a restart would find it.
    #[serde(default = "yes")]
    pub durable: bool,
    /// Why it would not. The daemon tries again until it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_durable: Option<String>,
}

/// What daemons did that did not say so.
fn yes() -> bool {
    true
}

/// A revocation on the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// What is revoked.
    #[serde(flatten)]
    pub target: Target,
    /// When it was, in UTC, as RFC 3339 has it.
    pub when: String,
    /// The user who did it.
    pub by_uid: u32,
    /// Whether a restart would find it.
    #[serde(default = "yes")]
    pub durable: bool,
    /// Since when the source has said the same without a break.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed_since: Option<String>,
    /// Since when the source has said active, after it had said revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict_since: Option<String>,
}

/// A file that is not being written: what belongs in it would not survive a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unwritten {
    /// Its name in the state directory; or the directory's path, where there is none that can be used.
    pub file: String,
    /// Since when, in UTC, as RFC 3339 has it.
    pub since: String,
    /// For how many seconds.
    pub since_s: u64,
    /// Why.
    pub error: String,
    /// Records that were given up since, because too many were waiting.
    #[serde(default)]
    pub dropped: u64,
}

/// How a reload went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reload {
    /// Whether a new snapshot is in force.
    pub accepted: bool,
    /// The snapshot in force; 0: none yet.
    pub generation: u64,
    /// Keys in force.
    pub keys: usize,
    /// What an accepted reload changed, or one that the guard refused would have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    /// The first of the keys whose access changes.
    #[serde(default, skip_serializing_if = "AccessExamples::is_empty")]
    pub examples: AccessExamples,
    /// Keys that it has disabled or restricted because of rows that cannot be understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
    /// Why a reload was refused: for people, a line for each finding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why none of the keys that an accepted reload put in force is served: the source is older than `max_staleness`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
    /// Whether the source says the same as the one before it.
    #[serde(default)]
    pub unchanged: bool,
    /// Revocations that the source says itself now, and that are off the list for that.
    #[serde(default)]
    pub revocations_agreed: usize,
    /// Revocations that the source contradicts: it says active, and had said revoked. They stay in force.
    #[serde(default)]
    pub revocations_conflicting: usize,
    /// How long it took.
    pub took_ms: u64,
    /// Seconds since it ended.
    pub age_s: u64,
}

/// The first keys whose access a reload changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessExamples {
    /// Those that stop working.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopping: Vec<Example>,
    /// Those that start working.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starting: Vec<Example>,
    /// Those that lose a restriction.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loosened: Vec<Example>,
}

impl AccessExamples {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.stopping.is_empty() && self.starting.is_empty() && self.loosened.is_empty()
    }
}

/// The keys that were in force last, as the state directory has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    /// Whether they are what is served, because the source was refused at the start.
    pub in_use: bool,
    /// Since how many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use_s: Option<u64>,
    /// What was wrong with the source then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The snapshot that they were accepted as; 0: there are none yet.
    pub generation: u64,
    /// How many there are.
    pub keys: usize,
    /// Seconds since they came into force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_age_s: Option<u64>,
    /// Seconds since their source was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_age_s: Option<u64>,
    /// Where they came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Why they cannot be served, where they were needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// How many keys a reload added, removed and changed, and what that means for access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// New hashes.
    pub added: usize,
    /// Hashes that are gone.
    pub removed: usize,
    /// Hashes whose row says something else.
    pub changed: usize,
    /// Keys that were active and are not any more; some are counted above too.
    pub revoked: usize,
    /// Keys that work and stop working: removed, disabled, revoked, or out of their time.
    #[serde(default)]
    pub stopping: usize,
    /// Keys that are listed, do not work, and start working.
    #[serde(default)]
    pub starting: usize,
    /// Keys that lose a restriction.
    #[serde(default)]
    pub loosened: usize,
}

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether a snapshot is being served, and may be.
    pub ready: bool,
    /// Whether the snapshot is older than `max_staleness`.
    pub stale: bool,
    /// The snapshot being served; 0: none yet.
    pub generation: u64,
    /// Keys in it.
    pub keys: usize,
    /// Token buckets in use.
    pub buckets: u64,
    /// The source.
    pub source: String,
    /// Seconds since the source being served was written.
    pub source_age_s: Option<u64>,
    /// The latest reload, accepted or not.
    pub last_reload: Option<Reload>,
    /// Why the configuration that was read last is not in force, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_refused: Option<String>,
    /// The latest reload that was accepted.
    pub last_accepted: Option<Reload>,
    /// The keys that would be served after a restart beside a bad source; `None`: none are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<LastGood>,
    /// Keys that are disabled or restricted because of rows that cannot be understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
    /// Files of the state directory that are not being written.
    #[serde(default)]
    pub unwritten: Vec<Unwritten>,
    /// The first [`LATEST_REVOCATIONS`] of what an operator has revoked: what is not durable or contradicted by the source
    /// comes first, then the latest.
    #[serde(default)]
    pub revocations: Vec<Revoked>,
    /// How many there are. The command `revocations` lists all.
    #[serde(default)]
    pub revocations_total: usize,
    /// The sockets, `verify` and `admin`.
    #[serde(default)]
    pub sockets: BTreeMap<String, SocketStatus>,
    /// The log.
    #[serde(default)]
    pub log: LogStatus,
    /// Open connections.
    pub connections: usize,
    /// Connections accepted since the start.
    pub accepted_connections: u64,
    /// Connections refused since the start, by reason.
    pub refused_connections: BTreeMap<String, u64>,
    /// Answers since the start, by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// REFUNDs answered since the start.
    #[serde(default)]
    pub refunds: u64,
    /// ERROR frames since the start.
    pub errors: u64,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Worker threads.
    pub workers: usize,
    /// Process id.
    pub pid: u32,
    /// What it is.
    pub version: Version,
}

/// A socket of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// Its file, if it has one that the daemon can see.
    pub path: Option<String>,
    /// Whether systemd opened it.
    pub adopted: bool,
    /// Whether clients can connect by its file.
    pub reachable: bool,
    /// Why they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How often it was bound anew because its file was gone.
    pub rebound: u64,
}

/// The log, on standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Lines dropped since the start.
    pub dropped: u64,
    /// Since when lines have been dropped, as RFC 3339 has it, if writing has not worked again since.
    pub failing_since: Option<String>,
    /// What prevents writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The daemon's own version.
    pub keyward: String,
    /// The versions of the protocol that it speaks: lowest and highest.
    pub protocol: [u8; 2],
}

impl Version {
    /// This build's.
    pub fn current() -> Self {
        let protocol = [keyward_protocol::VERSION; 2];
        Self { keyward: env!("CARGO_PKG_VERSION").into(), protocol }
    }
}

impl Reply {
    /// A command that was not carried out.
    pub fn error(message: impl Into<String>) -> Self {
        Self { ok: false, error: Some(message.into()), ..Self::done() }
    }

    fn done() -> Self {
        Self {
            ok: true,
            error: None,
            status: None,
            reload: None,
            check: None,
            usage: None,
            revocation: None,
            revocations: None,
            version: None,
        }
    }
}

impl From<Status> for Reply {
    fn from(status: Status) -> Self {
        Self { status: Some(status), ..Self::done() }
    }
}

impl From<Reload> for Reply {
    fn from(reload: Reload) -> Self {
        Self { reload: Some(reload), ..Self::done() }
    }
}

impl From<Check> for Reply {
    fn from(check: Check) -> Self {
        Self { check: Some(check), ..Self::done() }
    }
}

impl From<UsageReport> for Reply {
    fn from(usage: UsageReport) -> Self {
        Self { usage: Some(usage), ..Self::done() }
    }
}

impl From<Revocation> for Reply {
    fn from(revocation: Revocation) -> Self {
        Self { revocation: Some(revocation), ..Self::done() }
    }
}

impl From<Revocations> for Reply {
    fn from(revocations: Revocations) -> Self {
        Self { revocations: Some(revocations), ..Self::done() }
    }
}

impl From<Version> for Reply {
    fn from(version: Version) -> Self {
        Self { version: Some(version), ..Self::done() }
    }
}
