//! keyward: a local daemon that answers whether an API key may do this, now.
//!
//! # The byte's path
//!
//! A request crosses five stops, all on one worker thread, with no await between the read and the write:
//!
//! ```text
//!  app ── Unix socket ──▶ connection ──▶ protocol ──▶ verify ──▶ snapshot
//!                          fills one      borrows      decides     looks up
//!                          buffer         the frames   the batch
//!                             ▲              in it        │
//!                             │                           └─────▶ limiter
//!                             └── one write ◀── answers ◀──        charges
//! ```
//!
//! 1. [`connection`] reads as much as has arrived into its worker's buffer. The clock is read once and the snapshot
//!    loaded once for all of it.
//! 2. [`keyward_protocol`] finds the frames and borrows the requests from them; nothing is copied or allocated.
//! 3. [`verify`] decides up to 64 requests in six loops: hash, look up, compare, weigh, fetch, charge. It is a pure function of
//!    (snapshot, buckets, time, requests).
//! 4. [`snapshot`] is the immutable table of keys: digest to entry, one cache line each.
//! 5. [`limiter`] charges all the limits of the key or none: one atomic word for each bucket.
//!
//! The answers are encoded straight into the worker's output buffer, and leave in one write.
//!
//! # The other path: a new set of keys
//!
//! One thread, in [`reload`]: notice → wait until the file holds still → [`source`] parses → `snapshot::Builder` refuses
//! duplicates → the guard weighs → buckets are claimed → [`publish`] swaps → wait until every worker has passed → free the
//! old snapshot. Whatever fails before the swap changes nothing. The acknowledgement comes after the wait: from then on no
//! answer of an older snapshot can leave, on any connection.
//!
//! # Who does what
//!
//! | thread | does |
//! | --- | --- |
//! | `worker-0` … | a current-thread runtime and its connections, for good; no work is stolen |
//! | main | accepts and hands connections out, the admin socket, signals, systemd, drain ([`server`]) |
//! | `reload` | everything in the paragraph above |
//!
//! # Invariants
//!
//! * Imports point one way: `main → cli → server → {connection, reload, admin}`, `connection → {protocol, publish, verify}`,
//!   `verify → {snapshot, limiter}`, `reload → {source, snapshot, publish}`. `tests/structure.rs` holds the code to it.
//! * `verify`, `snapshot` and `limiter` touch no socket, file, configuration or clock: time is an argument ([`now`]).
//! * A snapshot is never changed. A bucket outlives snapshots; a limit whose rate changes gets a new slot, and whoever
//!   still holds the old snapshot is told to take the new one ([`limiter`] says how).
//! * A worker passes a generation only when no answer of an older one waits for its peer ([`publish`]).
//! * What a peer can make the daemon hold is bounded by one filled buffer and its answers ([`connection`]).
//! * A denial is an answer; an error is about bytes or about the daemon. Each is counted once.
//! * There is no `unsafe` code.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for who reads the source, links included"
)]

pub mod admin;
pub mod bench;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection;
pub mod key_format;
pub mod limiter;
pub mod now;
pub mod pepper;
pub mod publish;
pub mod record;
pub mod reload;
pub mod rules;
pub mod server;
pub mod snapshot;
pub mod source;
pub mod state;
pub mod systemd;
pub mod verify;
