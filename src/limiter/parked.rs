//! Buckets that belong to no key of the snapshot in use, and are not full yet.
//!
//! A name has one bucket or, told apart by their rates, several: an owner's limit where its keys were on plans that define it
//! differently, and what a limit was before its rate was changed. Whoever asks for a name is shown all of them.

use std::collections::HashMap;

use crate::limiter::ledger::Slot;
use crate::limiter::name::BucketName;

/// Parked buckets, by name.
#[derive(Default)]
pub(super) struct Parked {
    by_name: HashMap<BucketName, Buckets>,
    count: usize,
}

/// The buckets of one name, at least one. Most names have no other, and millions may be parked: that costs no allocation.
enum Buckets {
    One(Slot),
    #[expect(clippy::box_collection, reason = "a vector by itself would make the usual case larger")]
    Several(Box<Vec<Slot>>),
}

const _: () = assert!(size_of::<Buckets>() == size_of::<Slot>());

impl Buckets {
    fn as_slice(&self) -> &[Slot] {
        match self {
            Self::One(bucket) => std::slice::from_ref(bucket),
            Self::Several(buckets) => buckets,
        }
    }

    fn push(&mut self, bucket: Slot) {
        match self {
            Self::One(first) => *self = Self::Several(Box::new(vec![*first, bucket])),
            Self::Several(buckets) => buckets.push(bucket),
        }
    }

    /// Whether any is left.
    fn retain(&mut self, mut keep: impl FnMut(&Slot) -> bool) -> bool {
        match self {
            Self::One(bucket) => keep(bucket),
            Self::Several(buckets) => {
                buckets.retain(keep);
                !buckets.is_empty()
            }
        }
    }
}

impl Parked {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many buckets there are, of all names.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// All that have this name.
    pub(super) fn of(&self, name: &BucketName) -> &[Slot] {
        self.by_name.get(name).map_or(&[], Buckets::as_slice)
    }

    pub(super) fn insert(&mut self, name: BucketName, bucket: Slot) {
        self.by_name.entry(name).and_modify(|buckets| buckets.push(bucket)).or_insert(Buckets::One(bucket));
        self.count += 1;
    }

    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Slot) -> bool) {
        let mut count = 0;
        self.by_name.retain(|_, buckets| {
            let is_any_left = buckets.retain(&mut keep);
            count += if is_any_left { buckets.as_slice().len() } else { 0 };
            is_any_left
        });
        self.count = count;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (BucketName, Slot)> {
        self.by_name
            .iter()
            .flat_map(|(name, buckets)| buckets.as_slice().iter().map(|bucket| (*name, *bucket)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::rate::Rate;

    #[test]
    fn a_name_has_all_its_buckets_until_they_are_gone() {
        let (one, two) = (BucketName([1; 16]), BucketName([2; 16]));
        let bucket = |slot| Slot { slot, rate: Rate::SLOWEST };
        let slots = |parked: &Parked, name| parked.of(&name).iter().map(|of| of.slot).collect::<Vec<_>>();
        let mut parked = Parked::default();
        for (name, slot) in [(one, 1), (two, 2), (one, 3), (one, 4)] {
            parked.insert(name, bucket(slot));
        }
        assert_eq!((slots(&parked, one), slots(&parked, two), parked.len()), (vec![1, 3, 4], vec![2], 4));
        parked.retain(|of| of.slot % 2 == 1);
        assert_eq!((slots(&parked, one), slots(&parked, two), parked.len()), (vec![1, 3], vec![], 2));
        assert!(parked.iter().all(|(name, _)| name == one));
        parked.retain(|_| false);
        assert!(parked.is_empty() && parked.iter().next().is_none());
    }
}
