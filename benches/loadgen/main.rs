//! `keyward-bench`: loads a running daemon and reports its throughput and latencies.
//!
//! It is to keyward what redis-benchmark and pgbench are to their servers. It also loads Redis,
//! memcached, PostgreSQL and an echo server with the same connections, schedule and measurement, so
//! that `benches/rivals` compares servers and not clients.
//!
//! ```text
//! key file ─▶ encoded requests ─▶ connection ─▶ socket
//!                                          ▲  │
//!                              schedule ───┤  └─▶ target: one answer ─▶ tally, latency ─▶ report
//!                                       driver
//! ```
//!
//! The client costs as little as it can, and the same for every target: requests are encoded in
//! advance ([`encoded_requests`]), sockets are blocking, and one thread can drive many connections.
//! The cost that remains is measured by loading the echo server ([`echo_server`]): it is the cost
//! of the socket.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

mod check_server;
mod connection;
mod driver;
mod echo_server;
mod encoded_requests;
mod error;
mod exit;
mod key_file;
mod keys;
mod latency;
mod load;
mod options;
mod processors;
mod report;
mod schedule;
mod target;

use options::Options;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    match options.run(&mut std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Without a standard error there is no place to report to; the exit code remains.
            let _ = writeln!(std::io::stderr(), "keyward-bench: {}", failure.message);
            failure.exit.into()
        }
    }
}
