//! The limiter under shuttle: more threads than loom can exhaust, and thousands of schedules of them, half of them random
//! and half built to have few but awkward preemptions (probabilistic concurrency testing).

#![allow(clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "../limiter.rs"]
mod limiter;
#[path = "../scenarios.rs"]
mod scenarios;

/// What the sources take from the daemon's `sync`, of shuttle's make.
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

/// Schedules of each kind for each scenario: some seconds.
const SCHEDULES: usize = 20_000;

/// Preemptions that a schedule of the second kind is built around.
const DEPTH: usize = 3;

/// A schedule that fails is printed, and can be run again with `shuttle::replay`.
fn explore(scenario: impl Fn() + Clone + Send + Sync + 'static) {
    shuttle::check_random(scenario.clone(), SCHEDULES);
    shuttle::check_pct(scenario, SCHEDULES, DEPTH);
}

#[test]
fn several_in_opposite_orders() {
    explore(|| scenarios::opposite_orders(3));
    explore(|| scenarios::opposite_orders(5));
}

#[test]
#[should_panic(expected = "OVERDRAWN")]
fn a_charge_that_looks_first_and_adds_then_is_caught() {
    explore(scenarios::opposite_orders_racily);
}

#[test]
fn together_and_alone() {
    explore(scenarios::together_and_alone);
}

#[test]
fn shadow() {
    explore(scenarios::shadow);
}

#[test]
fn charge_and_refund() {
    explore(scenarios::charge_and_refund);
}

#[test]
fn charge_and_rate_change() {
    explore(|| scenarios::charge_and_rate_change(1));
    explore(|| scenarios::charge_and_rate_change(3));
}

#[test]
fn several_and_rate_change() {
    explore(scenarios::several_and_rate_change);
}
