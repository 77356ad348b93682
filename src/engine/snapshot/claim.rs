//! The buckets of a snapshot: claimed from the [allocator](crate::limiter::SlotAllocator) by their names, so that whatever else changes,
//! a balance goes where its limit goes.
//!
//! * A limit `per = "key"` has a bucket for each key id: rows in rotation share it, and it follows the id from snapshot to
//!   snapshot, whatever plan the key is on.
//! * A limit `per = "owner"` has a bucket for each owner, whatever plans its keys are on: who changes plans, back and forth or
//!   while the daemon is down, is not given a quota again. Where an owner's keys are on plans that define the limit
//!   differently, there is a bucket for each rate, all of one name; whenever the rates change, even in a time without any, all of
//!   them begin with the least that any had left.

use std::collections::HashMap;

use crate::limiter::{Allocation, BucketId, BucketRef, Rate};
use crate::record::{Limit, Per};
use crate::snapshot::entry::Entry;
use crate::snapshot::kept::{Kept, WINDOW};
use crate::snapshot::{IdHasher, Key, Keys, Policy, Snapshot, Stamp};

/// All 2^32 bucket slots are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than 4294967296 limits in use")]
pub struct TooManyBuckets;

/// The buckets of each owner's limit, by [its name](BucketId::for_owner): one, or one for each rate.
pub(super) type OwnerBuckets = HashMap<BucketId, Vec<BucketRef>, IdHasher>;

impl Keys {
    /// Claims the buckets of all keys, keeping those that `previous` has, and completes the snapshot.
    ///
    /// # Errors
    /// When there are more limits than slots.
    pub fn publishable(
        self,
        allocation: &mut Allocation<'_>,
        previous: Option<&Snapshot>,
        stamp: Stamp,
    ) -> Result<Snapshot, TooManyBuckets> {
        self.publishable_after(allocation, &Kept::unknown(previous), stamp)
    }

    /// The same, where it is known which rows the snapshot before has ([`compare`](Self::compare)): a row that it has under the
    /// same key id need not be looked up again.
    ///
    /// # Errors
    /// When there are more limits than slots.
    pub fn publishable_after(
        mut self,
        allocation: &mut Allocation<'_>,
        kept: &Kept<'_>,
        stamp: Stamp,
    ) -> Result<Snapshot, TooManyBuckets> {
        self.inherit_peppers(kept, &stamp.global_policy);
        if kept.old.is_none() && self.claim_rows(allocation).is_some() {
            return Ok(Snapshot {
                stamp,
                keys: self,
                runs: Box::default(),
                owner_buckets: OwnerBuckets::default(),
            });
        }
        let owner_buckets = self.claim_owners(allocation, kept.old)?;
        let mut runs = Vec::new();
        for at in 0..self.entries.len() {
            if at.is_multiple_of(WINDOW) {
                kept.fetch(at);
            }
            let first = self.entries[at].buckets as usize;
            let buckets = if first == at {
                self.claim_key(at, allocation, kept, &owner_buckets, &mut runs)?
            } else {
                self.entries[first].buckets
            };
            self.entries[at].buckets = buckets;
        }
        Ok(Snapshot { stamp, keys: self, runs: runs.into(), owner_buckets })
    }

    /// For the first snapshot, where every key has one limit for itself: the bucket of a key has the number of its first row, which every
    /// row has already.
    fn claim_rows(&self, allocation: &mut Allocation<'_>) -> Option<()> {
        let is_plain = |policy: &Policy| matches!(policy.limits(), [limit] if limit.per == Per::Key);
        if !self.policies.iter().all(is_plain) {
            return None;
        }
        let rows = u32::try_from(self.entries.len()).ok()?;
        allocation.assign_contiguous(rows, self.rotated.iter().map(|(_, row)| *row))
    }

    fn claim_key(
        &self,
        at: usize,
        allocation: &mut Allocation<'_>,
        kept: &Kept<'_>,
        owner_buckets: &OwnerBuckets,
        runs: &mut Vec<u32>,
    ) -> Result<u32, TooManyBuckets> {
        let entry = &self.entries[at];
        let limits = self.policies[entry.policy as usize].limits();
        if limits.is_empty() {
            return Ok(0);
        }
        let old = kept.before(at, || self.key_id(entry));
        let run = u32::try_from(runs.len()).map_err(|_| TooManyBuckets)?;
        let mut only = 0;
        for limit in limits {
            only = if is_shared(entry, limit) {
                let buckets = owner_buckets.get(&self.name_of_owner(entry, limit)).ok_or(TooManyBuckets)?;
                buckets.iter().find(|bucket| bucket.rate == limit.rate).ok_or(TooManyBuckets)?.slot
            } else {
                let had = old.and_then(|old| old.own_bucket(&limit.name));
                allocation
                    .assign(|| BucketId::for_key(self.key_id(entry), &limit.name), had, limit.rate)
                    .ok_or(TooManyBuckets)?
            };
            if limits.len() > 1 {
                runs.push(only);
            }
        }
        Ok(if limits.len() == 1 { only } else { run })
    }

    /// Claims the buckets of all owners.
    fn claim_owners(
        &self,
        allocation: &mut Allocation<'_>,
        previous: Option<&Snapshot>,
    ) -> Result<OwnerBuckets, TooManyBuckets> {
        let mut owner_buckets = OwnerBuckets::default();
        for (name, rates) in self.rates_of_owners() {
            let had = previous.and_then(|old| old.owner_buckets.get(&name)).map_or(&[][..], Vec::as_slice);
            let buckets = allocation.assign_all(name, had, &rates).ok_or(TooManyBuckets)?;
            owner_buckets.insert(name, buckets);
        }
        Ok(owner_buckets)
    }

    /// The limits that owners share, by name, and the rates at which their plans define each.
    fn rates_of_owners(&self) -> HashMap<BucketId, Vec<Rate>, IdHasher> {
        let mut rates: HashMap<BucketId, Vec<Rate>, IdHasher> = HashMap::default();
        let has_shared: Vec<bool> = self
            .policies
            .iter()
            .map(|policy| policy.limits().iter().any(|limit| limit.per == Per::Owner))
            .collect();
        if !has_shared.contains(&true) {
            return rates;
        }
        let sharing = self.entries.iter().zip(0..).filter(|(entry, at)| {
            // Rows in rotation are charged as the first of them is; so far an entry knows that by its number.
            entry.buckets == *at && has_shared[entry.policy as usize]
        });
        for (entry, _) in sharing {
            let limits = self.policies[entry.policy as usize].limits();
            for limit in limits.iter().filter(|limit| is_shared(entry, limit)) {
                let of_name = rates.entry(self.name_of_owner(entry, limit)).or_default();
                if !of_name.contains(&limit.rate) {
                    of_name.push(limit.rate);
                }
            }
        }
        rates
    }

    fn name_of_owner(&self, entry: &Entry, limit: &Limit) -> BucketId {
        BucketId::for_owner(self.owner(entry), &limit.name)
    }
}

impl Snapshot {
    /// What the bucket is called that a limit of this entry is charged to.
    pub(super) fn bucket_name(&self, entry: &Entry, limit: &Limit) -> BucketId {
        if !is_shared(entry, limit) {
            return BucketId::for_key(self.keys.key_id(entry), &limit.name);
        }
        self.keys.name_of_owner(entry, limit)
    }
}

/// Whether the bucket is the owner's. Nobody is owner number 0: such a key has the bucket for itself.
fn is_shared(entry: &Entry, limit: &Limit) -> bool {
    limit.per == Per::Owner && entry.owner != 0
}

impl Key<'_> {
    /// The bucket of its limit with this name, if it has one for itself.
    fn own_bucket(self, limit: &str) -> Option<BucketRef> {
        let mut buckets = self.policy().limits().iter().zip(self.slots());
        let (limit, slot) = buckets.find(|(had, _)| *had.name == *limit && !is_shared(self.entry, had))?;
        Some(BucketRef { slot: *slot, rate: limit.rate })
    }
}
