//! Answers in flight: made, but not yet taken by the socket, counted by epoch.
//!
//! A reload or a revocation is acknowledged only when no answer of an older epoch can be sent any
//! more. Most answers leave with the write that follows. [`InFlight`] counts the others, and
//! [`EpochTracker`] ends connections whose peers hold up an acknowledgement for too long.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

/// One worker's answers in flight.
pub(super) struct InFlight {
    /// Connections with unsent answers, by the epoch of these answers.
    by_epoch: RefCell<BTreeMap<u64, usize>>,
    released: Notify,
    /// Answers of epochs below this one are abandoned.
    expired_before: watch::Sender<u64>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { by_epoch: RefCell::default(), released: Notify::new(), expired_before: watch::Sender::new(0) }
    }
}

/// Unsent answers of one connection, until it is dropped.
pub(super) struct InFlightGuard {
    in_flight: Rc<InFlight>,
    epoch: u64,
}

impl InFlight {
    /// Counts answers of `epoch` as unsent until the guard is dropped.
    pub(super) fn enter(self: &Rc<Self>, epoch: u64) -> InFlightGuard {
        *self.by_epoch.borrow_mut().entry(epoch).or_default() += 1;
        InFlightGuard { in_flight: Rc::clone(self), epoch }
    }

    fn oldest(&self) -> Option<u64> {
        self.by_epoch.borrow().keys().next().copied()
    }
}

impl InFlightGuard {
    /// Resolves when these answers are to be abandoned.
    pub(super) async fn expired(&self) {
        let mut expired_before = self.in_flight.expired_before.subscribe();
        // Cannot fail: the guard keeps the sender alive.
        let _ = expired_before.wait_for(|before| self.epoch < *before).await;
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        let mut by_epoch = self.in_flight.by_epoch.borrow_mut();
        if let Some(count) = by_epoch.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                by_epoch.remove(&self.epoch);
            }
        }
        self.in_flight.released.notify_one();
    }
}

/// Tracks which epochs the worker has passed.
///
/// Changes can follow each other faster than peers read. The unsent answers of every epoch get the
/// same timeout, counted from the advance past their own epoch. Waiting for them after one change
/// therefore does not delay the next change again.
pub(super) struct EpochTracker {
    in_flight: Rc<InFlight>,
    timeout: Duration,
    latest: u64,
    /// For each epoch that began while older answers were unsent: when these are abandoned.
    deadlines: VecDeque<(u64, Instant)>,
}

impl EpochTracker {
    /// Abandons answers when their epoch has been over for `timeout`.
    pub(super) fn new(in_flight: Rc<InFlight>, timeout: Duration) -> Self {
        Self { in_flight, timeout, latest: 0, deadlines: VecDeque::new() }
    }

    /// Records the beginning of `epoch`.
    pub(super) fn begin(&mut self, epoch: u64) {
        self.latest = epoch;
        self.deadlines.push_back((epoch, Instant::now() + self.timeout));
        self.prune_deadlines();
    }

    /// The latest epoch such that no answer of an older one is unsent.
    pub(super) fn passed(&self) -> u64 {
        self.in_flight.oldest().map_or(self.latest, |oldest| oldest.min(self.latest))
    }

    /// Waits until another epoch may be passed: answers have been sent, or were abandoned because
    /// their time was over. Cancel safe.
    pub(super) async fn advance(&mut self) {
        let Some((epoch, deadline)) = self.deadlines.front().copied() else {
            return std::future::pending().await;
        };
        if timeout_at(deadline, self.in_flight.released.notified()).await.is_err() {
            self.in_flight.expired_before.send_replace(epoch);
            self.in_flight.released.notified().await;
        }
        self.prune_deadlines();
    }

    /// Drops the deadlines of epochs that have been passed.
    fn prune_deadlines(&mut self) {
        let oldest = self.in_flight.oldest().unwrap_or(u64::MAX);
        while self.deadlines.pop_front_if(|(epoch, _)| *epoch <= oldest).is_some() {}
    }
}
