//! What the audit trail can say. There is no room in it for a text that came from somewhere: a file's path, a key's id and
//! an owner's name are the only ones.

use keyward_engine::snapshot::ChangeCounts;
use serde::Serialize;

/// Who gave a command or was refused, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Process, where the kernel says.
    pub pid: Option<i32>,
}

/// Something that happened.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The daemon started.
    Start {
        /// Its version.
        version: &'static str,
        /// Its process.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// The configuration was read.
    Configuration {
        /// The file; none for a daemon with options only.
        file: Option<String>,
        /// Whether it can be used. Whether it is in force, the reload that comes after it says.
        valid: bool,
        /// Where it is wrong, if it is. Counted from 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        line: Option<u64>,
        /// Counted from 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        column: Option<u64>,
    },
    /// The source was read.
    Reload(Reload<'a>),
    /// The source was refused while nothing was served: the last good keys are served in its place, or cannot be.
    LastGood(LastGood),
    /// An operator revoked a key, or an owner's keys.
    Revoke(Revocation<'a>),
    /// An operator took a revocation back.
    Unrevoke(Revocation<'a>),
    /// The source says itself that something is revoked. The revocation stays on the list for `revocation.keep`.
    RevocationAgreed(RevocationStatus<'a>),
    /// The source says active of something that is revoked, and that it had called revoked. It stays revoked.
    RevocationConflict(RevocationStatus<'a>),
    /// The source does not say revoked any more, and not active either.
    RevocationUnconfirmed(RevocationStatus<'a>),
    /// A revocation has left the list: the source has said the same for `revocation.keep`.
    RevocationDropped(RevocationStatus<'a>),
    /// The daemon started with a list of revocations that had lost something, because an operator had accepted that.
    LostRevocationsAccepted {
        /// The operator's user.
        by_uid: u32,
        /// When, as RFC 3339 has it.
        at: String,
        /// Revocations that are left.
        revocations: usize,
    },
    /// A peer was turned away.
    PeerRefused(PeerRefusal),
    /// The disk took no lines for so long that some were lost.
    Lost {
        /// How many.
        events: u64,
    },
    /// The daemon was told to stop, and has drained.
    Stop,
}

/// A socket of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Socket {
    /// Requests.
    Verify,
    /// Operators.
    Admin,
}

/// Why the source was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The daemon started.
    Start,
    /// The file changed.
    Change,
    /// SIGHUP.
    Signal,
    /// `keyward reload`.
    Command,
}

/// A reload that ended.
#[derive(Clone, Debug, Serialize)]
pub struct Reload<'a> {
    /// Why it was made.
    pub trigger: Trigger,
    /// Who asked for it; several may be answered together.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub peers: &'a [Peer],
    /// Whether the guard was overruled.
    pub force: bool,
    /// Whether the new keys are in force.
    pub accepted: bool,
    /// Keys in force.
    pub keys: usize,
    /// What an accepted one changed, or one that the guard refused would have.
    #[serde(flatten)]
    pub changes: Option<ChangeCounts>,
    /// Some of the keys.
    #[serde(flatten)]
    pub examples: AccessExamples<'a>,
    /// What came of rows that cannot be understood.
    #[serde(flatten)]
    pub withheld: Box<Withheld>,
    /// Why it was refused, in a word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Where the first finding is.
    #[serde(flatten)]
    pub place: Option<FileLocation>,
    /// How many findings there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub findings: Option<u64>,
    /// How long it took.
    pub took_ms: u64,
}

/// Keys that a reload has disabled or restricted because of rows that cannot be understood.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Withheld {
    /// Rows that were set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad_rows: Option<u64>,
    /// Those of them whose hash cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable_rows: Option<usize>,
    /// Keys that are disabled because their rows are set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_aside: Option<usize>,
    /// Some of them, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set_aside_keys: Vec<Box<str>>,
    /// Keys from which sources that were refused have taken something away since one was accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_away: Option<usize>,
    /// Some of them, by id.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub taken_away_keys: Vec<Box<str>>,
    /// Whether what the source takes away has no effect, because it is too much.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub takeaways_refused: bool,
}

/// What became of the last good keys.
#[derive(Clone, Debug, Serialize)]
pub struct LastGood {
    /// Whether they are served.
    pub in_use: bool,
    /// Why the source was refused, or else why they cannot be served, in a word.
    pub reason: &'static str,
    /// How many there are.
    pub keys: usize,
    /// When they had come into force, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_at: Option<String>,
    /// When their source was written, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_written_at: Option<String>,
}

impl LastGood {
    /// They cannot be served.
    pub fn unusable(reason: &'static str) -> Self {
        Self { in_use: false, reason, keys: 0, accepted_at: None, source_written_at: None }
    }
}

/// The first keys whose access a reload changes, by their ids.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AccessExamples<'a> {
    /// Those that stop working.
    #[serde(rename = "stopping_keys", skip_serializing_if = "Vec::is_empty")]
    pub stopping: Vec<&'a str>,
    /// Those that start working.
    #[serde(rename = "starting_keys", skip_serializing_if = "Vec::is_empty")]
    pub starting: Vec<&'a str>,
    /// Those that lose a restriction.
    #[serde(rename = "loosened_keys", skip_serializing_if = "Vec::is_empty")]
    pub loosened: Vec<&'a str>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileLocation {
    /// The file.
    pub file: String,
    /// Counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
}

/// A revocation by an operator. The texts are those of the source: what somebody typed may be a key, and is not to be
/// recorded unless the source lists it as a key's id or an owner.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Revocation<'a> {
    /// The key's id, where one key was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<&'a str>,
    /// The owner, where an owner's keys were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<&'a str>,
    /// Rows that it applies to.
    pub keys: usize,
    /// Rows of these that are revoked now, by whomever.
    pub revoked: usize,
    /// Who gave the command.
    #[serde(flatten)]
    pub peer: Peer,
}

/// A revocation on the list, by what the source says of it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct RevocationStatus<'a> {
    /// The key's id, where one key was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<&'a str>,
    /// The owner, where an owner's keys were named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<&'a str>,
    /// Rows of the source that it was about; none where the source no longer lists any.
    pub keys: usize,
}

/// Refusals of one user at one socket, since the line before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerRefusal {
    /// Where.
    pub socket: Socket,
    /// Who; none for those beyond the number of users that are told apart.
    pub uid: Option<u32>,
    /// The process of the first of them.
    pub pid: Option<i32>,
    /// How many.
    pub count: u64,
}
