//! The list of revocations in memory.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use keyward_engine::record::{MAX_KEY_ID, MAX_OWNER, Status};
use keyward_engine::snapshot::{Key, Snapshot};

/// What a revocation applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All rows with this key id.
    Key(Box<str>),
    /// All rows of this owner.
    Owner(Box<str>),
}

/// Why a name is not a valid target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Neither, or both.
    #[error("name either a key_id or an owner")]
    NotOne,
    /// No export has a key id or owner of this length.
    #[error("{field} must have 1 to {max} bytes, this one has {found}")]
    Length {
        /// `key_id` or `owner`.
        field: &'static str,
        /// The maximum length.
        max: usize,
        /// Its length.
        found: usize,
    },
}

impl Target {
    /// The target that one of the two names.
    ///
    /// # Errors
    /// When not exactly one is given, or its length is invalid.
    pub fn new(key_id: Option<&str>, owner: Option<&str>) -> Result<Self, TargetError> {
        let (text, field, max, target): (_, _, _, fn(Box<str>) -> Self) = match (key_id, owner) {
            (Some(key_id), None) => (key_id, "key_id", MAX_KEY_ID, Self::Key),
            (None, Some(owner)) => (owner, "owner", MAX_OWNER, Self::Owner),
            _ => return Err(TargetError::NotOne),
        };
        match text.len() {
            found if !(1..=max).contains(&found) => Err(TargetError::Length { field, max, found }),
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

    /// The owner, if it is an owner.
    pub fn owner(&self) -> Option<&str> {
        match self {
            Self::Key(_) => None,
            Self::Owner(owner) => Some(owner),
        }
    }
}

/// The record of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationRecord {
    /// When it was revoked, to the second.
    pub when: Timestamp,
    /// The operator's user.
    pub by_uid: u32,
    /// The status in the source, once the source has confirmed it for the first time.
    pub source: Option<SourceObservation>,
    /// Whether it survives a restart.
    pub durable: bool,
}

/// The status in the source of a target that the source has listed as revoked before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceObservation {
    /// The status.
    pub status: SourceStatus,
    /// When the status was observed first, to the second.
    pub since: Timestamp,
    /// The list's clock at that time, which decides when the entry is dropped.
    pub(super) clock_ms: u64,
}

/// The status of a key or an owner in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceStatus {
    /// All of its rows are revoked.
    Revoked,
    /// At least one row is active.
    Active,
    /// There are no rows, or disabled ones, which the next export may list as active.
    #[serde(rename = "absent")]
    Unconfirmed,
}

impl RevocationRecord {
    /// Since when the source has confirmed it without interruption.
    pub fn confirmed_since(&self) -> Option<Timestamp> {
        self.source.filter(|source| source.status == SourceStatus::Revoked).map(|source| source.since)
    }

    /// Since when the source has listed the target as active, after it had confirmed
    /// the revocation.
    pub fn conflict_since(&self) -> Option<Timestamp> {
        self.source.filter(|source| source.status == SourceStatus::Active).map(|source| source.since)
    }
}

/// An entry of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) record: RevocationRecord,
    /// The ticket of the line that added it; 0 if it was read from disk.
    pub(super) ticket: u64,
    /// Whether a line that drops it is being written.
    pub(super) dropping: bool,
}

/// The entries, by key id and by owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    keys: BTreeMap<Box<str>, Entry>,
    owners: BTreeMap<Box<str>, Entry>,
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

    /// The entries of these targets, as far as there are any.
    pub(super) fn only(&self, targets: &[Target]) -> Self {
        let mut list = Self::default();
        for target in targets {
            if let Some(entry) = self.get(target) {
                list.insert(target.clone(), entry.record, entry.ticket);
            }
        }
        list
    }

    /// All entries, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Target, &Entry)> {
        let keys = self.keys.iter().map(|(key_id, entry)| (Target::Key(key_id.clone()), entry));
        let owners = self.owners.iter().map(|(owner, entry)| (Target::Owner(owner.clone()), entry));
        owners.chain(keys)
    }

    /// The number of entries that the source contradicts.
    pub(super) fn conflicts(&self) -> usize {
        let entries = self.keys.values().chain(self.owners.values());
        entries.filter(|entry| entry.record.conflict_since().is_some()).count()
    }

    /// `count` entries: first those that are not durable or that the source contradicts, then the
    /// latest. `record` completes the record of an entry.
    pub(super) fn latest(
        &self,
        count: usize,
        record: impl Fn(&Entry) -> RevocationRecord,
    ) -> Vec<(Target, RevocationRecord)> {
        let keys = self.keys.iter().map(|(key_id, entry)| (false, &**key_id, record(entry)));
        let owners = self.owners.iter().map(|(owner, entry)| (true, &**owner, record(entry)));
        let mut entries: Vec<_> = owners.chain(keys).zip(0_u32..).collect();
        // The number makes the order that of a stable sort.
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

    /// The `count` entries after `after`, in the order of their names: owners, then keys.
    pub(super) fn page(
        &self,
        after: Option<&Target>,
        count: usize,
        record: impl Fn(&Entry) -> RevocationRecord,
    ) -> Vec<(Target, RevocationRecord)> {
        let owners = match after {
            Some(Target::Key(_)) => None,
            after => Some(self.owners.range::<str, _>(after_bound(after.and_then(Target::owner)))),
        };
        let owners = owners.into_iter().flatten();
        let owners = owners.map(|(owner, entry)| (Target::Owner(owner.clone()), record(entry)));
        let keys = self.keys.range::<str, _>(after_bound(after.and_then(Target::key_id)));
        let keys = keys.map(|(key_id, entry)| (Target::Key(key_id.clone()), record(entry)));
        owners.chain(keys).take(count).collect()
    }

    /// The key ids that are revoked.
    pub(super) fn key_ids(&self) -> impl Iterator<Item = &str> {
        self.keys.keys().map(|key_id| &**key_id)
    }

    pub(super) fn has_owners(&self) -> bool {
        !self.owners.is_empty()
    }

    pub(super) fn covers_key_id(&self, key_id: &str) -> bool {
        self.keys.contains_key(key_id)
    }

    pub(super) fn covers_owner(&self, owner: &str) -> bool {
        self.owners.contains_key(owner)
    }

    pub(super) fn covers(&self, key: Key<'_>) -> bool {
        self.covers_key_id(key.key_id()) || self.covers_owner(key.owner())
    }

    /// Marks everything that is revoked in an unmarked snapshot.
    pub(super) fn mark_all(&self, snapshot: &Snapshot) {
        let of_keys = self.keys.keys().flat_map(|key_id| snapshot.rows_of_key(key_id));
        let of_owners = snapshot.rows_of_owners(|owner| self.covers_owner(owner));
        of_keys.chain(of_owners).for_each(|key| key.set_revoked(true));
    }

    /// Sets or clears the marks of the rows of `target` in an unpublished snapshot. A row can be
    /// revoked by its key and by its owner.
    pub(super) fn mark(&self, snapshot: &Snapshot, target: &Target) {
        let mark = |key: Key<'_>| key.set_revoked(self.covers(key));
        match target {
            Target::Key(key_id) => snapshot.rows_of_key(key_id).for_each(mark),
            Target::Owner(owner) => snapshot.rows_of_owner(owner).for_each(mark),
        }
    }

    /// The status of each entry in `snapshot`, and the number of its rows. A row that was set aside
    /// could belong to any key and owner. So with such rows, no target counts as revoked in all of
    /// its rows.
    pub(super) fn compare(&self, snapshot: &Snapshot) -> Vec<(Target, SourceStatus, usize)> {
        let mut owners: HashMap<&str, RowCounts> = HashMap::new();
        if !self.owners.is_empty() {
            for key in snapshot.rows_of_owners(|owner| self.covers_owner(owner)) {
                let counts = owners.entry(key.owner()).or_default();
                *counts = counts.with(key);
            }
        }
        let is_complete = !snapshot.table().has_set_aside();
        let status = |counts: RowCounts| match counts.status() {
            SourceStatus::Revoked if !is_complete => SourceStatus::Unconfirmed,
            status => status,
        };
        let keys = self.keys.keys().map(|key_id| {
            let counts = snapshot.rows_of_key(key_id).fold(RowCounts::default(), RowCounts::with);
            (Target::Key(key_id.clone()), status(counts), counts.rows)
        });
        let owners = self.owners.keys().map(|owner| {
            let counts = owners.get(&**owner).copied().unwrap_or_default();
            (Target::Owner(owner.clone()), status(counts), counts.rows)
        });
        keys.chain(owners).collect()
    }
}

/// The range after `text`.
fn after_bound(text: Option<&str>) -> (Bound<&str>, Bound<&str>) {
    (text.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

/// The rows of a target, by their own status.
#[derive(Clone, Copy, Default)]
struct RowCounts {
    rows: usize,
    revoked: usize,
    active: usize,
}

impl RowCounts {
    fn with(self, key: Key<'_>) -> Self {
        let status = key.status_of_row();
        Self {
            rows: self.rows + 1,
            revoked: self.revoked + usize::from(status == Status::Revoked),
            active: self.active + usize::from(status == Status::Active),
        }
    }

    fn status(self) -> SourceStatus {
        match self {
            Self { active: 1.., .. } => SourceStatus::Active,
            Self { rows: 1.., .. } if self.revoked == self.rows => SourceStatus::Revoked,
            _ => SourceStatus::Unconfirmed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_and_page_return_parts_of_all_entries() {
        let mut list = List::default();
        for number in 0..50_i64 {
            // Several entries have the same second.
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
