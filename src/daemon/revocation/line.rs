//! The lines of the list on disk, in JSON.
//!
//! ```text
//! {"revocations":1,"list":"<32 hex digits>","seq":4}
//! {"seq":5,"action":"revoke","key_id":"key_1","when":"2026-11-21T10:00:00Z","by_uid":0}
//! {"seq":6,"action":"source","key_id":"key_1","when":"…","says":{"status":"revoked","since":"…","clock_ms":86400000}}
//! {"seq":7,"action":"drop","key_id":"key_1","when":"…"}
//! ```
//!
//! The first line is a header with the format, the list's random id, and the number of the line
//! before the second one. From there `seq` increases by one from line to line, across rewrites and
//! restarts. The last line about a key or an owner decides.

use std::io::{self, Write};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::list::{List, RevocationRecord, SourceObservation, SourceStatus, Target};

/// The format of the list.
pub(super) const FORMAT: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// [`FORMAT`].
    pub(super) revocations: u32,
    /// The list's id.
    pub(super) list: String,
    /// The next line has this number plus one.
    pub(super) seq: u64,
}

/// The action of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    /// An operator has revoked the target.
    Revoke,
    /// An operator has removed the revocation.
    Unrevoke,
    /// The status in the source has changed.
    Source,
    /// The source has confirmed it for long enough.
    Drop,
}

/// A line after the header. It gets its number when it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seq: Option<u64>,
    action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_id: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Box<str>>,
    when: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by_uid: Option<u32>,
    #[serde(default, rename = "says", skip_serializing_if = "Option::is_none")]
    status: Option<StatusLine>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusLine {
    status: SourceStatus,
    since: String,
    clock_ms: u64,
}

impl StatusLine {
    fn new(source: SourceObservation) -> Self {
        Self { status: source.status, since: source.since.to_string(), clock_ms: source.clock_ms }
    }

    fn observation(&self) -> Result<SourceObservation, String> {
        Ok(SourceObservation {
            status: self.status,
            since: time("since", &self.since)?,
            clock_ms: self.clock_ms,
        })
    }
}

fn time(name: &str, text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|error| format!("{name}: {error}"))
}

impl Line {
    fn new(action: Action, target: &Target, when: Timestamp) -> Self {
        let (key_id, owner) = (target.key_id().map(Into::into), target.owner().map(Into::into));
        Self { seq: None, action, key_id, owner, when: when.to_string(), by_uid: None, status: None }
    }

    /// A line with the whole record of an entry.
    pub(super) fn revoke(target: &Target, record: &RevocationRecord) -> Self {
        let status = record.source.map(StatusLine::new);
        Self { by_uid: Some(record.by_uid), status, ..Self::new(Action::Revoke, target, record.when) }
    }

    pub(super) fn unrevoke(target: &Target, when: Timestamp, by_uid: u32) -> Self {
        Self { by_uid: Some(by_uid), ..Self::new(Action::Unrevoke, target, when) }
    }

    pub(super) fn source(target: &Target, source: SourceObservation) -> Self {
        Self { status: Some(StatusLine::new(source)), ..Self::new(Action::Source, target, source.since) }
    }

    pub(super) fn dropped(target: &Target, when: Timestamp) -> Self {
        Self::new(Action::Drop, target, when)
    }

    /// The line with its number.
    pub(super) fn numbered(self, seq: u64) -> Self {
        Self { seq: Some(seq), ..self }
    }

    /// Applies the line to `list`. This is idempotent.
    ///
    /// # Errors
    /// A message that describes what is wrong with the line.
    pub(super) fn apply(&self, list: &mut List) -> Result<(), String> {
        let target = Target::new(self.key_id.as_deref(), self.owner.as_deref());
        let target = target.map_err(|error| error.to_string())?;
        let when = time("when", &self.when)?;
        let source = self.status.as_ref().map(StatusLine::observation).transpose()?;
        match self.action {
            Action::Revoke => {
                let by_uid = self.by_uid.ok_or("by_uid is missing")?;
                list.insert(target, RevocationRecord { when, by_uid, source, durable: true }, 0);
            }
            Action::Unrevoke | Action::Drop => drop(list.remove(&target)),
            Action::Source => {
                let source = source.ok_or("says is missing")?;
                // An earlier line may have removed the entry.
                if let Some(entry) = list.get_mut(&target) {
                    entry.record.source = Some(source);
                }
            }
        }
        Ok(())
    }
}

/// Writes one line.
pub(super) fn encode(line: &impl Serialize, writer: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *writer, line)?;
    writer.write_all(b"\n")
}
