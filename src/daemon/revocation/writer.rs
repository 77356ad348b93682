//! The thread that writes the list. Commands give it lines and wait for them to be durable; nothing that is in force
//! waits for it.
//!
//! Lines of commands that come together are written together. What cannot be written is tried again until it can, at short
//! intervals, so that a revocation is durable within a second after there is room again. Meanwhile the thread looks at the
//! file once a second: one that was removed or changed by another program is written anew.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use tracing::error;

use super::file::{self, File};
use super::line::Line;
use super::list::List;
use super::watermark::{self, ListClock};
use keyward_state::{FileError, StateDir, WriteHealth};

/// How long a command waits for the disk before it says that it is not durable yet: less than the command line's deadline.
const PATIENCE: Duration = Duration::from_secs(10);

/// How soon what could not be written is tried again. Each further time takes twice as long, up to the second.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_millis(400);

/// How often the file is looked at.
const CHECK: Duration = Duration::from_secs(1);

/// How often the mark is written for its clock alone: what a crash can set the clock back by.
const NOTE: Duration = Duration::from_secs(600);

/// Lines that wait for a disk, beyond as many as the list has entries, before the list itself is written instead of them.
const MAX_WAITING: usize = 1_000;

/// The commands' side. Ends the thread when it is dropped, after one last attempt to write.
pub(super) struct Writer {
    shared: Arc<Shared>,
    clock: ListClock,
    health: WriteHealth,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    queue: Mutex<Queue>,
    /// There are lines, or the end.
    given: Condvar,
    /// Lines were tried.
    tried: Condvar,
}

#[derive(Default)]
struct Queue {
    lines: Vec<Queued>,
    /// The number of the last line that was given.
    last: u64,
    /// That of the last line that was tried, and that of the last one that is durable.
    attempted: u64,
    written: u64,
    /// That of the last line of an attempt after which optional lines were given up.
    given_up: u64,
    /// Why the last attempt failed.
    error: Option<Arc<str>>,
    is_ending: bool,
}

struct Queued {
    line: Line,
    /// It is given up if it cannot be written at once.
    is_optional: bool,
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It would be found again after a restart and a loss of power.
    Durable,
    /// It would not, and why.
    NotDurable(Arc<str>),
}

impl Writer {
    /// Starts the thread that keeps `list` in `file`. `unwritten`: why the file could not be written when it was opened.
    ///
    /// # Errors
    /// When the system has no thread left.
    pub(super) fn start(
        directory: Arc<StateDir>,
        file: File,
        list: Arc<RwLock<List>>,
        unwritten: Option<&FileError>,
    ) -> io::Result<Self> {
        if let Some(error) = unwritten {
            directory.health().failed(file::NAME, error);
        }
        let queue = Mutex::new(Queue::default());
        let shared = Arc::new(Shared { queue, given: Condvar::new(), tried: Condvar::new() });
        let clock = file.clock();
        let health = directory.health().clone();
        let mut keeping = WriterThread {
            directory,
            file,
            list,
            shared: Arc::clone(&shared),
            waiting: Vec::new(),
            retry: unwritten.map(|_| FIRST_RETRY),
            noted: Instant::now(),
        };
        let thread = thread::Builder::new().name("revocations".into()).spawn(move || keeping.run())?;
        Ok(Self { shared, clock, health, thread: Some(thread) })
    }

    /// Gives lines to be written, and returns the number of the last. To be called in the order in which the list changes.
    pub(super) fn enqueue(&self, lines: impl IntoIterator<Item = Line>) -> u64 {
        self.enqueue_as(lines, false)
    }

    /// The same for lines that are given up if they cannot be written at once.
    pub(super) fn enqueue_optional(&self, lines: impl IntoIterator<Item = Line>) -> u64 {
        self.enqueue_as(lines, true)
    }

    fn enqueue_as(&self, lines: impl IntoIterator<Item = Line>, is_optional: bool) -> u64 {
        let mut queue = self.shared.queue();
        let before = queue.lines.len();
        queue.lines.extend(lines.into_iter().map(|line| Queued { line, is_optional }));
        queue.last += (queue.lines.len() - before) as u64;
        self.shared.given.notify_one();
        queue.last
    }

    /// Waits until line `ticket` is durable, or was tried in vain, or the disk takes too long.
    pub(super) fn wait(&self, ticket: u64) -> Durability {
        self.wait_for(ticket, Some(PATIENCE))
    }

    /// The same for as long as it takes, of optional lines.
    pub(super) fn wait_optional(&self, ticket: u64) -> Durability {
        self.wait_for(ticket, None)
    }

    /// `patience`: `None` for lines that are optional.
    fn wait_for(&self, ticket: u64, patience: Option<Duration>) -> Durability {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut queue = self.shared.queue();
        loop {
            // A later attempt can have succeeded since, without the lines that were given up.
            let is_given_up = patience.is_none() && queue.given_up >= ticket;
            if queue.written >= ticket && !is_given_up {
                return Durability::Durable;
            }
            if is_given_up || queue.attempted >= ticket && queue.error.is_some() {
                let error = queue.error.clone();
                return Durability::NotDurable(error.unwrap_or_else(|| "an attempt to write failed".into()));
            }
            let left = deadline.map_or(CHECK, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                let seconds = PATIENCE.as_secs();
                let error = format!("{}: the disk has not answered within {seconds} s", file::NAME);
                // Under the queue's lock: the thread reports what it has written after it has taken that.
                self.health.failed(file::NAME, &error);
                return Durability::NotDurable(error.into());
            }
            let waited = self.shared.tried.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The number of the last line that is durable.
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
        self.shared.given.notify_one();
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's own.
struct WriterThread {
    directory: Arc<StateDir>,
    file: File,
    list: Arc<RwLock<List>>,
    shared: Arc<Shared>,
    /// Lines that are not written yet.
    waiting: Vec<Queued>,
    /// How long to wait before the next attempt, if the last one failed.
    retry: Option<Duration>,
    /// When the mark was written last.
    noted: Instant,
}

impl WriterThread {
    fn run(&mut self) {
        loop {
            let (given, last, is_ending) = self.next();
            let is_disturbed = !self.file.is_intact() || !self.directory.has_lock();
            let is_due = !given.is_empty() || self.retry.is_some() || is_disturbed;
            self.waiting.extend(given);
            if is_due {
                match self.write() {
                    Ok(()) => self.done(last),
                    Err(error) => self.undone(last, &error),
                }
            } else {
                self.keep_mark();
            }
            if is_ending {
                self.end();
                return;
            }
        }
    }

    /// Waits for lines or for the next attempt, and takes all lines that are there.
    fn next(&self) -> (Vec<Queued>, u64, bool) {
        let deadline = Instant::now() + self.retry.unwrap_or(CHECK);
        let mut queue = self.shared.queue();
        while queue.lines.is_empty() && !queue.is_ending {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.given.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        (std::mem::take(&mut queue.lines), queue.last, queue.is_ending)
    }

    fn write(&mut self) -> Result<(), FileError> {
        // The list of a daemon that has the directory now must not be replaced.
        self.directory.keep_lock()?;
        let list = || self.list.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.file.add(self.waiting.iter().map(|queued| &queued.line), list)?;
        self.waiting.clear();
        self.note();
        let worn = Some(self.list.read().unwrap_or_else(PoisonError::into_inner));
        let worn = worn.filter(|list| self.file.needs_compaction(list)).map(|list| list.clone());
        if let Some(list) = worn {
            match self.file.rewrite(&list) {
                Ok(()) => self.note(),
                Err(error) => {
                    error!(%error, "the list of revocations cannot be shortened; it goes on growing")
                }
            }
        }
        Ok(())
    }

    fn done(&mut self, last: u64) {
        self.retry = None;
        let mut queue = self.shared.queue();
        self.directory.health().written(file::NAME);
        (queue.attempted, queue.written, queue.error) = (last, last, None);
        self.shared.tried.notify_all();
    }

    fn undone(&mut self, last: u64, error: &FileError) {
        self.directory.health().failed(file::NAME, error);
        let before = self.waiting.len();
        self.waiting.retain(|queued| !queued.is_optional);
        let has_given_up = self.waiting.len() < before;
        let again = self.retry.map_or(FIRST_RETRY, |retry| (2 * retry).min(LAST_RETRY));
        self.retry = Some(again);
        let entries = self.list.read().unwrap_or_else(PoisonError::into_inner).len();
        if self.waiting.len() > entries + MAX_WAITING {
            // The list says the same.
            self.waiting.clear();
            self.file.forget();
        }
        let mut queue = self.shared.queue();
        (queue.attempted, queue.error) = (last, Some(error.to_string().into()));
        if has_given_up {
            queue.given_up = last;
        }
        self.shared.tried.notify_all();
    }

    fn note(&mut self) {
        self.noted = Instant::now();
        let result = self.file.note();
        self.report_mark(result);
    }

    fn keep_mark(&mut self) {
        if self.noted.elapsed() >= NOTE {
            self.note();
        }
        let result = self.file.sync_mark();
        self.report_mark(result);
    }

    fn report_mark(&self, result: Result<(), FileError>) {
        match result {
            Ok(()) => self.directory.health().written(watermark::NAME),
            Err(error) => self.directory.health().failed(watermark::NAME, &error),
        }
    }

    fn end(&mut self) {
        if self.retry.is_none() {
            self.note();
            let result = self.file.sync_mark();
            self.report_mark(result);
        }
    }
}
