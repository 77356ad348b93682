//! One thread of a load: waits for answers on its connections, counts them, and asks the next requests.
//!
//! In a closed loop each connection writes as many requests at once as it is deep, and the next when all are answered, as
//! `redis-benchmark -P` and benches/socket.rs do: figures of the same depth can be compared.
//! In an open loop requests come by a [`Schedule`]; a connection that is as deep as it may be keeps them waiting, with
//! the clock running.
//!
//! Waiting is either sleeping or spinning. With one connection that is one system call: a read that blocks, or one that
//! does not. With more it is epoll. Which it is changes what is measured, so that the report says so.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::thread::set_current_timer_slack;

use super::connection::{Arrival, Connection};
use super::fault::Fault;
use super::latency::Latency;
use super::processors::Seat;
use super::schedule::Schedule;
use super::target::Tally;

/// How long a thread sleeps at most before it looks whether the time is over.
const TICK: Duration = Duration::from_millis(50);

/// How long a server may be silent while answers are due. A reload of a large set on a busy machine must not end a load.
const STALL: Duration = Duration::from_secs(10);

/// How long answers are waited for when the time is over.
const DRAIN: Duration = Duration::from_secs(1);

/// Events taken at once.
const EVENTS: usize = 256;

/// What a thread does.
pub(super) struct Orders<'a> {
    /// The moment that all times are counted from.
    pub(super) start: Instant,
    /// Not measured, at the beginning.
    pub(super) warmup: Duration,
    /// Measured, after that.
    pub(super) duration: Duration,
    /// Requests that a connection asks at once; in an open loop, that may be on their way.
    pub(super) depth: usize,
    /// `None` is a closed loop.
    pub(super) schedule: Option<Schedule>,
    /// Whether to spin instead of sleeping.
    pub(super) busy_poll: bool,
    /// Set when the load is to end early.
    pub(super) stop: &'a AtomicBool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    /// Answers by kind.
    pub(super) tally: Tally,
    /// How long they took.
    pub(super) latency: Latency,
    /// Answers within the measured time.
    pub(super) answers: u64,
    /// Bytes of these.
    pub(super) received: u64,
    /// How long that was.
    pub(super) time: Duration,
    /// Requests that were due and were never sent.
    pub(super) unsent: u64,
    /// Requests that were sent and had no answer a second after the end.
    pub(super) unanswered: u64,
    /// Where the thread ran.
    pub(super) seat: Seat,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    WarmUp,
    Measuring,
    Draining,
}

/// Carries `orders` out on `connections`.
///
/// # Errors
/// When the server fails: then there is nothing to report.
pub(super) fn drive(connections: Vec<Connection<'_>>, orders: Orders<'_>) -> Result<Measured, Fault> {
    // Sleeps are as long as they should be. Where that cannot be had, they are 50 us longer.
    let _coarser = set_current_timer_slack(NonZeroU64::new(1));
    let mut driver = Driver::new(connections, orders)?;
    driver.begin()?;
    while driver.go_on() {
        driver.wait()?;
        driver.arrivals()?;
    }
    Ok(driver.finish())
}

struct Driver<'a> {
    connections: Vec<Connection<'a>>,
    /// When requests became due that a full connection has not taken; for each connection.
    waiting: Vec<VecDeque<u64>>,
    /// Which connection the next arrival goes to.
    turn: usize,
    orders: Orders<'a>,
    /// `None` where one connection does without.
    epoll: Option<OwnedFd>,
    events: Vec<epoll::Event>,
    /// Whether epoll tells when a connection can be written to.
    tells_writable: Vec<bool>,
    phase: Phase,
    now: u64,
    /// When the phase began, and ends at the latest.
    phase_began: u64,
    phase_ends: u64,
    /// When the last answer came, or nothing was due.
    progress: u64,
    received_before: u64,
    measured: Measured,
}

impl<'a> Driver<'a> {
    fn new(connections: Vec<Connection<'a>>, orders: Orders<'a>) -> Result<Self, Fault> {
        let alone = connections.len() == 1 && (orders.busy_poll || orders.schedule.is_none());
        let epoll = if alone { None } else { Some(watch(&connections)?) };
        for connection in &connections {
            let timeout = connection.stream().set_read_timeout(Some(TICK));
            timeout.map_err(Fault::system("set a socket's timeout"))?;
        }
        let measured = Measured {
            tally: Tally::default(),
            latency: Latency::new()?,
            answers: 0,
            received: 0,
            time: Duration::ZERO,
            unsent: 0,
            unanswered: 0,
            seat: Seat::taken(),
        };
        let phase_ends = nanoseconds(orders.warmup);
        let count = connections.len();
        Ok(Self {
            connections,
            waiting: vec![VecDeque::new(); count],
            turn: 0,
            orders,
            epoll,
            events: Vec::with_capacity(EVENTS),
            tells_writable: vec![false; count],
            phase: Phase::WarmUp,
            now: 0,
            phase_began: 0,
            phase_ends,
            progress: 0,
            received_before: 0,
            measured,
        })
    }

    /// The first requests.
    fn begin(&mut self) -> Result<(), Fault> {
        self.look_at_the_clock();
        self.progress = self.now;
        if self.orders.schedule.is_some() {
            return self.arrivals();
        }
        for index in 0..self.connections.len() {
            self.look_at_the_clock();
            self.connections[index].admit(self.orders.depth, self.now);
            self.write(index)?;
        }
        Ok(())
    }

    /// Whether there is anything left to do; moves from phase to phase.
    fn go_on(&mut self) -> bool {
        let stopped = self.phase != Phase::Draining && self.orders.stop.load(Ordering::Relaxed);
        if self.now >= self.phase_ends || stopped {
            self.next_phase(stopped);
        }
        let all_done = || self.connections.iter().all(|connection| connection.unanswered() == 0);
        !(self.phase == Phase::Draining && (self.now >= self.phase_ends || all_done()))
    }

    fn next_phase(&mut self, stopped: bool) {
        let received: u64 = self.connections.iter().map(Connection::received).sum();
        match self.phase {
            Phase::WarmUp if !stopped => {
                self.phase = Phase::Measuring;
                self.phase_ends = self.now + nanoseconds(self.orders.duration);
                self.measured.tally = Tally::default();
                self.measured.latency.clear();
                self.measured.answers = 0;
                self.received_before = received;
            }
            Phase::WarmUp | Phase::Measuring => {
                if self.phase == Phase::WarmUp {
                    self.measured.answers = 0;
                } else {
                    self.measured.time = Duration::from_nanos(self.now - self.phase_began);
                    self.measured.received = received - self.received_before;
                }
                self.phase = Phase::Draining;
                self.phase_ends = self.now + nanoseconds(DRAIN);
                self.measured.unsent = self.waiting.iter().map(|waiting| waiting.len() as u64).sum();
            }
            Phase::Draining => return,
        }
        self.phase_began = self.now;
    }

    /// Waits until something has arrived, a request is due or a tick is over, and deals with what arrived.
    fn wait(&mut self) -> Result<(), Fault> {
        let arrived = if self.epoll.is_some() {
            self.wait_for_many()?
        } else {
            // A socket that was full takes more when the server has read, which nobody tells.
            let behind = self.connections[0].is_behind();
            if behind {
                std::thread::yield_now();
            }
            self.answers(0, !self.orders.busy_poll && !behind)?
        };
        // An arrival has looked at the clock.
        if arrived == Arrival::Nothing {
            self.look_at_the_clock();
        }
        let due = self.connections.iter().any(|connection| connection.unanswered() > 0);
        if !due {
            self.progress = self.now;
        } else if self.now - self.progress > nanoseconds(STALL) {
            return Err(Fault::Stalled(STALL));
        }
        Ok(())
    }

    fn wait_for_many(&mut self) -> Result<Arrival, Fault> {
        let Some(epoll) = &self.epoll else {
            return Ok(Arrival::Nothing);
        };
        let timeout = self.timeout();
        match epoll::wait(epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(Fault::system("wait for answers")(error)),
        }
        let mut events = std::mem::take(&mut self.events);
        let mut arrived = Arrival::Nothing;
        for event in events.drain(..) {
            arrived = arrived.max(self.answers(event.data.u64() as usize, false)?);
        }
        self.events = events;
        Ok(arrived)
    }

    fn timeout(&self) -> Timespec {
        let nanoseconds = match &self.orders.schedule {
            _ if self.orders.busy_poll => 0,
            Some(schedule) if self.phase != Phase::Draining => {
                schedule.next_due().saturating_sub(self.now).min(nanoseconds(TICK))
            }
            _ => nanoseconds(TICK),
        };
        Timespec { tv_sec: 0, tv_nsec: nanoseconds as _ }
    }

    /// Reads what a connection has, and asks anew.
    fn answers(&mut self, index: usize, wait: bool) -> Result<Arrival, Fault> {
        let arrived = self.connections[index].read(wait)?;
        if arrived == Arrival::Bytes {
            self.look_at_the_clock();
            self.progress = self.now;
            let connection = &mut self.connections[index];
            let Measured { tally, latency, answers, .. } = &mut self.measured;
            let taken = connection.take(self.now, tally, latency)?;
            if self.phase != Phase::Draining {
                *answers += taken as u64;
                self.admit(index);
            }
        }
        self.write(index)?;
        Ok(arrived)
    }

    /// Asks the next requests, if it is time.
    fn admit(&mut self, index: usize) {
        if self.orders.schedule.is_some() {
            self.admit_waiting(index);
        } else if self.connections[index].unanswered() == 0 {
            // Counting the answers took time of the client's, which is none of the server's.
            self.look_at_the_clock();
            self.connections[index].admit(self.orders.depth, self.now);
        }
    }

    fn admit_waiting(&mut self, index: usize) {
        while self.connections[index].unanswered() < self.orders.depth {
            let Some(due) = self.waiting[index].pop_front() else {
                return;
            };
            self.connections[index].admit(1, due);
        }
    }

    /// Deals out the requests that have become due.
    fn arrivals(&mut self) -> Result<(), Fault> {
        let (now, count) = (self.now, self.connections.len());
        if self.phase == Phase::Draining {
            return Ok(());
        }
        let first = self.turn;
        let Some(schedule) = &mut self.orders.schedule else {
            return Ok(());
        };
        while let Some(due) = schedule.arrival(now) {
            self.waiting[self.turn % count].push_back(due);
            self.turn += 1;
        }
        for turn in first..self.turn.min(first + count) {
            self.admit_waiting(turn % count);
            self.write(turn % count)?;
        }
        Ok(())
    }

    /// Writes what has been admitted; what the socket does not take is written when epoll says so.
    fn write(&mut self, index: usize) -> Result<(), Fault> {
        let connection = &mut self.connections[index];
        if connection.is_behind() {
            connection.write()?;
        }
        let behind = connection.is_behind();
        if let Some(epoll) = &self.epoll
            && behind != self.tells_writable[index]
        {
            let flags =
                if behind { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
            epoll::modify(epoll, connection.stream(), epoll::EventData::new_u64(index as u64), flags)
                .map_err(Fault::system("watch a connection"))?;
            self.tells_writable[index] = behind;
        }
        Ok(())
    }

    fn look_at_the_clock(&mut self) {
        self.now = nanoseconds(self.orders.start.elapsed());
    }

    fn finish(mut self) -> Measured {
        self.measured.unanswered =
            self.connections.iter().map(|connection| connection.unanswered() as u64).sum();
        self.measured.seat.left();
        self.measured
    }
}

fn watch(connections: &[Connection<'_>]) -> Result<OwnedFd, Fault> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Fault::system("make an epoll"))?;
    for (index, connection) in connections.iter().enumerate() {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&epoll, connection.stream(), data, epoll::EventFlags::IN)
            .map_err(Fault::system("watch a connection"))?;
    }
    Ok(epoll)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
