//! Rules as bytes, in compiled exports and in files of balances.
//!
//! ```text
//! kind        1   0 bucket, 1 window, 2 credits
//! amount      8   ticks for one unit; the count; the credits granted
//! scale       4   ticks in a nanosecond; the number of the period; 0
//! burst       4   the burst; 0; 0
//! overdraft   4
//! ```
//!
//! Numbers are little-endian.

use crate::limiter::calendar::Period;
use crate::limiter::rate::Rate;
use crate::limiter::rule::Rule;

/// Bytes of a rule.
pub const RULE_BYTES: usize = 21;

const BUCKET: u8 = 0;
const WINDOW: u8 = 1;
const CREDITS: u8 = 2;

impl Rule {
    /// The rule as bytes.
    pub fn to_bytes(self) -> [u8; RULE_BYTES] {
        let (kind, amount, scale, burst) = match self {
            Self::Bucket { rate, .. } => (BUCKET, rate.period().get(), rate.scale().get(), rate.burst()),
            Self::Window { count, period, .. } => (WINDOW, count, period.number().into(), 0),
            Self::Credits { granted, .. } => (CREDITS, granted, 0, 0),
        };
        let mut bytes = [0; RULE_BYTES];
        bytes[0] = kind;
        bytes[1..9].copy_from_slice(&amount.to_le_bytes());
        bytes[9..13].copy_from_slice(&scale.to_le_bytes());
        bytes[13..17].copy_from_slice(&burst.to_le_bytes());
        bytes[17..].copy_from_slice(&self.overdraft().to_le_bytes());
        bytes
    }

    /// The rule that [`to_bytes`](Self::to_bytes) has written; `None` if a value is out of range.
    pub fn from_bytes(bytes: [u8; RULE_BYTES]) -> Option<Self> {
        let [kind, amount @ .., _, _, _, _, _, _, _, _, _, _, _, _] = bytes;
        let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let (amount, scale, burst, overdraft) =
            (u64::from_le_bytes(amount), number(9)?, number(13)?, number(17)?);
        let rule = match kind {
            BUCKET => Self::bucket(Rate::from_ticks(amount, scale, burst).ok()?, overdraft),
            WINDOW => {
                let period = Period::from_number(u8::try_from(scale).ok()?).ok()?;
                Self::window(amount, period, overdraft)
            }
            CREDITS => Self::credits(amount, overdraft),
            _ => return None,
        };
        // A field that the kind does not have must be 0, so that equal rules have equal bytes.
        rule.ok().filter(|rule| rule.to_bytes() == bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_survive_the_encoding_and_others_are_refused() {
        let rate = Rate::new(3, 1_000_000_000, 7).expect("in range");
        let rules = [
            Rule::bucket(rate, 0),
            Rule::bucket(rate, 12),
            Rule::window(10_000, Period::Month(31), 5),
            Rule::credits(0, 0),
            Rule::credits(5_000, 1),
        ];
        for rule in rules {
            let rule = rule.expect("in range");
            let bytes = rule.to_bytes();
            assert_eq!(Rule::from_bytes(bytes), Some(rule));
            for bit in 0..8 * RULE_BYTES {
                let mut changed = bytes;
                changed[bit / 8] ^= 1 << (bit % 8);
                let read = Rule::from_bytes(changed);
                assert!(read.is_none_or(|read| read != rule && read.to_bytes() == changed), "{rule:?} {bit}");
            }
        }
    }
}
