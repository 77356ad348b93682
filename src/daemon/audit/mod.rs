//! The audit trail: changes of what is answered, and refused peers, in `audit.jsonl` of the state
//! directory.
//!
//! Each line is a JSON object. Lines are only appended; `seq` increases by one from line to line,
//! across rotations and restarts, so a gap shows. The type of an event determines its content
//! ([`Event`]): ids, names of limits and numbers, no other text of an export, and so never a key or a
//! hash.
//!
//! An event is durable when [`record`](Audit::record) returns. Refusals of peers are the exception:
//! a peer can be refused thousands of times a second. They are counted ([`refusals`]), and a thread
//! writes one line per user and minute, without waiting for the disk. A full disk stops nothing: a
//! bounded number of lines waits in memory, and the write is retried every second. Lines that are
//! lost are reported by a line of their own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use keyward_state::{FileError, LazyJournal, Rotation, StateDir, Timestamp, WriteHealth, time};

mod event;
mod refusals;

#[cfg(test)]
mod tests;

pub use event::{
    AccessExamples, BalanceReset, Event, FileLocation, LastGood, Peer, PeerRefusal, Reload, Revocation,
    RevocationStatus, Socket, TriggerKind, Withheld,
};
use refusals::Refusals;

/// The name of the file.
const FILE: &str = "audit.jsonl";

/// Maximum number of bytes of lines that wait in memory for the disk: some thousand events.
const MAX_PENDING_BYTES: usize = 256 * 1024;

/// Events in one write: half of what may wait, even with the longest names.
const EVENTS_PER_WRITE: usize = 256;

/// How long the thread sleeps if nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// Delay before a failed write is retried.
const RETRY: Duration = Duration::from_secs(1);

/// Records events. Clones write to the same file. Without a state directory it does nothing.
#[derive(Clone)]
pub struct Audit {
    trail: Option<Arc<Trail>>,
}

struct Trail {
    /// The generation in force.
    generation: AtomicU64,
    writer: Mutex<Writer>,
    /// Separate from the writer, so that accepting connections never waits for the disk.
    refusals: Mutex<Refusals>,
    wake: SyncSender<()>,
    health: WriteHealth,
}

struct Writer {
    journal: LazyJournal,
    /// The number of the last line.
    seq: u64,
    /// Lines that are not written yet.
    pending: Vec<u8>,
    /// Events that were lost since the last write.
    lost: u64,
    /// Whether lines that have to be durable are not synced yet.
    unsynced: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    time: Timestamp,
    generation: u64,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

#[derive(Deserialize)]
struct Seq {
    seq: u64,
}

impl Audit {
    /// Continues the trail in `directory`.
    ///
    /// # Errors
    /// When its file cannot be opened.
    pub fn open(directory: &StateDir, rotation: Rotation) -> Result<Self, FileError> {
        let (journal, last_line) = LazyJournal::open(directory, FILE, rotation)?;
        let seq = last_line.and_then(|line| serde_json::from_slice(&line).ok()).map_or(0, |Seq { seq }| seq);
        let writer = Mutex::new(Writer { journal, seq, pending: Vec::new(), lost: 0, unsynced: false });
        let (wake, woken) = sync_channel(1);
        let refusals = Mutex::new(Refusals::default());
        let health = directory.health().clone();
        let trail = Arc::new(Trail { generation: AtomicU64::new(0), writer, refusals, wake, health });
        let weak = Arc::downgrade(&trail);
        let started =
            std::thread::Builder::new().name("audit".into()).spawn(move || write_refusals(&weak, &woken));
        started.map_err(|error| FileError {
            path: directory.path(FILE),
            action: "start the thread that writes to it",
            error,
        })?;
        Ok(Self { trail: Some(trail) })
    }

    /// A trail that records nothing.
    pub fn disabled() -> Self {
        Self { trail: None }
    }

    /// Sets the generation that the following events belong to. Of several threads, the latest
    /// generation stays.
    pub fn set_generation(&self, generation: u64) {
        if let Some(trail) = &self.trail {
            trail.generation.fetch_max(generation, Ordering::Relaxed);
        }
    }

    /// Records an event, and waits until it is durable. A failure is logged; it is not an error for
    /// the caller.
    pub fn record(&self, event: &Event<'_>) {
        if let Some(trail) = &self.trail {
            trail.write(&[event], true);
        }
    }

    /// Records several events, as [`record`](Self::record) does.
    pub fn record_all(&self, events: &[Event<'_>]) {
        if let Some(trail) = &self.trail {
            for batch in events.chunks(EVENTS_PER_WRITE) {
                trail.write(&batch.iter().collect::<Vec<_>>(), true);
            }
        }
    }

    /// Counts a peer that may not use a socket. Does not wait.
    pub fn refuse_peer(&self, socket: Socket, peer: Peer) {
        if let Some(trail) = &self.trail
            && lock(&trail.refusals).add(socket, peer, Instant::now())
        {
            // If the channel is full, the thread wakes up anyway.
            let _ = trail.wake.try_send(());
            time::wake();
        }
    }

    /// Records pending refusals and the end of the daemon.
    pub fn stop(&self) {
        if let Some(trail) = &self.trail {
            let refusals = lock(&trail.refusals).take_all();
            let events: Vec<Event<'_>> = refusals.into_iter().map(Event::PeerRefused).collect();
            let events: Vec<_> = events.iter().chain([&Event::Stop]).collect();
            trail.write(&events, true);
        }
    }
}

impl Trail {
    fn write(&self, events: &[&Event<'_>], durable: bool) {
        let generation = self.generation.load(Ordering::Relaxed);
        let mut writer = lock(&self.writer);
        let lost = writer.lost;
        for event in events {
            writer.add(generation, event);
        }
        let newly_lost = writer.lost - lost;
        writer.unsynced |= durable;
        match writer.write(generation) {
            Ok(()) => self.health.written(FILE),
            Err(error) => {
                self.health.failed(FILE, &error);
                self.health.dropped(FILE, newly_lost);
                // The thread retries. If the channel is full, it wakes up anyway.
                let _ = self.wake.try_send(());
                time::wake();
            }
        }
    }

    /// Whether lines wait for the disk.
    fn is_behind(&self) -> bool {
        let writer = lock(&self.writer);
        writer.unsynced || !writer.pending.is_empty()
    }
}

impl Writer {
    /// Appends a line to the pending ones.
    fn add(&mut self, generation: u64, event: &Event<'_>) {
        if self.pending.len() >= MAX_PENDING_BYTES {
            self.lost += 1;
            return;
        }
        let line = Line { seq: self.seq + 1, time: Timestamp::now(), generation, event };
        let before = self.pending.len();
        match serde_json::to_writer(&mut self.pending, &line) {
            Ok(()) => {
                self.pending.push(b'\n');
                self.seq += 1;
            }
            // Numbers and text always encode. If not, no half line must remain.
            Err(_) => {
                self.pending.truncate(before);
                self.lost += 1;
            }
        }
    }

    fn write(&mut self, generation: u64) -> Result<(), FileError> {
        self.journal.append(&self.pending)?;
        self.pending.clear();
        if self.lost > 0 {
            let events = std::mem::take(&mut self.lost);
            self.add(generation, &Event::Lost { events });
            self.journal.append(&self.pending)?;
            self.pending.clear();
        }
        if self.unsynced {
            self.journal.sync()?;
            self.unsynced = false;
        }
        Ok(())
    }
}

/// The main function of the thread: writes refusals when they are due, while the trail exists.
fn write_refusals(trail: &Weak<Trail>, woken: &Receiver<()>) {
    let mut wait = IDLE;
    loop {
        let retry = match time::recv_timeout(woken, wait) {
            Ok(()) => false,
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Some(trail) = trail.upgrade() else { return };
        let now = Instant::now();
        let (due, next) = {
            let mut refusals = lock(&trail.refusals);
            (refusals.take_due(now), refusals.next_due())
        };
        let events: Vec<Event<'_>> = due.into_iter().map(Event::PeerRefused).collect();
        if !events.is_empty() || (retry && trail.is_behind()) {
            trail.write(&events.iter().collect::<Vec<_>>(), false);
        }
        wait = next.map_or(IDLE, |next| next.saturating_duration_since(now));
        if trail.is_behind() {
            wait = wait.min(RETRY);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
