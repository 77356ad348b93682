//! The events of the audit trail. Their only free text is paths of files, key ids, owners, and names
//! of limits.

use keyward_engine::snapshot::ChangeCounts;
use serde::Serialize;

/// The process that gave a command or was refused, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// The process, if the kernel reports it.
    pub pid: Option<i32>,
}

/// An event.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The daemon started.
    Start {
        /// The version of keyward.
        version: &'static str,
        /// The daemon's process.
        pid: u32,
        /// The daemon's user.
        uid: u32,
    },
    /// The configuration was read.
    Configuration {
        /// The file; `None` for a daemon that is configured by options only.
        file: Option<String>,
        /// Whether it is valid. The following reload event records whether it is in force.
        valid: bool,
        /// The line of the error, from 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u64>,
        /// The column of the error, from 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        column: Option<u64>,
    },
    /// The source was read.
    Reload(Reload<'a>),
    /// The source was refused while nothing was served. The last good keys are served instead, or
    /// cannot be.
    LastGood(LastGood),
    /// An operator revoked a key, or an owner's keys.
    Revoke(Revocation<'a>),
    /// An operator took a revocation back.
    Unrevoke(Revocation<'a>),
    /// An operator made a limit of a key unspent.
    BalanceReset(BalanceReset<'a>),
    /// An operator set the calendar of the quotas back to the system's clock.
    CalendarReset {
        /// Seconds that it was ahead.
        ahead_s: u32,
        /// Balances that were in a later window, and are in the current one now.
        moved: usize,
        /// The operator.
        #[serde(flatten)]
        peer: Peer,
    },
    /// The source confirms a revocation. The entry stays on the list for `revocation.keep`.
    #[serde(rename = "revocation_agreed")]
    RevocationConfirmed(RevocationStatus<'a>),
    /// The source lists something as active that is revoked, after it had confirmed the
    /// revocation. It stays revoked.
    RevocationConflict(RevocationStatus<'a>),
    /// The source no longer confirms a revocation, and does not list the target as active
    /// either.
    RevocationUnconfirmed(RevocationStatus<'a>),
    /// A revocation has left the list: the source has confirmed it for `revocation.keep`.
    RevocationDropped(RevocationStatus<'a>),
    /// The daemon started with an incomplete list of revocations, which an operator had accepted.
    LostRevocationsAccepted {
        /// The operator's user.
        by_uid: u32,
        /// When the operator accepted it, RFC 3339.
        at: String,
        /// Revocations that remain.
        revocations: usize,
    },
    /// An operator has accepted a loss of balances, before the start or by a forced reload: calendar
    /// quotas and credits begin unspent.
    LostBalancesAccepted {
        /// The operator's user.
        by_uid: u32,
        /// When the operator accepted it, RFC 3339.
        at: String,
    },
    /// A peer was refused.
    PeerRefused(PeerRefusal),
    /// Lines were lost, because the disk accepted none for too long.
    Lost {
        /// The number of lost events.
        events: u64,
    },
    /// The daemon has drained and stops.
    Stop,
}

/// A socket of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Socket {
    /// The socket for requests.
    Verify,
    /// The socket for operators.
    Admin,
}

/// Why the source was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerKind {
    /// The daemon started.
    Start,
    /// The file changed.
    Change,
    /// SIGHUP.
    Signal,
    /// `keyward reload`.
    Command,
}

/// The outcome of a reload.
#[derive(Clone, Debug, Serialize)]
pub struct Reload<'a> {
    /// What triggered it.
    pub trigger: TriggerKind,
    /// The operators that requested it. Several may share a reload.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub peers: &'a [Peer],
    /// Whether the guard was overridden.
    pub force: bool,
    /// Whether the new keys are in force.
    pub accepted: bool,
    /// The number of keys in force.
    pub keys: usize,
    /// What the reload changed, or would have changed if the guard had accepted it.
    #[serde(flatten)]
    pub changes: Option<ChangeCounts>,
    /// The first of these keys.
    #[serde(flatten)]
    pub examples: AccessExamples<'a>,
    /// The effects of bad rows.
    #[serde(flatten)]
    pub withheld: Box<Withheld>,
    /// Why it was refused, as a code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The location of the first diagnostic.
    #[serde(flatten)]
    pub location: Option<FileLocation>,
    /// The number of diagnostics.
    #[serde(rename = "findings", skip_serializing_if = "Option::is_none")]
    pub diagnostics: Option<u64>,
    /// How long it took.
    pub took_ms: u64,
}

/// Keys that a reload has disabled or restricted because of bad rows.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Withheld {
    /// Rows that were set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_rows: Option<u64>,
    /// Those rows whose hash cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable_rows: Option<usize>,
    /// Keys that are disabled because their rows are set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<usize>,
    /// The ids of the first of these keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set_aside_keys: Vec<Box<str>>,
    /// Keys that takeaways of refused sources apply to since a source was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_away: Option<usize>,
    /// The ids of the first of these keys.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taken_away_keys: Vec<Box<str>>,
    /// Whether the takeaways of the source are not applied, because they are too many.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub takeaways_refused: bool,
}

/// The use of the last good keys.
#[derive(Clone, Debug, Serialize)]
pub struct LastGood {
    /// Whether they are served.
    pub in_use: bool,
    /// Why the source was refused, or else why they cannot be served, as a code.
    pub reason: &'static str,
    /// The number of keys.
    pub keys: usize,
    /// When they came into force, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_at: Option<String>,
    /// When their source was written, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_written_at: Option<String>,
}

impl LastGood {
    /// The event that they cannot be served.
    pub fn unusable(reason: &'static str) -> Self {
        Self { in_use: false, reason, keys: 0, accepted_at: None, source_written_at: None }
    }
}

/// The ids of the first keys whose access a reload changes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AccessExamples<'a> {
    /// Keys that stop working.
    #[serde(rename = "stopping_keys", skip_serializing_if = "Vec::is_empty")]
    pub stopping: Vec<&'a str>,
    /// Keys that start working.
    #[serde(rename = "starting_keys", skip_serializing_if = "Vec::is_empty")]
    pub starting: Vec<&'a str>,
    /// Keys that lose a restriction.
    #[serde(rename = "loosened_keys", skip_serializing_if = "Vec::is_empty")]
    pub loosened: Vec<&'a str>,
}

/// A location in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileLocation {
    /// The file.
    pub file: String,
    /// The line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The column, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
}

/// A revocation by an operator. An operator may have typed a raw key by mistake, so a name is
/// recorded only if the source lists it as a key id or an owner or, before keys are loaded, if it
/// cannot be a key.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Revocation<'a> {
    /// The key's id, if the target is a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<&'a str>,
    /// The owner, if the target is an owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<&'a str>,
    /// The number of rows that it applies to.
    pub keys: usize,
    /// The rows of these that are revoked now, for any reason.
    pub revoked: usize,
    /// The operator.
    #[serde(flatten)]
    pub peer: Peer,
}

/// A limit that an operator made unspent.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BalanceReset<'a> {
    /// The id of the key that the operator named.
    pub key_id: &'a str,
    /// The owner, if the limit is shared by all keys of the owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<&'a str>,
    /// The name of the limit.
    pub limit: &'a str,
    /// The balance before.
    pub balance: i64,
    /// The operator.
    #[serde(flatten)]
    pub peer: Peer,
}

/// A revocation on the list whose status in the source has changed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RevocationStatus<'a> {
    /// The key's id, if the target is a key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<&'a str>,
    /// The owner, if the target is an owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<&'a str>,
    /// The rows of the source that it applies to; 0 if the source no longer lists any.
    pub keys: usize,
}

/// Refusals of one user at one socket since the previous line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerRefusal {
    /// The socket.
    pub socket: Socket,
    /// The user; `None` for users that are counted together.
    pub uid: Option<u32>,
    /// The process of the first refusal.
    pub pid: Option<i32>,
    /// The number of refusals.
    pub count: u64,
}
