//! The audit trail: who changed what is answered, and who was turned away, in `audit.jsonl` of the state directory.
//!
//! One JSON object a line, only ever appended; `seq` goes up by one from line to line, over rotations and restarts, so
//! that a gap shows. What an event may say is fixed by its type ([`Event`]): ids and numbers, no text of an export, and so
//! never a key or a hash.
//!
//! An event is durable when [`record`](Audit::record) returns. Only refusals of peers are not: whoever is refused can come
//! back thousands of times a second, so they are counted ([`refusals`]) and written by a thread of their own, a line for a
//! user and a minute, without waiting for the disk. A disk that is full stops nothing: lines wait in memory, a bounded
//! number of them, and are tried again every second; what was lost is a line of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::clock::Stamp;
use keyward_state::{FileError, LazyJournal, Rotation, StateDir, WriteHealth};

mod event;
mod refusals;

#[cfg(test)]
mod tests;

pub use event::{
    AccessExamples, Event, FileLocation, LastGood, Peer, PeerRefusal, Reload, Revocation, RevocationStatus,
    Socket, Trigger, Withheld,
};
use refusals::Refusals;

/// The name of the file.
const FILE: &str = "audit.jsonl";

/// Bytes of lines that wait for a disk that takes none: some thousand events.
const MAX_WAITING: usize = 256 * 1024;

/// Events that are written at once: half of what may wait, with the longest names there are.
const BATCH: usize = 256;

/// How long the thread sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// How long lines that could not be written wait before they are tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Writes events down; clones write to the same file. Without a state directory it does nothing.
#[derive(Clone)]
pub struct Audit {
    trail: Option<Arc<Trail>>,
}

struct Trail {
    /// The snapshot in force.
    generation: AtomicU64,
    writer: Mutex<Writer>,
    /// Apart from the writer, so that who accepts connections never waits for a disk.
    refusals: Mutex<Refusals>,
    wake: SyncSender<()>,
    health: WriteHealth,
}

struct Writer {
    journal: LazyJournal,
    /// Of the last line.
    seq: u64,
    /// Lines that could not be written yet.
    waiting: Vec<u8>,
    lost: u64,
    /// Lines have been written that are not durable yet, and are to be.
    unsynced: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    seq: u64,
    time: Stamp,
    generation: u64,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

#[derive(Deserialize)]
struct Seq {
    seq: u64,
}

impl Audit {
    /// Goes on with the trail in `directory`.
    ///
    /// # Errors
    /// When its file cannot be opened.
    pub fn open(directory: &StateDir, rotation: Rotation) -> Result<Self, FileError> {
        let (journal, last_line) = LazyJournal::open(directory, FILE, rotation)?;
        let seq = last_line.and_then(|line| serde_json::from_slice(&line).ok()).map_or(0, |Seq { seq }| seq);
        let writer = Mutex::new(Writer { journal, seq, waiting: Vec::new(), lost: 0, unsynced: false });
        let (wake, woken) = sync_channel(1);
        let refusals = Mutex::new(Refusals::default());
        let health = directory.health().clone();
        let trail = Arc::new(Trail { generation: AtomicU64::new(0), writer, refusals, wake, health });
        let weak = Arc::downgrade(&trail);
        let started =
            std::thread::Builder::new().name("audit".into()).spawn(move || write_refusals(&weak, &woken));
        started.map_err(|error| FileError {
            path: directory.path(FILE),
            what: "start the thread that writes to it",
            error,
        })?;
        Ok(Self { trail: Some(trail) })
    }

    /// Writes nothing.
    pub fn disabled() -> Self {
        Self { trail: None }
    }

    /// From here on, events belong to this snapshot.
    pub fn set_generation(&self, generation: u64) {
        if let Some(trail) = &self.trail {
            trail.generation.store(generation, Ordering::Relaxed);
        }
    }

    /// Writes an event down, and waits until it is durable. What goes wrong is said in the log and ends nothing.
    pub fn record(&self, event: &Event<'_>) {
        if let Some(trail) = &self.trail {
            trail.write(&[event], true);
        }
    }

    /// Writes several down at once, as [`record`](Self::record) does one.
    pub fn record_all(&self, events: &[Event<'_>]) {
        if let Some(trail) = &self.trail {
            for batch in events.chunks(BATCH) {
                trail.write(&batch.iter().collect::<Vec<_>>(), true);
            }
        }
    }

    /// A peer may not use a socket. Waits for nothing.
    pub fn refuse_peer(&self, socket: Socket, peer: Peer) {
        if let Some(trail) = &self.trail
            && lock(&trail.refusals).add(socket, peer, Instant::now())
        {
            // One that is there already wakes it as well.
            let _woken = trail.wake.try_send(());
        }
    }

    /// The daemon ends: writes what was counted, and that.
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
                // So that the thread tries again; where it has been woken already, it will.
                let _woken = self.wake.try_send(());
            }
        }
    }

    /// Whether lines wait for a disk that has taken none.
    fn is_behind(&self) -> bool {
        let writer = lock(&self.writer);
        writer.unsynced || !writer.waiting.is_empty()
    }
}

impl Writer {
    /// Puts a line behind those that wait.
    fn add(&mut self, generation: u64, event: &Event<'_>) {
        if self.waiting.len() >= MAX_WAITING {
            self.lost += 1;
            return;
        }
        let line = Line { seq: self.seq + 1, time: Stamp::now(), generation, event };
        let before = self.waiting.len();
        match serde_json::to_writer(&mut self.waiting, &line) {
            Ok(()) => {
                self.waiting.push(b'\n');
                self.seq += 1;
            }
            // Numbers and texts: it cannot fail, but if it does, not by half a line.
            Err(_) => {
                self.waiting.truncate(before);
                self.lost += 1;
            }
        }
    }

    fn write(&mut self, generation: u64) -> Result<(), FileError> {
        self.journal.append(&self.waiting)?;
        self.waiting.clear();
        if self.lost > 0 {
            let events = std::mem::take(&mut self.lost);
            self.add(generation, &Event::Lost { events });
            self.journal.append(&self.waiting)?;
            self.waiting.clear();
        }
        if self.unsynced {
            self.journal.sync()?;
            self.unsynced = false;
        }
        Ok(())
    }
}

/// The thread: sleeps until a refusal is due, for as long as there is a trail.
fn write_refusals(trail: &Weak<Trail>, woken: &Receiver<()>) {
    let mut wait = IDLE;
    loop {
        let retry = match woken.recv_timeout(wait) {
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
