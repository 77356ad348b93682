//! Answers that were made and not yet taken by the socket, by epoch.
//!
//! A reload or a revocation is acknowledged only when no answer of an older epoch can leave any more. Most leave with the
//! write that follows their making; this keeps account of the others, and puts an end to those that hold one up.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

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

    /// Waits until no answers older than `epoch` are waiting; those that still are after `patience` are given up.
    pub(super) async fn clear_before(&self, epoch: u64, patience: Duration) {
        if timeout(patience, self.none_before(epoch)).await.is_err() {
            self.overdue_before.send_replace(epoch);
            self.none_before(epoch).await;
        }
    }

    async fn none_before(&self, epoch: u64) {
        while self.by_epoch.borrow().keys().next().is_some_and(|oldest| *oldest < epoch) {
            self.left.notified().await;
        }
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
