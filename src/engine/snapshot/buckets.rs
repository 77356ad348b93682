//! Completing a snapshot: each limit of each key gets its bucket, which is one slot under one rule.
//!
//! Buckets are allocated by the identity of their limit ([`LimitId`]), so a balance follows its
//! limit regardless of other changes:
//!
//! * A limit with `per = "key"` has one bucket per key id. Rows in rotation share it, and it
//!   follows the key id from snapshot to snapshot, regardless of the key's plan.
//! * A limit with `per = "owner"` has one bucket per owner, regardless of the plans of the owner's
//!   keys. Changing plans, back and forth or while the daemon is down, does not refill the bucket.
//!   If an owner's keys are on plans that define the limit differently, there is one bucket per
//!   rule, all with the same limit identity. Whenever the rules change, even after a time without
//!   any bucket, all of them start with the lowest balance that any of them had left. Windows of the
//!   same period, and credits, share one bucket whatever their counts are.

use std::collections::HashMap;

use crate::limiter::{Allocation, BucketRef, LimitBuckets, LimitId, Rule, RuleKind};
use crate::record::{LimitRef, Per};
use crate::snapshot::diff::RowMap;
use crate::snapshot::entry::Entry;
use crate::snapshot::key_table::{IdHasher, WINDOW};
use crate::snapshot::{Key, KeyTable, Policy, Snapshot, SnapshotMeta};

/// Why the limits of a snapshot get no buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// All 2^32 bucket slots are in use.
    #[error("more than 4294967296 limits in use")]
    TooMany,
    /// An owner's limit has no bucket, although the buckets of all owners are allocated first.
    #[error("internal error: a limit of an owner has no bucket. Report this as a bug of keyward")]
    Inconsistent,
}

/// The buckets of the limits that owners share, by [id](LimitId::for_owner): one bucket, or one per
/// rule.
pub(super) type OwnerBuckets = HashMap<LimitId, Vec<BucketRef>, IdHasher>;

impl KeyTable {
    /// Whether a key has a limit that is not a token bucket: nothing but its saved balance shows what
    /// was spent of it.
    pub fn has_counted_limits(&self) -> bool {
        self.policies.rules().any(|rule| rule.kind() != RuleKind::Bucket)
    }

    /// Allocates the buckets of all keys, reusing those of `previous`, and completes the snapshot.
    ///
    /// # Errors
    /// If there are more limits than slots.
    pub fn into_snapshot(
        self,
        allocation: &mut Allocation<'_>,
        previous: Option<&Snapshot>,
        meta: SnapshotMeta,
    ) -> Result<Snapshot, BucketError> {
        self.into_snapshot_with(allocation, &RowMap::unknown(previous), meta)
    }

    /// [`into_snapshot`](Self::into_snapshot) after a [comparison](Self::compare): a row that the
    /// previous snapshot has under the same key id is not looked up again.
    ///
    /// # Errors
    /// If there are more limits than slots.
    pub fn into_snapshot_with(
        mut self,
        allocation: &mut Allocation<'_>,
        row_map: &RowMap<'_>,
        meta: SnapshotMeta,
    ) -> Result<Snapshot, BucketError> {
        self.inherit_peppers(row_map, &meta.global_policy);
        let limit_names = self.policies.limit_names();
        if row_map.old.is_none() && self.assign_rows(allocation).is_some() {
            return Ok(Snapshot {
                meta,
                keys: self,
                slot_lists: Box::default(),
                owner_buckets: OwnerBuckets::default(),
                limit_names,
            });
        }
        let owner_buckets = self.assign_owner_buckets(allocation, row_map.old)?;
        let mut slot_lists = Vec::new();
        for at in 0..self.entries.len() {
            if at.is_multiple_of(WINDOW) {
                row_map.prefetch(at);
            }
            let first = self.entries[at].buckets as usize;
            let buckets = if first == at {
                self.assign_key_buckets(at, allocation, row_map, &owner_buckets, &mut slot_lists)?
            } else {
                self.entries[first].buckets
            };
            self.entries[at].buckets = buckets;
        }
        Ok(Snapshot { meta, keys: self, slot_lists: slot_lists.into(), owner_buckets, limit_names })
    }

    /// The shortcut for a first snapshot in which every key has one limit of its own: the bucket of
    /// a key has the number of its first row, which `Entry::buckets` contains already.
    fn assign_rows(&self, allocation: &mut Allocation<'_>) -> Option<()> {
        let has_one_own_limit =
            |policy: Policy<'_>| matches!(policy.policy_limits(), [limit] if limit.per == Per::Key);
        if !self.policies.iter().all(has_one_own_limit) {
            return None;
        }
        let rows = u32::try_from(self.entries.len()).ok()?;
        allocation.assign_contiguous(rows, self.rotated.iter().map(|(_, row)| *row))
    }

    /// The value of `Entry::buckets` for the first row of a key.
    fn assign_key_buckets(
        &self,
        at: usize,
        allocation: &mut Allocation<'_>,
        row_map: &RowMap<'_>,
        owner_buckets: &OwnerBuckets,
        slot_lists: &mut Vec<u32>,
    ) -> Result<u32, BucketError> {
        let entry = &self.entries[at];
        let limits = self.policies.limits_of(entry.policy);
        if limits.is_empty() {
            return Ok(0);
        }
        let old = row_map.previous_key(at, || self.key_id(entry));
        let list_start = u32::try_from(slot_lists.len()).map_err(|_| BucketError::TooMany)?;
        let mut slot = 0;
        for limit in limits.iter().map(|limit| self.policies.limit(limit)) {
            slot = if is_owner_bucket(entry, limit) {
                let buckets =
                    owner_buckets.get(&self.owner_limit_id(entry, limit)).ok_or(BucketError::Inconsistent)?;
                let of_rule = |bucket: &&BucketRef| bucket.rule.shares_words_with(limit.rule);
                buckets.iter().find(of_rule).ok_or(BucketError::Inconsistent)?.slot
            } else {
                let previous = old.and_then(|old| old.own_bucket(limit));
                let id = || LimitId::for_key(self.key_id(entry), limit.name, limit.rule.kind());
                allocation.assign(id, previous, limit.rule).ok_or(BucketError::TooMany)?
            };
            if limits.len() > 1 {
                slot_lists.push(slot);
            }
        }
        Ok(if limits.len() == 1 { slot } else { list_start })
    }

    /// Allocates the buckets of all owners.
    fn assign_owner_buckets(
        &self,
        allocation: &mut Allocation<'_>,
        previous: Option<&Snapshot>,
    ) -> Result<OwnerBuckets, BucketError> {
        let mut owner_buckets = OwnerBuckets::default();
        for (id, rules) in self.owner_rules() {
            let previous = previous.and_then(|old| old.owner_buckets.get(&id)).map_or(&[][..], Vec::as_slice);
            let buckets = allocation.assign_all(id, previous, &rules).ok_or(BucketError::TooMany)?;
            owner_buckets.insert(id, buckets);
        }
        Ok(owner_buckets)
    }

    /// The buckets that owners share, with the rules that their plans and rows define. Of rules that
    /// share a word, one is enough.
    fn owner_rules(&self) -> HashMap<LimitId, Vec<Rule>, IdHasher> {
        let mut rules: HashMap<LimitId, Vec<Rule>, IdHasher> = HashMap::default();
        let has_owner_limit: Vec<bool> = self
            .policies
            .iter()
            .map(|policy| policy.policy_limits().iter().any(|limit| limit.per == Per::Owner))
            .collect();
        if !has_owner_limit.contains(&true) {
            return rules;
        }
        let sharing = self.entries.iter().zip(0..).filter(|(entry, at)| {
            // Rows in rotation are charged like the first of them, whose number `buckets` still
            // contains here.
            entry.buckets == *at && has_owner_limit[entry.policy as usize]
        });
        for (entry, _) in sharing {
            let limits = self.policies.limits_of(entry.policy);
            let limits = limits.iter().map(|limit| self.policies.limit(limit));
            for limit in limits.filter(|limit| is_owner_bucket(entry, *limit)) {
                let of_limit = rules.entry(self.owner_limit_id(entry, limit)).or_default();
                if !of_limit.iter().any(|rule| rule.shares_words_with(limit.rule)) {
                    of_limit.push(limit.rule);
                }
            }
        }
        rules
    }

    fn owner_limit_id(&self, entry: &Entry, limit: LimitRef<'_>) -> LimitId {
        LimitId::for_owner(self.owner(entry), limit.name, limit.rule.kind())
    }
}

/// The buckets of one limit.
#[derive(Clone, Copy, Debug)]
pub enum LimitSlots<'s> {
    /// That of a limit that a key has for itself.
    OfKey(BucketRef),
    /// Those of a limit that the keys of an owner share: one for each rule.
    OfOwner(&'s [BucketRef]),
}

impl AsRef<[BucketRef]> for LimitSlots<'_> {
    fn as_ref(&self) -> &[BucketRef] {
        match self {
            Self::OfKey(bucket) => bucket.as_ref(),
            Self::OfOwner(buckets) => buckets,
        }
    }
}

/// What the id of a limit is computed from.
enum IdSource<'s> {
    Key(Key<'s>, LimitRef<'s>),
    Known(LimitId),
}

impl Snapshot {
    /// The buckets of every limit, each with a function that returns the limit's id. Limits of keys
    /// with several rows are repeated.
    pub fn buckets(&self) -> impl Iterator<Item = (LimitSlots<'_>, impl FnOnce() -> LimitId)> {
        let of_keys = self.keys().flat_map(|key| {
            let limits = key.policy().limits().zip(key.slots());
            let own = limits.filter(move |(limit, _)| !is_owner_bucket(key.entry, *limit));
            own.map(move |(limit, slot)| {
                let bucket = BucketRef { slot: *slot, rule: limit.rule };
                (LimitSlots::OfKey(bucket), IdSource::Key(key, limit))
            })
        });
        let of_owners = self
            .owner_buckets
            .iter()
            .map(|(id, buckets)| (LimitSlots::OfOwner(buckets), IdSource::Known(*id)));
        of_keys.chain(of_owners).map(|(slots, source)| {
            let id = move || match source {
                IdSource::Key(key, limit) => key.snapshot.limit_id(key.entry, limit),
                IdSource::Known(id) => id,
            };
            (slots, id)
        })
    }

    /// The id of a limit of this entry.
    pub(super) fn limit_id(&self, entry: &Entry, limit: LimitRef<'_>) -> LimitId {
        if !is_owner_bucket(entry, limit) {
            return LimitId::for_key(self.keys.key_id(entry), limit.name, limit.rule.kind());
        }
        self.keys.owner_limit_id(entry, limit)
    }
}

/// Whether the limit's bucket belongs to the owner. A key without an owner (number 0) has the
/// bucket to itself.
fn is_owner_bucket(entry: &Entry, limit: LimitRef<'_>) -> bool {
    limit.per == Per::Owner && entry.owner != 0
}

impl<'s> Key<'s> {
    /// The limits of the key with their buckets, and whether the key shares them with its owner's other
    /// keys.
    pub fn limit_buckets(self) -> impl Iterator<Item = (LimitRef<'s>, LimitBuckets<'s>, bool)> {
        self.policy().limits().zip(self.slots()).map(move |(limit, slot)| {
            let id = self.snapshot.limit_id(self.entry, limit);
            let is_shared = is_owner_bucket(self.entry, limit);
            let shared = self.snapshot.owner_buckets.get(&id).filter(|_| is_shared);
            let shared = shared.map_or(&[][..], Vec::as_slice);
            let bucket = BucketRef { slot: *slot, rule: limit.rule };
            (limit, LimitBuckets { id, bucket, shared }, is_shared)
        })
    }
}

impl Key<'_> {
    /// The key's own bucket for the limit with this name and kind, if it has one.
    fn own_bucket(self, limit: LimitRef<'_>) -> Option<BucketRef> {
        let mut buckets = self.policy().limits().zip(self.slots());
        let is_same = |own: LimitRef<'_>| own.name == limit.name && own.rule.kind() == limit.rule.kind();
        let (limit, slot) = buckets.find(|(own, _)| is_same(*own) && !is_owner_bucket(self.entry, *own))?;
        Some(BucketRef { slot: *slot, rule: limit.rule })
    }
}
