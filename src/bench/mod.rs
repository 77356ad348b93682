//! `keyward bench`: loads a running daemon, and says how fast it answered and how long it took.
//!
//! A [`Load`] is carried out on a [`Target`](target): connections are opened and greeted, threads drive
//! them through a warm-up and a measured time, and what they measured is added up to a [`Report`].
//!
//! The client is made to cost as little as it can, and the same for everything that it is pointed at: requests are
//! encoded in advance ([`ring`]), sockets are plain ones, and one thread can drive many. What is left is measured by
//! pointing it at an echo ([`target::Echo`], [`echo_server`]), which is the socket's own limit.
//!
//! ```text
//! keys ─▶ ring ─▶ connection ─▶ socket
//!                     ▲  │
//!          schedule ──┤  └─▶ target: one answer ─▶ tally, latency ─▶ report
//!                   drive
//! ```

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

mod connection;
mod drive;
pub mod echo_server;
mod fault;
pub mod keys;
mod latency;
mod processors;
mod report;
mod ring;
mod schedule;
pub mod target;

pub use fault::Fault;
pub use latency::{Latency, Percentiles, Row};
pub use processors::{Machine, Seat, Server};
pub use report::Report;
pub use ring::Ring;

use connection::Connection;
use drive::{Measured, Orders, drive};
use schedule::Schedule;
use target::{Target, open};

/// What is to be done to a server.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where the server is.
    pub socket: PathBuf,
    /// Connections, at least 1.
    pub connections: usize,
    /// Requests that each asks at once (in an open loop: that may be on their way), at least 1.
    pub depth: usize,
    /// Threads that drive the connections, at least 1 and at most as many.
    pub threads: usize,
    /// Processors for the threads, in turn; none leaves that to the system.
    pub pin: Vec<usize>,
    /// Not measured, at the beginning.
    pub warmup: Duration,
    /// Measured.
    pub duration: Duration,
    /// Requests a second of an open loop; `None` is a closed one.
    pub rate: Option<f64>,
    /// Whether to spin instead of sleeping.
    pub busy_poll: bool,
}

/// Carries out a load; `stop` ends it early, with what there is.
///
/// # Errors
/// When there is no server, or it fails, or ends before it has answered.
pub fn run(target: &dyn Target, load: &Load, stop: &AtomicBool) -> Result<Report, Fault> {
    let mut connections = connect(target, load)?;
    let before = connections.first().and_then(|connection| processors::before(connection.stream()));
    let mut hands: Vec<Vec<Connection<'_>>> = Vec::new();
    hands.resize_with(load.threads, Vec::new);
    for (number, connection) in connections.drain(..).enumerate() {
        hands[number % load.threads].push(connection);
    }
    let start = Instant::now();
    let measured = thread::scope(|scope| {
        let threads: Vec<_> = hands
            .into_iter()
            .enumerate()
            .map(|(number, hand)| {
                scope.spawn(move || {
                    let measured = drive_hand(hand, load, number, start, stop);
                    // One that has failed ends them all.
                    if measured.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    measured
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<Measured>, Fault>>()
    })?;
    let server = before.map(processors::Before::after);
    Report::new(target, load, &measured, server, stop.load(Ordering::Relaxed))
}

fn connect<'a>(target: &'a dyn Target, load: &Load) -> Result<Vec<Connection<'a>>, Fault> {
    // Connections begin in different places, or all would ask for the same keys at the same time.
    let apart = (target.ring().len() / load.connections).max(1) as u64;
    (0..load.connections as u64)
        .map(|number| Ok(Connection::new(target, open(target, &load.socket)?, number * apart)))
        .collect()
}

fn drive_hand(
    hand: Vec<Connection<'_>>,
    load: &Load,
    number: usize,
    start: Instant,
    stop: &AtomicBool,
) -> Result<Measured, Fault> {
    if !load.pin.is_empty() {
        processors::pin(load.pin[number % load.pin.len()])?;
    }
    let schedule = load.rate.map(|rate| Schedule::new(rate, number, load.threads));
    let Load { warmup, duration, depth, busy_poll, .. } = *load;
    drive(hand, Orders { start, warmup, duration, depth, schedule, busy_poll, stop })
}
