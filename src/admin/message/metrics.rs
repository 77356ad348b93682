//! The report of `metrics`: what a monitoring system collects.
//!
//! Counters count since the start of the daemon. Everything that may be missing is an `Option`, so that
//! a consumer leaves it out instead of reporting zero.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::status::Version;

/// The daemon's metrics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The version of the daemon.
    pub version: Version,
    /// Whether there is a snapshot, and it is not stale.
    pub ready: bool,
    /// Whether the snapshot is older than `max_staleness`.
    pub stale: bool,
    /// The generation in force, which answers carry. 0: there is no snapshot yet.
    pub generation: u64,
    /// What was answered.
    pub answers: Answers,
    /// Connections to the request socket.
    pub connections: Connections,
    /// The keys in force by status: `active`, `disabled`, `revoked`, `not_yet_valid`, `expired`. Empty
    /// if there is no snapshot.
    pub keys: BTreeMap<String, u64>,
    /// Balances in memory.
    pub buckets: u64,
    /// Seconds since the keys in force were accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_age_s: Option<f64>,
    /// Seconds since the source of the keys in force was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_age_s: Option<f64>,
    /// Reloads.
    pub reloads: Reloads,
    /// The number of bad rows whose keys are disabled.
    pub rows_set_aside: u64,
    /// The number of keys that a refused source has revoked, disabled or let expire.
    pub keys_taken_away: u64,
    /// Entries in the list of revocations.
    pub revocations: u64,
    /// Revocations that a restart would forget.
    pub revocations_not_durable: u64,
    /// Seconds for which files of the state directory could not be written, by file.
    pub unwritten_s: BTreeMap<String, f64>,
    /// What is written about the use of keys.
    pub usage: UsageMetrics,
    /// Log lines dropped, because standard error did not take them.
    pub log_lines_dropped: u64,
    /// Whether clients can connect by the file of a socket: `verify`, `admin`.
    pub socket_reachable: BTreeMap<String, bool>,
    /// Seconds that the calendar of the quotas is ahead of the system's clock.
    pub calendar_ahead_s: u32,
    /// The process. `None`: the system does not report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answers {
    /// Answers to VERIFY, by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Answers to REFUND.
    pub refunds: u64,
    /// Answers to DEBIT.
    pub debits: u64,
    /// ERROR frames.
    pub errors: u64,
    /// Requests that a limit in shadow mode would have refused.
    pub shadow_denials: u64,
    /// Seconds from reading requests to having written their answers, of a sample of the batches.
    pub duration_s: Histogram,
    /// Requests that were read together, of the same sample.
    pub batch_requests: Histogram,
}

/// Connections to the request socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connections {
    /// Open connections.
    pub open: u64,
    /// The maximum number of open connections.
    pub max: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections refused, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// Reloads since the start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reloads {
    /// Whether the latest one was accepted, and the configuration that was read last is in force.
    pub last_successful: bool,
    /// When one was last accepted, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_success_unix_s: Option<f64>,
    /// Whether last good keys are served, because the source was refused at the start.
    pub last_good_in_use: bool,
    /// How long reloads took in seconds, by result: `accepted`, `unchanged`, `refused`.
    pub duration_s: BTreeMap<String, Histogram>,
}

/// What is written about the use of keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UsageMetrics {
    /// Seconds since the oldest usage that is not written. 0: all is written, or there is no state
    /// directory to write it to.
    pub lag_s: f64,
    /// Lines dropped, because they could not be written.
    pub dropped: u64,
}

/// The process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// When it was started, in Unix seconds.
    pub start_unix_s: f64,
    /// Processor time.
    pub cpu_s: f64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// Virtual memory in bytes.
    pub virtual_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// The limit of open descriptors.
    pub max_fds: u64,
}

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// The sum of the values.
    pub sum: f64,
    /// Upper bounds in ascending order, each with the number of values that are not above it and above
    /// the bound before it.
    pub buckets: Vec<(f64, u64)>,
    /// The number of values above the last bound.
    pub above: u64,
}
