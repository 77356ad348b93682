//! Shared code of the benches: pinning, pseudo-random numbers, key sets, and the summary of ratios.

// Each bench compiles this module and uses a part of it.
#![allow(dead_code, reason = "each program uses a part of it")]
#![allow(clippy::expect_used, clippy::panic, reason = "a bench panics if its setup fails")]

pub(crate) mod cache_lines;
pub(crate) mod keys;
pub(crate) mod pin;
pub(crate) mod server;
pub(crate) mod summary;

/// Whether each routine runs only once (`cargo test --benches`, `cargo bench -- --test`). Benches
/// use small key sets then.
pub(crate) fn is_trial_run() -> bool {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    !has("--bench") || has("--test")
}

/// A seeded generator (splitmix64). Every run has the same numbers, so runs can be compared.
pub(crate) struct Seeded(u64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in `0..end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }
}
