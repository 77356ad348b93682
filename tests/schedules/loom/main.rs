//! The limiter under loom: every interleaving of two threads, up to a number of preemptions, and
//! every value that the memory model allows a load to return.
//!
//! Scenarios with more threads run under shuttle. Loom would explore schedules in which two threads
//! that wait for a bucket run in turn forever.

#![allow(clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "../limiter.rs"]
mod limiter;
#[allow(dead_code, reason = "the limiter uses a part of it")]
#[path = "../../../src/engine/now.rs"]
mod now;
#[path = "../scenarios.rs"]
mod scenarios;

/// Loom's versions of the primitives in the daemon's `sync`.
mod sync {
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicU64, Ordering};
    pub use loom::sync::{Arc, RwLock};
    pub use loom::thread::{spawn, yield_now};

    /// Each word costs the explorer memory and time, and the scenarios need few.
    pub const CHUNK_SLOTS: usize = 4;
    pub const MAX_CHUNKS: usize = 1;

    pub type Chunk = Box<[AtomicU64]>;

    pub fn new_chunk(word: u64) -> Chunk {
        (0..CHUNK_SLOTS).map(|_| AtomicU64::new(word)).collect()
    }

    pub fn prefetch<T>(_: &T) {}
}

/// Preemptions in one schedule. Known bugs of lock-free structures take one or two. With three, the
/// exploration still takes only seconds.
const MAX_PREEMPTIONS: usize = 3;

/// Runs `scenario` under every schedule.
fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(MAX_PREEMPTIONS);
    model.check(scenario);
}

#[test]
fn two_threads_charge_in_opposite_orders() {
    explore(|| scenarios::opposite_orders(2));
}

#[test]
#[should_panic(expected = "OVERDRAWN")]
fn racy_charge_is_detected() {
    explore(scenarios::opposite_orders_racily);
}

#[test]
fn charge_of_two_limits_beside_a_charge_of_one() {
    explore(scenarios::together_and_alone);
}

#[test]
fn shadow_limit_is_charged_by_two_threads() {
    explore(scenarios::shadow);
}

#[test]
fn charge_beside_a_refund() {
    explore(scenarios::charge_and_refund);
}

#[test]
fn charge_beside_a_rate_change() {
    explore(|| scenarios::charge_and_rate_change(1));
}

#[test]
fn charge_of_two_limits_beside_a_rate_change() {
    explore(|| scenarios::several_and_rate_change(1));
    explore(|| scenarios::several_and_rate_change(0));
}

#[test]
fn charge_beside_a_debit() {
    explore(scenarios::charge_beside_a_debit);
}

#[test]
fn debits_stop_at_the_floor() {
    explore(|| scenarios::debits_of_each_kind(1));
}

#[test]
#[should_panic(expected = "LOST DEBIT")]
fn racy_debit_is_detected() {
    explore(scenarios::debits_racily);
}

#[test]
#[should_panic(expected = "OVERDRAWN")]
fn racy_debit_beside_a_charge_is_detected() {
    explore(scenarios::debit_racily_beside_a_charge);
}

#[test]
fn debit_beside_a_refund() {
    explore(scenarios::refund_beside_a_debit);
}

#[test]
fn debit_of_several_kinds_beside_rule_changes() {
    explore(scenarios::several_kinds_and_rule_changes);
}
