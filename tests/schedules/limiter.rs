//! The limiter, compiled from the daemon's own sources against the `crate::sync` of each test. The
//! times of its arguments are those of `crate::now`.

#![allow(dead_code, unused_imports, reason = "each test uses a part of the limiter")]

#[path = "../../src/engine/limiter/allocation.rs"]
mod allocation;
#[path = "../../src/engine/limiter/allocator.rs"]
mod allocator;
#[path = "../../src/engine/limiter/balance.rs"]
mod balance;
#[path = "../../src/engine/limiter/balance_scan.rs"]
mod balance_scan;
#[path = "../../src/engine/limiter/bucket.rs"]
mod bucket;
#[path = "../../src/engine/limiter/buckets.rs"]
mod buckets;
#[path = "../../src/engine/limiter/calendar.rs"]
mod calendar;
#[path = "../../src/engine/limiter/charge.rs"]
mod charge;
#[path = "../../src/engine/limiter/clock_reading.rs"]
mod clock_reading;
#[path = "../../src/engine/limiter/credits.rs"]
mod credits;
#[path = "../../src/engine/limiter/latest_time.rs"]
mod latest_time;
#[path = "../../src/engine/limiter/limit_id.rs"]
mod limit_id;
#[path = "../../src/engine/limiter/lock.rs"]
mod lock;
#[path = "../../src/engine/limiter/outcome.rs"]
mod outcome;
#[path = "../../src/engine/limiter/persist.rs"]
pub mod persist;
#[path = "../../src/engine/limiter/rate.rs"]
mod rate;
#[path = "../../src/engine/limiter/reclaim.rs"]
mod reclaim;
#[path = "../../src/engine/limiter/renew.rs"]
mod renew;
#[path = "../../src/engine/limiter/retained.rs"]
mod retained;
#[path = "../../src/engine/limiter/rule.rs"]
mod rule;
#[path = "../../src/engine/limiter/rule_bytes.rs"]
mod rule_bytes;
#[path = "../../src/engine/limiter/slot_set.rs"]
mod slot_set;
#[path = "../../src/engine/limiter/slots.rs"]
mod slots;
#[path = "../../src/engine/limiter/window.rs"]
mod window;
#[path = "../../src/engine/limiter/word.rs"]
mod word;

use crate::now::Now;

pub use allocator::SlotAllocator;
pub use balance::{Balance, NEVER};
pub use calendar::Period;
pub use charge::Limiter;
pub use clock_reading::ClockReading;
pub use limit_id::LimitId;
pub use outcome::{Charge, LimitBalance, LimitBalances, Outcome};
pub use rate::Rate;
pub use reclaim::PendingReclaim;
pub use rule::{Rule, RuleKind, SavedBalance};
pub use slots::BucketRef;

/// Deliberately wrong charges and debits. The explorers must find their races.
impl Limiter {
    /// Checks all limits first and charges them afterwards, without locking them.
    pub fn charge_racily(&self, charges: &[Charge], now: Now) -> bool {
        let slots = &self.buckets.slots;
        let charged = |charge: &Charge| {
            charge.rule.at(now, &self.buckets.calendar).charge(slots.load(charge.slot), charge.cost)
        };
        if charges.iter().any(|charge| charged(charge).is_err()) {
            return false;
        }
        for charge in charges {
            let debit = |word| charge.rule.at(now, &self.buckets.calendar).debit(word, charge.cost).0;
            loop {
                let word = slots.load(charge.slot);
                // It fitted before.
                let next = charged(charge).unwrap_or_else(|_| debit(word));
                if slots.compare_exchange(charge.slot, word, next) {
                    break;
                }
            }
        }
        true
    }

    /// Reads, computes and writes a limit without locking it.
    pub fn debit_racily(&self, charge: Charge, now: Now) {
        let slots = &self.buckets.slots;
        let rule = charge.rule.at(now, &self.buckets.calendar);
        slots.store(charge.slot, rule.debit(slots.load(charge.slot), charge.cost).0);
    }
}
