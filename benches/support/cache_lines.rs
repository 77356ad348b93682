//! The machine's memory latency: cache lines at random addresses of a table that fits into no
//! cache, as dependent loads and 64 at a time. A verify reads five or six such lines, and no code
//! can read them faster than this.

use keyward_memory::{HugePages, HugeVec, prefetch};

use keyward_bench_keys::Seeded;

/// Bytes of the table: about as many as a million keys take.
const TABLE_BYTES: usize = 128 << 20;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(u64);

/// A table of cache lines, each of which holds the index of the next one in a cycle through all.
pub(crate) struct LineTable(HugeVec<Line>);

impl LineTable {
    pub(crate) fn new() -> Self {
        let count = TABLE_BYTES / size_of::<Line>();
        let mut lines = HugeVec::with_capacity_in(count, HugePages);
        lines.extend((0..count as u64).map(Line));
        // Sattolo's shuffle yields a single cycle.
        let mut random = Seeded::new(1);
        for index in (1..count).rev() {
            lines.swap(index, random.below(index as u64) as usize);
        }
        Self(lines)
    }

    /// The line after `steps` steps from `start`. Each load depends on the previous one.
    pub(crate) fn follow(&self, start: u64, steps: u64) -> u64 {
        let mut line = start;
        for _ in 0..steps {
            line = self.0[line as usize].0;
        }
        line
    }

    /// Prefetches `COUNT` random lines, then reads them.
    pub(crate) fn read_prefetched<const COUNT: usize>(&self, random: &mut Seeded) -> u64 {
        let indices: [usize; COUNT] = std::array::from_fn(|_| random.below(self.0.len() as u64) as usize);
        indices.iter().for_each(|index| prefetch(&self.0[*index]));
        indices.iter().fold(0, |sum, index| sum ^ self.0[*index].0)
    }
}
