//! Operations on the limiter: charges, debits, refunds, reloads that are committed or dropped, saves,
//! restarts and clock steps, with the input as their choices.
//!
//! The model of `tests/schedules/model` performs the same operations exactly. Every outcome, every
//! balance, every changed amount and every count of slots must be the same. So no balance is above its
//! limit, a refusal charges nothing, a debit stops at the floor, no refund exceeds what was spent, and
//! no reload refills a limit.

use super::Outcome;
use crate::coverage::Event;
use crate::input::Input;
use crate::limiter::{Period, Rate, Rule};
use crate::sequence::Sequence;

/// Most steps of a sequence: several reloads and restarts, and still thousands of sequences a
/// second.
const MAX_STEPS: u64 = 200;

/// The largest step of the clock. All steps together stay below 2^60 ticks of any scale, because the
/// model has no bound after which an old word is taken for another.
const MAX_CLOCK_STEP: u64 = 1 << 38;

/// The latest start of a process: its clock does not overflow.
const MAX_START: u64 = 1 << 62;

/// (period, scale, burst): rates that inputs share, so that a reload often keeps one.
const RATES: [(u64, u32, u32); 7] = [
    (1_000, 1, 3),
    (1_000, 1, 5),
    (100, 1, 4),
    (1_000, 7, 2),
    (1 << 57, 8, 4),
    (1 << 25, 1, u32::MAX),
    (1_638_402, 1 << 14, 3),
];

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

    pub(crate) fn rule(&mut self) -> Rule {
        self.read(|input| {
            let overdraft = if input.one_in(8) { input.u32() } else { u32::from(input.byte() % 8) };
            let rule = match input.below(8) {
                0 => {
                    let rate = Rate::from_ticks(input.u64(), input.u32(), input.u32());
                    Rule::bucket(rate.unwrap_or(Rate::SLOWEST), overdraft)
                }
                1..=2 => {
                    let count = if input.one_in(4) { input.u64() } else { input.byte().into() };
                    let period = Period::from_number(input.byte() % 40).expect("a period");
                    Rule::window(count, period, overdraft)
                }
                3 => {
                    Rule::credits(if input.one_in(4) { input.u64() } else { input.byte().into() }, overdraft)
                }
                _ => {
                    let (period, scale, burst) = input.choose(&RATES);
                    Rule::bucket(Rate::from_ticks(period, scale, burst).expect("in range"), overdraft)
                }
            };
            rule.unwrap_or(Rule::SLOWEST)
        })
    }

    pub(crate) fn start(&mut self) -> u64 {
        self.read(|input| 1 + if input.one_in(2) { input.u64() % MAX_START } else { input.byte().into() })
    }

    pub(crate) fn nanoseconds(&mut self) -> u64 {
        self.read(|input| match input.below(4) {
            0 => u64::from(input.byte()),
            1 => u64::from(input.u16()),
            2 => u64::from(input.u32()),
            _ => input.u64() % MAX_CLOCK_STEP,
        })
    }

    pub(crate) fn seconds(&mut self) -> u32 {
        self.read(|input| match input.below(3) {
            0 => u32::from(input.byte()),
            1 => u32::from(input.u16()),
            _ => input.u32(),
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
    Outcome::accepted_if(sequence.coverage.count(Event::Admitted) > 0)
}
