//! Fuzz targets: functions that run a part of keyward on arbitrary bytes and check properties of
//! what it does.
//!
//! A target is the same function everywhere. `tests/fuzz/run` gives it to libFuzzer, with
//! AddressSanitizer (`tests/fuzz/cargo-fuzz`). `cargo test -p keyward-fuzz` runs it over its corpus,
//! and over mutations of the corpus, on a stable compiler.
//!
//! A target fails by a panic. It checks more than the absence of panics: what decodes encodes to the
//! same, what a reader accepts can be served, two ways to the same result agree, and damage is
//! refused or changes nothing.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a target reports a violated property by a panic"
)]

mod input;
mod mutation;
mod targets;

// The limiter and its model, as `tests/schedules` compiles them: with chunks so small that a new
// limiter for each input is cheap.
#[allow(missing_docs, unreachable_pub, dead_code, reason = "a test's module")]
#[path = "../schedules/model/civil.rs"]
mod civil;
#[allow(missing_docs, unreachable_pub, dead_code, reason = "a test's module")]
#[path = "../schedules/model/coverage.rs"]
mod coverage;
#[allow(missing_docs, unreachable_pub, reason = "a test's module")]
#[path = "../schedules/limiter.rs"]
mod limiter;
#[allow(unreachable_pub, reason = "the engine's module")]
#[path = "../../src/engine/now.rs"]
mod now;
#[allow(missing_docs, unreachable_pub, dead_code, reason = "a test's module")]
#[path = "../schedules/model/reference.rs"]
mod reference;
#[allow(missing_docs, unreachable_pub, dead_code, reason = "a test's module")]
#[path = "../schedules/model/sequence.rs"]
mod sequence;

/// What [`sequence`] chooses from: the input of the target.
mod choices {
    pub(crate) use crate::targets::limiter_operations::Choices;
}

/// The primitives of the limiter, with small chunks.
mod sync {
    pub(crate) use std::hint::spin_loop;
    pub(crate) use std::sync::RwLock;
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use std::thread::yield_now;

    pub(crate) const CHUNK_SLOTS: usize = 16;
    pub(crate) const MAX_CHUNKS: usize = 64;

    pub(crate) type Chunk = Box<[AtomicU64]>;

    pub(crate) fn new_chunk(word: u64) -> Chunk {
        (0..CHUNK_SLOTS).map(|_| AtomicU64::new(word)).collect()
    }

    pub(crate) fn prefetch<T>(_: &T) {}
}

pub use mutation::Mutator;
pub use targets::{Outcome, TARGETS, Target, target};
