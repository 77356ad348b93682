//! A worker's log: what it has counted and not handed over yet.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use keyward_protocol::Verdict;
use tokio::sync::{Notify, watch};

use super::{Message, QUEUE, Shared};
use keyward_engine::verify::RequestUsage;

/// Events in a log: some 2 ms of a busy worker, and 128 KiB, so that they are merged before they leave the second-level cache.
const CAPACITY: usize = 8 * 1024;

/// Empty logs that a worker gets back, at most: one to go on with, and as many as may have waited.
const SPARES: usize = QUEUE + 1;

/// Verdicts have values below this; what is counted besides comes after them.
pub(super) const VERDICTS: u8 = 16;
/// Something was given back.
pub(super) const REFUNDED: u8 = VERDICTS;
/// A balance was asked for, and nothing charged.
pub(super) const PEEKED: u8 = VERDICTS + 1;
/// A limit in shadow mode would have refused.
pub(super) const SHADOW_LIMITED: u8 = VERDICTS + 2;

/// One request that was about a key.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Event {
    /// The key's entry in the snapshot.
    pub(super) entry: u32,
    pub(super) cost: u32,
    /// When, in Unix seconds.
    pub(super) unix: u32,
    /// The verdict's value, [`REFUNDED`] or [`PEEKED`].
    pub(super) what: u8,
    /// Whether it is [`SHADOW_LIMITED`] as well.
    pub(super) shadow: bool,
    pub(super) reserved: [u8; 2],
}

const _: () = assert!(size_of::<Event>() == 16);

/// A log that is handed over.
pub(super) struct Batch {
    pub(super) worker: usize,
    /// What the events' entries belong to. A log without events may have none.
    pub(super) snapshot: Option<Shared>,
    pub(super) events: Vec<Event>,
    pub(super) unknown: Unknown,
}

/// Requests with keys that are not in the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unknown {
    pub(super) unknown_key: u64,
    pub(super) malformed_key: u64,
}

impl Unknown {
    pub(super) fn add(&mut self, other: Self) {
        self.unknown_key += other.unknown_key;
        self.malformed_key += other.malformed_key;
    }
}

/// One worker's.
pub struct UsageLog {
    worker: usize,
    events: Vec<Event>,
    unknown: Unknown,
    unix: u32,
    snapshot: Option<Shared>,
    queue: SyncSender<Message>,
    spares: Receiver<Vec<Event>>,
    rounds: watch::Receiver<u64>,
    has_news: Arc<Notify>,
    has_said_so: bool,
}

impl UsageLog {
    /// Also returns where empty logs go back to.
    pub(super) fn new(
        worker: usize,
        queue: SyncSender<Message>,
        rounds: watch::Receiver<u64>,
    ) -> (Self, SyncSender<Vec<Event>>) {
        let (back, spares) = sync_channel(SPARES);
        let log = Self {
            worker,
            events: Vec::new(),
            unknown: Unknown::default(),
            unix: 0,
            snapshot: None,
            queue,
            spares,
            rounds,
            has_news: Arc::default(),
            has_said_so: false,
        };
        (log, back)
    }

    /// One that nobody reads.
    pub fn detached() -> Self {
        Self::new(0, sync_channel(0).0, watch::channel(0).1).0
    }

    /// What follows is counted for this snapshot, at this Unix second.
    #[inline]
    pub fn begin(&mut self, snapshot: Option<&Shared>, unix: u32) {
        self.unix = unix;
        let is_same = match (&self.snapshot, snapshot) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            self.flush();
            self.snapshot = snapshot.cloned();
        }
    }

    /// Counts an answer to VERIFY.
    #[inline]
    pub fn verified(&mut self, verdict: Verdict, shadow: bool, request: RequestUsage) {
        let Some(entry) = request.entry else {
            return self.unknown(verdict);
        };
        let what = if verdict.is_allowed() && request.cost == 0 { PEEKED } else { verdict.value() };
        self.push(Event {
            entry: entry.number(),
            cost: request.cost,
            unix: self.unix,
            what,
            shadow,
            reserved: [0; 2],
        });
    }

    /// Counts an answer to REFUND.
    pub fn refunded(&mut self, verdict: Verdict, request: RequestUsage) {
        match request.entry {
            Some(entry) if request.cost > 0 => self.push(Event {
                entry: entry.number(),
                cost: request.cost,
                unix: self.unix,
                what: REFUNDED,
                shadow: false,
                reserved: [0; 2],
            }),
            Some(_) => {}
            None => self.unknown(verdict),
        }
    }

    fn unknown(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::UnknownKey => self.unknown.unknown_key += 1,
            Verdict::MalformedKey => self.unknown.malformed_key += 1,
            // No key was looked for.
            _ => {}
        }
    }

    #[inline]
    fn push(&mut self, event: Event) {
        if self.events.len() == self.events.capacity() {
            self.make_room();
        }
        self.events.push(event);
    }

    #[cold]
    fn make_room(&mut self) {
        if !self.events.is_empty() {
            let snapshot = self.snapshot.clone();
            self.flush();
            self.snapshot = snapshot;
        }
        if self.events.capacity() == 0 {
            self.events.reserve_exact(CAPACITY);
        }
    }

    /// Hands over what there is, and lets go of the snapshot. Waits where the queue is full: see the [module](super).
    pub fn flush(&mut self) {
        let snapshot = self.snapshot.take();
        if self.is_empty() {
            return;
        }
        let events = match self.events.is_empty() {
            true => Vec::new(),
            false => std::mem::replace(&mut self.events, self.spares.try_recv().unwrap_or_default()),
        };
        let unknown = std::mem::take(&mut self.unknown);
        let batch = Batch { worker: self.worker, snapshot, events, unknown };
        if self.queue.send(Message::Batch(batch)).is_err() {
            self.events.clear();
        }
        self.has_said_so = false;
    }

    /// As [`flush`](Self::flush), and says that there is no more before `round`, and that no snapshot before `generation`
    /// is used any more.
    pub fn flush_round(&mut self, round: u64, generation: u64) {
        self.flush();
        let message = Message::Flushed { worker: self.worker, round, generation };
        let _nobody_reads = self.queue.send(message);
    }

    /// Wakes who waits for [`wakeup`](Self::wakeup), once for each log.
    #[inline]
    pub fn notify(&mut self) {
        if !self.has_said_so && !self.is_empty() {
            self.has_said_so = true;
            self.has_news.notify_one();
        }
    }

    /// Wakes up when the first event after a [`flush`](Self::flush) is there.
    pub fn wakeup(&self) -> Arc<Notify> {
        Arc::clone(&self.has_news)
    }

    /// Rounds of handing everything over: each has a number.
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.clone()
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.unknown == Unknown::default()
    }
}
