//! What has been revoked, and what the source says of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use keyward_engine::record::{MAX_KEY_ID, MAX_OWNER, Status};
use keyward_engine::snapshot::{Key, Snapshot};

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

/// A revocation: its operator, its time, and what is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationRecord {
    /// To the second.
    pub when: Timestamp,
    /// The operator's user.
    pub by_uid: u32,
    /// What the source says of it, from the time on when it said `revoked` for the first time.
    pub source: Option<Source>,
    /// Whether it would be found again after a restart.
    pub durable: bool,
}

/// What the source says of something that it has called revoked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// What that is.
    pub says: SourceStatus,
    /// Since when, to the second.
    pub since: Timestamp,
    /// The list's own clock at that time, which decides when the entry is dropped.
    pub(super) clock_ms: u64,
}

/// What a snapshot says of a key or an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceStatus {
    /// There are rows, and all of them are revoked.
    Revoked,
    /// A row is active: without the revocation it would be in force.
    Active,
    /// There are no rows, or some that are disabled: the next export may have them active.
    Absent,
}

impl RevocationRecord {
    /// Since when the source has said `revoked` without a break.
    pub fn agreed_since(&self) -> Option<Timestamp> {
        self.source.filter(|source| source.says == SourceStatus::Revoked).map(|source| source.since)
    }

    /// Since when the source has said `active` after it had said `revoked`.
    pub fn conflict_since(&self) -> Option<Timestamp> {
        self.source.filter(|source| source.says == SourceStatus::Active).map(|source| source.since)
    }
}

/// An entry, with what only this process knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) record: RevocationRecord,
    /// The number of the line that added it, among those of this process; 0: it was read.
    pub(super) ticket: u64,
    /// A line that drops it is being written.
    pub(super) dropping: bool,
}

/// Everything that is revoked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    keys: BTreeMap<Box<str>, Entry>,
    owners: BTreeMap<Box<str>, Entry>,
}

/// What a row's mark was set by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MarkCounts {
    /// Rows that were looked at.
    pub(super) rows: usize,
    /// Those of them that are revoked now, whoever says so.
    pub(super) revoked: usize,
}

impl List {
    pub(super) fn len(&self) -> usize {
        self.keys.len() + self.owners.len()
    }

    pub(super) fn get(&self, target: &Target) -> Option<&Entry> {
        match target {
            Target::Key(key_id) => self.keys.get(key_id),
            Target::Owner(owner) => self.owners.get(owner),
        }
    }

    pub(super) fn get_mut(&mut self, target: &Target) -> Option<&mut Entry> {
        match target {
            Target::Key(key_id) => self.keys.get_mut(key_id),
            Target::Owner(owner) => self.owners.get_mut(owner),
        }
    }

    pub(super) fn insert(&mut self, target: Target, record: RevocationRecord, ticket: u64) {
        let entry = Entry { record, ticket, dropping: false };
        match target {
            Target::Key(key_id) => self.keys.insert(key_id, entry),
            Target::Owner(owner) => self.owners.insert(owner, entry),
        };
    }

    pub(super) fn remove(&mut self, target: &Target) -> Option<Entry> {
        match target {
            Target::Key(key_id) => self.keys.remove(key_id),
            Target::Owner(owner) => self.owners.remove(owner),
        }
    }

    /// In no order that means anything.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Target, &Entry)> {
        let keys = self.keys.iter().map(|(key_id, entry)| (Target::Key(key_id.clone()), entry));
        let owners = self.owners.iter().map(|(owner, entry)| (Target::Owner(owner.clone()), entry));
        owners.chain(keys)
    }

    /// How many entries the source contradicts.
    pub(super) fn conflicts(&self) -> usize {
        let entries = self.keys.values().chain(self.owners.values());
        entries.filter(|entry| entry.record.conflict_since().is_some()).count()
    }

    /// The first `count` entries: those that are not durable or that the source contradicts, then the
    /// latest. `record` completes an entry's record.
    pub(super) fn latest(
        &self,
        count: usize,
        record: impl Fn(&Entry) -> RevocationRecord,
    ) -> Vec<(Target, RevocationRecord)> {
        let keys = self.keys.iter().map(|(key_id, entry)| (false, &**key_id, record(entry)));
        let owners = self.owners.iter().map(|(owner, entry)| (true, &**owner, record(entry)));
        let mut entries: Vec<_> = owners.chain(keys).zip(0_u32..).collect();
        // As a stable sort would have them.
        let rank = |((_, _, record), number): &((bool, &str, RevocationRecord), u32)| {
            let is_in_order = record.durable && record.conflict_since().is_none();
            (is_in_order, Reverse(record.when), *number)
        };
        if count < entries.len() {
            entries.select_nth_unstable_by_key(count, rank);
            entries.truncate(count);
        }
        entries.sort_unstable_by_key(rank);
        let target = |is_owner, text: &str| {
            if is_owner { Target::Owner(text.into()) } else { Target::Key(text.into()) }
        };
        entries.into_iter().map(|((is_owner, text, record), _)| (target(is_owner, text), record)).collect()
    }

    /// The next `count` behind `after`, in the order of their names: owners, then keys.
    pub(super) fn page(
        &self,
        after: Option<&Target>,
        count: usize,
        record: impl Fn(&Entry) -> RevocationRecord,
    ) -> Vec<(Target, RevocationRecord)> {
        let owners = match after {
            Some(Target::Key(_)) => None,
            after => Some(self.owners.range::<str, _>(behind(after.and_then(Target::owner)))),
        };
        let owners = owners.into_iter().flatten();
        let owners = owners.map(|(owner, entry)| (Target::Owner(owner.clone()), record(entry)));
        let keys = self.keys.range::<str, _>(behind(after.and_then(Target::key_id)));
        let keys = keys.map(|(key_id, entry)| (Target::Key(key_id.clone()), record(entry)));
        owners.chain(keys).take(count).collect()
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
    pub(super) fn mark(&self, snapshot: &Snapshot, target: &Target) -> MarkCounts {
        let mut marked = MarkCounts::default();
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

    /// What `snapshot` says of each entry, and how many rows it has. A row that was set aside could be one of any key and owner, so
    /// beside it nothing is said to be revoked in all of its rows.
    pub(super) fn compare(&self, snapshot: &Snapshot) -> Vec<(Target, SourceStatus, usize)> {
        let mut owners: HashMap<&str, Found> = HashMap::new();
        if !self.owners.is_empty() {
            for key in snapshot.rows_of_owners(|owner| self.owners.contains_key(owner)) {
                let found = owners.entry(key.owner()).or_default();
                *found = found.with(key);
            }
        }
        let is_complete = !snapshot.table().has_set_aside();
        let says = |found: Found| match found.says() {
            SourceStatus::Revoked if !is_complete => SourceStatus::Absent,
            says => says,
        };
        let keys = self.keys.keys().map(|key_id| {
            let found = snapshot.rows_of_key(key_id).fold(Found::default(), Found::with);
            (Target::Key(key_id.clone()), says(found), found.rows)
        });
        let owners = self.owners.keys().map(|owner| {
            let found = owners.get(&**owner).copied().unwrap_or_default();
            (Target::Owner(owner.clone()), says(found), found.rows)
        });
        keys.chain(owners).collect()
    }
}

/// Everything behind `text`.
fn behind(text: Option<&str>) -> (Bound<&str>, Bound<&str>) {
    (text.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

/// The rows of something that is revoked, by what they say themselves.
#[derive(Clone, Copy, Default)]
struct Found {
    rows: usize,
    revoked: usize,
    active: usize,
}

impl Found {
    fn with(self, key: Key<'_>) -> Self {
        let status = key.status_of_row();
        Self {
            rows: self.rows + 1,
            revoked: self.revoked + usize::from(status == Status::Revoked),
            active: self.active + usize::from(status == Status::Active),
        }
    }

    fn says(self) -> SourceStatus {
        match self {
            Self { active: 1.., .. } => SourceStatus::Active,
            Self { rows: 1.., .. } if self.revoked == self.rows => SourceStatus::Revoked,
            _ => SourceStatus::Absent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_and_pages_are_parts_of_all_entries() {
        let mut list = List::default();
        for number in 0..50_i64 {
            // Several in each second.
            let when = Timestamp::from_second(number * 7 % 11).expect("a time");
            let text = format!("{number:02}").into();
            let target = if number % 3 == 0 { Target::Owner(text) } else { Target::Key(text) };
            list.insert(target, RevocationRecord { when, by_uid: 0, source: None, durable: true }, 0);
        }
        let record = |entry: &Entry| entry.record;
        let all = list.latest(usize::MAX, record);
        for count in [0, 1, 7, 49, 50, 51] {
            assert_eq!(list.latest(count, record), all[..count.min(50)]);
        }
        for count in [1, 7, 50] {
            let (mut paged, mut after) = (Vec::new(), None);
            loop {
                let page = list.page(after.as_ref(), count, record);
                assert!(page.len() <= count);
                let Some((last, _)) = page.last() else { break };
                after = Some(last.clone());
                paged.extend(page);
            }
            assert_eq!(paged, list.page(None, 50, record));
            paged.sort_by_key(|(_, record)| Reverse(record.when));
            assert_eq!(paged, all);
        }
    }
}
