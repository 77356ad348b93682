//! One thread of a load: waits for answers on its connections, counts them, and issues the next
//! requests.
//!
//! In a closed loop, each connection issues `depth` requests at once, and the next when all are
//! answered, like `redis-benchmark -P` and benches/socket.rs: figures of the same depth are
//! comparable. In an open loop, requests become due by a [`Schedule`]. If a connection already has
//! `depth` requests in flight, further ones wait for it, and their latency counts from when they
//! were due.
//!
//! A thread either sleeps or spins while it waits. With one connection it reads the socket,
//! blocking or not; with several it uses epoll. The choice affects the figures, so the report
//! states it.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::thread::set_current_timer_slack;

use crate::connection::Connection;
use crate::error::LoadError;
use crate::latency::LatencyHistogram;
use crate::processors::CpuPlacement;
use crate::schedule::Schedule;
use crate::target::Tally;

/// Longest sleep before a thread checks the time.
const MAX_SLEEP: Duration = Duration::from_millis(50);

/// How long a server may be silent while requests are in flight. Reloading a large key set on a
/// busy machine must not end a load.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for outstanding answers after the measurement.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Most events returned by one epoll wait.
const MAX_EVENTS: usize = 256;

/// The configuration of one thread's run.
pub(crate) struct RunConfig<'a> {
    /// The time that all timestamps count from.
    pub(crate) start: Instant,
    /// Length of the warm-up, which is not measured.
    pub(crate) warmup: Duration,
    /// Length of the measurement.
    pub(crate) duration: Duration,
    /// Closed loop: requests that a connection issues at once. Open loop: most requests in flight
    /// on it.
    pub(crate) depth: usize,
    /// The schedule of an open loop; `None` for a closed loop.
    pub(crate) schedule: Option<Schedule>,
    /// Whether to spin instead of sleeping.
    pub(crate) busy_poll: bool,
    /// Set to end the load early.
    pub(crate) stop: &'a AtomicBool,
}

/// What one thread has measured.
#[derive(Clone, Debug)]
pub(crate) struct Measurement {
    /// Answers by outcome.
    pub(crate) tally: Tally,
    /// Latencies of the answers.
    pub(crate) latency: LatencyHistogram,
    /// Answers received during the measurement.
    pub(crate) answers: u64,
    /// Bytes received during the measurement.
    pub(crate) bytes_received: u64,
    /// Length of the measurement.
    pub(crate) time: Duration,
    /// Requests of the schedule that were due but could not be sent.
    pub(crate) unsent: u64,
    /// Requests that had no answer when the drain timed out.
    pub(crate) unanswered: u64,
    /// Where the thread ran.
    pub(crate) placement: CpuPlacement,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    WarmUp,
    Measuring,
    Draining,
}

/// Runs a load on `connections` as `config` says.
///
/// # Errors
/// When the server fails. There is no measurement then.
pub(crate) fn drive(
    connections: Vec<Connection<'_>>,
    config: RunConfig<'_>,
) -> Result<Measurement, LoadError> {
    // Makes sleeps accurate. If it fails, they are up to 50 µs longer.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    let mut driver = Driver::new(connections, config)?;
    driver.start()?;
    while driver.update_phase() {
        driver.wait()?;
        driver.issue_due()?;
    }
    Ok(driver.finish())
}

struct Driver<'a> {
    connections: Vec<Connection<'a>>,
    /// For each connection, the due times of requests that it has no room for yet.
    backlog: Vec<VecDeque<u64>>,
    /// Number of requests taken from the schedule. They go to the connections in turn.
    scheduled: usize,
    config: RunConfig<'a>,
    /// `None` if reading the only connection is enough.
    epoll: Option<OwnedFd>,
    events: Vec<epoll::Event>,
    /// For each connection, whether epoll reports that it is writable.
    watches_writable: Vec<bool>,
    phase: Phase,
    now: u64,
    phase_start: u64,
    phase_end: u64,
    /// When the last answer arrived, or no request was in flight.
    last_progress: u64,
    /// Bytes received before the measurement.
    bytes_before: u64,
    measurement: Measurement,
}

impl<'a> Driver<'a> {
    fn new(connections: Vec<Connection<'a>>, config: RunConfig<'a>) -> Result<Self, LoadError> {
        let needs_epoll = connections.len() > 1 || (config.schedule.is_some() && !config.busy_poll);
        let epoll = if needs_epoll { Some(watch(&connections)?) } else { None };
        for connection in &connections {
            let timeout = connection.stream().set_read_timeout(Some(MAX_SLEEP));
            timeout.map_err(LoadError::system("set a socket's timeout"))?;
        }
        let measurement = Measurement {
            tally: Tally::default(),
            latency: LatencyHistogram::new()?,
            answers: 0,
            bytes_received: 0,
            time: Duration::ZERO,
            unsent: 0,
            unanswered: 0,
            placement: CpuPlacement::at_start(),
        };
        let phase_end = nanoseconds(config.warmup);
        let count = connections.len();
        Ok(Self {
            connections,
            backlog: vec![VecDeque::new(); count],
            scheduled: 0,
            config,
            epoll,
            events: Vec::with_capacity(MAX_EVENTS),
            watches_writable: vec![false; count],
            phase: Phase::WarmUp,
            now: 0,
            phase_start: 0,
            phase_end,
            last_progress: 0,
            bytes_before: 0,
            measurement,
        })
    }

    /// Issues the first requests.
    fn start(&mut self) -> Result<(), LoadError> {
        self.read_clock();
        self.last_progress = self.now;
        if self.config.schedule.is_some() {
            return self.issue_due();
        }
        for index in 0..self.connections.len() {
            self.read_clock();
            self.connections[index].issue(self.config.depth, self.now);
            self.write(index)?;
        }
        Ok(())
    }

    /// Enters the next phase if it is time. Returns whether the load goes on.
    fn update_phase(&mut self) -> bool {
        let is_stopped = self.phase != Phase::Draining && self.config.stop.load(Ordering::Relaxed);
        if self.now >= self.phase_end || is_stopped {
            self.next_phase(is_stopped);
        }
        let is_drained = || self.connections.iter().all(|connection| connection.in_flight() == 0);
        !(self.phase == Phase::Draining && (self.now >= self.phase_end || is_drained()))
    }

    fn next_phase(&mut self, is_stopped: bool) {
        let bytes_received: u64 = self.connections.iter().map(Connection::bytes_received).sum();
        match self.phase {
            Phase::WarmUp if !is_stopped => {
                self.phase = Phase::Measuring;
                self.phase_end = self.now + nanoseconds(self.config.duration);
                self.measurement.tally = Tally::default();
                self.measurement.latency.clear();
                self.measurement.answers = 0;
                self.bytes_before = bytes_received;
            }
            Phase::WarmUp | Phase::Measuring => {
                if self.phase == Phase::WarmUp {
                    self.measurement.answers = 0;
                } else {
                    self.measurement.time = Duration::from_nanos(self.now - self.phase_start);
                    self.measurement.bytes_received = bytes_received - self.bytes_before;
                }
                self.phase = Phase::Draining;
                self.phase_end = self.now + nanoseconds(DRAIN_TIMEOUT);
                self.measurement.unsent = self.backlog.iter().map(|backlog| backlog.len() as u64).sum();
            }
            Phase::Draining => return,
        }
        self.phase_start = self.now;
    }

    /// Waits until answers arrive, a request is due, or the longest sleep is over. Handles the
    /// answers.
    fn wait(&mut self) -> Result<(), LoadError> {
        let has_read = if self.epoll.is_some() {
            self.wait_for_events()?
        } else {
            // Without epoll, nothing reports when a full socket becomes writable.
            let has_unwritten = self.connections[0].has_unwritten();
            if has_unwritten {
                std::thread::yield_now();
            }
            self.handle_answers(0, !self.config.busy_poll && !has_unwritten)?
        };
        // Handling answers has already read the clock.
        if !has_read {
            self.read_clock();
        }
        let is_idle = self.connections.iter().all(|connection| connection.in_flight() == 0);
        if is_idle {
            self.last_progress = self.now;
        } else if self.now - self.last_progress > nanoseconds(STALL_TIMEOUT) {
            return Err(LoadError::Stalled(STALL_TIMEOUT));
        }
        Ok(())
    }

    fn wait_for_events(&mut self) -> Result<bool, LoadError> {
        let Some(epoll) = &self.epoll else {
            return Ok(false);
        };
        let timeout = self.timeout();
        match epoll::wait(epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(LoadError::system("wait for answers")(error)),
        }
        let mut events = std::mem::take(&mut self.events);
        let mut has_read = false;
        for event in events.drain(..) {
            has_read |= self.handle_answers(event.data.u64() as usize, false)?;
        }
        self.events = events;
        Ok(has_read)
    }

    fn timeout(&self) -> Timespec {
        let nanoseconds = match &self.config.schedule {
            _ if self.config.busy_poll => 0,
            Some(schedule) if self.phase != Phase::Draining => {
                schedule.next_due().saturating_sub(self.now).min(nanoseconds(MAX_SLEEP))
            }
            _ => nanoseconds(MAX_SLEEP),
        };
        Timespec { tv_sec: 0, tv_nsec: nanoseconds as _ }
    }

    /// Reads the answers of a connection and issues its next requests. Returns whether anything was
    /// read.
    fn handle_answers(&mut self, index: usize, wait: bool) -> Result<bool, LoadError> {
        let has_read = self.connections[index].read(wait)?;
        if has_read {
            self.read_clock();
            self.last_progress = self.now;
            let connection = &mut self.connections[index];
            let Measurement { tally, latency, answers, .. } = &mut self.measurement;
            let parsed = connection.parse_answers(self.now, tally, latency)?;
            if self.phase != Phase::Draining {
                *answers += parsed as u64;
                self.issue_next(index);
            }
        }
        self.write(index)?;
        Ok(has_read)
    }

    /// Issues the next requests of a connection, if it has room for them.
    fn issue_next(&mut self, index: usize) {
        if self.config.schedule.is_some() {
            self.issue_backlog(index);
        } else if self.connections[index].in_flight() == 0 {
            // The time that the client took to count answers must not count as latency.
            self.read_clock();
            self.connections[index].issue(self.config.depth, self.now);
        }
    }

    fn issue_backlog(&mut self, index: usize) {
        while self.connections[index].in_flight() < self.config.depth {
            let Some(due) = self.backlog[index].pop_front() else {
                return;
            };
            self.connections[index].issue(1, due);
        }
    }

    /// Distributes the scheduled requests that have become due.
    fn issue_due(&mut self) -> Result<(), LoadError> {
        let (now, count) = (self.now, self.connections.len());
        if self.phase == Phase::Draining {
            return Ok(());
        }
        let first = self.scheduled;
        let Some(schedule) = &mut self.config.schedule else {
            return Ok(());
        };
        while let Some(due) = schedule.take_due(now) {
            self.backlog[self.scheduled % count].push_back(due);
            self.scheduled += 1;
        }
        for number in first..self.scheduled.min(first + count) {
            self.issue_backlog(number % count);
            self.write(number % count)?;
        }
        Ok(())
    }

    /// Writes the issued requests of a connection. If its socket is full, epoll reports when it is
    /// writable.
    fn write(&mut self, index: usize) -> Result<(), LoadError> {
        let connection = &mut self.connections[index];
        if connection.has_unwritten() {
            connection.write()?;
        }
        let has_unwritten = connection.has_unwritten();
        if let Some(epoll) = &self.epoll
            && has_unwritten != self.watches_writable[index]
        {
            let flags = if has_unwritten {
                epoll::EventFlags::IN | epoll::EventFlags::OUT
            } else {
                epoll::EventFlags::IN
            };
            epoll::modify(epoll, connection.stream(), epoll::EventData::new_u64(index as u64), flags)
                .map_err(LoadError::system("watch a connection"))?;
            self.watches_writable[index] = has_unwritten;
        }
        Ok(())
    }

    fn read_clock(&mut self) {
        self.now = nanoseconds(self.config.start.elapsed());
    }

    fn finish(mut self) -> Measurement {
        self.measurement.unanswered =
            self.connections.iter().map(|connection| connection.in_flight() as u64).sum();
        self.measurement.placement.record_end();
        self.measurement
    }
}

fn watch(connections: &[Connection<'_>]) -> Result<OwnedFd, LoadError> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(LoadError::system("make an epoll"))?;
    for (index, connection) in connections.iter().enumerate() {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&epoll, connection.stream(), data, epoll::EventFlags::IN)
            .map_err(LoadError::system("watch a connection"))?;
    }
    Ok(epoll)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
