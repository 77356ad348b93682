//! The buckets of a snapshot: claimed from the [ledger](crate::limiter::Ledger) by their names, so that whatever else changes,
//! a balance goes where its limit goes.
//!
//! * A limit `per = "key"` has a bucket for each key id: rows in rotation share it, and it follows the id from snapshot to
//!   snapshot, whatever plan the key is on.
//! * A limit `per = "owner"` has a bucket for each owner and plan. Where an owner's keys move to another plan that has a
//!   limit of the same name, the balance moves with the first of them, unless keys that stay behind still need it: a customer
//!   who changes plans is not given a quota again.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;

use crate::limiter::{BucketName, Claim, Slot};
use crate::record::{Limit, Per};
use crate::snapshot::entry::Entry;
use crate::snapshot::{IdHasher, Key, Keys, Snapshot, Stamp};

/// All 2^32 bucket slots are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than 4294967296 limits in use")]
pub struct TooManyBuckets;

/// The buckets that owners have, by name.
pub(super) type OwnerBuckets = HashMap<BucketName, Slot, IdHasher>;

impl Keys {
    /// Claims the buckets of all keys, keeping those that `previous` has, and completes the snapshot.
    ///
    /// # Errors
    /// When there are more limits than slots.
    pub fn publishable(
        mut self,
        claim: &mut Claim<'_>,
        previous: Option<&Snapshot>,
        stamp: Stamp,
    ) -> Result<Snapshot, TooManyBuckets> {
        let owner_buckets = Needs::of(&self, previous).claim(claim)?;
        let mut runs = Vec::new();
        for at in 0..self.entries.len() {
            let first = self.entries[at].buckets as usize;
            let buckets = if first == at {
                self.claim_key(at, claim, previous, &owner_buckets, &mut runs)?
            } else {
                self.entries[first].buckets
            };
            self.entries[at].buckets = buckets;
        }
        Ok(Snapshot { stamp, keys: self, runs: runs.into(), owner_buckets })
    }

    fn claim_key(
        &self,
        at: usize,
        claim: &mut Claim<'_>,
        previous: Option<&Snapshot>,
        owner_buckets: &OwnerBuckets,
        runs: &mut Vec<u32>,
    ) -> Result<u32, TooManyBuckets> {
        let entry = &self.entries[at];
        let limits = self.policies[entry.policy as usize].limits();
        if limits.is_empty() {
            return Ok(0);
        }
        let key_id = self.key_id(entry);
        let old = previous.and_then(|snapshot| snapshot.find_by_id(key_id));
        let run = u32::try_from(runs.len()).map_err(|_| TooManyBuckets)?;
        let mut only = 0;
        for limit in limits {
            let shared = is_shared(entry, limit).then(|| owner_buckets.get(&self.bucket_name(entry, limit)));
            only = match shared {
                Some(bucket) => bucket.ok_or(TooManyBuckets)?.slot,
                None => {
                    let had = old.and_then(|old| old.bucket(&limit.name, false));
                    let name = || BucketName::of_key(key_id, &limit.name);
                    claim.slot(name, had.map(|(_, had)| had), limit.rate).ok_or(TooManyBuckets)?
                }
            };
            if limits.len() > 1 {
                runs.push(only);
            }
        }
        Ok(if limits.len() == 1 { only } else { run })
    }

    /// What the bucket is called that a limit of this entry is charged to.
    pub(super) fn bucket_name(&self, entry: &Entry, limit: &Limit) -> BucketName {
        match is_shared(entry, limit) {
            false => BucketName::of_key(self.key_id(entry), &limit.name),
            true => BucketName::of_owner(
                self.owner(entry),
                self.policies[entry.policy as usize].plan(),
                &limit.name,
            ),
        }
    }
}

/// Whether the bucket is the owner's. Nobody is owner number 0: such a key has the bucket for itself.
fn is_shared(entry: &Entry, limit: &Limit) -> bool {
    limit.per == Per::Owner && entry.owner != 0
}

impl<'s> Key<'s> {
    /// The limit of this name and its bucket, if it has one that is the owner's (`shared`) or its own.
    fn bucket(self, limit: &str, shared: bool) -> Option<(&'s Limit, Slot)> {
        let mut buckets = self.policy().limits().iter().zip(self.slots());
        let (limit, slot) = buckets
            .find(|(had, _)| *had.name == *limit)
            .filter(|(had, _)| is_shared(self.entry, had) == shared)?;
        Some((limit, Slot { slot: *slot, rate: limit.rate }))
    }
}

/// The owners' buckets that a new snapshot needs.
struct Needs {
    by_name: HashMap<BucketName, Need, IdHasher>,
}

struct Need {
    limit: Limit,
    /// The bucket of this name in the snapshot before.
    had: Option<Slot>,
    /// Where there is none: what one of its keys was charged to there, under the plan that it was on.
    moved_from: Option<(BucketName, Slot)>,
}

impl Needs {
    fn of(keys: &Keys, previous: Option<&Snapshot>) -> Self {
        let mut by_name: HashMap<BucketName, Need, IdHasher> = HashMap::default();
        let has_shared: Vec<bool> = keys
            .policies
            .iter()
            .map(|policy| policy.limits().iter().any(|limit| limit.per == Per::Owner))
            .collect();
        for entry in keys.entries.iter().filter(|entry| has_shared[entry.policy as usize]) {
            let limits = keys.policies[entry.policy as usize].limits();
            for limit in limits.iter().filter(|limit| is_shared(entry, limit)) {
                let name = keys.bucket_name(entry, limit);
                let need = match by_name.entry(name) {
                    Place::Occupied(need) => need.into_mut(),
                    Place::Vacant(free) => {
                        let had = previous.and_then(|old| old.owner_buckets.get(&name).copied());
                        free.insert(Need { limit: limit.clone(), had, moved_from: None })
                    }
                };
                if need.had.is_none() && need.moved_from.is_none() {
                    need.moved_from = previous.and_then(|old| keys.moved_from(entry, limit, old));
                }
            }
        }
        Self { by_name }
    }

    fn claim(self, claim: &mut Claim<'_>) -> Result<OwnerBuckets, TooManyBuckets> {
        let mut owner_buckets = OwnerBuckets::default();
        let mut taken: HashMap<BucketName, (), IdHasher> = HashMap::default();
        for (name, need) in &self.by_name {
            let mut had = need.had;
            if let (None, Some((old_name, old))) = (had, need.moved_from)
                && !self.by_name.contains_key(&old_name)
                && taken.insert(old_name, ()).is_none()
            {
                had = Some(old);
            }
            let slot = claim.slot(|| *name, had, need.limit.rate).ok_or(TooManyBuckets)?;
            owner_buckets.insert(*name, Slot { slot, rate: need.limit.rate });
        }
        Ok(owner_buckets)
    }
}

impl Keys {
    /// The owner's bucket that this key was charged to in `old`, for a limit of the same name.
    fn moved_from(&self, entry: &Entry, limit: &Limit, old: &Snapshot) -> Option<(BucketName, Slot)> {
        let key = old.find_by_id(self.key_id(entry))?;
        if key.owner() != self.owner(entry) {
            return None;
        }
        let (had, slot) = key.bucket(&limit.name, true)?;
        Some((old.keys.bucket_name(key.entry, had), slot))
    }
}
