//! Runs a load on a [`Target`]: opens the connections, drives them from threads, and combines what
//! the threads have measured.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::connection::Connection;
use crate::driver::{Measurement, RunConfig, drive};
use crate::error::LoadError;
use crate::processors::{self, ServerSample};
use crate::report::Report;
use crate::schedule::Schedule;
use crate::target::{Target, open};

/// The configuration of a load.
#[derive(Clone, Debug)]
pub(crate) struct LoadConfig {
    /// Socket of the server.
    pub(crate) socket: PathBuf,
    /// Number of connections, at least 1.
    pub(crate) connections: usize,
    /// Closed loop: requests that each connection issues at once, at least 1. Open loop: most
    /// requests in flight on it.
    pub(crate) depth: usize,
    /// Threads that drive the connections: from 1 to the number of connections.
    pub(crate) threads: usize,
    /// Processors to pin the threads to, in turn. If empty, the threads are not pinned.
    pub(crate) pin: Vec<usize>,
    /// Length of the warm-up, which is not measured.
    pub(crate) warmup: Duration,
    /// Length of the measurement.
    pub(crate) duration: Duration,
    /// Requests a second of an open loop; `None` for a closed loop.
    pub(crate) rate: Option<f64>,
    /// Whether to spin instead of sleeping.
    pub(crate) busy_poll: bool,
}

/// Runs a load. `stop` ends it early, and the report covers the time until then.
///
/// # Errors
/// When the server cannot be reached, fails, or closes a connection before it has answered.
pub(crate) fn run(target: &dyn Target, config: &LoadConfig, stop: &AtomicBool) -> Result<Report, LoadError> {
    let mut connections = connect(target, config)?;
    let sample = connections.first().and_then(|connection| ServerSample::take(connection.stream()));
    let mut connections_of_threads: Vec<Vec<Connection<'_>>> = Vec::new();
    connections_of_threads.resize_with(config.threads, Vec::new);
    for (number, connection) in connections.drain(..).enumerate() {
        connections_of_threads[number % config.threads].push(connection);
    }
    let start = Instant::now();
    let measurements = thread::scope(|scope| {
        let threads: Vec<_> = connections_of_threads
            .into_iter()
            .enumerate()
            .map(|(number, connections)| {
                scope.spawn(move || {
                    let result = run_thread(connections, config, number, start, stop);
                    // A failure on one thread ends the whole load.
                    if result.is_err() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect::<Result<Vec<Measurement>, LoadError>>()
    })?;
    let server = sample.map(ServerSample::finish);
    Report::new(target, config, &measurements, server, stop.load(Ordering::Relaxed))
}

fn connect<'a>(target: &'a dyn Target, config: &LoadConfig) -> Result<Vec<Connection<'a>>, LoadError> {
    // The connections start at different requests, so that they do not all use the same keys at the
    // same time.
    let distance = (target.requests().len() / config.connections).max(1) as u64;
    (0..config.connections as u64)
        .map(|number| Ok(Connection::new(target, open(target, &config.socket)?, number * distance)))
        .collect()
}

fn run_thread(
    connections: Vec<Connection<'_>>,
    config: &LoadConfig,
    number: usize,
    start: Instant,
    stop: &AtomicBool,
) -> Result<Measurement, LoadError> {
    if !config.pin.is_empty() {
        processors::pin(config.pin[number % config.pin.len()])?;
    }
    let schedule = config.rate.map(|rate| Schedule::new(rate, number, config.threads));
    let LoadConfig { warmup, duration, depth, busy_poll, .. } = *config;
    drive(connections, RunConfig { start, warmup, duration, depth, schedule, busy_poll, stop })
}
