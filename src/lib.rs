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
//! 3. [`verify`] decides up to 64 requests in four stages, a few at a time and each stage behind the one before: hash, look up,
//!    weigh, charge. It is a pure function of (snapshot, buckets, time, requests).
//! 4. [`snapshot`] is the immutable table of keys: digest to entry, one cache line each.
//! 5. [`limiter`] charges all the limits of the key or none: one atomic word for each bucket.
//!
//! The answers are encoded straight into the worker's output buffer, and leave in one write.
//!
//! # The other path: a new set of keys
//!
//! One thread, in [`reload`]: notice → wait until the file holds still → [`source`] parses, or [`snapshot::compiled`] decodes → `snapshot::Builder` refuses
//! duplicates → the guard weighs → buckets are claimed → [`publish`] swaps → wait until every worker has passed → free the
//! old snapshot. Whatever fails before the swap changes nothing; at a start, the [last good keys](reload::last_good) serve
//! instead. The acknowledgement comes after the wait: from then on no answer of an older snapshot can leave, on any connection.
//! `keyward check` goes the same way as far as the guard, here or on a daemon's reload thread, and says what would change;
//! [`lint`] looks at the rows as they pass.
//!
//! # The short path: a revocation
//!
//! `keyward revoke` waits for no reload, in [`revocation`]: a bit in the entries of the snapshot that is being served →
//! [`publish`] ends the epoch → wait until the line is on disk, or the disk refuses it → wait until every worker has passed.
//! The same acknowledgement, so the same promise. A reload marks its snapshot before the swap, and drops from the list what the
//! source has said itself for long enough.
//!
//! # Who does what
//!
//! | thread | does |
//! | --- | --- |
//! | `worker-0` … | a current-thread runtime and its connections, for good; no work is stolen |
//! | main | accepts and hands connections out, the admin socket, signals, systemd, drain ([`server`]) |
//! | `start` | starts the rest, while main waits for it and for signals; then it ends |
//! | `reload` | everything in "a new set of keys"; from the second on, at a lower priority than the workers |
//! | `load` … | while a large source is read: they parse, and `reload` fills the table, or they decode a compiled snapshot into it; then they index and compare it |
//! | `balances` | restores balances at the start, saves them at intervals and at the end ([`balances`]) |
//! | `keys-writer` | after each accepted reload, writes the keys in force for the next start ([`reload::last_good`]) |
//! | `watch` | tells `reload` that something has changed on the source's path |
//! | (blocking) | a revocation, while it waits for the disk |
//! | `revocations` | writes the list of revocations, and tries again what could not be written |
//! | `usage` | merges what workers have counted into a record for each key, and answers `keyward usage` ([`usage`]) |
//! | `usage-writer` | writes it: no disk holds up the merging, and with it a worker |
//! | `log` | writes the log to standard error, the only thread that does ([`log`]) |
//! | `audit` | writes down who was turned away, a line a minute; other events are written by who makes them ([`audit`]) |
//!
//! # Invariants
//!
//! * Imports point one way: `main → cli → server → {connection, reload, admin}`, `connection → {protocol, publish, verify}`,
//!   `verify → {snapshot, limiter}`, `reload → {source, snapshot, publish, revocation, state}`. `tests/structure.rs` holds the code to it.
//! * `verify`, `snapshot` and `limiter` touch no socket, file, configuration or clock: time is an argument ([`now`]).
//! * A snapshot is never changed, but for one bit of an entry: that an operator has revoked the key. The daemon's own
//!   [`rules`] are part of it, so that an answer never mixes two configurations.
//! * A bucket outlives snapshots; a limit whose rate changes gets a new slot, and whoever still holds the old snapshot is
//!   told to take the new one ([`limiter`] says how).
//! * What changes the answers (a swap, a revocation) is stored first and ends an epoch after that. A worker reads the epoch
//!   before the snapshot, and passes it only when no answer of an older one waits for its peer ([`publish`]).
//! * A revocation is in force everywhere before it is acknowledged, and durable unless the acknowledgement says otherwise
//!   ([`revocation`]). What is not being written is listed ([`state::WriteHealth`]).
//! * What a peer can make the daemon hold is bounded by one filled buffer and its answers ([`connection`]).
//! * Nothing on a request's path waits for a disk. Files of the state directory are whole after a kill at any moment
//!   ([`state`]).
//! * A denial is an answer; an error is about bytes or about the daemon. Each is counted once.
//! * A load asks for memory before it takes it: what does not fit is refused, and the process is not aborted ([`memory::has_room`]).
//! * There is no `unsafe` code but in [`memory`]: an allocator for huge pages, a reserve, a text in them, and a prefetch.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for who reads the source, links included"
)]

pub mod admin;
pub mod audit;
pub mod balances;
pub mod bench;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connection;
pub mod key_format;
pub mod limiter;
pub mod lint;
pub mod log;
pub mod memory;
pub mod now;
pub mod pepper;
pub mod publish;
pub mod record;
pub mod reload;
pub mod revocation;
pub mod rules;
pub mod server;
pub mod snapshot;
pub mod source;
pub mod state;
pub mod sync;
pub mod systemd;
pub mod usage;
pub mod verify;
