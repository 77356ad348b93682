//! Triggers of reloads, and the requests that wait for a result.
//!
//! Many threads send triggers; the reload thread alone receives them. It takes all that are queued
//! at once, as [`PendingTriggers`], and answers them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::oneshot;

use crate::audit::{self, Peer};
use crate::reload::{CheckRequest, Outcome};

/// Capacity of the queue. Triggers are taken together, so more add nothing.
const QUEUE_CAPACITY: usize = 1024;

/// What makes a reload happen.
#[derive(Debug)]
pub enum Trigger {
    /// Something on the source's path changed: compare the file's state.
    Changed,
    /// SIGHUP.
    Signal,
    /// `keyward reload`.
    Command {
        /// Whether to publish what the guard refuses.
        force: bool,
        /// The operator's process.
        peer: Peer,
        /// Where the outcome goes.
        reply: oneshot::Sender<Arc<Outcome>>,
    },
    /// `keyward check --daemon`: nothing is published.
    Check(CheckRequest),
}

/// The bounded queue of triggers.
pub fn trigger_channel() -> (SyncSender<Trigger>, Receiver<Trigger>) {
    sync_channel(QUEUE_CAPACITY)
}

/// Returns a function that sends [`Trigger::Changed`] unless one is queued already: a busy
/// directory must not crowd out commands.
pub(super) fn change_notifier(
    trigger: SyncSender<Trigger>,
    change_pending: Arc<AtomicBool>,
) -> impl Fn() + Send + Sync + 'static {
    move || {
        if !change_pending.swap(true, Ordering::AcqRel) {
            // A full queue is about to be taken, and the file is compared then.
            let _ = trigger.try_send(Trigger::Changed);
        }
    }
}

/// Triggers that were queued at the same time.
#[derive(Default)]
pub(super) struct PendingTriggers {
    /// Whether there is any trigger, a change included.
    pub(super) any: bool,
    pub(super) signal: bool,
    pub(super) unforced: Waiters,
    pub(super) forced: Waiters,
    pub(super) checks: Vec<CheckRequest>,
}

impl PendingTriggers {
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

    /// Whether only changes of files have been reported.
    pub(super) fn is_change_only(&self) -> bool {
        let has_requests = !(self.unforced.is_empty() && self.forced.is_empty() && self.checks.is_empty());
        self.any && !self.signal && !has_requests
    }

    /// Adds everything in the queue.
    pub(super) fn drain_queue(&mut self, triggers: &Receiver<Trigger>) {
        triggers.try_iter().for_each(|trigger| self.add(trigger));
    }
}

/// Commands that wait for the outcome of a reload.
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

    /// Sends the outcome to all that still wait.
    pub(super) fn answer(self, outcome: &Arc<Outcome>) {
        self.replies.into_iter().for_each(|reply| drop(reply.send(Arc::clone(outcome))));
    }
}

/// Why a reload is made.
pub(super) struct Cause {
    pub(super) trigger: audit::TriggerKind,
    pub(super) waiters: Waiters,
    /// Whether the configuration is read again as well.
    pub(super) reads_config: bool,
    pub(super) force: bool,
}

impl Cause {
    /// The cause of the first load.
    pub(super) fn start() -> Self {
        let trigger = audit::TriggerKind::Start;
        Self { trigger, waiters: Waiters::default(), reads_config: false, force: false }
    }

    /// The user that forces this reload by a command. An acceptance of the source at a start is no such
    /// command: it says nothing about balances.
    pub(super) fn forced_by(&self) -> Option<u32> {
        let is_command = self.force && self.trigger == audit::TriggerKind::Command;
        self.waiters.peers.first().map(|peer| peer.uid).filter(|_| is_command)
    }

    /// Adds requests that arrived during the reload, for which the configuration has been read.
    pub(super) fn add_waiters(&mut self, waiters: Waiters) {
        // The start remains the cause of the first load, even if requests share its result.
        if self.trigger != audit::TriggerKind::Start {
            self.trigger = audit::TriggerKind::Command;
        }
        self.reads_config = true;
        self.waiters.peers.extend(waiters.peers);
        self.waiters.replies.extend(waiters.replies);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_changes_queue_one_trigger() {
        let (trigger, triggers) = trigger_channel();
        let change_pending = Arc::new(AtomicBool::new(false));
        let notify = change_notifier(trigger, Arc::clone(&change_pending));
        for _ in 0..2 {
            (0..2 * QUEUE_CAPACITY).for_each(|_| notify());
            assert_eq!(triggers.try_iter().count(), 1);
            // As the reload thread does after it has taken the queue.
            change_pending.store(false, Ordering::Release);
        }
    }
}
