//! The report of `status`, and of `version`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::reload::Reload;
use super::revocation::Revoked;
use super::withheld::Withheld;

/// The state of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether there is a snapshot, and it is not stale.
    pub ready: bool,
    /// Whether the snapshot is older than `max_staleness`.
    pub stale: bool,
    /// The generation in force, which answers carry. 0: there is no snapshot yet.
    pub generation: u64,
    /// The generation in which the keys came into force. A revocation since then has moved
    /// `generation`, and not this.
    #[serde(default)]
    pub table_generation: u64,
    /// The number of keys in force.
    pub keys: usize,
    /// The number of token buckets in use.
    pub buckets: u64,
    /// The source.
    pub source: String,
    /// Seconds since the source of the snapshot was written.
    pub source_age_s: Option<u64>,
    /// The latest reload, accepted or not.
    pub last_reload: Option<Reload>,
    /// Why the configuration that was read last is not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration_refused: Option<String>,
    /// The latest accepted reload.
    pub last_accepted: Option<Reload>,
    /// The last good keys, which a restart with a bad source would serve. `None`: they are not
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<LastGood>,
    /// Keys that are disabled or restricted because of bad rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withheld: Option<Withheld>,
    /// Files of the state directory that cannot be written.
    #[serde(default)]
    pub unwritten: Vec<Unwritten>,
    /// The first [`LATEST_REVOCATIONS`](super::LATEST_REVOCATIONS) revocations: those that are not
    /// durable or contradicted by the source, then the latest.
    #[serde(default)]
    pub revocations: Vec<Revoked>,
    /// The total number of revocations. The command `revocations` lists all of them.
    #[serde(default)]
    pub revocations_total: usize,
    /// Seconds that the calendar of the quotas is ahead of the system's clock: the clock was set back,
    /// and windows do not go back.
    #[serde(default)]
    pub calendar_ahead_s: u32,
    /// The sockets, by name: `verify` and `admin`.
    #[serde(default)]
    pub sockets: BTreeMap<String, SocketStatus>,
    /// The log.
    #[serde(default)]
    pub log: LogStatus,
    /// The number of open connections.
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
    /// DEBITs answered since the start.
    #[serde(default)]
    pub debits: u64,
    /// ERROR frames sent since the start.
    pub errors: u64,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The number of worker threads.
    pub workers: usize,
    /// The process id.
    pub pid: u32,
    /// The version of the daemon.
    pub version: Version,
}

/// The last good keys, as the state directory has them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    /// Whether they are being served, because the source was refused at the start.
    pub in_use: bool,
    /// Seconds for which they have been served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_use_s: Option<u64>,
    /// Why the source was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The table generation that they were accepted as. 0: there are none yet.
    pub generation: u64,
    /// The number of keys.
    pub keys: usize,
    /// Seconds since they came into force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_age_s: Option<u64>,
    /// Seconds since their source was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_age_s: Option<u64>,
    /// The path of their source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Why they could not be served when they were needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unusable: Option<String>,
}

/// A file that cannot be written. Its content would not survive a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unwritten {
    /// The name of the file in the state directory, or the path of a state directory that cannot be
    /// used.
    pub file: String,
    /// Since when, in UTC and the format of RFC 3339.
    pub since: String,
    /// Seconds since then.
    pub since_s: u64,
    /// The error of the last write.
    pub error: String,
    /// Records that were dropped since, because too many were waiting.
    #[serde(default)]
    pub dropped: u64,
}

/// A listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketStatus {
    /// The path of its file, if it has one that the daemon can see.
    pub path: Option<String>,
    /// Whether systemd opened the socket.
    pub adopted: bool,
    /// Whether clients can connect by its file.
    pub reachable: bool,
    /// Why clients cannot connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How often the socket was bound again because its file was gone.
    pub rebound: u64,
}

/// The log on standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Lines dropped since the start.
    pub dropped: u64,
    /// Since when lines have been dropped, in the format of RFC 3339. Absent while writing works.
    pub failing_since: Option<String>,
    /// Why lines cannot be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The versions of the daemon and the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The version of the daemon.
    pub keyward: String,
    /// The lowest and the highest supported version of the protocol.
    pub protocol: [u8; 2],
}

impl Version {
    /// The versions of this build.
    pub fn current() -> Self {
        let protocol = [keyward_protocol::VERSION; 2];
        Self { keyward: env!("CARGO_PKG_VERSION").into(), protocol }
    }
}
