//! The limiter, compiled from the daemon's own sources against the `crate::sync` of each test.

#![allow(dead_code, unused_imports, reason = "each test uses a part of the limiter")]

#[path = "../../src/engine/limiter/allocation.rs"]
mod allocation;
#[path = "../../src/engine/limiter/allocator.rs"]
mod allocator;
#[path = "../../src/engine/limiter/balance.rs"]
mod balance;
#[path = "../../src/engine/limiter/balance_scan.rs"]
mod balance_scan;
#[path = "../../src/engine/limiter/buckets.rs"]
mod buckets;
#[path = "../../src/engine/limiter/charge.rs"]
mod charge;
#[path = "../../src/engine/limiter/clock_reading.rs"]
mod clock_reading;
#[path = "../../src/engine/limiter/latest_tick.rs"]
mod latest_tick;
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
#[path = "../../src/engine/limiter/retained.rs"]
mod retained;
#[path = "../../src/engine/limiter/slot_set.rs"]
mod slot_set;
#[path = "../../src/engine/limiter/slots.rs"]
mod slots;
#[path = "../../src/engine/limiter/state.rs"]
mod state;

pub use allocator::SlotAllocator;
pub use charge::Limiter;
pub use clock_reading::ClockReading;
pub use limit_id::LimitId;
pub use outcome::{Charge, Outcome};
pub use rate::Rate;
pub use reclaim::PendingReclaim;
pub use slots::BucketRef;

/// A deliberately wrong charge of several limits: it checks all limits first and charges them
/// afterwards, without locking them. The explorers must find the race.
impl Limiter {
    pub fn charge_racily(&self, charges: &[Charge], now: u64, cost: u32) -> bool {
        let slots = &self.buckets.slots;
        let fits = |charge: &Charge| slots.load(charge.slot).try_charge(charge.rate, now, cost).is_some();
        if !charges.iter().all(fits) {
            return false;
        }
        for charge in charges {
            let cost = u64::from(cost) * charge.rate.period().get();
            loop {
                let state = slots.load(charge.slot);
                let next = state::BucketState::from_bits(state.bits().max(now) + cost);
                if slots.compare_exchange(charge.slot, state, next) {
                    break;
                }
            }
        }
        true
    }
}
