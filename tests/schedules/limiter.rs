//! The limiter, compiled from the daemon's own sources against the `crate::sync` of each test.

#![allow(dead_code, unused_imports, reason = "each test uses a part of the limiter")]

#[path = "../../src/limiter/allocation.rs"]
mod allocation;
#[path = "../../src/limiter/allocator.rs"]
mod allocator;
#[path = "../../src/limiter/balance.rs"]
mod balance;
#[path = "../../src/limiter/balance_scan.rs"]
mod balance_scan;
#[path = "../../src/limiter/bucket_id.rs"]
mod bucket_id;
#[path = "../../src/limiter/buckets.rs"]
mod buckets;
#[path = "../../src/limiter/charge.rs"]
mod charge;
#[path = "../../src/limiter/clock_reading.rs"]
mod clock_reading;
#[path = "../../src/limiter/latest_tick.rs"]
mod latest_tick;
#[path = "../../src/limiter/lock.rs"]
mod lock;
#[path = "../../src/limiter/outcome.rs"]
mod outcome;
#[path = "../../src/limiter/persist.rs"]
pub mod persist;
#[path = "../../src/limiter/rate.rs"]
mod rate;
#[path = "../../src/limiter/reclaim.rs"]
mod reclaim;
#[path = "../../src/limiter/retained.rs"]
mod retained;
#[path = "../../src/limiter/slot_set.rs"]
mod slot_set;
#[path = "../../src/limiter/slots.rs"]
mod slots;
#[path = "../../src/limiter/state.rs"]
mod state;

pub use allocator::SlotAllocator;
pub use bucket_id::BucketId;
pub use charge::Limiter;
pub use clock_reading::ClockReading;
pub use outcome::{Charge, Outcome};
pub use rate::Rate;
pub use reclaim::PendingReclaim;
pub use slots::BucketRef;

/// A deliberately wrong charge of several limits: it checks all limits first and charges them afterwards,
/// without locking them. The explorers must find the race.
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
