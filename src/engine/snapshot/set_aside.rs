//! Bad rows that are set aside, while all other rows of their source take effect.
//!
//! If the digest of such a row can be read, its key is disabled, regardless of its previous status.
//! Otherwise the key is unknown. Nothing else in the row is trusted, so its entry has no
//! restrictions and no limits of its own.

use std::collections::HashSet;

use crate::record::{Digest, FieldSet, KeyRecord, Status};
use crate::snapshot::build::RowError;
use crate::snapshot::diff::is_within;
use crate::snapshot::entry::{AtomicExpiry, AtomicPepper, AtomicStatus, Entry, PriorRestrictions};
use crate::snapshot::index::IndexHash;
use crate::snapshot::{Builder, CompareOptions, KeyTable, same_digest};

/// Bytes of the digest that make up the key id of a row whose own key id cannot be read.
const DIGEST_BYTES_IN_KEY_ID: usize = 8;

impl Builder {
    /// Records that rows of the source are set aside, including rows whose digest cannot be read.
    pub fn note_set_aside(&mut self) {
        self.keys.has_set_aside = true;
    }

    /// Disables the key of a bad row, regardless of any other row with the same digest. All good
    /// rows have to be added before, because the row joins the rows that have its key id.
    ///
    /// # Errors
    /// If there are too many rows, or the default plan is not defined.
    pub fn set_aside(&mut self, line: u64, hash: Digest, key_id: Option<&str>) -> Result<(), RowError> {
        let index_hash = self.hasher().digest(&hash);
        let KeyTable { digest_index, entries, .. } = &mut self.keys;
        if let Some(number) =
            digest_index.find(index_hash, |number| same_digest(&entries[number as usize].digest, &hash))
        {
            entries[number as usize].status = AtomicStatus::set_aside();
            return Ok(());
        }
        match key_id.and_then(|key_id| self.keys.find_by_id(key_id)) {
            Some(first) => self.add_to_rotation(first, line, hash, index_hash),
            None => {
                let from_digest =
                    || format!("unreadable-{}", const_hex::encode(&hash[..DIGEST_BYTES_IN_KEY_ID]));
                let key_id = key_id.map_or_else(from_digest, str::to_owned);
                let record = KeyRecord {
                    status: Status::Disabled,
                    present_fields: FieldSet::NONE,
                    ..KeyRecord::new(hash, &key_id)
                };
                self.add(line, &record)?;
                if let Some(entry) = self.keys.entries.last_mut() {
                    entry.status = AtomicStatus::set_aside();
                }
                Ok(())
            }
        }
    }

    /// Adds a row with the key id, the owner and the limits of the entry `first`.
    fn add_to_rotation(
        &mut self,
        first: u32,
        line: u64,
        digest: Digest,
        index_hash: IndexHash,
    ) -> Result<(), RowError> {
        let number = self.next_entry()?;
        self.index_digest(number, &digest, index_hash)?;
        let Entry { identity, owner, policy, .. } = self.keys.entries[first as usize];
        self.push(Entry {
            digest,
            identity,
            not_before: 0,
            expires_at: AtomicExpiry::new(u32::MAX),
            owner,
            policy,
            buckets: first,
            status: AtomicStatus::set_aside(),
            has_metadata: false,
            prior_restrictions: PriorRestrictions::default(),
            pepper: AtomicPepper::default(),
        });
        self.lines.push(number, line);
        Ok(())
    }

    /// Disables all keys with these key ids, whose rows conflict: it is unknown which row is right.
    pub fn set_aside_ids<'i>(&mut self, key_ids: impl Iterator<Item = &'i str>) {
        let firsts: HashSet<u32> = key_ids.filter_map(|key_id| self.keys.find_by_id(key_id)).collect();
        if firsts.is_empty() {
            return;
        }
        // While the table is being built, `buckets` is the first entry with the same key id.
        for entry in self.keys.entries.iter_mut().filter(|entry| firsts.contains(&entry.buckets)) {
            entry.status = AtomicStatus::set_aside();
        }
    }
}

impl KeyTable {
    /// Whether any row of the source is set aside.
    pub fn has_set_aside(&self) -> bool {
        self.has_set_aside
    }

    /// The ids of the keys that are disabled because their rows are bad.
    pub fn set_aside(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|entry| entry.status.is_set_aside()).map(|entry| self.key_id(entry))
    }

    /// Copies the previous state of the keys that are set aside from the table `before`: whether
    /// they were usable, and which restrictions they had. When they return, the guard compares them
    /// with that state.
    pub fn inherit_prior_state(&mut self, before: &Self, CompareOptions { now, by_key_id }: CompareOptions) {
        let mut all_prior = FieldSet::NONE;
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            if !entry.status.is_set_aside() {
                continue;
            }
            let by_id = || before.find_by_id(self.key_id(entry)).filter(|_| by_key_id);
            let previous = before.find_exactly(&entry.digest).or_else(by_id);
            let Some(previous) = previous.and_then(|number| before.entries.get(number as usize)) else {
                continue;
            };
            let was_set_aside = previous.status.is_set_aside();
            let status = match previous.status.before_set_aside() {
                // An expired key counts as disabled, so that its return is counted.
                Status::Active if !was_set_aside && !is_within(previous, now) => Status::Disabled,
                status => status,
            };
            let prior_restrictions = if was_set_aside {
                previous.prior_restrictions
            } else {
                PriorRestrictions::of(before.restrictions(previous))
            };
            all_prior = all_prior.union(prior_restrictions.fields());
            let entry = &mut self.entries[at];
            entry.status = AtomicStatus::set_aside_from(status);
            entry.prior_restrictions = prior_restrictions;
        }
        self.prior_restrictions = all_prior;
    }
}
