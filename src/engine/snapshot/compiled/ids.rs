//! Having rows found by their key ids, in whose order they are not.
//!
//! A place of that table is as likely as any other, so that filling it row by row would wait for memory at each. While rows are
//! decoded, their hashes are put down in as many lists as the table has parts that stay in a processor's own cache
//! ([`Scatter`], one for each thread); after that each part is filled from its lists, by any thread ([`IdsPart`]).
//!
//! A row that may have the key id of another, which is told by their hashes, is put off until the table is whole.

use crate::snapshot::compiled::space::Space;
use crate::snapshot::index::{Index, Probe, Stretch};
use crate::snapshot::kept::WINDOW;
use keyward_memory::{HugeVec, prefetch, zeroed};

/// Lines of a part, at least: 256 KiB.
const PART: usize = 1 << 12;

/// Lists that a thread writes to, at most: the ends of all of them stay in its cache.
const MAX_LISTS: usize = 512;

/// Lines that are handed out together: a huge page, which comes into memory when it is written to.
const HANDED_OUT: usize = 1 << 15;

/// How many more are put down in a list before the next line of memory.
const AHEAD: usize = 64 / size_of::<Put>();

/// What one thread has put down.
pub struct Scatter {
    /// The table's lines, and those of a part.
    lines: usize,
    part: usize,
    /// The lists one after another, with room for so many in each, and how many are in each.
    lists: HugeVec<Put>,
    room: usize,
    counts: Vec<u32>,
    /// Rows that found no room in theirs: where threads do not get the same share.
    rest: Vec<u32>,
}

/// Both halves of a hash, and the row.
type Put = [u32; 3];

impl Scatter {
    /// One of `threads` for a table of so many rows.
    pub(super) fn new(rows: usize, threads: usize) -> Self {
        let lines = Index::lines_for(rows);
        let part = lines.div_ceil(MAX_LISTS).next_power_of_two().max(PART);
        let lists = lines.div_ceil(part);
        let share = rows.div_ceil(threads.max(1) * lists.max(1));
        // By chance none is longer.
        let room = share + share / 16 + 64;
        Self { lines, part, lists: zeroed(lists * room), room, counts: vec![0; lists], rest: Vec::new() }
    }

    /// Puts down the hash of a row's key id.
    #[inline]
    pub(super) fn put(&mut self, hash: u64, row: u32) {
        // A division, by what is a power of two.
        let list = Probe::of_hash(hash).home(self.lines) >> self.part.trailing_zeros();
        let at = list * self.room;
        if let Some(count) = self.counts.get_mut(list).filter(|count| (**count as usize) < self.room)
            && let Some([put, rest @ ..]) = self.lists.get_mut(at + *count as usize..)
        {
            // The next line of memory, before it is written to.
            rest.get(AHEAD).into_iter().for_each(prefetch);
            *put = [hash as u32, (hash >> 32) as u32, row];
            *count += 1;
        } else {
            self.rest.push(row);
        }
    }

    fn list(&self, list: usize) -> impl Iterator<Item = (Probe, u32)> + Clone {
        let count = self.counts.get(list).map_or(0, |count| *count as usize);
        let puts = self.lists.get(list * self.room..).into_iter().flatten().take(count);
        puts.map(|[low, high, row]| (Probe::of_hash(u64::from(*high) << 32 | u64::from(*low)), *row))
    }
}

/// Parts of the table that are to be filled.
pub struct IdsPart<'t> {
    lines: Stretch<'t>,
}

/// What became of a part.
#[derive(Default)]
pub struct Filled {
    /// Rows that were put in.
    pub(super) put: usize,
    /// Those that are to be looked at.
    pub(super) in_doubt: Vec<u32>,
}

impl Space {
    /// The parts of the look-up by key id, one after another.
    pub fn id_parts(&mut self, scatters: &[Scatter]) -> impl Iterator<Item = IdsPart<'_>> {
        let handed_out = scatters.first().map_or(HANDED_OUT, |scatter| scatter.part.max(HANDED_OUT));
        let mut rest = self.ids.stretch();
        std::iter::from_fn(move || {
            rest.take(handed_out).map(|lines| IdsPart { lines }).filter(|part| part.lines.len() > 0)
        })
    }
}

impl IdsPart<'_> {
    /// Fills it with what has been put down.
    pub fn fill(mut self, scatters: &[Scatter]) -> Filled {
        let mut filled = Filled::default();
        let Some(part) = scatters.first().map(|scatter| scatter.part) else { return filled };
        while let Some(mut lines) = self.lines.take(part).filter(|lines| lines.len() > 0) {
            let list = lines.first() / part;
            let puts = scatters.iter().flat_map(|scatter| scatter.list(list));
            let mut ahead = puts.clone().skip(WINDOW);
            for (probe, row) in puts {
                // It was cleared just now, but not in this cache.
                ahead.next().into_iter().for_each(|(probe, _)| lines.prefetch(probe));
                match lines.insert(probe, row) {
                    None => filled.put += 1,
                    Some(in_doubt) => filled.in_doubt.push(in_doubt),
                }
            }
        }
        filled
    }
}

/// The rows that no part has been filled with.
pub(super) fn rest(scatters: &[Scatter]) -> impl Iterator<Item = u32> {
    scatters.iter().flat_map(|scatter| scatter.rest.iter().copied())
}
