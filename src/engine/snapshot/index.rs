//! From a hash to the number of an entry: a table of cache lines, so that a look-up waits for memory once.
//!
//! A line has eight places, each a *tag* (32 bits of the hash) and a number. The upper bits of a hash say which line it belongs to,
//! its *home*; what finds its home full is in the first line after it that has room. Lines are filled from the front, and nothing is
//! ever taken out: a look-up ends at the first line that is not full.
//!
//! hashbrown keeps tags and values apart: a look-up in a table of a million keys waits for two lines, one after the other. Its
//! size is a power of two; this table takes 12 bytes a key, instead of 10 to 21.
//!
//! Homes ascend with hashes, whatever the number of lines: rows in the order of their hashes fill the table from its beginning to
//! its end, and several threads can, each a [`Stretch`] of it ([`compiled`](super::compiled)).

use zerocopy::FromZeros;

use crate::record::Digest;
use keyward_memory::{HugeVec, prefetch, zeroed};

mod order;

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

    /// Which of so many lines it belongs to, or of as many parts of a table.
    #[inline]
    pub(super) fn home(self, lines: usize) -> usize {
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

/// A table has a line for every 16 / 3 of the numbers that it was made for. One in six lines is full then, at which a look-up of what
/// is not in it goes on to the next; with fewer lines there would be more of them, and with more lines more memory.
const LINES: (usize, usize) = (3, 16);

/// It grows when lines have 13 / 2 on average: nearly half of them are full then.
const FULL: (usize, usize) = (13, 2);

/// Zeros are one that is free.
#[derive(Clone, Copy, FromZeros)]
#[repr(C, align(64))]
struct Line {
    tags: [u32; PLACES],
    numbers: [u32; PLACES],
}

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

    /// It is not full.
    #[inline]
    fn put(&mut self, probe: Probe, number: u32) {
        let place = self.with(0).next().unwrap_or(PLACES - 1);
        self.tags[place] = probe.tag();
        self.numbers[place] = number;
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
        Self { lines: zeroed(count), len: 0 }
    }

    /// Lines of a table that is made for so many.
    pub(super) fn lines_for(expected: usize) -> usize {
        expected.saturating_mul(LINES.0).div_ceil(LINES.1)
    }

    /// How many are in it.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// All its lines, for several threads to fill: it is empty. [`fill`](Self::fill) has to be told how many numbers they put there.
    pub(super) fn stretch(&mut self) -> Stretch<'_> {
        let total = self.lines.len();
        Stretch { lines: &mut self.lines, first: 0, total, at: 0, taken: 0 }
    }

    /// Counts numbers that its stretches have been filled with.
    pub(super) fn fill(&mut self, numbers: usize) {
        self.len += numbers;
    }

    /// Puts in a number that found no room in its stretch, and says how far from its home: in lines.
    pub(super) fn put_astray(&mut self, probe: Probe, number: u32) -> usize {
        let home = probe.home(self.lines.len());
        let (before, from) = self.lines.split_at(home);
        let distance = from.iter().chain(before).position(|line| !line.is_full()).unwrap_or(0);
        self.put(probe, number);
        distance
    }

    /// How many lines are full at most, one after another, where the first follows upon the last: what a look-up goes through.
    pub(super) fn longest_run(&self) -> usize {
        let round = self.lines.iter().chain(self.lines.iter().take_while(|line| line.is_full()));
        let ends = |run: &mut usize, line: &Line| {
            *run = if line.is_full() { *run + 1 } else { 0 };
            Some(*run)
        };
        round.scan(0, ends).max().unwrap_or(0)
    }

    /// Has a number that is in it be another, of the same hash.
    pub(super) fn replace(&mut self, probe: Probe, number: u32, by: u32) {
        let home = probe.home(self.lines.len());
        let (before, from) = self.lines.split_at_mut(home);
        let numbers = from.iter_mut().chain(before).flat_map(|line| &mut line.numbers);
        numbers.filter(|there| **there == number).take(1).for_each(|there| *there = by);
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
        // The usual case on its own: the other is one in six of the hashes that are not there, and one in thirty of those that are.
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
        if self.len >= self.size().1 {
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
            line.put(probe, number);
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

/// Lines one after another of a table that is being filled: one thread's own, and nobody looks at them meanwhile.
///
/// What finds no room in them, because it would have to go on to the line after the last, is put in when all threads are done: the lines
/// before that are full, and stay so.
pub(super) struct Stretch<'t> {
    lines: &'t mut [Line],
    /// The number of the first of them, and that of the whole table's.
    first: usize,
    total: usize,
    /// The line that was pushed to last, and how many places of it are taken.
    at: usize,
    taken: usize,
}

impl<'t> Stretch<'t> {
    /// Takes its lines before the home of a hash; `None` where that lies before all of them.
    pub(super) fn take_before(&mut self, probe: Probe) -> Option<Self> {
        self.take(probe.home(self.total).checked_sub(self.first)?)
    }

    /// Takes so many lines from its beginning, or all.
    pub(super) fn take(&mut self, count: usize) -> Option<Self> {
        let count = count.min(self.lines.len());
        let (first, lines) = (self.first, self.lines.split_off_mut(..count)?);
        self.first += count;
        Some(Self { lines, first, total: self.total, at: 0, taken: 0 })
    }

    /// Lines in it.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The number of the first of them.
    pub(super) fn first(&self) -> usize {
        self.first
    }

    /// Puts in a number whose home is not before that of the one before. `None`: it has no room.
    #[inline]
    pub(super) fn push(&mut self, probe: Probe, number: u32) -> Option<()> {
        let home = probe.home(self.total).checked_sub(self.first)?;
        let is_full = self.taken == PLACES;
        // The lines from the home of one that is astray to where it is are full.
        let at = home.max(self.at + usize::from(is_full));
        let line = self.lines.get_mut(at)?;
        if at != self.at {
            (self.at, self.taken) = (at, 0);
        }
        line.tags[self.taken] = probe.tag();
        line.numbers[self.taken] = number;
        self.taken += 1;
        Some(())
    }

    /// Has the line fetched at which a hash has its home.
    #[inline]
    pub(super) fn prefetch(&self, probe: Probe) {
        let home = probe.home(self.total).checked_sub(self.first);
        home.and_then(|home| self.lines.get(home)).into_iter().for_each(prefetch);
    }

    /// Puts in a number, in any order. Of those with one tag that meet, the lowest is put in; the other is returned, as is one that has no
    /// room: it is to be looked at when the table is whole.
    #[inline]
    pub(super) fn insert(&mut self, probe: Probe, number: u32) -> Option<u32> {
        let from = probe.home(self.total).checked_sub(self.first).and_then(|home| self.lines.get_mut(home..));
        for line in from.into_iter().flatten() {
            if let Some(place) = line.with(probe.tag()).next() {
                let there = &mut line.numbers[place];
                return Some(if number < *there { std::mem::replace(there, number) } else { number });
            }
            if !line.is_full() {
                line.put(probe, number);
                return None;
            }
        }
        Some(number)
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
            let lines = Index::lines_for(expected);
            assert!(hashes.iter().map(|hash| Probe::of_hash(*hash).home(lines)).is_sorted());
        }
    }

    proptest! {
        /// In parts, each of which knows nothing of the others, in order and in none.
        #[test]
        fn stretches_come_to_the_same_table(
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
            let (mut rest, mut astray, mut from) = (index.stretch(), Vec::new(), 0);
            for end in ends.into_iter().map(Some).chain([None]) {
                let until = end.map_or(sorted.len(), |end| sorted.partition_point(|hash| *hash < end));
                let mut lines = match end {
                    Some(end) => rest.take_before(Probe::of_hash(end)),
                    None => rest.take(usize::MAX),
                }
                .expect("they ascend");
                for (hash, at) in sorted.iter().zip(0..).take(until).skip(from) {
                    let probe = Probe::of_hash(*hash);
                    if lines.push(probe, at).is_none() {
                        astray.push((probe, at));
                    }
                }
                from = until;
            }
            index.fill(sorted.len() - astray.len());
            astray.into_iter().for_each(|(probe, row)| _ = index.put_astray(probe, row));
            for (hash, at) in sorted.iter().zip(0..) {
                prop_assert_eq!(index.find(Probe::of_hash(*hash), |other| other == at), Some(at));
            }

            let mut index = Index::with_capacity(hashes.len());
            let (mut rest, mut in_doubt, mut put) = (index.stretch(), Vec::new(), 0);
            while let Some(mut lines) = rest.take(size).filter(|lines| lines.len() > 0) {
                let (first, total) = (lines.first(), Index::lines_for(hashes.len()));
                // From the last to the first: the lowest is put in all the same.
                for at in (0..hashes.len()).rev() {
                    let probe = Probe::of_hash(hashes[at]);
                    if (first..first + lines.len()).contains(&probe.home(total)) {
                        match lines.insert(probe, number(at)) {
                            None => put += 1,
                            Some(other) => in_doubt.push(other),
                        }
                    }
                }
            }
            index.fill(put);
            in_doubt.sort_unstable();
            for at in in_doubt {
                let hash = hashes[at as usize];
                match index.find(Probe::of_hash(hash), |other| hashes[other as usize] == hash) {
                    Some(first) => prop_assert!(first < at),
                    None => index.insert(Probe::of_hash(hash), at, |_| unreachable!("it grows")),
                }
            }
            for hash in &hashes {
                let first = hashes.iter().position(|other| other == hash).map(number);
                prop_assert_eq!(index.find(Probe::of_hash(*hash), |other| hashes[other as usize] == *hash), first);
            }
        }
    }
}
