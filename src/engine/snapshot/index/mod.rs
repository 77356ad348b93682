//! A hash table from digests (or texts) to entry numbers, laid out so that a look-up waits for one
//! cache line.
//!
//! The table is an array of *groups*, each one cache line with eight slots. A slot holds a *tag*
//! (32 bits of the hash) and a number. The upper bits of a hash select its *home* group. If the
//! home is full, linear probing continues with the groups after it. Groups fill from the front and
//! nothing is ever removed, so a look-up ends at the first group that is not full.
//!
//! hashbrown stores tags and values apart, so a look-up in a table of a million keys waits for two
//! cache lines, one after the other. Its capacity is a power of two, which takes 10 to 21 bytes a
//! key; this table takes 12.
//!
//! Homes ascend with hashes for any number of groups. Rows in the order of their hashes therefore
//! fill the table from its beginning to its end, and several threads can fill it at once, each its
//! own [`IndexPartition`] ([`compiled`](super::compiled)).

use std::hash::{BuildHasher, Hash};

use keyward_memory::{HugeVec, prefetch, zeroed};
use zerocopy::FromZeros;

use crate::record::Digest;

mod order;
mod partition;

pub(super) use partition::IndexPartition;

/// A 64-bit hash of a digest or a text: its bits give the home group and the tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct IndexHash {
    bits: u64,
}

impl IndexHash {
    /// Every bit of the digest counts, under a secret seed. Otherwise an author of a source could
    /// choose a million digests that collide.
    #[inline]
    pub(super) fn of_digest(digest: &Digest, seed: u64) -> Self {
        let [a, b, c, d] = super::as_le_u64s(digest);
        let low = fold(a ^ seed, b ^ seed.rotate_left(17) ^ MIX);
        let high = fold(c ^ seed.rotate_left(31), d ^ seed.rotate_left(47) ^ MIX);
        Self { bits: low ^ high.rotate_left(32) }
    }

    /// Of a text or another value, such as the bytes of a policy.
    #[inline]
    pub(super) fn of(hasher: &impl BuildHasher, value: impl Hash) -> Self {
        Self::of_hash(hasher.hash_one(value))
    }

    /// Of something that is well hashed already. All 64 bits are used.
    #[inline]
    pub(super) fn of_hash(hash: u64) -> Self {
        Self { bits: hash }
    }

    /// Never 0, which marks a free slot.
    #[inline]
    fn tag(self) -> u32 {
        (self.bits as u32).max(1)
    }

    /// The home group among `groups` groups, or the partition among as many partitions.
    #[inline]
    pub(super) fn home(self, groups: usize) -> usize {
        ((u128::from(self.bits) * groups as u128) >> 64) as usize
    }
}

/// An arbitrary odd number with as many ones as zeros: the fraction of the golden ratio.
pub(super) const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// A multiplication whose halves are combined, so that every bit of both factors reaches every bit
/// of the result.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Slots of a group.
const SLOTS: usize = 8;

/// A table has 3 groups for every 16 numbers that it is made for. One group in six is then full, at
/// which an unsuccessful look-up continues with the next group. Fewer groups would fill up more
/// often, and more groups would take more memory.
const GROUPS_PER_NUMBERS: (usize, usize) = (3, 16);

/// A table grows when its groups hold 13 / 2 numbers on average. Nearly half of them are then full.
const MAX_LOAD: (usize, usize) = (13, 2);

/// Eight slots in one cache line. A zero tag marks a free slot.
#[derive(Clone, Copy, FromZeros)]
#[repr(C, align(64))]
struct Group {
    tags: [u32; SLOTS],
    numbers: [u32; SLOTS],
}

const _: () = assert!(size_of::<Group>() == 64);

impl Group {
    /// The slots with this tag.
    #[inline]
    fn with(&self, tag: u32) -> SlotMask {
        // In this form the compiler compares all tags at once.
        SlotMask(u64::from_le_bytes(self.tags.map(|other| if other == tag { 0xff } else { 0 })))
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.tags[SLOTS - 1] != 0
    }

    /// Fills the first free slot. The group must not be full.
    #[inline]
    fn put(&mut self, hash: IndexHash, number: u32) {
        let slot = self.with(0).next().unwrap_or(SLOTS - 1);
        self.tags[slot] = hash.tag();
        self.numbers[slot] = number;
    }
}

/// A set of slots: 0xff in the byte of each.
struct SlotMask(u64);

impl Iterator for SlotMask {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let slot = self.0.trailing_zeros() / u8::BITS;
        self.0 &= !(0xff << (slot * u8::BITS % u64::BITS));
        (slot < SLOTS as u32).then_some(slot as usize % SLOTS)
    }
}

/// Numbers by hash. See the [module](self).
pub(super) struct Index {
    groups: HugeVec<Group>,
    len: usize,
}

/// Construction and size.
impl Index {
    /// An empty table that does not grow until it has more than `expected` numbers.
    pub(super) fn with_capacity(expected: usize) -> Self {
        Self::with_groups(Self::groups_for(expected))
    }

    fn with_groups(count: usize) -> Self {
        Self { groups: zeroed(count), len: 0 }
    }

    /// Groups of a table made for `expected` numbers.
    pub(super) fn groups_for(expected: usize) -> usize {
        expected.saturating_mul(GROUPS_PER_NUMBERS.0).div_ceil(GROUPS_PER_NUMBERS.1)
    }

    /// How many numbers the table holds.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The number of groups, and the number of entries that the table holds before it grows.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.groups.len(), self.groups.len() * MAX_LOAD.0 / MAX_LOAD.1)
    }
}

/// Look-ups.
impl Index {
    /// Prefetches the home group of a hash.
    #[inline]
    pub(super) fn prefetch(&self, hash: IndexHash) {
        if let Some(group) = self.groups.get(hash.home(self.groups.len())) {
            prefetch(group);
        }
    }

    /// The first number with the tag of this hash. It is the wrong one about once in 2^29 look-ups.
    #[inline]
    pub(super) fn candidate(&self, hash: IndexHash) -> Option<u32> {
        let home = hash.home(self.groups.len());
        let group = self.groups.get(home)?;
        // The common case: one in six absent hashes and one in thirty present ones continue past
        // their home.
        match group.with(hash.tag()).next() {
            Some(slot) => Some(group.numbers[slot]),
            None if group.is_full() => self.find_after(home, hash, |_| true),
            None => None,
        }
    }

    /// The number with this hash for which `is_it` returns true.
    #[inline]
    pub(super) fn find(&self, hash: IndexHash, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let home = hash.home(self.groups.len());
        let group = self.groups.get(home)?;
        match find_in(group, hash, &mut is_it) {
            None if group.is_full() => self.find_after(home, hash, is_it),
            found => found,
        }
    }

    /// Continues a look-up in the groups after the home.
    #[cold]
    fn find_after(&self, home: usize, hash: IndexHash, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let (before, from) = self.groups.split_at(home + 1);
        for group in from.iter().chain(before) {
            let found = find_in(group, hash, &mut is_it);
            if found.is_some() || !group.is_full() {
                return found;
            }
        }
        None
    }
}

#[inline]
fn find_in(group: &Group, hash: IndexHash, is_it: &mut impl FnMut(u32) -> bool) -> Option<u32> {
    group.with(hash.tag()).map(|slot| group.numbers[slot]).find(|number| is_it(*number))
}

/// Insertion. The caller rehashes, because the table stores only part of each hash.
impl Index {
    /// Inserts `number`, next to any numbers with the same hash. If the table has to grow, `rehash`
    /// returns the hash of a number.
    #[inline]
    pub(super) fn insert(&mut self, hash: IndexHash, number: u32, rehash: impl Fn(u32) -> IndexHash) {
        if self.len >= self.size().1 {
            self.grow(rehash);
        }
        self.put(hash, number);
    }

    /// Inserts `number` unless there is a number with this hash for which `same` returns true;
    /// returns that one.
    #[inline]
    pub(super) fn find_or_insert(
        &mut self,
        hash: IndexHash,
        number: u32,
        same: impl FnMut(u32) -> bool,
        rehash: impl Fn(u32) -> IndexHash,
    ) -> Option<u32> {
        let found = self.find(hash, same);
        if found.is_none() {
            self.insert(hash, number, rehash);
        }
        found
    }

    /// Inserts a number for which there is room.
    #[inline]
    fn put(&mut self, hash: IndexHash, number: u32) {
        let home = hash.home(self.groups.len());
        let (before, from) = self.groups.split_at_mut(home);
        if let Some(group) = from.iter_mut().chain(before).find(|group| !group.is_full()) {
            group.put(hash, number);
            self.len += 1;
        }
    }

    #[cold]
    fn grow(&mut self, rehash: impl Fn(u32) -> IndexHash) {
        let grown = Self::with_groups((self.groups.len() * 2).max(4));
        for group in std::mem::replace(self, grown).groups {
            let taken = group.tags.iter().zip(group.numbers).filter(|(tag, _)| **tag != 0);
            taken.for_each(|(_, number)| self.put(rehash(number), number));
        }
    }

    /// Replaces the number `old`, which has this hash, by `new`, which has the same hash.
    pub(super) fn replace(&mut self, hash: IndexHash, old: u32, new: u32) {
        let home = hash.home(self.groups.len());
        let (before, from) = self.groups.split_at_mut(home);
        let numbers = from.iter_mut().chain(before).flat_map(|group| &mut group.numbers);
        numbers.filter(|number| **number == old).take(1).for_each(|number| *number = new);
    }
}

/// Filling by several threads.
impl Index {
    /// All groups of an empty table, to be divided among threads. [`count`](Self::count) has to
    /// follow.
    pub(super) fn partition(&mut self) -> IndexPartition<'_> {
        IndexPartition::of(&mut self.groups)
    }

    /// Counts the numbers that the partitions have been filled with.
    pub(super) fn count(&mut self, numbers: usize) {
        self.len += numbers;
    }

    /// Inserts a number that had no room in its partition, and returns its distance from its home
    /// in groups.
    pub(super) fn put_overflow(&mut self, hash: IndexHash, number: u32) -> usize {
        let home = hash.home(self.groups.len());
        let (before, from) = self.groups.split_at(home);
        let distance = from.iter().chain(before).position(|group| !group.is_full()).unwrap_or(0);
        self.put(hash, number);
        distance
    }

    /// The longest run of consecutive full groups, wrapping around: how many groups a look-up may
    /// have to scan.
    pub(super) fn longest_run(&self) -> usize {
        let wrapped = self.groups.iter().chain(self.groups.iter().take_while(|group| group.is_full()));
        let run_lengths = |run: &mut usize, group: &Group| {
            *run = if group.is_full() { *run + 1 } else { 0 };
            Some(*run)
        };
        wrapped.scan(0, run_lengths).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Hashes whose homes and tags often collide, also at both ends of the table.
    fn hash() -> impl Strategy<Value = u64> {
        let home = prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), 0..4_u64];
        (home, 0..4_u64).prop_map(|(home, tag)| home << 32 | tag)
    }

    proptest! {
        /// The model is the standard library's table. The capacity varies.
        #[test]
        fn find_returns_every_inserted_number_and_no_other(
            hashes in prop::collection::vec(hash(), 0..300),
            others in prop::collection::vec(hash(), 0..50),
            expected in 0_usize..400,
        ) {
            let mut index = Index::with_capacity(expected);
            let mut model: HashMap<u64, Vec<u32>> = HashMap::new();
            for (number, hash) in (0..).zip(&hashes) {
                let rehash = |other: u32| IndexHash::of_hash(hashes[other as usize]);
                index.insert(IndexHash::of_hash(*hash), number, rehash);
                model.entry(*hash).or_default().push(number);
            }
            prop_assert_eq!(index.len(), hashes.len());
            for bits in hashes.iter().chain(&others) {
                let hash = IndexHash::of_hash(*bits);
                let numbers = model.get(bits).map(Vec::as_slice).unwrap_or_default();
                for number in numbers {
                    prop_assert_eq!(index.find(hash, |other| other == *number), Some(*number));
                }
                let is_it = |other: u32| hashes[other as usize] == *bits;
                prop_assert_eq!(index.find(hash, is_it).is_some(), !numbers.is_empty());
                prop_assert!(numbers.is_empty() || index.candidate(hash).is_some());
                let mut seen = 0;
                prop_assert_eq!(index.find(hash, |other| { seen += u32::from(is_it(other)); false }), None);
                prop_assert_eq!(seen as usize, numbers.len(), "each number is present once");
            }
        }
    }

    #[test]
    fn table_does_not_grow_below_its_capacity() {
        for expected in [0, 1, 5, 6, 100, 10_000] {
            let mut index = Index::with_capacity(expected);
            let groups = index.groups.len();
            for number in 0..expected as u32 {
                let hash = u64::from(number).wrapping_mul(MIX);
                index.insert(IndexHash::of_hash(hash), number, |_| unreachable!("it grows"));
            }
            assert_eq!((index.len(), index.groups.len()), (expected, groups));
        }
    }

    #[test]
    fn few_groups_are_full() {
        let keys = 100_000_usize;
        let mut index = Index::with_capacity(keys);
        let mut displaced = 0;
        for number in 0..keys as u32 {
            let digest: Digest = crate::key_format::hash(&number.to_le_bytes());
            let hash = IndexHash::of_digest(&digest, 7);
            displaced += u32::from(index.groups[hash.home(index.groups.len())].is_full());
            index.insert(hash, number, |_| unreachable!("it grows"));
        }
        let full = index.groups.iter().filter(|group| group.is_full()).count();
        assert!(full * 4 < index.groups.len(), "{full} of {}", index.groups.len());
        assert!(displaced * 20 < keys as u32, "{displaced} are not in their home group");
    }

    #[test]
    fn homes_ascend_with_hashes() {
        let mut hashes: Vec<u64> = (0..1_000_u64).map(|n| n.wrapping_mul(MIX)).collect();
        hashes.sort_unstable();
        for expected in [1, 77, 100_000] {
            let groups = Index::groups_for(expected);
            assert!(hashes.iter().map(|hash| IndexHash::of_hash(*hash).home(groups)).is_sorted());
        }
    }

    proptest! {
        /// Partitions are filled independently: in the order of hashes, then in any order.
        #[test]
        fn partitions_fill_the_same_table(
            hashes in prop::collection::vec(hash(), 0..300),
            ends in prop::collection::vec(hash(), 0..5),
            size in 1_usize..20,
        ) {
            let number = |at: usize| at as u32;
            let mut sorted = hashes.clone();
            sorted.sort_unstable();
            let mut ends = ends;
            ends.sort_unstable();
            let mut index = Index::with_capacity(hashes.len());
            let (mut rest, mut overflow, mut from) = (index.partition(), Vec::new(), 0);
            for end in ends.into_iter().map(Some).chain([None]) {
                let until = end.map_or(sorted.len(), |end| sorted.partition_point(|hash| *hash < end));
                let mut partition = match end {
                    Some(end) => rest.take_before(IndexHash::of_hash(end)),
                    None => rest.take(usize::MAX),
                }
                .expect("they ascend");
                for (hash, at) in sorted.iter().zip(0..).take(until).skip(from) {
                    let hash = IndexHash::of_hash(*hash);
                    if partition.push(hash, at).is_none() {
                        overflow.push((hash, at));
                    }
                }
                from = until;
            }
            index.count(sorted.len() - overflow.len());
            overflow.into_iter().for_each(|(hash, row)| _ = index.put_overflow(hash, row));
            for (hash, at) in sorted.iter().zip(0..) {
                prop_assert_eq!(index.find(IndexHash::of_hash(*hash), |other| other == at), Some(at));
            }

            let mut index = Index::with_capacity(hashes.len());
            let (mut rest, mut unresolved, mut put) = (index.partition(), Vec::new(), 0);
            while let Some(mut partition) = rest.take(size).filter(|partition| partition.len() > 0) {
                let (first, total) = (partition.first(), Index::groups_for(hashes.len()));
                // In descending order: the lowest number still wins.
                for at in (0..hashes.len()).rev() {
                    let hash = IndexHash::of_hash(hashes[at]);
                    if (first..first + partition.len()).contains(&hash.home(total)) {
                        match partition.insert(hash, number(at)) {
                            None => put += 1,
                            Some(other) => unresolved.push(other),
                        }
                    }
                }
            }
            index.count(put);
            unresolved.sort_unstable();
            for at in unresolved {
                let hash = hashes[at as usize];
                match index.find(IndexHash::of_hash(hash), |other| hashes[other as usize] == hash) {
                    Some(first) => prop_assert!(first < at),
                    None => index.insert(IndexHash::of_hash(hash), at, |_| unreachable!("it grows")),
                }
            }
            for hash in &hashes {
                let first = hashes.iter().position(|other| other == hash).map(number);
                let is_it = |other: u32| hashes[other as usize] == *hash;
                prop_assert_eq!(index.find(IndexHash::of_hash(*hash), is_it), first);
            }
        }
    }
}
