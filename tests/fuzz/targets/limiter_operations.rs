//! Operations on the limiter: charges, refunds, reloads that are committed or dropped, saves,
//! restarts and clock jumps, with the input as their choices.
//!
//! The model of `tests/schedules/model` performs the same operations exactly. Every outcome, every
//! balance and every count of buckets must be the same. So no balance is above its burst, a refusal
//! charges nothing, no refund exceeds what was spent, and no reload fills a bucket.

use super::Outcome;
use crate::input::Input;
use crate::limiter::Rate;
use crate::sequence::Sequence;

/// Most steps of a sequence: several reloads and restarts, and still thousands of sequences a
/// second.
const MAX_STEPS: u64 = 200;

/// The largest step of the clock. All steps together stay far below the 61 bits of a bucket's time,
/// because the model has no such bound.
const MAX_CLOCK_STEP: u64 = 1 << 50;

/// (period, burst): rates that inputs share, so that a reload often keeps one.
const RATES: [(u64, u32); 6] =
    [(8_000, 3), (8_000, 5), (800, 4), (1_143, 2), (1 << 58, 4), (1 << 28, u32::MAX)];

/// A position in the input.
pub(crate) struct Place(usize);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "byte {}", self.0)
    }
}

/// The choices of a sequence: the bytes of the input, and zeros behind them.
pub(crate) struct Choices {
    bytes: Vec<u8>,
    at: usize,
}

impl Choices {
    /// Names the place in a failure. libFuzzer and the test name the input.
    pub(crate) fn name(&self) -> Place {
        Place(self.at)
    }

    pub(crate) fn has_step(&self, step: u64) -> bool {
        step < MAX_STEPS && self.at < self.bytes.len()
    }

    /// Reads with `read` from the bytes that are left.
    fn read<T>(&mut self, read: impl FnOnce(&mut Input<'_>) -> T) -> T {
        let mut input = Input::new(self.bytes.get(self.at..).unwrap_or_default());
        let value = read(&mut input);
        self.at = self.bytes.len() - input.rest().len();
        value
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.read(|input| u64::from(input.byte())) % end
    }

    pub(crate) fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    pub(crate) fn rate(&mut self) -> Rate {
        self.read(|input| {
            let (period, burst) = match input.below(8) {
                0 => (input.u64(), input.u32()),
                1 => (u64::from(input.u16()), u32::from(input.byte())),
                _ => input.choose(&RATES),
            };
            Rate::from_period(period, burst).unwrap_or(Rate::SLOWEST)
        })
    }

    pub(crate) fn ticks(&mut self) -> u64 {
        self.read(|input| match input.below(4) {
            0 => u64::from(input.byte()),
            1 => u64::from(input.u16()),
            2 => u64::from(input.u32()),
            _ => input.u64() % MAX_CLOCK_STEP,
        })
    }

    pub(crate) fn cost(&mut self) -> u32 {
        self.read(|input| match input.below(8) {
            0 => input.u32(),
            1 => u32::from(input.byte()),
            small => small as u32 - 2,
        })
    }
}

pub(crate) fn run(data: &[u8]) -> Outcome {
    let mut sequence = Sequence::new(Choices { bytes: data.to_vec(), at: 0 });
    sequence.run();
    Outcome::accepted_if(sequence.admitted > 0)
}
