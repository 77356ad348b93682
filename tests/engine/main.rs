//! Promises of the engine that many sequences or threads test, without a daemon.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod guard_shares;
mod limits;
mod quotas;
