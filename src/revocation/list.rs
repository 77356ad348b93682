//! What has been revoked, and the lines that say so.
//!
//! The list is what remains of the lines when they are read in order: one that revokes adds an entry, one that takes it
//! back removes it. The last line about a key or an owner decides.

use std::collections::{BTreeMap, HashMap};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::record::{MAX_KEY_ID, MAX_OWNER, Status};
use crate::snapshot::{Key, Snapshot};

/// A key, or everything that an owner has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All rows with this key id.
    Key(Box<str>),
    /// All rows of this owner.
    Owner(Box<str>),
}

/// What is no key id or owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither, or both.
    #[error("name either a key_id or an owner")]
    NotOne,
    /// No export has such a one.
    #[error("{what} must have 1 to {max} bytes, this one has {found}")]
    Length {
        /// `key_id` or `owner`.
        what: &'static str,
        /// The longest that there is.
        max: usize,
        /// How long it is.
        found: usize,
    },
}

impl Target {
    /// The one of the two that is given.
    ///
    /// # Errors
    /// When it is not one, or nothing that an export could have.
    pub fn new(key_id: Option<&str>, owner: Option<&str>) -> Result<Self, TargetError> {
        let (text, what, max, target): (_, _, _, fn(Box<str>) -> Self) = match (key_id, owner) {
            (Some(key_id), None) => (key_id, "key_id", MAX_KEY_ID, Self::Key),
            (None, Some(owner)) => (owner, "owner", MAX_OWNER, Self::Owner),
            _ => return Err(TargetError::NotOne),
        };
        match text.len() {
            found if !(1..=max).contains(&found) => Err(TargetError::Length { what, max, found }),
            _ => Ok(target(text.into())),
        }
    }

    /// The key id, if it is a key.
    pub fn key_id(&self) -> Option<&str> {
        match self {
            Self::Key(key_id) => Some(key_id),
            Self::Owner(_) => None,
        }
    }

    /// The owner, if it is one.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Self::Key(_) => None,
            Self::Owner(owner) => Some(owner),
        }
    }
}

/// Who revoked something, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// To the second.
    pub when: Timestamp,
    /// The operator's user.
    pub by_uid: u32,
}

/// Everything that is revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    keys: BTreeMap<Box<str>, Record>,
    owners: BTreeMap<Box<str>, Record>,
}

/// What a row's mark was set by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Marked {
    /// Rows that were looked at.
    pub(super) rows: usize,
    /// Those of them that are revoked now, whoever says so.
    pub(super) revoked: usize,
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.keys.len() + self.owners.len()
    }

    pub(super) fn get(&self, target: &Target) -> Option<Record> {
        match target {
            Target::Key(key_id) => self.keys.get(key_id),
            Target::Owner(owner) => self.owners.get(owner),
        }
        .copied()
    }

    pub(super) fn insert(&mut self, target: Target, record: Record) {
        match target {
            Target::Key(key_id) => self.keys.insert(key_id, record),
            Target::Owner(owner) => self.owners.insert(owner, record),
        };
    }

    pub(super) fn remove(&mut self, target: &Target) -> Option<Record> {
        match target {
            Target::Key(key_id) => self.keys.remove(key_id),
            Target::Owner(owner) => self.owners.remove(owner),
        }
    }

    /// The latest first.
    pub(super) fn entries(&self) -> Vec<(Target, Record)> {
        let keys = self.keys.iter().map(|(key_id, record)| (Target::Key(key_id.clone()), *record));
        let owners = self.owners.iter().map(|(owner, record)| (Target::Owner(owner.clone()), *record));
        let mut entries: Vec<_> = owners.chain(keys).collect();
        entries.sort_by_key(|(_, record)| std::cmp::Reverse(record.when));
        entries
    }

    fn covers(&self, key: Key<'_>) -> bool {
        self.keys.contains_key(key.key_id()) || self.owners.contains_key(key.owner())
    }

    /// Marks everything that is revoked in a snapshot where nothing is marked yet.
    pub(super) fn mark_all(&self, snapshot: &Snapshot) {
        let of_keys = self.keys.keys().flat_map(|key_id| snapshot.rows_of_key(key_id));
        let of_owners = snapshot.rows_of_owners(|owner| self.owners.contains_key(owner));
        of_keys.chain(of_owners).for_each(|key| key.set_revoked(true));
    }

    /// Marks the rows of `target` as the list has them: a row can be revoked by its key and by its owner.
    pub(super) fn mark(&self, snapshot: &Snapshot, target: &Target) -> Marked {
        let mut marked = Marked::default();
        let mut mark = |key: Key<'_>| {
            key.set_revoked(self.covers(key));
            marked.rows += 1;
            marked.revoked += usize::from(key.status() == Status::Revoked);
        };
        match target {
            Target::Key(key_id) => snapshot.rows_of_key(key_id).for_each(&mut mark),
            Target::Owner(owner) => snapshot.rows_of_owner(owner).for_each(&mut mark),
        }
        marked
    }

    /// The entries that the source has made superfluous: it says itself that every row of that key or owner is revoked, or has
    /// had no such row for [`ABSENT_FOR`]. A row that is only missing, or disabled, may be back with the next export, and
    /// must not come alive then.
    pub(super) fn agreed(&self, snapshot: &Snapshot, now: Timestamp) -> Vec<Target> {
        let is_long_gone = |record: &Record| now.duration_since(record.when) >= ABSENT_FOR;
        let is_agreed = |found: Found, record: &Record| match found {
            Found::Revoked => true,
            Found::Nothing => is_long_gone(record),
            Found::Other => false,
        };
        let mut owners: HashMap<&str, Found> = HashMap::new();
        if !self.owners.is_empty() {
            for key in snapshot.rows_of_owners(|owner| self.owners.contains_key(owner)) {
                let found = owners.entry(key.owner()).or_default();
                *found = found.with(key);
            }
        }
        let found_owner = |owner: &str| owners.get(owner).copied().unwrap_or_default();
        let found_key = |key_id: &str| snapshot.rows_of_key(key_id).fold(Found::default(), Found::with);
        let keys = self.keys.iter().filter(|(key_id, record)| is_agreed(found_key(key_id), record));
        let owners = self.owners.iter().filter(|(owner, record)| is_agreed(found_owner(owner), record));
        let keys = keys.map(|(key_id, _)| Target::Key(key_id.clone()));
        keys.chain(owners.map(|(owner, _)| Target::Owner(owner.clone()))).collect()
    }
}

/// How long the source must have had no row of what is revoked, counted from the revocation, before that is taken for a
/// decision: longer than an export stays broken, or an old backup of it is put back.
pub(super) const ABSENT_FOR: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What the source has of something that is revoked.
#[derive(Clone, Copy, Default)]
enum Found {
    #[default]
    Nothing,
    /// Rows, and all of them revoked.
    Revoked,
    /// A row that would be in force, or could be.
    Other,
}

impl Found {
    fn with(self, key: Key<'_>) -> Self {
        match (self, key.status_of_row()) {
            (Self::Nothing | Self::Revoked, Status::Revoked) => Self::Revoked,
            _ => Self::Other,
        }
    }
}

/// What a line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Action {
    Revoke,
    Unrevoke,
}

/// A line, as in `{"action":"revoke","key_id":"key_1","when":"2026-11-21T10:00:00Z","by_uid":0}`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    pub(super) action: Action,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_id: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Box<str>>,
    when: String,
    by_uid: u32,
}

impl Line {
    pub(super) fn new(action: Action, target: &Target, record: Record) -> Self {
        Self {
            action,
            key_id: target.key_id().map(Into::into),
            owner: target.owner().map(Into::into),
            when: record.when.to_string(),
            by_uid: record.by_uid,
        }
    }

    /// Does to `list` what the line says.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub(super) fn apply(self, list: &mut List) -> Result<(), String> {
        let target = Target::new(self.key_id.as_deref(), self.owner.as_deref());
        let target = target.map_err(|error| error.to_string())?;
        let when = self.when.parse().map_err(|error| format!("when: {error}"))?;
        match self.action {
            Action::Revoke => list.insert(target, Record { when, by_uid: self.by_uid }),
            Action::Unrevoke => drop(list.remove(&target)),
        }
        Ok(())
    }
}
