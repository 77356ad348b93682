//! The limiter beside a model of it, over a million random sequences: every outcome, every balance and every count of
//! buckets has to be the same.
//!
//! Of the same sources as the daemon's, but for a `sync` with small chunks: a new limiter for each sequence costs nothing.
//!
//! `KEYWARD_MODEL_SEED=N cargo test -p keyward-schedules --test model` runs sequence N alone, which is what a failure names.

#![allow(clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

#[path = "../limiter.rs"]
mod limiter;
mod reference;
mod sequence;

mod sync {
    pub use std::hint::spin_loop;
    pub use std::sync::RwLock;
    pub use std::sync::atomic::{AtomicU64, Ordering};
    pub use std::thread::yield_now;

    pub const CHUNK_SLOTS: usize = 16;
    pub const MAX_CHUNKS: usize = 4;

    pub type Chunk = Box<[AtomicU64]>;

    pub fn new_chunk(word: u64) -> Chunk {
        (0..CHUNK_SLOTS).map(|_| AtomicU64::new(word)).collect()
    }

    pub fn prefetch<T>(_: &T) {}
}

use sequence::Sequence;

/// The number of a sequence is its seed.
const SEQUENCES: u64 = 1_000_000;

#[test]
fn the_limiter_is_the_model() {
    if let Ok(seed) = std::env::var("KEYWARD_MODEL_SEED") {
        return Sequence::new(seed.parse().expect("a number")).run();
    }
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for seed in (thread..SEQUENCES).step_by(threads as usize) {
                    Sequence::new(seed).run();
                }
            });
        }
    });
}
