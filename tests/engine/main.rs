//! Promises of the engine, tested without a daemon over many sequences and threads.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may panic")]

mod guard_shares;
mod limits;
mod matching;
#[path = "../../protocol/tests/notation/mod.rs"]
mod notation;
mod quotas;
