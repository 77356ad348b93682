//! What this machine's memory costs: cache lines at random places of a table that no cache holds, one after another and 64 at a
//! time. A verify reads five or six such lines; no code can read them faster than this.

use keyward::memory::{HugePages, HugeVec, prefetch};

use super::Seeded;

/// Bytes of the table: about what a million keys take.
pub(crate) const BYTES: usize = 128 << 20;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(u64);

/// A table of lines, each of which names the next of a walk through all of them.
pub(crate) struct Lines(HugeVec<Line>);

impl Lines {
    pub(crate) fn new() -> Self {
        let count = BYTES / size_of::<Line>();
        let mut lines = HugeVec::with_capacity_in(count, HugePages);
        lines.extend((0..count as u64).map(Line));
        // Sattolo's shuffle: one cycle.
        let mut random = Seeded::new(1);
        for at in (1..count).rev() {
            lines.swap(at, random.below(at as u64) as usize);
        }
        Self(lines)
    }

    /// Where the walk is after `steps` more: each line has to be there before the next can be asked for.
    pub(crate) fn walk(&self, mut at: u64, steps: u64) -> u64 {
        for _ in 0..steps {
            at = self.0[at as usize].0;
        }
        at
    }

    /// Reads lines at random places, all of which have been asked for before the first is read.
    pub(crate) fn together<const COUNT: usize>(&self, random: &mut Seeded) -> u64 {
        let places: [usize; COUNT] = std::array::from_fn(|_| random.below(self.0.len() as u64) as usize);
        places.iter().for_each(|place| prefetch(&self.0[*place]));
        places.iter().fold(0, |sum, place| sum ^ self.0[*place].0)
    }
}
