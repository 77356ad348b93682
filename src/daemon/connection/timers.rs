//! The timers of a worker's connections: idle timeouts, probes, and the phases of a shutdown.
//!
//! All connections of a worker share one timer descriptor. Each connection registers a deadline
//! through its [`TimerHandle`]. Moving the deadline costs one store, because it happens for every
//! request. The task in [`Timers::run`] scans all deadlines only when the earliest one may have
//! passed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::shutdown::ShutdownPhase;
use super::timer_fd::TimerFd;

/// The wait of a timer that has no deadline: a year.
pub(super) const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// Minimum scan interval, and therefore the maximum lateness of a timer. Deadlines are a second or
/// more away, and thousands of connections have theirs at different moments.
const MIN_SCAN_INTERVAL: Duration = Duration::from_millis(100);

/// The deadlines of one worker's connections.
pub(super) struct Timers {
    entries: RefCell<BTreeMap<u64, Rc<Entry>>>,
    next_id: Cell<u64>,
    next_scan: Cell<Instant>,
    /// Signals a deadline before `next_scan`.
    rescheduled: Notify,
    phase: Cell<ShutdownPhase>,
}

/// One connection's timer; dropping it removes the timer.
pub(super) struct TimerHandle {
    timers: Rc<Timers>,
    id: u64,
    entry: Rc<Entry>,
}

struct Entry {
    deadline: Cell<Instant>,
    has_fired: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Why a connection was woken by its timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wakeup {
    /// The deadline has passed.
    Deadline,
    /// The daemon is shutting down.
    Drain,
}

impl Timers {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            entries: RefCell::default(),
            next_id: Cell::new(0),
            next_scan: Cell::new(Instant::now() + NEVER),
            rescheduled: Notify::new(),
            phase: Cell::new(ShutdownPhase::Serving),
        })
    }

    /// Whether the daemon is shutting down.
    pub(super) fn is_draining(&self) -> bool {
        self.phase.get() >= ShutdownPhase::Draining
    }

    /// Adds a timer that fires at `deadline`.
    pub(super) fn register(self: &Rc<Self>, deadline: Instant) -> TimerHandle {
        let entry = Rc::new(Entry {
            deadline: Cell::new(deadline),
            has_fired: Cell::new(false),
            waker: RefCell::new(None),
        });
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.entries.borrow_mut().insert(id, Rc::clone(&entry));
        self.scan_by(deadline);
        TimerHandle { timers: Rc::clone(self), id, entry }
    }

    /// Has the timers scanned at `deadline` or earlier.
    fn scan_by(&self, deadline: Instant) {
        if deadline < self.next_scan.get() {
            self.rescheduled.notify_one();
        }
    }

    /// Fires the timers for as long as the worker runs. At each further phase of the shutdown, all of
    /// them fire once.
    pub(super) async fn run(self: Rc<Self>, timer: TimerFd, mut shutdown: watch::Receiver<ShutdownPhase>) {
        let mut last_scan = Instant::now();
        loop {
            let next_scan = self
                .earliest()
                .map_or(last_scan + NEVER, |deadline| deadline.max(last_scan + MIN_SCAN_INTERVAL));
            self.next_scan.set(next_scan);
            tokio::select! {
                () = timer.sleep_until(next_scan) => {
                    last_scan = Instant::now();
                    self.fire(|entry| entry.deadline.get() <= last_scan);
                }
                () = self.rescheduled.notified() => {}
                further = shutdown.wait_for(|phase| *phase > self.phase.get()),
                    if self.phase.get() < ShutdownPhase::Closing =>
                {
                    // A closed channel means that the daemon is gone, which ends connections as well.
                    self.phase.set(further.map_or(ShutdownPhase::Closing, |phase| *phase));
                    self.fire(|_| true);
                }
            }
        }
    }

    /// The earliest deadline of the timers that have not fired. A connection that was woken sets a
    /// new deadline.
    fn earliest(&self) -> Option<Instant> {
        let entries = self.entries.borrow();
        entries.values().filter(|entry| !entry.has_fired.get()).map(|entry| entry.deadline.get()).min()
    }

    fn fire(&self, is_due: impl Fn(&Entry) -> bool) {
        for entry in self.entries.borrow().values().filter(|entry| is_due(entry)) {
            entry.has_fired.set(true);
            if let Some(waker) = entry.waker.borrow().as_ref() {
                waker.wake_by_ref();
            }
        }
    }
}

impl TimerHandle {
    /// Moves the deadline, and rearms a timer that has fired.
    pub(super) fn set_deadline(&self, deadline: Instant) {
        self.entry.deadline.set(deadline);
        self.entry.has_fired.set(false);
        self.timers.scan_by(deadline);
    }

    /// Whether the timer has fired; otherwise registers the task to be woken when it does.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Wakeup> {
        if self.timers.is_draining() {
            return Poll::Ready(Wakeup::Drain);
        }
        if self.entry.has_fired.get() {
            return Poll::Ready(Wakeup::Deadline);
        }
        self.set_waker(cx);
        Poll::Pending
    }

    /// Whether connections no longer wait for their peers; otherwise registers the task to be woken
    /// when they do not.
    pub(super) fn poll_closing(&self, cx: &Context<'_>) -> Poll<()> {
        if self.timers.phase.get() == ShutdownPhase::Closing {
            return Poll::Ready(());
        }
        self.set_waker(cx);
        Poll::Pending
    }

    fn set_waker(&self, cx: &Context<'_>) {
        let mut waker = self.entry.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}

impl Drop for TimerHandle {
    fn drop(&mut self) {
        self.timers.entries.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn wakeup(timer: &TimerHandle) -> Wakeup {
        poll_fn(|cx| timer.poll(cx)).await
    }

    #[tokio::test(flavor = "local")]
    async fn timers_fire_at_their_deadline_and_all_at_shutdown() {
        let (shutdown, phases) = watch::channel(ShutdownPhase::Serving);
        let timers = Timers::new();
        let running = tokio::task::spawn_local(Rc::clone(&timers).run(TimerFd::new(), phases));
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let (late, soon) = (timers.register(after(600_000)), timers.register(after(900_000)));
        tokio::task::yield_now().await;
        // Before the next scan.
        soon.set_deadline(after(5));
        assert_eq!(wakeup(&soon).await, Wakeup::Deadline);
        assert!((5..5_000).contains(&start.elapsed().as_millis()));
        soon.set_deadline(after(600_000));
        let mut late_wakeup = std::pin::pin!(wakeup(&late));
        assert!(poll_fn(|cx| Poll::Ready(late_wakeup.as_mut().poll(cx).is_pending())).await);
        drop(soon);
        assert_eq!(timers.entries.borrow().len(), 1);
        let closing_timer = timers.register(after(600_000));
        let mut closing = std::pin::pin!(poll_fn(|cx| closing_timer.poll_closing(cx)));
        assert!(poll_fn(|cx| Poll::Ready(closing.as_mut().poll(cx).is_pending())).await);
        shutdown.send_replace(ShutdownPhase::Draining);
        assert_eq!(late_wakeup.await, Wakeup::Drain);
        assert!(poll_fn(|cx| Poll::Ready(closing.as_mut().poll(cx).is_pending())).await);
        shutdown.send_replace(ShutdownPhase::Closing);
        closing.await;
        running.abort();
    }
}
