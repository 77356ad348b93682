//! Answers that were made and not yet taken by the socket, by epoch.
//!
//! A reload or a revocation is acknowledged only when no answer of an older epoch can leave any more. Most leave with the
//! write that follows their making; this keeps account of the others, and puts an end to those that hold one up.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

/// One worker's answers in flight.
pub(super) struct InFlight {
    by_epoch: RefCell<BTreeMap<u64, usize>>,
    left: Notify,
    /// Answers of epochs below this one are to be given up.
    overdue_before: watch::Sender<u64>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { by_epoch: RefCell::default(), left: Notify::new(), overdue_before: watch::Sender::new(0) }
    }
}

/// A connection that waits for its peer to read.
pub(super) struct Pending {
    in_flight: Rc<InFlight>,
    epoch: u64,
}

impl InFlight {
    /// Answers of `epoch` are waiting until the guard is dropped.
    pub(super) fn enter(self: &Rc<Self>, epoch: u64) -> Pending {
        *self.by_epoch.borrow_mut().entry(epoch).or_default() += 1;
        Pending { in_flight: Rc::clone(self), epoch }
    }

    fn oldest(&self) -> Option<u64> {
        self.by_epoch.borrow().keys().next().copied()
    }
}

/// The epochs that a worker has been told of, and those that it has passed.
///
/// Changes can follow each other faster than peers read. The answers of an epoch have the same time from its own end, whatever
/// ends before or after it: what is waited for after one change is not waited for again after the next.
pub(super) struct Epochs {
    in_flight: Rc<InFlight>,
    patience: Duration,
    latest: u64,
    /// For each epoch that began while older answers were waiting: when these are given up.
    deadlines: VecDeque<(u64, Instant)>,
}

impl Epochs {
    /// Answers of an epoch are given up when it has been over for `patience`.
    pub(super) fn new(in_flight: Rc<InFlight>, patience: Duration) -> Self {
        Self { in_flight, patience, latest: 0, deadlines: VecDeque::new() }
    }

    /// `epoch` has begun.
    pub(super) fn begin(&mut self, epoch: u64) {
        self.latest = epoch;
        self.deadlines.push_back((epoch, Instant::now() + self.patience));
        self.forget();
    }

    /// The latest epoch such that no answers of older ones are waiting.
    pub(super) fn passed(&self) -> u64 {
        self.in_flight.oldest().map_or(self.latest, |oldest| oldest.min(self.latest))
    }

    /// Waits for answers to leave, and gives up those whose time is over. Returns when another epoch may be passed. May be dropped
    /// at any time, and called again.
    pub(super) async fn advance(&mut self) {
        let Some((epoch, deadline)) = self.deadlines.front().copied() else {
            return std::future::pending().await;
        };
        if timeout_at(deadline, self.in_flight.left.notified()).await.is_err() {
            self.in_flight.overdue_before.send_replace(epoch);
            self.in_flight.left.notified().await;
        }
        self.forget();
    }

    /// Forgets the deadlines that have nothing to wait for.
    fn forget(&mut self) {
        let oldest = self.in_flight.oldest().unwrap_or(u64::MAX);
        while self.deadlines.pop_front_if(|(epoch, _)| *epoch <= oldest).is_some() {}
    }
}

impl Pending {
    /// Resolves when these answers are to be given up.
    pub(super) async fn overdue(&self) {
        let mut overdue_before = self.in_flight.overdue_before.subscribe();
        let _never_closed = overdue_before.wait_for(|before| self.epoch < *before).await;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut by_epoch = self.in_flight.by_epoch.borrow_mut();
        if let Some(count) = by_epoch.get_mut(&self.epoch) {
            *count -= 1;
            if *count == 0 {
                by_epoch.remove(&self.epoch);
            }
        }
        self.in_flight.left.notify_one();
    }
}
