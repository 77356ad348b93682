//! Rows that are set aside: they cannot be understood, and all other rows of their export take effect.
//!
//! The key of such a row is disabled, whatever it was before, if its hash can be read; if not, the key is unknown. Nothing else in
//! the row is believed, so its entry has no restrictions and no limits of its own.

use std::collections::HashSet;

use zerocopy::FromZeros;

use crate::record::{Digest, Field, FieldSet, KeyRecord, Status};
use crate::snapshot::build::{Keys, RowError};
use crate::snapshot::entry::Entry;
use crate::snapshot::impact::{self, given_by_policy, is_within};
use crate::snapshot::index::Probe;
use crate::snapshot::peppers::PepperByte;
use crate::snapshot::same_digest;
use crate::snapshot::status::{End, StatusByte};
use crate::snapshot::{Builder, CompareOptions};

/// Bytes of the hash that stand in for the id of such a key, if that cannot be read.
const NAMED_BY: usize = 8;

/// Restrictions that a key had before its row was set aside: those that its status does not tell, in a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromZeros)]
pub(super) struct Had(u8);

/// By their bits.
const REMEMBERED: [Field; 7] = [
    Field::Environment,
    Field::Plan,
    Field::ExpiresAt,
    Field::Scopes,
    Field::AllowedIps,
    Field::AllowedOrigins,
    Field::Limits,
];

impl Had {
    fn of(fields: FieldSet) -> Self {
        let bits = (0..).zip(REMEMBERED);
        Self(bits.fold(0, |had, (bit, field)| had | u8::from(fields.contains(field)) << bit))
    }

    pub(super) fn fields(self) -> FieldSet {
        let had = (0..).zip(REMEMBERED).filter(|(bit, _)| self.0 >> bit & 1 == 1);
        had.map(|(_, field)| field).collect()
    }

    pub(super) fn bits(self) -> u8 {
        self.0
    }

    /// What a compiled file has.
    pub(super) fn from_bits(bits: u8) -> Option<Self> {
        (bits >> REMEMBERED.len() == 0).then_some(Self(bits))
    }
}

impl Builder {
    /// Notes that rows of the export are set aside, those among them whose hash cannot be read.
    pub fn note_set_aside(&mut self) {
        self.keys.has_set_aside = true;
    }

    /// Disables the key of a row that cannot be understood, whatever another row says of the same hash. All good rows have to be in
    /// the table before: the row joins the identity of those that have its key id.
    ///
    /// # Errors
    /// When there are too many rows, or the default plan is not defined.
    pub fn set_aside(&mut self, line: u64, hash: Digest, key_id: Option<&str>) -> Result<(), RowError> {
        let probe = self.hashes().probe(&hash);
        let Keys { index, entries, .. } = &mut self.keys;
        if let Some(id) = index.find(probe, |id| same_digest(&entries[id as usize].digest, &hash)) {
            entries[id as usize].status = StatusByte::set_aside();
            return Ok(());
        }
        match key_id.and_then(|key_id| self.keys.find_by_id(key_id)) {
            Some(first) => self.add_to_rotation(first, line, hash, probe),
            None => {
                let by_hash = || format!("unreadable-{}", const_hex::encode(&hash[..NAMED_BY]));
                let key_id = key_id.map_or_else(by_hash, str::to_owned);
                let record = KeyRecord {
                    status: Status::Disabled,
                    given: FieldSet::NONE,
                    ..KeyRecord::new(hash, &key_id)
                };
                self.add(line, &record)?;
                if let Some(entry) = self.keys.entries.last_mut() {
                    entry.status = StatusByte::set_aside();
                }
                Ok(())
            }
        }
    }

    /// Adds a row beside the first one of its id, whose owner and limits it shares.
    fn add_to_rotation(
        &mut self,
        first: u32,
        line: u64,
        digest: Digest,
        probe: Probe,
    ) -> Result<(), RowError> {
        let id = self.next_id()?;
        self.claim_digest(id, &digest, probe)?;
        let Entry { identity, owner, policy, .. } = self.keys.entries[first as usize];
        self.push(Entry {
            digest,
            identity,
            not_before: 0,
            expires_at: End::new(u32::MAX),
            owner,
            policy,
            buckets: first,
            status: StatusByte::set_aside(),
            has_metadata: false,
            had: Had::default(),
            pepper: PepperByte::default(),
        });
        self.lines.push(id, line);
        Ok(())
    }

    /// Disables all keys with these ids, whose rows contradict each other: which of them is right cannot be told.
    pub fn set_aside_ids<'i>(&mut self, key_ids: impl Iterator<Item = &'i str>) {
        let firsts: HashSet<u32> = key_ids.filter_map(|key_id| self.keys.find_by_id(key_id)).collect();
        if firsts.is_empty() {
            return;
        }
        // While the table is being built, an entry says which is the first of its id.
        for entry in self.keys.entries.iter_mut().filter(|entry| firsts.contains(&entry.buckets)) {
            entry.status = StatusByte::set_aside();
        }
    }
}

impl Keys {
    /// Whether rows of the export that these keys are from are set aside.
    pub fn has_set_aside(&self) -> bool {
        self.has_set_aside
    }

    /// Notes what the keys that are set aside were `before`, so that the guard sees what they come back with: whether they worked,
    /// and which restrictions they had.
    pub fn remember_before_set_aside(
        &mut self,
        before: &Self,
        CompareOptions { now, by_key_id }: CompareOptions,
    ) {
        let mut given = FieldSet::NONE;
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            if !entry.status.is_set_aside() {
                continue;
            }
            let by_id = || before.find_by_id(self.key_id(entry)).filter(|_| by_key_id);
            let was = before.find_exactly(&entry.digest).or_else(by_id);
            let Some(was) = was.and_then(|id| before.entries.get(id as usize)) else { continue };
            let status = match was.status.before_set_aside() {
                // One that has expired is to be counted when it returns.
                Status::Active if !was.status.is_set_aside() && !is_within(was, now) => Status::Disabled,
                status => status,
            };
            let had = if was.status.is_set_aside() { was.had } else { Had::of(before.restrictions(was)) };
            given = given.union(had.fields());
            let entry = &mut self.entries[at];
            (entry.status, entry.had) = (StatusByte::set_aside_from(status), had);
        }
        self.set_aside_given = given;
    }

    /// The restrictions that a row has a value for.
    pub(super) fn restrictions(&self, entry: &Entry) -> FieldSet {
        let policy = self.policies.get(entry.policy as usize);
        let by_policy = policy.map_or(FieldSet::NONE, |policy| given_by_policy(policy, &self.plans));
        impact::given(entry).union(by_policy)
    }

    /// Keys that are disabled because their rows cannot be understood.
    pub fn set_aside(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|entry| entry.status.is_set_aside()).map(|entry| self.key_id(entry))
    }
}
