//! The usage thread: merges logs as they come, writes at intervals, answers questions.
//!
//! Before it writes or answers, all workers are told to flush what they have (a *round*), so that an answer is as of
//! the moment of the question. It never waits for anything but its queue: a write is a walk over the records in short steps,
//! one between any two messages, and the disk is another thread's.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::error;

use super::Message;
use super::answer::{UsageQuery, UsageReport};
use super::log::{Batch, Event, Unknown};
use super::table::{Table, Walk};
use super::write::{Interval, Writer};
use crate::clock::Stamp;

/// How long a round waits for workers. One that is stopped by a debugger must not stop the answers.
const ROUND: Duration = Duration::from_secs(1);

/// Records looked at in one step, so that logs do not have to wait long.
const STEP: usize = 16 * 1024;

/// How long a write that failed waits to be tried again, at most.
const RETRY: Duration = Duration::from_secs(1);

/// How long to wait where nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// Everything that the thread has.
pub(super) struct Collector {
    table: Table,
    interval: Duration,
    writer: Option<Writer>,
    rounds: watch::Sender<u64>,
    workers: Vec<Worker>,
    waiting: Vec<Waiting>,
    write: Write,
    since: Stamp,
    next_write: Instant,
    stopping: Vec<oneshot::Sender<()>>,
}

/// What is known of a worker.
struct Worker {
    spares: SyncSender<Vec<Event>>,
    /// The latest round that it has heard of.
    round: u64,
    /// The oldest snapshot that it may use.
    generation: u64,
}

/// Who waits for a round to be over.
struct Waiting {
    round: u64,
    deadline: Instant,
    work: Work,
}

enum Work {
    Answer { question: UsageQuery, reply: oneshot::Sender<UsageReport> },
    Write,
}

/// How far a write is.
struct Write {
    /// Where the interval that is written next begins.
    from: Stamp,
    walk: Option<(Walk, Interval)>,
    /// Some of the interval's lines have been written, and are not durable yet.
    is_begun: bool,
    /// The writer has a chunk.
    is_busy: bool,
    /// A chunk that could not be written, and when to try again.
    failed: Option<(Vec<u8>, Instant)>,
    /// An empty buffer.
    spare: Vec<u8>,
}

impl Collector {
    pub(super) fn new(
        interval: Duration,
        writer: Option<Writer>,
        rounds: watch::Sender<u64>,
        spares: Vec<SyncSender<Vec<Event>>>,
    ) -> Self {
        let since = Stamp::now();
        let workers = spares.into_iter().map(|spares| Worker { spares, round: 0, generation: 0 }).collect();
        Self {
            table: Table::default(),
            interval,
            writer,
            rounds,
            workers,
            waiting: Vec::new(),
            write: Write {
                from: since,
                walk: None,
                is_begun: false,
                is_busy: false,
                failed: None,
                spare: Vec::new(),
            },
            since,
            next_write: Instant::now() + interval,
            stopping: Vec::new(),
        }
    }

    /// Runs until nobody can say anything any more.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(self.idle_for(Instant::now())) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.work(Instant::now());
        }
    }

    /// How long nothing is to be done unless a message comes.
    fn idle_for(&self, now: Instant) -> Duration {
        if self.can_step() {
            return Duration::ZERO;
        }
        let retry = self.write.failed.as_ref().map(|(_, at)| *at);
        let write = (!self.is_writing()).then_some(self.next_write);
        let rounds = self.waiting.iter().map(|waiting| waiting.deadline);
        let next = rounds.chain(retry).chain(write).min();
        next.map_or(IDLE, |next| next.saturating_duration_since(now))
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Batch(mut batch) => {
                self.table.merge(&mut batch);
                self.give_back(batch);
            }
            Message::Flushed { worker, round, generation } => {
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.round = worker.round.max(round);
                    worker.generation = worker.generation.max(generation);
                }
                let oldest = self.workers.iter().map(|worker| worker.generation).min();
                self.table.release_views_before(oldest.unwrap_or(0));
            }
            Message::Ask { question, reply } => self.after_round(Work::Answer { question, reply }),
            Message::Written { lines, result } => self.written(lines, result),
            Message::Stop { reply } => {
                self.stopping.push(reply);
                self.after_round(Work::Write);
            }
        }
    }

    fn give_back(&self, batch: Batch) {
        if let Some(worker) = self.workers.get(batch.worker)
            && batch.events.capacity() > 0
        {
            // It has enough.
            let _freed = worker.spares.try_send(batch.events);
        }
    }

    /// Has all workers flush what they have, and then does `work`.
    fn after_round(&mut self, work: Work) {
        let mut round = 0;
        self.rounds.send_modify(|number| {
            *number += 1;
            round = *number;
        });
        self.waiting.push(Waiting { round, deadline: Instant::now() + ROUND, work });
    }

    fn work(&mut self, now: Instant) {
        let due = now >= self.next_write && !self.is_writing();
        if due {
            self.next_write = now + self.interval;
            self.after_round(Work::Write);
        }
        let heard = self.workers.iter().map(|worker| worker.round).min().unwrap_or(u64::MAX);
        let is_over = |waiting: &mut Waiting| waiting.round <= heard || waiting.deadline <= now;
        let over: Vec<Waiting> = self.waiting.extract_if(.., is_over).collect();
        for Waiting { work, .. } in over {
            match work {
                Work::Answer { question, reply } => drop(reply.send(self.answer(&question))),
                Work::Write => self.begin(),
            }
        }
        if self.can_step() {
            self.step();
        } else if self.write.failed.as_ref().is_some_and(|(_, at)| *at <= now || !self.stopping.is_empty()) {
            self.retry();
        }
        let has_written = self.write.walk.is_none() && !self.write.is_busy && !self.is_waiting_to_write();
        if !self.stopping.is_empty() && has_written {
            self.say_stopped();
        }
    }

    fn say_stopped(&mut self) {
        for reply in self.stopping.drain(..) {
            let _gave_up = reply.send(());
        }
    }

    fn is_waiting_to_write(&self) -> bool {
        self.waiting.iter().any(|waiting| matches!(waiting.work, Work::Write))
    }

    fn is_writing(&self) -> bool {
        self.write.walk.is_some()
            || self.write.is_busy
            || self.write.failed.is_some()
            || self.is_waiting_to_write()
    }

    fn can_step(&self) -> bool {
        self.write.walk.is_some() && !self.write.is_busy && self.write.failed.is_none()
    }

    /// Begins a write. One that has begun already goes on, and what came since is in the next.
    fn begin(&mut self) {
        if self.write.walk.is_none() {
            let to = Stamp::now();
            let interval = Interval::new(self.write.from, to);
            self.write.from = to;
            self.write.walk = Some((self.table.walk(), interval));
        } else if !self.stopping.is_empty() {
            self.waiting.push(Waiting { round: 0, deadline: Instant::now(), work: Work::Write });
        }
    }

    /// A step of a write: makes lines until there is a chunk or the step is over.
    fn step(&mut self) {
        let Some((mut walk, interval)) = self.write.walk.take() else { return };
        let Some(writer) = &mut self.writer else {
            // Without a file there is nothing to be made, but intervals end all the same.
            let is_done = self.table.step(&mut walk, STEP, |_| true);
            if is_done {
                self.table.take_unknown();
            } else {
                self.write.walk = Some((walk, interval));
            }
            return;
        };
        let mut lines = std::mem::take(&mut self.write.spare);
        let is_done = self.table.step(&mut walk, STEP, |delta| {
            writer.add(&mut lines, &interval, &delta);
            lines.len() < writer.chunk()
        });
        if is_done {
            let unknown = self.table.take_unknown();
            if unknown != Unknown::default() {
                writer.add_unknown(&mut lines, &interval, unknown);
            }
        }
        // An interval is made durable at its end. Its last step may have nothing to add.
        if lines.is_empty() && !(is_done && self.write.is_begun) {
            self.write.spare = lines;
        } else {
            writer.write(lines, is_done);
            self.write.is_busy = true;
            self.write.is_begun = !is_done;
        }
        if !is_done {
            self.write.walk = Some((walk, interval));
        }
    }

    fn written(&mut self, mut lines: Vec<u8>, result: Result<(), keyward_state::FileError>) {
        self.write.is_busy = false;
        match result {
            Ok(()) => {
                self.write.failed = None;
                lines.clear();
                self.write.spare = lines;
            }
            Err(error) => {
                if !self.stopping.is_empty() {
                    let lost = memchr::memchr_iter(b'\n', &lines).count();
                    error!(%error, lines = lost, "usage that could not be written is lost, and what was counted since");
                }
                self.write.failed = Some((lines, Instant::now() + RETRY.min(self.interval)));
                self.say_stopped();
            }
        }
    }

    /// Tries the same lines again: they have their numbers, and somebody may have seen a part of them.
    fn retry(&mut self) {
        if self.write.is_busy {
            return;
        }
        if let (Some(writer), Some((lines, at))) = (&self.writer, &mut self.write.failed) {
            writer.write(std::mem::take(lines), true);
            // It stays marked as failed until it is written.
            *at = Instant::now() + IDLE;
            self.write.is_busy = true;
        }
    }

    fn answer(&self, question: &UsageQuery) -> UsageReport {
        let (matched, total, keys) = self.table.answer(question);
        let Unknown { unknown_key, malformed_key } = self.table.all_unknown();
        let unknown = [("UNKNOWN_KEY", unknown_key), ("MALFORMED_KEY", malformed_key)];
        UsageReport {
            since: self.since.to_string(),
            as_of: Stamp::now().to_string(),
            matched,
            total,
            unknown: unknown.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            keys,
        }
    }
}
