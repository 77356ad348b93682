//! The limiter under shuttle: more threads than loom can explore, in thousands of schedules. Half
//! of the schedules are random, and half have a few preemptions at arbitrary points (probabilistic
//! concurrency testing).

#![allow(clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "../limiter.rs"]
mod limiter;
#[allow(dead_code, reason = "the limiter uses a part of it")]
#[path = "../../../src/engine/now.rs"]
mod now;
#[path = "../scenarios.rs"]
mod scenarios;

/// Shuttle's versions of the primitives in the daemon's `sync`.
mod sync {
    pub use shuttle::hint::spin_loop;
    pub use shuttle::sync::atomic::{AtomicU64, Ordering};
    pub use shuttle::sync::{Arc, RwLock};
    pub use shuttle::thread::{spawn, yield_now};

    pub const CHUNK_SLOTS: usize = 4;
    pub const MAX_CHUNKS: usize = 1;

    pub type Chunk = Box<[AtomicU64]>;

    pub fn new_chunk(word: u64) -> Chunk {
        (0..CHUNK_SLOTS).map(|_| AtomicU64::new(word)).collect()
    }

    pub fn prefetch<T>(_: &T) {}
}

/// Schedules of each kind for each scenario. They take a few seconds.
const SCHEDULES: usize = 20_000;

/// Preemptions in a schedule of the second kind.
const PREEMPTIONS: usize = 3;

/// Runs `scenario` under schedules of both kinds. A failing schedule is printed, and
/// `shuttle::replay` repeats it.
fn explore(scenario: impl Fn() + Clone + Send + Sync + 'static) {
    shuttle::check_random(scenario.clone(), SCHEDULES);
    shuttle::check_pct(scenario, SCHEDULES, PREEMPTIONS);
}

#[test]
fn several_threads_charge_in_opposite_orders() {
    explore(|| scenarios::opposite_orders(3));
    explore(|| scenarios::opposite_orders(5));
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
    explore(|| scenarios::charge_and_rate_change(3));
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
    explore(|| scenarios::debits_of_each_kind(3));
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
