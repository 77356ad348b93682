//! A worker's log: the requests that it has counted since the last flush.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use keyward_protocol::{VERDICT_LIMIT, Verdict};
use tokio::sync::{Notify, watch};

use super::{Message, QUEUED_LOGS};
use keyward_engine::limiter::{LimitBalance, ShadowRefusals};
use keyward_engine::snapshot::EntryNumber;
use keyward_engine::snapshot::Snapshot;
use keyward_engine::verify::RequestUsage;

/// Events in a log: some 2 ms of a busy worker. The 128 KiB are merged before they leave the
/// second-level cache.
const CAPACITY: usize = 8 * 1024;

/// Maximum number of empty buffers that a worker gets back: as many as may be queued, and one more.
const SPARES: usize = QUEUED_LOGS + 1;

// The kind of an event is the value of a verdict, or one of the following.

/// Cost was refunded.
pub(super) const REFUNDED: u8 = VERDICT_LIMIT;
/// The balance was requested and nothing charged.
pub(super) const PEEKED: u8 = VERDICT_LIMIT + 1;
/// A limit in shadow mode would have refused the request.
pub(super) const SHADOW_LIMITED: u8 = VERDICT_LIMIT + 2;
/// Cost was debited.
pub(super) const DEBITED: u8 = VERDICT_LIMIT + 3;
/// A limit was charged by a request that names costs.
pub(super) const LIMIT_CHARGED: u8 = VERDICT_LIMIT + 4;
/// A limit was debited.
pub(super) const LIMIT_DEBITED: u8 = VERDICT_LIMIT + 5;
/// A limit was refunded.
pub(super) const LIMIT_REFUNDED: u8 = VERDICT_LIMIT + 6;

/// The value of [`Event::position`] for a request whose limits are counted by further events.
pub(super) const IN_DETAIL: u8 = u8::MAX;

/// One request with a known key, or what one request has changed on one limit.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Event {
    /// The key's entry in the snapshot.
    pub(super) entry: u32,
    pub(super) cost: u32,
    /// The Unix second of the request.
    pub(super) unix: u32,
    /// The verdict's value, or [`REFUNDED`], [`DEBITED`], [`PEEKED`], [`LIMIT_CHARGED`],
    /// [`LIMIT_DEBITED`] or [`LIMIT_REFUNDED`].
    pub(super) kind: u8,
    /// Of a limit's event, the limit's position; of others, [`IN_DETAIL`] or 0.
    pub(super) position: u8,
    /// The limits that were not charged, although others were. If there are any, the request counts
    /// as [`SHADOW_LIMITED`] as well.
    pub(super) shadow: ShadowRefusals,
}

const _: () = assert!(size_of::<Event>() == 16);

/// The content of a log on its way to the usage thread.
pub(super) struct FlushedLog {
    pub(super) worker: usize,
    /// The snapshot of the events' entries. A log without events may have none.
    pub(super) snapshot: Option<Arc<Snapshot>>,
    pub(super) events: Vec<Event>,
    pub(super) unknown: UnknownKeys,
}

/// Counts of requests with keys that are not in the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UnknownKeys {
    pub(super) unknown_key: u64,
    pub(super) malformed_key: u64,
}

impl UnknownKeys {
    pub(super) fn add(&mut self, other: Self) {
        self.unknown_key += other.unknown_key;
        self.malformed_key += other.malformed_key;
    }
}

/// The log of one worker.
pub struct UsageLog {
    worker: usize,
    events: Vec<Event>,
    unknown: UnknownKeys,
    /// The Unix second of the current requests.
    unix: u32,
    snapshot: Option<Arc<Snapshot>>,
    queue: SyncSender<Message>,
    spares: Receiver<Vec<Event>>,
    rounds: watch::Receiver<u64>,
    wakeup: Arc<Notify>,
    /// Whether `wakeup` has been notified since the last flush.
    is_notified: bool,
}

impl UsageLog {
    /// Creates a log. Also returns the channel for empty buffers.
    pub(super) fn new(
        worker: usize,
        queue: SyncSender<Message>,
        rounds: watch::Receiver<u64>,
    ) -> (Self, SyncSender<Vec<Event>>) {
        let (return_buffer, spares) = sync_channel(SPARES);
        let log = Self {
            worker,
            events: Vec::new(),
            unknown: UnknownKeys::default(),
            unix: 0,
            snapshot: None,
            queue,
            spares,
            rounds,
            wakeup: Arc::default(),
            is_notified: false,
        };
        (log, return_buffer)
    }

    /// A log without a usage thread.
    pub fn detached() -> Self {
        Self::new(0, sync_channel(0).0, watch::channel(0).1).0
    }

    /// Sets the snapshot and the Unix second of the following requests.
    #[inline]
    pub fn begin(&mut self, snapshot: Option<&Arc<Snapshot>>, unix: u32) {
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
    // Measured: not inlined into the loop of the plain requests, it takes 40 instructions more.
    #[inline(always)]
    pub fn verified(&mut self, verdict: Verdict, request: RequestUsage<'_>) {
        let Some(entry) = request.entry else {
            return self.unknown(verdict);
        };
        if let Some(changes) = request.changes {
            return self.charged_in_detail(entry, verdict, request, changes);
        }
        let kind = if verdict.is_allowed() && request.cost == 0 { PEEKED } else { verdict.value() };
        self.push(Event {
            entry: entry.number(),
            cost: request.cost,
            unix: self.unix,
            kind,
            position: 0,
            shadow: request.shadow,
        });
    }

    #[inline(never)]
    fn charged_in_detail(
        &mut self,
        entry: EntryNumber,
        verdict: Verdict,
        request: RequestUsage<'_>,
        changes: &[LimitBalance],
    ) {
        let event = self.event(entry, verdict.value(), request.cost);
        self.push(Event { position: IN_DETAIL, shadow: request.shadow, ..event });
        self.push_changes(entry, LIMIT_CHARGED, changes);
    }

    /// Counts an answer to REFUND.
    pub fn refunded(&mut self, verdict: Verdict, request: RequestUsage<'_>) {
        self.adjusted([REFUNDED, LIMIT_REFUNDED], verdict, request);
    }

    /// Counts an answer to DEBIT.
    pub fn debited(&mut self, verdict: Verdict, request: RequestUsage<'_>) {
        self.adjusted([DEBITED, LIMIT_DEBITED], verdict, request);
    }

    fn adjusted(&mut self, [kind, of_limit]: [u8; 2], verdict: Verdict, request: RequestUsage<'_>) {
        let Some(entry) = request.entry else {
            return self.unknown(verdict);
        };
        if request.cost > 0 {
            let event = self.event(entry, kind, request.cost);
            self.push(Event { position: IN_DETAIL, ..event });
        }
        self.push_changes(entry, of_limit, request.changes.unwrap_or_default());
    }

    fn push_changes(&mut self, entry: EntryNumber, kind: u8, changes: &[LimitBalance]) {
        for change in changes.iter().filter(|change| change.changed > 0) {
            // Less than `MAX_CHARGES`.
            let position = change.position as u8;
            let event = self.event(entry, kind, change.changed);
            self.push(Event { position, ..event });
        }
    }

    /// An event of a request in detail.
    fn event(&self, entry: EntryNumber, kind: u8, cost: u32) -> Event {
        let shadow = ShadowRefusals::default();
        Event { entry: entry.number(), cost, unix: self.unix, kind, position: 0, shadow }
    }

    fn unknown(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::UnknownKey => self.unknown.unknown_key += 1,
            Verdict::MalformedKey => self.unknown.malformed_key += 1,
            // No key was looked up.
            _ => {}
        }
    }

    #[inline]
    fn push(&mut self, event: Event) {
        if self.events.len() == self.events.capacity() {
            self.grow();
        }
        self.events.push(event);
    }

    #[cold]
    fn grow(&mut self) {
        if !self.events.is_empty() {
            let snapshot = self.snapshot.clone();
            self.flush();
            self.snapshot = snapshot;
        }
        if self.events.capacity() == 0 {
            self.events.reserve_exact(CAPACITY);
        }
    }

    /// Sends the content to the usage thread and releases the snapshot. Waits while the queue is
    /// full; the [module](super) says why.
    pub fn flush(&mut self) {
        let snapshot = self.snapshot.take();
        if self.is_empty() {
            return;
        }
        let events = if self.events.is_empty() {
            Vec::new()
        } else {
            std::mem::replace(&mut self.events, self.spares.try_recv().unwrap_or_default())
        };
        let unknown = std::mem::take(&mut self.unknown);
        let log = FlushedLog { worker: self.worker, snapshot, events, unknown };
        if self.queue.send(Message::Log(log)).is_err() {
            self.events.clear();
        }
        self.is_notified = false;
    }

    /// As [`flush`](Self::flush), and reports that everything from before `round` is flushed and
    /// that no snapshot before `table_generation` is in use.
    pub fn flush_round(&mut self, round: u64, table_generation: u64) {
        self.flush();
        let message = Message::Flushed { worker: self.worker, round, table_generation };
        // Fails only at shutdown, and for a detached log.
        let _ = self.queue.send(message);
    }

    /// Notifies [`wakeup`](Self::wakeup), once per flush.
    #[inline]
    pub fn notify(&mut self) {
        if !self.is_notified && !self.is_empty() {
            self.is_notified = true;
            self.wakeup.notify_one();
        }
    }

    /// Is notified of the first event after a [`flush`](Self::flush).
    pub fn wakeup(&self) -> Arc<Notify> {
        Arc::clone(&self.wakeup)
    }

    /// The number of the latest round: a request to flush with [`flush_round`](Self::flush_round).
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.clone()
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.unknown == UnknownKeys::default()
    }
}
