//! The usage thread: merges logs as they arrive, writes usage at intervals, and answers queries.
//!
//! Before a write or a report, all workers flush their logs (a *round*), so a report is as of the
//! moment of its query. The thread waits for nothing but its queue: a write is a walk over the
//! records in short steps, interleaved with messages, and the writer thread waits for the disk.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tracing::error;

use super::Message;
use super::backlog::Backlog;
use super::log::{Event, FlushedLog, UnknownKeys};
use super::query::UsageQuery;
use super::table::{Table, Walk};
use super::writer::{Interval, Writer};
use keyward_admin::message::UsageReport;
use keyward_state::{FileError, Timestamp};

#[cfg(test)]
mod tests;

/// How long a round waits for workers. A worker that a debugger has stopped must not stop reports.
const ROUND_TIMEOUT: Duration = Duration::from_secs(1);

/// Records visited in one step, so that logs do not wait long.
const STEP_RECORDS: usize = 16 * 1024;

/// The longest delay before a failed write is retried.
const RETRY: Duration = Duration::from_secs(1);

/// How long to wait if nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// The state of the usage thread.
pub(super) struct Collector {
    table: Table,
    interval: Duration,
    writer: Option<Writer>,
    rounds: watch::Sender<u64>,
    workers: Vec<Worker>,
    pending_rounds: Vec<PendingRound>,
    write: WriteProgress,
    backlog: Backlog,
    since: Timestamp,
    next_write: Instant,
    /// Requests to stop, not yet answered.
    stopping: Vec<oneshot::Sender<()>>,
}

/// What a worker has reported.
struct Worker {
    /// Returns empty logs to the worker.
    spares: SyncSender<Vec<Event>>,
    /// The latest round that it has flushed for.
    round: u64,
    /// The table generation of the oldest snapshot that it may use.
    table_generation: u64,
}

/// What to do when a round is over.
struct PendingRound {
    round: u64,
    deadline: Instant,
    action: RoundAction,
}

enum RoundAction {
    Report { query: UsageQuery, reply: oneshot::Sender<UsageReport> },
    Write,
}

/// The progress of a write.
struct WriteProgress {
    /// The beginning of the next interval.
    from: Timestamp,
    walk: Option<(Walk, Interval)>,
    /// Whether to begin a walk. If one is in progress, the new one follows it.
    is_requested: bool,
    /// Whether some of the interval's lines have been written and are not durable yet.
    is_begun: bool,
    /// Whether the writer has a chunk.
    is_busy: bool,
    /// A chunk that could not be written, and when to retry. The writer is idle until then.
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
        let since = Timestamp::now();
        let workers =
            spares.into_iter().map(|spares| Worker { spares, round: 0, table_generation: 0 }).collect();
        Self {
            table: Table::default(),
            interval,
            writer,
            rounds,
            workers,
            pending_rounds: Vec::new(),
            write: WriteProgress {
                from: since,
                walk: None,
                is_requested: false,
                is_begun: false,
                is_busy: false,
                failed: None,
                spare: Vec::new(),
            },
            backlog: Backlog::default(),
            since,
            next_write: Instant::now() + interval,
            stopping: Vec::new(),
        }
    }

    /// What is not written yet.
    pub(super) fn backlog(&self) -> Backlog {
        self.backlog.clone()
    }

    /// Runs until the process ends, if usage is written to a file: the writer thread has a sender
    /// of messages, and lives as long as this thread. Without a file, it runs until the workers'
    /// logs and all handles are dropped.
    pub(super) fn run(mut self, messages: &Receiver<Message>) {
        loop {
            match messages.recv_timeout(self.idle_for(Instant::now())) {
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.advance(Instant::now());
        }
    }

    /// How long to wait for a message before something else is due.
    fn idle_for(&self, now: Instant) -> Duration {
        if self.can_step() {
            return Duration::ZERO;
        }
        let retry = self.write.failed.as_ref().map(|(_, at)| *at);
        let write = (!self.is_writing()).then_some(self.next_write);
        let rounds = self.pending_rounds.iter().map(|pending| pending.deadline);
        let next = rounds.chain(retry).chain(write).min();
        next.map_or(IDLE, |next| next.saturating_duration_since(now))
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Log(mut log) => {
                let has_usage = !log.events.is_empty() || log.unknown != UnknownKeys::default();
                if has_usage && self.writer.is_some() {
                    self.backlog.add(Instant::now());
                }
                self.table.merge(&mut log);
                self.return_buffer(log);
            }
            Message::Flushed { worker, round, table_generation } => {
                if let Some(worker) = self.workers.get_mut(worker) {
                    worker.round = worker.round.max(round);
                    worker.table_generation = worker.table_generation.max(table_generation);
                }
                let oldest = self.workers.iter().map(|worker| worker.table_generation).min();
                self.table.release_views_before(oldest.unwrap_or(0));
            }
            Message::Query { query, reply } => self.after_round(RoundAction::Report { query, reply }),
            Message::Written { lines, result } => self.on_written(lines, result),
            Message::Stop { reply } => {
                self.stopping.push(reply);
                self.after_round(RoundAction::Write);
            }
        }
    }

    fn return_buffer(&self, log: FlushedLog) {
        if let Some(worker) = self.workers.get(log.worker)
            && log.events.capacity() > 0
        {
            // A worker with enough spares does not take it.
            let _ = worker.spares.try_send(log.events);
        }
    }

    /// Requests that all workers flush their logs, and does `action` when they have.
    fn after_round(&mut self, action: RoundAction) {
        let mut round = 0;
        self.rounds.send_modify(|number| {
            *number += 1;
            round = *number;
        });
        self.pending_rounds.push(PendingRound { round, deadline: Instant::now() + ROUND_TIMEOUT, action });
    }

    /// Does everything that is due.
    fn advance(&mut self, now: Instant) {
        let due = now >= self.next_write && !self.is_writing();
        if due {
            self.next_write = now + self.interval;
            self.after_round(RoundAction::Write);
        }
        let flushed = self.workers.iter().map(|worker| worker.round).min().unwrap_or(u64::MAX);
        let is_over = |pending: &mut PendingRound| pending.round <= flushed || pending.deadline <= now;
        let over: Vec<PendingRound> = self.pending_rounds.extract_if(.., is_over).collect();
        for PendingRound { action, .. } in over {
            match action {
                RoundAction::Report { query, reply } => drop(reply.send(self.report(&query))),
                RoundAction::Write => self.write.is_requested = true,
            }
        }
        if self.can_step() {
            if self.write.walk.is_none() {
                self.begin_write();
            }
            self.step_write();
        } else if self.write.failed.as_ref().is_some_and(|(_, at)| *at <= now || !self.stopping.is_empty()) {
            self.retry_write();
        }
        if !self.stopping.is_empty() && !self.is_writing() {
            self.notify_stopped();
        }
    }

    fn notify_stopped(&mut self) {
        for reply in self.stopping.drain(..) {
            // The receiver may have timed out.
            let _ = reply.send(());
        }
    }

    fn is_write_pending(&self) -> bool {
        self.pending_rounds.iter().any(|pending| matches!(pending.action, RoundAction::Write))
    }

    fn is_writing(&self) -> bool {
        self.write.is_requested
            || self.write.walk.is_some()
            || self.write.is_busy
            || self.write.failed.is_some()
            || self.is_write_pending()
    }

    fn can_step(&self) -> bool {
        let has_step = self.write.walk.is_some() || self.write.is_requested;
        has_step && !self.write.is_busy && self.write.failed.is_none()
    }

    fn begin_write(&mut self) {
        let to = Timestamp::now();
        let interval = Interval::new(self.write.from, to);
        self.write.from = to;
        self.write.is_requested = false;
        self.write.walk = Some((self.table.walk(), interval));
        self.backlog.begin_write();
    }

    /// One step of a write: encodes lines until a chunk is full or the step is over.
    fn step_write(&mut self) {
        let Some((mut walk, interval)) = self.write.walk.take() else { return };
        let Some(writer) = &mut self.writer else {
            // Without a file there are no lines, but intervals end all the same.
            let is_done = self.table.step(&mut walk, STEP_RECORDS, |_| true);
            if is_done {
                self.table.take_unknown();
            } else {
                self.write.walk = Some((walk, interval));
            }
            return;
        };
        let mut lines = std::mem::take(&mut self.write.spare);
        let is_done = self.table.step(&mut walk, STEP_RECORDS, |delta| {
            writer.add(&mut lines, &interval, &delta);
            lines.len() < writer.chunk_bytes()
        });
        if is_done {
            let unknown = self.table.take_unknown();
            if unknown != UnknownKeys::default() {
                writer.add_unknown(&mut lines, &interval, unknown);
            }
        }
        // An interval becomes durable with its last chunk, which may be empty.
        if lines.is_empty() && !(is_done && self.write.is_begun) {
            self.write.spare = lines;
            if is_done {
                self.backlog.end_write();
            }
        } else {
            writer.write(lines, is_done);
            self.write.is_busy = true;
            self.write.is_begun = !is_done;
        }
        if !is_done {
            self.write.walk = Some((walk, interval));
        }
    }

    fn on_written(&mut self, mut lines: Vec<u8>, result: Result<(), FileError>) {
        self.write.is_busy = false;
        match result {
            Ok(()) => {
                lines.clear();
                self.write.spare = lines;
                if self.write.walk.is_none() {
                    self.backlog.end_write();
                }
            }
            Err(error) => {
                if !self.stopping.is_empty() {
                    let lost = memchr::memchr_iter(b'\n', &lines).count();
                    self.backlog.lose(lost as u64);
                    error!(%error, lines = lost, "usage that could not be written is lost, and what was counted since");
                }
                self.write.failed = Some((lines, Instant::now() + RETRY.min(self.interval)));
                self.notify_stopped();
            }
        }
    }

    /// Writes the same lines again: they have their numbers, and a reader may have seen a part of
    /// them.
    fn retry_write(&mut self) {
        if let (Some(writer), Some((lines, _))) = (&self.writer, self.write.failed.take()) {
            writer.write(lines, true);
            self.write.is_busy = true;
        }
    }

    fn report(&self, query: &UsageQuery) -> UsageReport {
        let (matched, total, keys) = self.table.query(query);
        let UnknownKeys { unknown_key, malformed_key } = self.table.all_unknown();
        let unknown = [("UNKNOWN_KEY", unknown_key), ("MALFORMED_KEY", malformed_key)];
        UsageReport {
            since: self.since.to_string(),
            as_of: Timestamp::now().to_string(),
            matched,
            total,
            unknown: unknown.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            keys,
        }
    }
}
