//! Retained buckets: those that belong to no key of the snapshot in use, and are not full yet.
//!
//! A limit has one retained bucket, or several under different rules: an owner's limit that plans
//! define differently, or a limit whose rule has changed. A bucket of a *former* rule shows what was
//! spent before the change. The others are those of the rules that the limit had when its keys were
//! removed. They are retained together, even those that are full: without one of them, the rules
//! would look changed when the keys return.

use std::collections::HashMap;

use crate::limiter::limit_id::LimitId;
use crate::limiter::rule::Rule;
use crate::limiter::slot_set::SlotSet;
use crate::limiter::slots::BucketRef;

/// A retained bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RetainedBucket {
    pub(super) slot: u32,
    /// Whether another rule has replaced its rule.
    pub(super) is_former: bool,
    pub(super) rule: Rule,
}

impl RetainedBucket {
    pub(super) fn new(BucketRef { slot, rule }: BucketRef, is_former: bool) -> Self {
        Self { slot, is_former, rule }
    }

    pub(super) fn bucket(&self) -> BucketRef {
        BucketRef { slot: self.slot, rule: self.rule }
    }
}

/// Retained buckets, by the id of their limit.
#[derive(Default)]
pub(super) struct RetainedBuckets {
    by_limit: HashMap<LimitId, BucketList>,
    len: usize,
    /// How many of them are of former rules.
    former: usize,
}

/// The buckets of one limit, at least one. Most limits have one, and millions may be retained, so a
/// list of one allocates nothing.
enum BucketList {
    One(RetainedBucket),
    #[expect(clippy::box_collection, reason = "an unboxed vector would enlarge the common case")]
    Several(Box<Vec<RetainedBucket>>),
}

const _: () = assert!(size_of::<BucketList>() == size_of::<BucketRef>());

impl BucketList {
    fn as_slice(&self) -> &[RetainedBucket] {
        match self {
            Self::One(bucket) => std::slice::from_ref(bucket),
            Self::Several(buckets) => buckets,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [RetainedBucket] {
        match self {
            Self::One(bucket) => std::slice::from_mut(bucket),
            Self::Several(buckets) => buckets,
        }
    }

    fn push(&mut self, bucket: RetainedBucket) {
        match self {
            Self::One(first) => *self = Self::Several(Box::new(vec![*first, bucket])),
            Self::Several(buckets) => buckets.push(bucket),
        }
    }

    /// Removes the buckets for which `keep`, which also gets all of them, is false. Returns whether any
    /// bucket is left.
    fn retain(&mut self, mut keep: impl FnMut(&[RetainedBucket], &RetainedBucket) -> bool) -> bool {
        match self {
            Self::One(bucket) => keep(std::slice::from_ref(bucket), bucket),
            Self::Several(buckets) => {
                let all = buckets.to_vec();
                buckets.retain(|bucket| keep(&all, bucket));
                !buckets.is_empty()
            }
        }
    }
}

impl RetainedBuckets {
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of buckets of all limits.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether any bucket is of a former rule. The limits of all others are not in use.
    pub(super) fn has_former(&self) -> bool {
        self.former > 0
    }

    /// All buckets with this id.
    pub(super) fn get(&self, id: &LimitId) -> &[RetainedBucket] {
        self.by_limit.get(id).map_or(&[], BucketList::as_slice)
    }

    pub(super) fn insert(&mut self, id: LimitId, bucket: RetainedBucket) {
        self.by_limit.entry(id).and_modify(|buckets| buckets.push(bucket)).or_insert(BucketList::One(bucket));
        self.len += 1;
        self.former += usize::from(bucket.is_former);
    }

    /// Records that other rules have replaced those of the buckets in `slots`.
    pub(super) fn mark_former(&mut self, slots: &SlotSet) {
        for buckets in self.by_limit.values_mut() {
            for bucket in buckets.as_mut_slice() {
                let is_new = !bucket.is_former && slots.contains(bucket.slot);
                bucket.is_former |= is_new;
                self.former += usize::from(is_new);
            }
        }
    }

    /// Removes the buckets for which `keep`, which also gets all buckets of the limit, is false.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&[RetainedBucket], &RetainedBucket) -> bool) {
        self.retain_lists(|buckets| buckets.retain(&mut keep));
    }

    /// Removes the limits for whose buckets `keep` is false.
    pub(super) fn retain_limits(&mut self, mut keep: impl FnMut(&[RetainedBucket]) -> bool) {
        self.retain_lists(|buckets| keep(buckets.as_slice()));
    }

    fn retain_lists(&mut self, mut keep: impl FnMut(&mut BucketList) -> bool) {
        (self.len, self.former) = (0, 0);
        self.by_limit.retain(|_, buckets| {
            let is_kept = keep(buckets);
            if is_kept {
                self.len += buckets.as_slice().len();
                self.former += buckets.as_slice().iter().filter(|bucket| bucket.is_former).count();
            }
            is_kept
        });
    }

    /// The buckets of each limit.
    pub(super) fn limits(&self) -> impl Iterator<Item = (LimitId, &[RetainedBucket])> {
        self.by_limit.iter().map(|(id, buckets)| (*id, buckets.as_slice()))
    }

    pub(super) fn buckets(&self) -> impl Iterator<Item = BucketRef> {
        self.limits().flat_map(|(_, buckets)| buckets.iter().map(RetainedBucket::bucket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_with_several_buckets_has_each_until_it_is_removed() {
        let (one, two) = (LimitId([1; 16]), LimitId([2; 16]));
        let bucket = |slot| RetainedBucket { slot, is_former: slot == 3, rule: Rule::SLOWEST };
        let slots = |retained: &RetainedBuckets, id| {
            retained.get(&id).iter().map(|bucket| bucket.slot).collect::<Vec<_>>()
        };
        let mut retained = RetainedBuckets::default();
        for (id, slot) in [(one, 1), (two, 2), (one, 3), (one, 4)] {
            retained.insert(id, bucket(slot));
        }
        assert_eq!(
            (slots(&retained, one), slots(&retained, two), retained.len()),
            (vec![1, 3, 4], vec![2], 4)
        );
        retained.retain(|all, bucket| all.len() == 3 && bucket.slot % 2 == 1);
        assert_eq!((slots(&retained, one), slots(&retained, two), retained.len()), (vec![1, 3], vec![], 2));
        assert!(retained.limits().all(|(id, _)| id == one) && retained.has_former());
        retained.retain(|_, bucket| bucket.slot != 3);
        assert!(!retained.has_former());
        let mut replaced = SlotSet::default();
        replaced.insert(1);
        retained.mark_former(&replaced);
        assert!(retained.has_former() && retained.get(&one)[0].is_former);
        retained.retain(|_, _| false);
        assert!(retained.is_empty() && !retained.has_former() && retained.buckets().next().is_none());
    }
}
