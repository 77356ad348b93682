//! The limiter compared with a model of it over a million random sequences: every outcome, every
//! balance and every count of buckets must be the same.
//!
//! The limiter is compiled against a `sync` with small chunks, so that creating one for each
//! sequence is cheap.
//!
//! A failure names the seed of its sequence. `KEYWARD_MODEL_SEED=N cargo test -p keyward-schedules
//! --test model` runs that sequence alone.

#![allow(clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

mod choices;
#[path = "../limiter.rs"]
mod limiter;
mod reference;
mod sequence;

/// The primitives in the daemon's `sync`, with small chunks.
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

use std::sync::atomic::{AtomicU64, Ordering};

use choices::Choices;
use sequence::Sequence;

/// Sequences to run. The seeds are `0..SEQUENCES`.
const SEQUENCES: u64 = 1_000_000;

#[test]
fn limiter_behaves_like_the_model() {
    if let Ok(seed) = std::env::var("KEYWARD_MODEL_SEED") {
        return Sequence::new(Choices::new(seed.parse().expect("a number"))).run();
    }
    let admitting = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let admitting = &admitting;
            scope.spawn(move || {
                for seed in (thread..SEQUENCES).step_by(threads as usize) {
                    let mut sequence = Sequence::new(Choices::new(seed));
                    sequence.run();
                    admitting.fetch_add(u64::from(sequence.admitted > 0), Ordering::Relaxed);
                }
            });
        }
    });
    // Otherwise the comparison means little.
    assert!(admitting.into_inner() > SEQUENCES / 2, "few sequences admit a request");
}
