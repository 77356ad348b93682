//! The deciding half of keyward: may this API key do this, now?
//!
//! Every decision is deterministic: it depends only on its arguments, time included, and changes
//! only buckets and atomic fields of entries. There is no file, socket, thread, clock,
//! configuration or `unsafe` code in this crate.
//!
//! # A request
//!
//! The daemon reads the clock once and loads the [`Snapshot`](snapshot::Snapshot) once for all the
//! requests that a read returned. It gives them to [`verify`] in batches of up to 64. A batch
//! passes four stages, each a few requests behind the one before, so that memory is prefetched for
//! all of them:
//!
//! | stage | does | in | verdicts set in |
//! | --- | --- | --- | --- |
//! | hash | SHA-256 of a raw key, or HMAC-SHA256 under each pepper | [`key_format`], [`pepper`] | `verify/stages.rs`: a malformed key |
//! | look up | finds the entry of the digest | [`snapshot`] | none |
//! | evaluate | compares digests; checks status, times, environment, scopes, networks, origins | [`verify`], [`snapshot`] | `verify/stages.rs`: an unknown key; `verify/restrictions.rs`: the first restriction that denies |
//! | charge | charges all the limits of the key, or none | [`limiter`] | `verify/charge_limits.rs`: a limit that refuses; `verify/stages.rs`: allowed |
//!
//! Before the stages, `verify/mod.rs` denies a batch if there is no snapshot or a stale one.
//! `src/daemon/lib.rs` follows a request from the socket and back, and a reload. The map of the
//! code in `.github/CONTRIBUTING.md` lists all crates.
//!
//! # A key
//!
//! A [`KeyRecord`](record::KeyRecord) is one row of an export, parsed and range-checked. A
//! [`Builder`](snapshot::Builder) takes records, refuses duplicates and makes a
//! [`Snapshot`](snapshot::Snapshot) of them: an immutable array of entries, one cache line each,
//! and a linear-probing index from digest to entry number. [`snapshot::compiled`] writes a snapshot
//! to a file that is loaded without parsing. A snapshot takes its policy with it
//! ([`global_policy`], [`record`]), so an answer never mixes two configurations.
//!
//! # A limit
//!
//! A [`Limiter`](limiter::Limiter) holds the token buckets: one atomic word for each. Buckets
//! outlive snapshots. Neither a reload nor a rate change refills one.
//!
//! # Invariants
//!
//! * Only three atomic parts of an entry change after publication: an operator's revocation,
//!   takeaways of a refused source (status and expiry), and the pepper that it was found with. The
//!   first two change only while an overlay decides in their place, so two answers of one
//!   generation differ only by time and balances.
//! * A bucket admits at most `burst + rate × t` over any time `t`, regardless of the number of
//!   threads and reloads.
//! * An unknown key costs what a known one costs: there is no shorter path for a miss.
//! * A denial is an answer, not an error.
//!
//! # Glossary
//!
//! | term | meaning |
//! | --- | --- |
//! | digest | SHA-256 of a key, or its HMAC-SHA256 under a pepper: what the table is keyed by |
//! | `key_id` | the public name of a key; rows that share one are one key in rotation, with one balance |
//! | owner | the account that keys belong to; a limit may be shared by all keys of an owner |
//! | snapshot | the immutable table of all keys and their policy |
//! | generation | the number of a state of all keys; a reload, a revocation and a takeaway move it; every answer names the one that it came from |
//! | table generation | of a snapshot: the generation in which it came into force |
//! | view | a snapshot in one generation: with the changes that its entries do not have yet |
//! | overlay | the revocations and takeaways that are in force and not marked in the entries yet |
//! | epoch | a counter that every change of answers advances (as in RCU: a grace period ends when all workers have passed it) |
//! | verdict | the answer's code: `ALLOWED`, or the first reason for a denial |
//! | restriction | a property of a key that decides what it may do: status, times, environment, plan, scopes, networks, origins, limits ([`FieldSet::RESTRICTIONS`](record::FieldSet::RESTRICTIONS)) |
//! | plan | a named set of limits in the configuration |
//! | row | a line of an export, or a record of a compiled file: one digest of one key |
//! | entry | a row in the table of a snapshot: one cache line; it is located by its entry number |
//! | limit identity | what a limit belongs to and its name: key id and limit name, or owner and limit name |
//! | bucket | the state of one limit identity at one rate: its theoretical arrival time (GCRA); a limit whose rate changes gets another bucket |
//! | slot | the place of a bucket's word in the limiter's array: one for each bucket |
//! | pepper | a secret that only the daemon knows, under which keys are hashed |
//! | compiled | of a snapshot: written to a `.kwc` file, to be loaded without parsing |
//! | last good | the last known good keys, as in Envoy: those that were in force last, stored for a startup at which the source is refused |
//! | settle | the quiet period before a file is read |
//! | guard | the comparison that refuses a source that changes the access of too many keys |
//! | source | the configured export file |
//! | bad row | a row that cannot be parsed, repeats a hash, or conflicts with another row of its key |
//! | set aside | of a bad row: its key is disabled, and all other rows take effect |
//! | takeaway | access that a refused source takes from a key of the snapshot in force |
//! | withheld | of access: disabled by a row that is set aside, or taken by a takeaway |
//! | row policy | the policy as a row states it, before plans are applied; written to compiled files |
//! | shadow limit | a limit that is charged and reported, but never refuses a request |
//! | superseded | of a snapshot or a slot: a newer snapshot has taken over the bucket, so the request is decided again |

#![forbid(unsafe_code)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the modules' pages are for readers of the source, links included"
)]

pub mod global_policy;
pub mod key_format;
pub mod limiter;
pub mod now;
pub mod pepper;
pub mod record;
pub mod snapshot;
mod sync;
pub mod verify;
