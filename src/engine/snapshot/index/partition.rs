//! A part of an index that one thread fills, while other threads fill the others.

use keyward_memory::prefetch;

use super::{Group, IndexHash, SLOTS};

/// Consecutive groups of a table that is being filled. No one reads the table meanwhile.
///
/// A number overflows if linear probing would carry it past the last group. The caller inserts it
/// when all threads are done ([`Index::put_overflow`](super::Index::put_overflow)): the groups
/// before the end of the partition are full then and stay so.
pub(in crate::snapshot) struct IndexPartition<'t> {
    groups: &'t mut [Group],
    /// The position of the first group in the table, and the number of groups in the table.
    first: usize,
    total: usize,
    /// The group that was pushed to last, and how many of its slots are taken.
    at: usize,
    taken: usize,
}

impl<'t> IndexPartition<'t> {
    /// A whole table.
    pub(super) fn of(groups: &'t mut [Group]) -> Self {
        let total = groups.len();
        Self { groups, first: 0, total, at: 0, taken: 0 }
    }

    /// Splits off the groups before the home of a hash; `None` if the home is before all of them.
    pub(in crate::snapshot) fn take_before(&mut self, hash: IndexHash) -> Option<Self> {
        self.take(hash.home(self.total).checked_sub(self.first)?)
    }

    /// Splits off the first `count` groups, or all if there are fewer.
    pub(in crate::snapshot) fn take(&mut self, count: usize) -> Option<Self> {
        let count = count.min(self.groups.len());
        let (first, groups) = (self.first, self.groups.split_off_mut(..count)?);
        self.first += count;
        Some(Self { groups, first, total: self.total, at: 0, taken: 0 })
    }

    /// The number of groups.
    pub(in crate::snapshot) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The position of the first group in the table.
    pub(in crate::snapshot) fn first(&self) -> usize {
        self.first
    }

    /// Appends a number whose home is not before that of the previous one. `None` if it overflows.
    #[inline]
    pub(in crate::snapshot) fn push(&mut self, hash: IndexHash, number: u32) -> Option<()> {
        let home = hash.home(self.total).checked_sub(self.first)?;
        let is_full = self.taken == SLOTS;
        // All groups between a number's home and its own group are full.
        let at = home.max(self.at + usize::from(is_full));
        let group = self.groups.get_mut(at)?;
        if at != self.at {
            (self.at, self.taken) = (at, 0);
        }
        group.tags[self.taken] = hash.tag();
        group.numbers[self.taken] = number;
        self.taken += 1;
        Some(())
    }

    /// Prefetches the home group of a hash.
    #[inline]
    pub(in crate::snapshot) fn prefetch(&self, hash: IndexHash) {
        let home = hash.home(self.total).checked_sub(self.first);
        home.and_then(|home| self.groups.get(home)).into_iter().for_each(prefetch);
    }

    /// Inserts a number, in any order. If two numbers have the same tag, the lower one stays and
    /// the other is returned. So is a number that overflows. The caller resolves returned numbers
    /// when the table is complete.
    #[inline]
    pub(in crate::snapshot) fn insert(&mut self, hash: IndexHash, number: u32) -> Option<u32> {
        let home = hash.home(self.total).checked_sub(self.first);
        let from = home.and_then(|home| self.groups.get_mut(home..));
        for group in from.into_iter().flatten() {
            if let Some(slot) = group.with(hash.tag()).next() {
                let present = &mut group.numbers[slot];
                return Some(if number < *present { std::mem::replace(present, number) } else { number });
            }
            if !group.is_full() {
                group.put(hash, number);
                return None;
            }
        }
        Some(number)
    }
}
