//! Carries out a [`Load`] on a [`Target`]: opens and greets the connections, drives them from threads
//! through a warm-up and a measured time, and adds up what the threads measured.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::connection::Connection;
use crate::drive::{Measured, Orders, drive};
use crate::fault::Fault;
use crate::processors;
use crate::report::Report;
use crate::schedule::Schedule;
use crate::target::{Target, open};

/// What is to be done to a server.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Where the server is.
    pub(crate) socket: PathBuf,
    /// Connections, at least 1.
    pub(crate) connections: usize,
    /// Requests that each asks at once (in an open loop: that may be on their way), at least 1.
    pub(crate) depth: usize,
    /// Threads that drive the connections, at least 1 and at most as many.
    pub(crate) threads: usize,
    /// Processors for the threads, in turn; none leaves that to the system.
    pub(crate) pin: Vec<usize>,
    /// Not measured, at the beginning.
    pub(crate) warmup: Duration,
    /// Measured.
    pub(crate) duration: Duration,
    /// Requests a second of an open loop; `None` is a closed one.
    pub(crate) rate: Option<f64>,
    /// Whether to spin instead of sleeping.
    pub(crate) busy_poll: bool,
}

/// Carries out a load; `stop` ends it early, with what there is.
///
/// # Errors
/// When there is no server, or it fails, or ends before it has answered.
pub(crate) fn run(target: &dyn Target, load: &Load, stop: &AtomicBool) -> Result<Report, Fault> {
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
