//! The choices of a random sequence.

use crate::limiter::Rate;

/// Steps in a sequence. Short sequences find nearly every fault, and their failures are easy to
/// follow.
const STEPS: u64 = 24;

/// (count, nanoseconds, burst): equal and coprime periods, and bursts that a few steps exhaust.
const RATES: [(u64, u64, u64); 7] =
    [(1, 1_000, 3), (1, 1_000, 5), (3, 1_000, 4), (7, 1_000, 2), (10, 7_001, 1), (1, 100, 6), (9, 5_000, 9)];

/// The seed of a sequence.
pub struct Name(u64);

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}", self.0)
    }
}

/// A random number generator with the same output on every platform (SplitMix64).
pub struct Choices {
    seed: u64,
    state: u64,
}

impl Choices {
    pub fn new(seed: u64) -> Self {
        Self { seed, state: seed.wrapping_mul(0x2545_f491_4f6c_dd1d) }
    }

    /// Names the sequence in a failure.
    pub fn name(&self) -> Name {
        Name(self.seed)
    }

    /// Whether the sequence has a step with this number.
    pub fn has_step(&self, step: u64) -> bool {
        step < STEPS
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    pub fn rate(&mut self) -> Rate {
        let (count, per, burst) = RATES[self.below(RATES.len() as u64) as usize];
        Rate::new(count, per, burst).expect("the rate is in range")
    }

    /// Zero, a tick, part of a unit, some units, or longer than any bucket takes to fill.
    pub fn ticks(&mut self) -> u64 {
        let end = [1, 2, 1_000, 20_000, 200_000][self.below(5) as usize];
        self.below(end)
    }

    /// The cost of a request.
    pub fn cost(&mut self) -> u32 {
        self.below(4) as u32 * (1 + self.below(2) as u32)
    }
}
