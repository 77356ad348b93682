//! What makes a reload happen, and who waits for what comes of it.
//!
//! Triggers wait in a queue that many fill and the reload thread alone empties. It takes all that are there at once, as a
//! [`Batch`]: who waits together is answered together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::oneshot;

use crate::audit::{self, Peer};
use crate::reload::{CheckRequest, Outcome};

/// Triggers that may wait; they are taken together, so that more say nothing new.
const WAITING: usize = 1024;

/// What makes a reload happen.
#[derive(Debug)]
pub enum Trigger {
    /// Something in the source's directory changed: compare.
    Changed,
    /// SIGHUP.
    Signal,
    /// `keyward reload`.
    Command {
        /// Publish even what the guard refuses.
        force: bool,
        /// Who asks.
        peer: Peer,
        /// Where the outcome goes.
        reply: oneshot::Sender<Arc<Outcome>>,
    },
    /// `keyward check --daemon`: nothing is published.
    Check(CheckRequest),
}

/// A queue of triggers: bounded, since what waits is taken together.
pub fn triggers() -> (SyncSender<Trigger>, Receiver<Trigger>) {
    sync_channel(WAITING)
}

/// Reports a change, unless one is waiting already: a directory in which much happens must not crowd out who asks.
pub(super) fn changes(
    trigger: SyncSender<Trigger>,
    noticed: Arc<AtomicBool>,
) -> impl Fn() + Send + Sync + 'static {
    move || {
        if !noticed.swap(true, Ordering::AcqRel) {
            // A queue that is full is about to be taken, and the file to be compared.
            let _full = trigger.try_send(Trigger::Changed);
        }
    }
}

/// Triggers that were waiting together.
#[derive(Default)]
pub(super) struct Batch {
    /// Whether there is any: a change is one that nobody waits for.
    pub(super) any: bool,
    pub(super) signal: bool,
    pub(super) unforced: Waiters,
    pub(super) forced: Waiters,
    pub(super) checks: Vec<CheckRequest>,
}

impl Batch {
    pub(super) fn add(&mut self, trigger: Trigger) {
        self.any = true;
        match trigger {
            Trigger::Changed => {}
            Trigger::Signal => self.signal = true,
            Trigger::Command { force: false, peer, reply } => self.unforced.add(peer, reply),
            Trigger::Command { force: true, peer, reply } => self.forced.add(peer, reply),
            Trigger::Check(request) => self.checks.push(request),
        }
    }

    /// Whether nothing but a change of the directory has arrived.
    pub(super) fn is_change_only(&self) -> bool {
        let nobody_asks = self.unforced.is_empty() && self.forced.is_empty() && self.checks.is_empty();
        self.any && !self.signal && nobody_asks
    }

    /// Adds all that wait in the queue.
    pub(super) fn take(&mut self, triggers: &Receiver<Trigger>) {
        triggers.try_iter().for_each(|trigger| self.add(trigger));
    }
}

/// Who asked, and where the outcome goes.
#[derive(Default)]
pub(super) struct Waiters {
    pub(super) peers: Vec<Peer>,
    replies: Vec<oneshot::Sender<Arc<Outcome>>>,
}

impl Waiters {
    fn add(&mut self, peer: Peer, reply: oneshot::Sender<Arc<Outcome>>) {
        self.peers.push(peer);
        self.replies.push(reply);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Whoever asked may have gone; the reload was made all the same.
    pub(super) fn answer(self, outcome: &Arc<Outcome>) {
        self.replies.into_iter().for_each(|reply| drop(reply.send(Arc::clone(outcome))));
    }
}

/// Why a reload is made.
pub(super) struct Cause {
    pub(super) trigger: audit::Trigger,
    pub(super) askers: Waiters,
    /// Whether the configuration is read again too.
    pub(super) configure: bool,
    pub(super) force: bool,
}

impl Cause {
    /// Without anybody who asked.
    pub(super) fn of(trigger: audit::Trigger) -> Self {
        Self { trigger, askers: Waiters::default(), configure: false, force: false }
    }

    /// Takes on who asked when it was under way, and for whom the configuration has been read.
    pub(super) fn join(&mut self, askers: Waiters) {
        // The first load is not made because somebody asks.
        if self.trigger != audit::Trigger::Start {
            self.trigger = audit::Trigger::Command;
        }
        self.configure = true;
        self.askers.peers.extend(askers.peers);
        self.askers.replies.extend(askers.replies);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_waits_however_many_are_reported() {
        let (trigger, triggers) = triggers();
        let noticed = Arc::new(AtomicBool::new(false));
        let report = changes(trigger, Arc::clone(&noticed));
        for _ in 0..2 {
            (0..2 * WAITING).for_each(|_| report());
            assert_eq!(triggers.try_iter().count(), 1);
            // As the reload thread does once it has taken what waits.
            noticed.store(false, Ordering::Release);
        }
    }
}
