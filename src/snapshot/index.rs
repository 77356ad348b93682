//! From a hash to the number of an entry: a table of cache lines, so that a look-up waits for memory once.
//!
//! A line has eight places, each a *tag* (32 bits of the hash) and a number. The upper bits of a hash say which line it belongs to,
//! its *home*; what finds its home full is in the first line after it that has room. Lines are filled from the front, and nothing is
//! ever taken out: a look-up ends at the first line that is not full.
//!
//! hashbrown was here before. It is as fast where it is in the cache, but it keeps tags and values apart: a look-up in a table of a
//! million keys waits for two lines, and the second is not known before the first has come. Besides, its size is a power of two, and
//! this one's what it takes: 12 bytes a key, instead of 10 to 21.
//!
//! Homes ascend with hashes, whatever the number of lines: rows in the order of their hashes fill the table from its beginning to
//! its end ([`compiled`](super::compiled)).

use crate::memory::{Huge, HugeVec, prefetch};
use crate::record::Digest;

/// A hash, as the table reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    hash: u64,
}

impl Probe {
    /// Every bit of the digest counts, under a key: whoever can choose what is listed as a hash could otherwise choose a
    /// million that meet in one place.
    #[inline]
    pub(super) fn of_digest(digest: &Digest, seed: u64) -> Self {
        let [a, b, c, d] = super::words(digest);
        let low = fold(a ^ seed, b ^ seed.rotate_left(17) ^ MIX);
        let high = fold(c ^ seed.rotate_left(31), d ^ seed.rotate_left(47) ^ MIX);
        Self { hash: low ^ high.rotate_left(32) }
    }

    /// Of something else that has been hashed well: all 64 bits are used.
    #[inline]
    pub(super) fn of_hash(hash: u64) -> Self {
        Self { hash }
    }

    /// Never 0, which is a place that is free.
    #[inline]
    fn tag(self) -> u32 {
        (self.hash as u32).max(1)
    }

    #[inline]
    fn home(self, lines: usize) -> usize {
        ((u128::from(self.hash) * lines as u128) >> 64) as usize
    }
}

/// An arbitrary odd number with as many ones as zeros: the fraction of the golden ratio.
pub(super) const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// A multiplication whose halves are put together, so that every bit of both factors reaches every bit of the result.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Places of a line.
const PLACES: usize = 8;

/// A table has a line for every 16 / 3 of the numbers that it was made for. One in five lines is full then, at which a look-up of what
/// is not in it goes on to the next; with fewer lines there would be more of them, and with more lines more memory.
const LINES: (usize, usize) = (3, 16);

/// It grows when lines have 13 / 2 on average: nearly half of them are full then.
const FULL: (usize, usize) = (13, 2);

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line {
    tags: [u32; PLACES],
    numbers: [u32; PLACES],
}

const FREE: Line = Line { tags: [0; PLACES], numbers: [0; PLACES] };

const _: () = assert!(size_of::<Line>() == 64);

impl Line {
    /// The places with this tag: a byte of ones for each.
    #[inline]
    fn with(&self, tag: u32) -> Found {
        // In this form the compiler compares all of them at once.
        Found(u64::from_le_bytes(self.tags.map(|other| if other == tag { 0xff } else { 0 })))
    }

    #[inline]
    fn is_full(&self) -> bool {
        self.tags[PLACES - 1] != 0
    }
}

/// Places of a line.
struct Found(u64);

impl Iterator for Found {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let place = self.0.trailing_zeros() / u8::BITS;
        self.0 &= !(0xff << (place * u8::BITS % u64::BITS));
        (place < PLACES as u32).then_some(place as usize % PLACES)
    }
}

/// Numbers by hashes. See the [module](self).
pub(super) struct Index {
    lines: HugeVec<Line>,
    len: usize,
}

impl Index {
    /// An empty one, that does not grow before it has more than `expected` numbers.
    pub(super) fn with_capacity(expected: usize) -> Self {
        Self::with_lines(Self::lines_for(expected))
    }

    fn with_lines(count: usize) -> Self {
        let mut lines = HugeVec::with_capacity_in(count, Huge);
        lines.resize(count, FREE);
        Self { lines, len: 0 }
    }

    /// Lines of a table that is made for so many.
    fn lines_for(expected: usize) -> usize {
        expected.saturating_mul(LINES.0).div_ceil(LINES.1)
    }

    /// Which of the lines of a table that is made for `expected` a hash belongs to.
    pub(super) fn home(probe: Probe, expected: usize) -> usize {
        probe.home(Self::lines_for(expected))
    }

    /// How many are in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Has the line fetched at which a look-up begins.
    #[inline]
    pub(super) fn prefetch(&self, probe: Probe) {
        if let Some(line) = self.lines.get(probe.home(self.lines.len())) {
            prefetch(line);
        }
    }

    /// The first number with this tag: the right one but for one time in some 2^29, or none.
    #[inline]
    pub(super) fn candidate(&self, probe: Probe) -> Option<u32> {
        let home = probe.home(self.lines.len());
        let line = self.lines.get(home)?;
        // The usual case on its own: the other is one in five of the hashes that are not there, and one in thirty of those that are.
        match line.with(probe.tag()).next() {
            Some(place) => Some(line.numbers[place]),
            None if line.is_full() => self.find_after(home, probe, |_| true),
            None => None,
        }
    }

    /// The number with this hash that is the one looked for.
    #[inline]
    pub(super) fn find(&self, probe: Probe, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let home = probe.home(self.lines.len());
        let line = self.lines.get(home)?;
        match find_in(line, probe, &mut is_it) {
            None if line.is_full() => self.find_after(home, probe, is_it),
            found => found,
        }
    }

    /// The same in the lines after the home.
    #[cold]
    fn find_after(&self, home: usize, probe: Probe, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let (before, from) = self.lines.split_at(home + 1);
        for line in from.iter().chain(before) {
            let found = find_in(line, probe, &mut is_it);
            if found.is_some() || !line.is_full() {
                return found;
            }
        }
        None
    }

    /// Puts a number in, beside those that have the same hash. `rehash` says what was a number's, where the table has to grow.
    #[inline]
    pub(super) fn insert(&mut self, probe: Probe, number: u32, rehash: impl Fn(u32) -> Probe) {
        if self.len >= self.lines.len() * FULL.0 / FULL.1 {
            self.grow(rehash);
        }
        self.put(probe, number);
    }

    /// There is room for it.
    #[inline]
    fn put(&mut self, probe: Probe, number: u32) {
        let home = probe.home(self.lines.len());
        let (before, from) = self.lines.split_at_mut(home);
        if let Some(line) = from.iter_mut().chain(before).find(|line| !line.is_full()) {
            let place = line.with(0).next().unwrap_or(PLACES - 1);
            line.tags[place] = probe.tag();
            line.numbers[place] = number;
            self.len += 1;
        }
    }

    #[cold]
    fn grow(&mut self, rehash: impl Fn(u32) -> Probe) {
        let grown = Self::with_lines((self.lines.len() * 2).max(4));
        for line in std::mem::replace(self, grown).lines {
            let taken = line.tags.iter().zip(line.numbers).filter(|(tag, _)| **tag != 0);
            taken.for_each(|(_, number)| self.put(rehash(number), number));
        }
    }
}

#[inline]
fn find_in(line: &Line, probe: Probe, is_it: &mut impl FnMut(u32) -> bool) -> Option<u32> {
    line.with(probe.tag()).map(|place| line.numbers[place]).find(|number| is_it(*number))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Hashes whose homes and tags meet often, at both ends of the table too.
    fn hash() -> impl Strategy<Value = u64> {
        let home = prop_oneof![Just(0), Just(u64::MAX), any::<u64>(), 0..4_u64];
        (home, 0..4_u64).prop_map(|(home, tag)| home << 32 | tag)
    }

    proptest! {
        /// Against the standard library's table, whatever is made room for.
        #[test]
        fn it_finds_what_was_put_in_and_nothing_else(
            hashes in prop::collection::vec(hash(), 0..300),
            others in prop::collection::vec(hash(), 0..50),
            expected in 0_usize..400,
        ) {
            let mut index = Index::with_capacity(expected);
            let mut model: HashMap<u64, Vec<u32>> = HashMap::new();
            for (number, hash) in (0..).zip(&hashes) {
                index.insert(Probe::of_hash(*hash), number, |other| Probe::of_hash(hashes[other as usize]));
                model.entry(*hash).or_default().push(number);
            }
            prop_assert_eq!(index.len(), hashes.len());
            for hash in hashes.iter().chain(&others) {
                let probe = Probe::of_hash(*hash);
                let numbers = model.get(hash).map(Vec::as_slice).unwrap_or_default();
                for number in numbers {
                    prop_assert_eq!(index.find(probe, |other| other == *number), Some(*number));
                }
                let is_it = |other: u32| hashes[other as usize] == *hash;
                prop_assert_eq!(index.find(probe, is_it).is_some(), !numbers.is_empty());
                prop_assert!(numbers.is_empty() || index.candidate(probe).is_some());
                let mut seen = 0;
                prop_assert_eq!(index.find(probe, |other| { seen += u32::from(is_it(other)); false }), None);
                prop_assert_eq!(seen as usize, numbers.len(), "each is there once");
            }
        }
    }

    #[test]
    fn it_does_not_grow_before_it_has_what_it_was_made_for() {
        for expected in [0, 1, 5, 6, 100, 10_000] {
            let mut index = Index::with_capacity(expected);
            let lines = index.lines.len();
            for number in 0..expected as u32 {
                let hash = u64::from(number).wrapping_mul(MIX);
                index.insert(Probe::of_hash(hash), number, |_| unreachable!("it grows"));
            }
            assert_eq!((index.len(), index.lines.len()), (expected, lines));
        }
    }

    #[test]
    fn few_lines_are_full() {
        let keys = 100_000_usize;
        let mut index = Index::with_capacity(keys);
        let mut astray = 0;
        for number in 0..keys as u32 {
            let digest: Digest = crate::key_format::hash(&number.to_le_bytes());
            let probe = Probe::of_digest(&digest, 7);
            astray += u32::from(index.lines[probe.home(index.lines.len())].is_full());
            index.insert(probe, number, |_| unreachable!("it grows"));
        }
        let full = index.lines.iter().filter(|line| line.is_full()).count();
        assert!(full * 4 < index.lines.len(), "{full} of {}", index.lines.len());
        assert!(astray * 20 < keys as u32, "{astray} are not at home");
    }

    #[test]
    fn homes_ascend_with_hashes() {
        let mut hashes: Vec<u64> = (0..1_000_u64).map(|n| n.wrapping_mul(MIX)).collect();
        hashes.sort_unstable();
        for expected in [1, 77, 100_000] {
            assert!(hashes.iter().map(|hash| Index::home(Probe::of_hash(*hash), expected)).is_sorted());
        }
    }
}
