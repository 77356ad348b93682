//! The daemon: everything that touches a socket, a file, a clock or a thread.
//!
//! [`keyward_engine`] decides requests, [`keyward_source`] parses exports, and [`keyward_state`]
//! writes the files of the state directory.
//!
//! # A request
//!
//! All of it happens on one worker thread, with no await between the read and the write. The four
//! stages of [`keyward_engine`] are within `verify`:
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
//! [`connection`] reads as much as has arrived into its worker's buffer, and reads the clock and
//! the snapshot once for all of it. `connection/respond.rs` collects consecutive requests into
//! batches: [`keyward_protocol`] finds the frames and borrows the requests from them, and
//! [`keyward_engine::verify`] decides a batch. The answers are encoded into the worker's output
//! buffer and leave in one write.
//!
//! # A new set of keys
//!
//! The reload thread notices a change, reads the source, and lets the guard compare the new keys
//! with the old ones. It swaps the snapshots, waits until every worker has passed the epoch
//! ([`publish`]), records the outcome, and only then acknowledges it. [`reload`] lists all steps in
//! their order.
//!
//! A failure before the swap grants nothing, and takes away only what
//! `source.apply_takeaways_of_refused` allows. At startup, the [last good keys](reload::last_good)
//! are served instead.
//!
//! # A revocation
//!
//! A revocation does not wait for a reload. [`revocation`] publishes it in the next generation, as
//! an overlay of the snapshot that is being served, which advances the epoch ([`publish`]). The
//! acknowledgement comes when the line is on disk (or the disk has refused it) and every worker has
//! passed the epoch. Then a bit is set in the entries, and the overlay is dropped. A reload marks
//! its snapshot before the swap, and removes from the list what the source itself has revoked for
//! long enough.
//!
//! # Generations
//!
//! A generation numbers a state of all keys. A reload, a revocation, its end and a takeaway each
//! publish the next one, and nothing else changes what is published, so two answers of one
//! generation differ only by time and balances. A snapshot keeps the generation in which it came
//! into force as its *table generation*: it is what an accepted reload reports, what usage and the
//! [last good keys](reload::last_good) are filed under, and what `keyward status` shows beside the
//! generation in force.
//!
//! # Threads
//!
//! | thread | does |
//! | --- | --- |
//! | `worker-0` … | a current-thread runtime and its connections; no work is stolen |
//! | main | accepts connections and assigns them to workers; admin socket, signals, systemd, drain ([`server`]) |
//! | `start` | starts the rest while main waits for it and for signals, then ends |
//! | `reload` | everything in "A new set of keys"; after start-up at a lower priority than the workers |
//! | `load-worker` … | parse a large source, or decode a compiled snapshot, then index and compare it |
//! | `prefault` … | fault in the memory of a large table before it is filled ([`keyward_memory`]) |
//! | `balances` | saves balances at intervals and at the end; `start` has restored them ([`balances`]) |
//! | `keys-writer` | after each accepted reload, writes the keys in force for the next start ([`reload::last_good`]) |
//! | `notify-rs …` | the `notify` crate's: tells `reload` about changes on the source's path |
//! | `watch` | renews the watches on the source's path |
//! | (blocking) | a revocation, while it waits for the disk; sets its marks afterwards; reads pages of the list, reads and resets balances, encodes long replies, and queues messages for `usage` |
//! | `revocations` | writes the list of revocations, retries what could not be written, and reserves generations ahead |
//! | `usage` | merges what workers have counted into a record for each key, and answers `keyward usage` ([`usage`]) |
//! | `usage-writer` | writes usage: no disk holds up the merging |
//! | `log` | writes the log to standard error; no other thread does ([`keyward_service::log`]) |
//! | `audit` | writes refused peers, at most one line a minute for each user and socket; other events are written by their threads ([`audit`]) |
//!
//! # Invariants
//!
//! * What is published never changes. A mark in an entry is set only while an overlay decides in
//!   its place for every worker ([`revocation`]).
//! * A writer publishes the change, then advances the epoch. A worker reports an epoch as passed only
//!   when no answer computed in an earlier one is unsent ([`publish`]).
//! * A revocation is in force everywhere before it is acknowledged, and durable unless the
//!   acknowledgement says otherwise ([`revocation`]). Files that cannot be written are listed
//!   ([`keyward_state::WriteHealth`]).
//! * The memory held for a peer is bounded by one filled buffer and its answers ([`connection`]).
//! * Nothing on a request's path waits for a disk.
//! * A denial is an answer; an error is about bytes or about the daemon. Each is counted once.
//! * A load reserves memory before it takes it: keys that do not fit are refused, and the process
//!   is not aborted ([`keyward_memory::can_map`]).

#![forbid(unsafe_code)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for readers of the source, links included"
)]

pub mod admin;
pub mod audit;
pub mod balances;
pub mod clock;
pub mod config;
pub mod connection;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod histogram;
pub mod publish;
pub mod reload;
pub mod revocation;
pub mod server;
pub mod usage;
