//! Retained buckets: those that belong to no key of the snapshot in use, and are not full yet.
//!
//! A limit has one retained bucket, or several under different rules: an owner's limit that plans
//! define differently, or a limit whose rule has changed.

use std::collections::HashMap;

use crate::limiter::limit_id::LimitId;
use crate::limiter::slots::BucketRef;

/// Retained buckets, by the id of their limit.
#[derive(Default)]
pub(super) struct RetainedBuckets {
    by_limit: HashMap<LimitId, BucketList>,
    len: usize,
}

/// The buckets of one limit, at least one. Most limits have one, and millions may be retained, so a
/// list of one allocates nothing.
enum BucketList {
    One(BucketRef),
    #[expect(clippy::box_collection, reason = "an unboxed vector would enlarge the common case")]
    Several(Box<Vec<BucketRef>>),
}

const _: () = assert!(size_of::<BucketList>() == size_of::<BucketRef>());

impl BucketList {
    fn as_slice(&self) -> &[BucketRef] {
        match self {
            Self::One(bucket) => std::slice::from_ref(bucket),
            Self::Several(buckets) => buckets,
        }
    }

    fn push(&mut self, bucket: BucketRef) {
        match self {
            Self::One(first) => *self = Self::Several(Box::new(vec![*first, bucket])),
            Self::Several(buckets) => buckets.push(bucket),
        }
    }

    /// Removes the buckets for which `keep` is false. Returns whether any bucket is left.
    fn retain(&mut self, mut keep: impl FnMut(&BucketRef) -> bool) -> bool {
        match self {
            Self::One(bucket) => keep(bucket),
            Self::Several(buckets) => {
                buckets.retain(keep);
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

    /// All buckets with this id.
    pub(super) fn get(&self, id: &LimitId) -> &[BucketRef] {
        self.by_limit.get(id).map_or(&[], BucketList::as_slice)
    }

    pub(super) fn insert(&mut self, id: LimitId, bucket: BucketRef) {
        self.by_limit.entry(id).and_modify(|buckets| buckets.push(bucket)).or_insert(BucketList::One(bucket));
        self.len += 1;
    }

    /// Removes the buckets for which `keep` is false.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&BucketRef) -> bool) {
        let mut len = 0;
        self.by_limit.retain(|_, buckets| {
            let is_any_left = buckets.retain(&mut keep);
            len += if is_any_left { buckets.as_slice().len() } else { 0 };
            is_any_left
        });
        self.len = len;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (LimitId, BucketRef)> {
        self.by_limit.iter().flat_map(|(id, buckets)| buckets.as_slice().iter().map(|bucket| (*id, *bucket)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::rule::Rule;

    #[test]
    fn id_with_several_buckets_has_each_until_it_is_removed() {
        let (one, two) = (LimitId([1; 16]), LimitId([2; 16]));
        let bucket = |slot| BucketRef { slot, rule: Rule::SLOWEST };
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
        retained.retain(|bucket| bucket.slot % 2 == 1);
        assert_eq!((slots(&retained, one), slots(&retained, two), retained.len()), (vec![1, 3], vec![], 2));
        assert!(retained.iter().all(|(id, _)| id == one));
        retained.retain(|_| false);
        assert!(retained.is_empty() && retained.iter().next().is_none());
    }
}
