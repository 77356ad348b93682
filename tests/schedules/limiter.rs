//! The limiter, of the same sources as the daemon's: `crate::sync` is what each of the tests says it is.

#![allow(dead_code, unused_imports, reason = "each of the tests needs a part")]

#[path = "../../src/limiter/charge.rs"]
mod charge;
#[path = "../../src/limiter/hold.rs"]
mod hold;
#[path = "../../src/limiter/ledger.rs"]
pub mod ledger;
#[path = "../../src/limiter/name.rs"]
mod name;
#[path = "../../src/limiter/outcome.rs"]
mod outcome;
#[path = "../../src/limiter/parked.rs"]
mod parked;
#[path = "../../src/limiter/rate.rs"]
mod rate;
#[path = "../../src/limiter/saved.rs"]
pub mod saved;
#[path = "../../src/limiter/slots.rs"]
mod slots;
#[path = "../../src/limiter/word.rs"]
mod word;

pub use charge::Limiter;
pub use ledger::{Ledger, Slot};
pub use name::BucketName;
pub use outcome::{Charge, Outcome};
pub use rate::Rate;

/// A charge of several limits as it must not be: each is looked at, then each is charged. What the explorer has to find.
impl Limiter {
    pub fn charge_racily(&self, charges: &[Charge], now: u64, cost: u32) -> bool {
        let fits = |charge: &Charge| self.slots.load(charge.slot).fit(charge.rate, now, cost);
        if charges.iter().any(|charge| fits(charge) == word::Fit::Refused) {
            return false;
        }
        for charge in charges {
            let cost = u64::from(cost) * charge.rate.period().get();
            loop {
                let word = self.slots.load(charge.slot);
                let next = word::Word::from_bits(word.bits().max(now) + cost);
                if self.slots.swap(charge.slot, word, next) {
                    break;
                }
            }
        }
        true
    }
}
