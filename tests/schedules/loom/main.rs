//! The limiter under loom: every interleaving of two threads, up to a number of preemptions, and every value
//! that the memory model lets a load return.
//!
//! More than two are shuttle's part: to loom, who waits for a word may do so for ever as long as another does too.

#![allow(clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "../limiter.rs"]
mod limiter;
#[path = "../scenarios.rs"]
mod scenarios;

/// What the sources take from the daemon's `sync`, of loom's make.
mod sync {
    pub use loom::hint::spin_loop;
    pub use loom::sync::atomic::{AtomicU64, Ordering};
    pub use loom::sync::{Arc, RwLock};
    pub use loom::thread::{spawn, yield_now};

    /// Each word costs the explorer memory and time, and few are needed.
    pub const CHUNK_SLOTS: usize = 4;
    pub const MAX_CHUNKS: usize = 1;

    pub type Chunk = Box<[AtomicU64]>;

    pub fn new_chunk(word: u64) -> Chunk {
        (0..CHUNK_SLOTS).map(|_| AtomicU64::new(word)).collect()
    }

    pub fn prefetch<T>(_: &T) {}
}

/// How often a thread may be taken off its processor against its will. Two find nearly all that more would (the known bugs of
/// lock-free structures take one or two); three are still a matter of seconds.
const PREEMPTIONS: usize = 3;

fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(PREEMPTIONS);
    model.check(scenario);
}

#[test]
fn two_in_opposite_orders() {
    explore(|| scenarios::opposite_orders(2));
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
}

#[test]
fn several_and_rate_change() {
    explore(scenarios::several_and_rate_change);
}
