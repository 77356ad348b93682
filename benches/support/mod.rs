//! Shared code of the benches: pinning, servers, and the summary of ratios.

// Each bench compiles this module and uses a part of it.
#![allow(dead_code, reason = "each program uses a part of it")]
#![allow(clippy::expect_used, clippy::panic, reason = "a bench panics if its setup fails")]

pub(crate) mod cache_lines;
pub(crate) mod pin;
pub(crate) mod server;
pub(crate) mod summary;

/// Whether each routine runs only once (`cargo test --benches`, `cargo bench -- --test`). Benches
/// use small key sets then.
pub(crate) fn is_trial_run() -> bool {
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    !has("--bench") || has("--test")
}
