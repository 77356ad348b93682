//! The limiter compared with a model of it over random sequences: every outcome, every balance, every
//! amount that was changed, and every count of slots must be the same.
//!
//! The limiter is compiled against a `sync` with small chunks, so that creating one for each
//! sequence is cheap.
//!
//! `KEYWARD_MODEL_SEQUENCES=N` runs N sequences, with `KEYWARD_MODEL_FIRST=N` from another seed than
//! 0. A failure names the seed of its sequence: `KEYWARD_MODEL_SEED=N cargo test -p keyward-schedules
//! --test model` runs that sequence alone.

#![allow(clippy::expect_used, clippy::panic, missing_docs, unreachable_pub)]

mod choices;
mod civil;
mod coverage;
#[path = "../limiter.rs"]
mod limiter;
#[path = "../../../src/engine/now.rs"]
mod now;
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

use std::sync::Mutex;

use choices::Choices;
use coverage::{Coverage, EVENTS};
use sequence::Sequence;

/// Sequences to run by default.
const SEQUENCES: u64 = 100_000;

/// Each event of [`EVENTS`] happens at least once in so many sequences.
const SEQUENCES_PER_EVENT: u64 = 10;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn limiter_behaves_like_the_model() {
    if let Some(seed) = number("KEYWARD_MODEL_SEED") {
        return Sequence::new(Choices::new(seed)).run();
    }
    let first = number("KEYWARD_MODEL_FIRST").unwrap_or(0);
    let sequences = number("KEYWARD_MODEL_SEQUENCES").unwrap_or(SEQUENCES);
    let coverage = Mutex::new(Coverage::default());
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let coverage = &coverage;
            scope.spawn(move || {
                let mut own = Coverage::default();
                for seed in (first + thread..first + sequences).step_by(threads as usize) {
                    let mut sequence = Sequence::new(Choices::new(seed));
                    sequence.run();
                    own.merge(&sequence.coverage);
                }
                coverage.lock().expect("no thread has failed").merge(&own);
            });
        }
    });
    let coverage = coverage.into_inner().expect("no thread has failed");
    for event in EVENTS {
        let count = coverage.count(event);
        println!("{event:?}: {count}");
        assert!(count > sequences / SEQUENCES_PER_EVENT, "{event:?} happens {count} times only");
    }
}
