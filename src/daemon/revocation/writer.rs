//! The thread that writes the list. Commands queue lines and wait until they are durable. Putting a
//! revocation in force does not wait for it.
//!
//! Lines of concurrent commands are written together. A failed write is retried at short intervals,
//! so a revocation is durable within a second after the disk has recovered. The thread also checks
//! the file once a second, and rewrites it if another program has removed or changed it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use tracing::error;

use super::line::Line;
use super::list::List;
use super::list_file::{self, ListFile};
use super::watermark::{self, ListClock};
use keyward_state::{FileError, Generations, StateDir, WriteHealth, time};

/// How long a command waits for the disk. It is less than the deadline of the command line.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// The delays before the first retry, and at most. The delay doubles with each failure.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_millis(400);

/// The interval of checking the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The interval of writing the high-water mark for its clock alone: a crash sets the clock back by
/// as much.
const WATERMARK_INTERVAL: Duration = Duration::from_secs(600);

/// With more unwritten lines than entries plus this, the list itself is written instead of them.
const MAX_EXTRA_LINES: usize = 1_000;

/// The handle for commands. Dropping it ends the thread after a last attempt to write.
pub(super) struct Writer {
    shared: Arc<WriteQueue>,
    clock: ListClock,
    health: WriteHealth,
    thread: Option<JoinHandle<()>>,
}

struct WriteQueue {
    queue: Mutex<Queue>,
    /// Notified of new lines and of the end.
    queued: Condvar,
    /// Notified after each attempt to write.
    attempted: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: Vec<Queued>,
    /// The ticket of the last queued line. Tickets number the lines of this process.
    last: u64,
    /// The tickets of the last line that was attempted, and of the last durable one.
    attempted: u64,
    written: u64,
    /// The ticket of the last line of an attempt that abandoned optional lines.
    abandoned: u64,
    /// Why the last attempt failed.
    error: Option<Arc<str>>,
    is_ending: bool,
}

struct Queued {
    line: Line,
    importance: Importance,
}

/// Whether a line must be written in the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Importance {
    /// Retried until it is written. A command waits for it for [`COMMAND_TIMEOUT`].
    Required,
    /// Abandoned if the first attempt fails. A reload waits for that attempt without a limit.
    Optional,
}

/// Whether a change is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It survives a restart and a loss of power.
    Durable,
    /// It does not, for this reason.
    NotDurable(Arc<str>),
}

impl Writer {
    /// Starts the thread that writes `list` to `file`. `unwritten` is why the file could not be
    /// written when it was opened.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(super) fn start(
        directory: Arc<StateDir>,
        file: ListFile,
        list: Arc<RwLock<List>>,
        generations: Generations,
        unwritten: Option<&FileError>,
    ) -> io::Result<Self> {
        if let Some(error) = unwritten {
            directory.health().failed(list_file::NAME, error);
        }
        let queue = Mutex::new(Queue::default());
        let shared = Arc::new(WriteQueue { queue, queued: Condvar::new(), attempted: Condvar::new() });
        let clock = file.clock();
        let health = directory.health().clone();
        let mut writer = WriterThread {
            directory,
            file,
            list,
            generations,
            shared: Arc::clone(&shared),
            unwritten: Vec::new(),
            retry: unwritten.map(|_| FIRST_RETRY),
            watermark_written_at: time::Instant::now(),
        };
        let thread = thread::Builder::new().name("revocations".into()).spawn(move || writer.run())?;
        Ok(Self { shared, clock, health, thread: Some(thread) })
    }

    /// Queues lines, and returns the ticket of the last one. Call it in the order in which the list
    /// changes.
    pub(super) fn enqueue(&self, lines: impl IntoIterator<Item = Line>) -> u64 {
        self.enqueue_as(lines, Importance::Required)
    }

    /// As [`enqueue`](Self::enqueue), for lines that are abandoned if the first attempt fails.
    pub(super) fn enqueue_optional(&self, lines: impl IntoIterator<Item = Line>) -> u64 {
        self.enqueue_as(lines, Importance::Optional)
    }

    fn enqueue_as(&self, lines: impl IntoIterator<Item = Line>, importance: Importance) -> u64 {
        let mut queue = self.shared.queue();
        let before = queue.lines.len();
        queue.lines.extend(lines.into_iter().map(|line| Queued { line, importance }));
        queue.last += (queue.lines.len() - before) as u64;
        self.shared.queued.notify_one();
        time::wake();
        queue.last
    }

    /// Waits until the line `ticket` is durable, an attempt has failed, or the disk takes too long.
    pub(super) fn wait(&self, ticket: u64) -> Durability {
        self.wait_for(ticket, Importance::Required)
    }

    /// As [`wait`](Self::wait), for an optional line and without a timeout.
    pub(super) fn wait_optional(&self, ticket: u64) -> Durability {
        self.wait_for(ticket, Importance::Optional)
    }

    fn wait_for(&self, ticket: u64, importance: Importance) -> Durability {
        let deadline = match importance {
            Importance::Required => Some(Instant::now() + COMMAND_TIMEOUT),
            Importance::Optional => None,
        };
        let mut queue = self.shared.queue();
        loop {
            // A later attempt may have succeeded without the abandoned lines.
            let is_abandoned = importance == Importance::Optional && queue.abandoned >= ticket;
            if queue.written >= ticket && !is_abandoned {
                return Durability::Durable;
            }
            if is_abandoned || queue.attempted >= ticket && queue.error.is_some() {
                let error = queue.error.clone();
                return Durability::NotDurable(error.unwrap_or_else(|| "an attempt to write failed".into()));
            }
            let left = deadline
                .map_or(CHECK_INTERVAL, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let seconds = COMMAND_TIMEOUT.as_secs();
                let error = format!("{}: the disk has not answered within {seconds} s", list_file::NAME);
                // Under the queue's lock, because the thread reports a success under it.
                self.health.failed(list_file::NAME, &error);
                return Durability::NotDurable(error.into());
            }
            let waited = self.shared.attempted.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The ticket of the last durable line.
    pub(super) fn written(&self) -> u64 {
        self.shared.queue().written
    }

    /// Which files are not being written.
    #[cfg(test)]
    pub(super) fn health(&self) -> &WriteHealth {
        &self.health
    }

    /// The list's clock.
    pub(super) fn clock(&self) -> ListClock {
        self.clock
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue().is_ending = true;
        self.shared.queued.notify_one();
        time::wake();
        // A panic of the thread has been reported already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl WriteQueue {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of the thread.
struct WriterThread {
    directory: Arc<StateDir>,
    file: ListFile,
    list: Arc<RwLock<List>>,
    /// The numbers that commands take.
    generations: Generations,
    shared: Arc<WriteQueue>,
    /// Lines that are not written yet.
    unwritten: Vec<Queued>,
    /// The delay before the next attempt, if the last one failed.
    retry: Option<Duration>,
    /// When the high-water mark was written last.
    watermark_written_at: time::Instant,
}

impl WriterThread {
    fn run(&mut self) {
        loop {
            let (queued, last, is_ending) = self.next();
            let is_disturbed = !self.file.is_intact() || !self.directory.has_lock();
            let is_due = !queued.is_empty() || self.retry.is_some() || is_disturbed;
            self.unwritten.extend(queued);
            if is_due {
                match self.write() {
                    Ok(()) => self.on_success(last),
                    Err(error) => self.on_failure(last, &error),
                }
            } else {
                self.maintain_watermark();
            }
            if is_ending {
                self.finish();
                return;
            }
            // Ahead of the commands, which do not wait for it.
            if self.generations.is_low() {
                self.generations.reserve();
            }
        }
    }

    /// Waits for lines or until the next attempt is due, and takes all queued lines.
    fn next(&self) -> (Vec<Queued>, u64, bool) {
        let timeout = self.retry.unwrap_or(CHECK_INTERVAL);
        let is_idle = |queue: &mut Queue| queue.lines.is_empty() && !queue.is_ending;
        let mut queue = time::wait_timeout_while(&self.shared.queued, &self.shared.queue, timeout, is_idle);
        (std::mem::take(&mut queue.lines), queue.last, queue.is_ending)
    }

    fn write(&mut self) -> Result<(), FileError> {
        // Must not replace the list of another daemon that has the directory now.
        self.directory.ensure_lock()?;
        let list = || self.list.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.file.add(self.unwritten.iter().map(|queued| &queued.line), list)?;
        self.unwritten.clear();
        self.write_watermark();
        let list = Some(self.list.read().unwrap_or_else(PoisonError::into_inner));
        let list = list.filter(|list| self.file.needs_compaction(list)).map(|list| list.clone());
        if let Some(list) = list {
            match self.file.rewrite(&list) {
                Ok(()) => self.write_watermark(),
                Err(error) => {
                    error!(%error, "the list of revocations cannot be compacted; its file keeps growing")
                }
            }
        }
        Ok(())
    }

    fn on_success(&mut self, last: u64) {
        self.retry = None;
        let mut queue = self.shared.queue();
        self.directory.health().written(list_file::NAME);
        (queue.attempted, queue.written, queue.error) = (last, last, None);
        self.shared.attempted.notify_all();
    }

    fn on_failure(&mut self, last: u64, error: &FileError) {
        self.directory.health().failed(list_file::NAME, error);
        let before = self.unwritten.len();
        self.unwritten.retain(|queued| queued.importance == Importance::Required);
        let has_abandoned = self.unwritten.len() < before;
        let retry = self.retry.map_or(FIRST_RETRY, |retry| (2 * retry).min(MAX_RETRY));
        self.retry = Some(retry);
        let entries = self.list.read().unwrap_or_else(PoisonError::into_inner).len();
        if self.unwritten.len() > entries + MAX_EXTRA_LINES {
            // The list has the same content.
            self.unwritten.clear();
            self.file.invalidate();
        }
        let mut queue = self.shared.queue();
        (queue.attempted, queue.error) = (last, Some(error.to_string().into()));
        if has_abandoned {
            queue.abandoned = last;
        }
        self.shared.attempted.notify_all();
    }

    fn write_watermark(&mut self) {
        self.watermark_written_at = time::Instant::now();
        let result = self.file.write_watermark();
        self.report_watermark(result);
    }

    fn maintain_watermark(&mut self) {
        if self.watermark_written_at.elapsed() >= WATERMARK_INTERVAL {
            self.write_watermark();
        }
        let result = self.file.sync_watermark();
        self.report_watermark(result);
    }

    fn report_watermark(&self, result: Result<(), FileError>) {
        match result {
            Ok(()) => self.directory.health().written(watermark::NAME),
            Err(error) => self.directory.health().failed(watermark::NAME, &error),
        }
    }

    fn finish(&mut self) {
        if self.retry.is_none() {
            self.write_watermark();
            let result = self.file.sync_watermark();
            self.report_watermark(result);
        }
    }
}
