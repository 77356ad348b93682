//! Tests of the running daemon and its command line. Each test starts its own daemons on its own
//! sockets.
//!
//! All tests are one binary, so that it links once. `tests/matrix` runs it in every mode of the
//! daemon. Tests that need outside programs or privileges are ignored; `tests/run` runs them.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../protocol/tests/notation/mod.rs"]
mod notation;
mod support;

mod admin;
mod audit;
mod bad_rows;
mod bad_source;
mod balances;
mod bench;
mod budgets;
mod busy_poll;
mod check;
mod clients;
mod compiled;
mod credit_kills;
mod descriptors;
mod gateway_day;
mod gateways;
mod generations;
mod guard;
mod http_kills;
mod kills;
mod last_good;
mod lifecycle;
mod logging;
mod malformed_requests;
mod memory;
mod messages;
mod metrics;
mod modes;
mod namespaces;
mod operator_balances;
mod peers;
mod policy;
mod postgres;
mod prometheus;
mod refused_configuration;
mod reload_under_load;
mod repeated_checks;
mod replaced_snapshots;
mod restrictions;
mod revocation;
mod revocation_sequences;
mod secrets;
mod sequences;
mod settlement;
mod shutdown;
mod signals;
mod sockets;
mod source_sequences;
mod staleness;
mod start;
mod start_prediction;
mod state_directory;
mod syscalls;
mod takeaways;
mod usage;
mod verdicts;
mod watch;
