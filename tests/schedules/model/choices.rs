//! The choices of a random sequence.

use crate::limiter::{Period, Rate, Rule};

/// Steps in a sequence. Short sequences find nearly every fault, and their failures are easy to
/// follow.
const STEPS: u64 = 32;

/// (count, nanoseconds, burst): equal and coprime periods, bursts that a few steps exhaust, scales
/// of 1, 3, 7, 10 and 1,021, and rates that are rounded.
const RATES: [(u64, u64, u64); 10] = [
    (1, 1_000, 3),
    (1, 1_000, 5),
    (3, 1_000, 4),
    (7, 1_000, 2),
    (10, 7_001, 1),
    (1, 100, 6),
    (9, 5_000, 9),
    (1_021, 1_000_003, 5),
    (1_031, 1_000_000, 4),
    (65_537, 10_000_001, 7),
];

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

    /// A number below `end`, which is at most 256.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    pub fn rule(&mut self) -> Rule {
        let overdraft = [0, 0, 1, 5][self.below(4) as usize];
        let rule = match self.below(6) {
            0..=1 => {
                let periods =
                    [Period::Hour, Period::Day, Period::Week(1), Period::Month(1), Period::Month(31)];
                let other = Period::from_number(self.below(40) as u8).expect("a period");
                let period = periods.get(self.below(7) as usize).copied().unwrap_or(other);
                Rule::window(1 + self.below(8), period, overdraft)
            }
            2 => Rule::credits(self.below(12), overdraft),
            _ => {
                let (count, per, burst) = RATES[self.below(RATES.len() as u64) as usize];
                Rule::bucket(Rate::new(count, per, burst).expect("the rate is in range"), overdraft)
            }
        };
        rule.expect("the rule is in range")
    }

    /// The time at which a process starts: soon after its clock, or shortly before the ticks of a
    /// scale wrap around.
    pub fn start(&mut self) -> u64 {
        let scale = [1, 3, 7, 1_021, 1 << 13][self.below(5) as usize];
        let wraps = (1 << 61) / scale;
        if self.one_in(2) { 1 + self.nanoseconds() } else { wraps - self.nanoseconds() }
    }

    /// Zero, a nanosecond, part of a unit, some units, or longer than any bucket takes to fill.
    pub fn nanoseconds(&mut self) -> u64 {
        let end = [1, 2, 1_000, 3_000, 25_000][self.below(5) as usize];
        self.next() % end
    }

    /// A step of the calendar clock: seconds, hours, days or months.
    pub fn seconds(&mut self) -> u32 {
        let end = [2, 4_000, 90_000, 1_000_000, 5_000_000][self.below(5) as usize];
        (self.next() % end) as u32
    }

    /// The cost of a request.
    pub fn cost(&mut self) -> u32 {
        [0, 1, 1, 2, 3, 3, 4, 6][self.below(8) as usize]
    }
}
