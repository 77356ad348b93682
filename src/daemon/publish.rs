//! The atomic publication of what workers answer from, and the wait until no answer of an older
//! publication can leave.
//!
//! This is RCU with explicit quiescent states. Writers, one at a time, replace what many readers, the
//! workers, use without a lock: a [`Published`] snapshot with its generation, and an overlay of the
//! changes that are not in its entries yet. Every change of answers is such a publication, in the
//! next generation, and advances the *epoch*: a swap to a new snapshot, a revocation, a takeaway.
//!
//! From a change to its acknowledgement, and after it:
//!
//! 1. The writer stores the pointer to the new publication.
//! 2. The writer advances the epoch. A worker reads the epoch before the publication, once per
//!    filled buffer, so it sees every change up to the epoch that it tags its answers with.
//! 3. Each worker *passes* the epoch once it has reached a quiescent state: its cached publication
//!    is refreshed, and no answer of an older epoch waits in a connection's output. It reports the
//!    epoch.
//! 4. The writer waits until all workers have passed the epoch ([`Epochs::wait_passed`]). Only then
//!    is the reload or the revocation acknowledged: acknowledged means in force.
//! 5. After a reload, the thread that reloads drops the old snapshot, so no request pays for freeing
//!    it. After a revocation or a takeaway, the change is [marked](crate::revocation) in the
//!    entries, and the same generation is published without the overlay.
//!
//! [A reload](crate::reload#the-order-of-a-reload) has more steps before and after these. Tests of
//! the promise:
//!
//! * reloads: `no_answer_of_an_old_snapshot_is_sent_after_the_acknowledgement` in
//!   `tests/integration/reload_under_load.rs`, and
//!   `reload_is_not_acknowledged_before_every_worker_has_passed_the_epoch` in `reload/tests.rs`;
//! * revocations: `revoked_keys_are_denied_on_every_connection_under_load` and
//!   `peer_that_does_not_read_does_not_delay_a_revocation` in `tests/integration/revocation.rs`,
//!   `overlapping_revocations_wait_one_second_each` in `tests/integration/admin.rs`, and
//!   `revocation_is_not_acknowledged_before_every_worker_has_passed_the_epoch` in
//!   `server/admin_handler/tests.rs`;
//! * takeaways: `takeaways_are_not_acknowledged_before_every_worker_has_passed_the_epoch` in
//!   `reload/tests.rs`.
//!
//! A reload and any number of revocations may wait at the same time. Epochs count changes since the
//! start. A [generation](keyward_state::Generations) numbers the state of all keys: answers name it,
//! and it is not used again after a restart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwapOption, Cache};
use tokio::sync::watch;

use keyward_engine::snapshot::{Overlay, Snapshot, View};

type Current = Arc<ArcSwapOption<Published>>;

/// What workers answer from. It never changes.
pub struct Published {
    snapshot: Arc<Snapshot>,
    generation: u64,
    /// `None` if it would be empty.
    overlay: Option<Overlay>,
}

/// The writing side. Clones publish to the same workers; the lock of
/// [`Revocations`](crate::revocation::Revocations) serializes them.
#[derive(Clone)]
pub struct Publisher {
    current: Current,
    epochs: Epochs,
}

/// Reads the current snapshot off the request path.
#[derive(Clone)]
pub struct SnapshotReader {
    current: Current,
}

/// Advances the epoch and waits until the workers have passed it.
#[derive(Clone)]
pub struct Epochs {
    epoch: Arc<AtomicU64>,
    announce: watch::Sender<u64>,
    /// The epoch that each worker has passed.
    passed: Arc<[watch::Receiver<u64>]>,
}

/// A worker's side: its cached publication and its report of quiescent states.
pub struct Subscription {
    cache: Cache<Current, Option<Arc<Published>>>,
    epoch: Arc<AtomicU64>,
    /// Notifies the worker of a new epoch.
    pub announced: watch::Receiver<u64>,
    /// Where the worker reports the latest epoch that it has passed.
    pub passed: watch::Sender<u64>,
}

impl Published {
    /// A snapshot in `generation`, with the changes that are not in its entries yet.
    pub fn new(snapshot: Arc<Snapshot>, generation: u64, overlay: Overlay) -> Self {
        Self { snapshot, generation, overlay: Some(overlay).filter(|overlay| !overlay.is_empty()) }
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// The generation of the answers.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What requests are decided by.
    #[inline]
    pub fn view(&self) -> View<'_> {
        View { snapshot: &self.snapshot, generation: self.generation, overlay: self.overlay.as_ref() }
    }
}

impl Publisher {
    /// A publisher without a snapshot, in epoch 0, and a subscription for each of `workers`.
    pub fn new(workers: usize) -> (Self, Vec<Subscription>) {
        let current: Current = Arc::default();
        let epoch = Arc::new(AtomicU64::new(0));
        let (announce, announced) = watch::channel(0);
        let (subscriptions, passed): (Vec<_>, Vec<_>) = (0..workers)
            .map(|_| {
                let (passed, by_worker) = watch::channel(0);
                let cache = Cache::new(Arc::clone(&current));
                let (epoch, announced) = (Arc::clone(&epoch), announced.clone());
                (Subscription { cache, epoch, announced, passed }, by_worker)
            })
            .unzip();
        let epochs = Epochs { epoch, announce, passed: passed.into() };
        (Self { current, epochs }, subscriptions)
    }

    /// A reader of the current snapshot.
    pub fn reader(&self) -> SnapshotReader {
        SnapshotReader { current: Arc::clone(&self.current) }
    }

    /// The epochs, for changes other than a swap.
    pub fn epochs(&self) -> Epochs {
        self.epochs.clone()
    }

    /// Publishes a change, advances the epoch, and returns it. Every buffer that is filled from now
    /// on is answered from it. Once the epoch is [passed](Epochs::wait_passed), it is in force on
    /// every connection, and no worker uses the previous publication. To free the previous snapshot
    /// later and elsewhere, the caller holds it too.
    pub fn publish(&self, published: Published) -> u64 {
        self.current.store(Some(Arc::new(published)));
        self.epochs.advance()
    }

    /// Publishes the current generation in another form, which answers every request alike. Workers
    /// take it up when they fill their next buffers.
    pub fn replace(&self, published: Published) {
        self.current.store(Some(Arc::new(published)));
    }

    /// [Publishes](Self::publish) a snapshot in its table generation.
    pub fn swap(&self, snapshot: Arc<Snapshot>) -> u64 {
        let generation = snapshot.table_generation();
        self.publish(Published::new(snapshot, generation, Overlay::default()))
    }
}

impl Epochs {
    /// Advances the epoch and returns it. A buffer that is filled in the new epoch sees everything
    /// that the caller stored before this call.
    pub fn advance(&self) -> u64 {
        let mut epoch = 0;
        // Under the channel's lock, so that concurrent callers announce epochs in ascending order.
        self.announce.send_modify(|announced| {
            *announced += 1;
            epoch = *announced;
            self.epoch.store(epoch, Ordering::Release);
        });
        epoch
    }

    /// The latest epoch that every worker has passed. A worker that has ended has passed all epochs.
    pub fn passed(&self) -> u64 {
        let current = self.epoch.load(Ordering::Acquire);
        let of_worker = |worker: &watch::Receiver<u64>| {
            // The order matters: a worker that has ended after the second call had passed less.
            let passed = *worker.borrow();
            if worker.has_changed().is_err() { current } else { passed }
        };
        self.passed.iter().map(of_worker).min().unwrap_or(current)
    }

    /// Waits until every worker has passed `epoch`. From then on, no answer that contradicts the
    /// changes up to it can leave on any connection. A worker that has ended has passed all epochs.
    pub async fn wait_passed(&self, epoch: u64) {
        for worker in &*self.passed {
            let mut worker = worker.clone();
            // An error means that the worker has ended.
            let _ = worker.wait_for(|passed| *passed >= epoch).await;
        }
    }
}

impl SnapshotReader {
    /// The current snapshot. Its entries may lack the latest changes.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.published().map(|published| Arc::clone(&published.snapshot))
    }

    /// What workers answer from.
    pub fn published(&self) -> Option<Arc<Published>> {
        self.current.load_full()
    }
}

impl Subscription {
    /// The current epoch. Read it before [`load`](Self::load): then the view is at least as new.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What requests are decided by.
    pub fn load(&mut self) -> Option<View<'_>> {
        self.load_published().map(Published::view)
    }

    /// As [`load`](Self::load), for callers that retain the snapshot.
    pub fn load_published(&mut self) -> Option<&Published> {
        self.cache.load().as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_passed(epochs: &Epochs, epoch: u64) -> bool {
        let mut passed = std::pin::pin!(epochs.wait_passed(epoch));
        passed.as_mut().poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn epoch_is_passed_when_every_worker_has_passed_it_or_ended() {
        let (publisher, mut workers) = Publisher::new(2);
        let epochs = publisher.epochs();
        assert_eq!((epochs.advance(), epochs.advance()), (1, 2));
        assert!(workers.iter().all(|worker| worker.epoch() == 2 && *worker.announced.borrow() == 2));
        workers[0].passed.send_replace(2);
        assert!(!is_passed(&epochs, 1));
        workers[1].passed.send_replace(1);
        // Two waits at the same time, for different epochs.
        assert!(is_passed(&epochs, 1) && !is_passed(&epochs, 2));
        assert_eq!(epochs.passed(), 1);
        workers.pop();
        assert!(is_passed(&epochs, 2) && !is_passed(&epochs, 3));
        assert_eq!((epochs.advance(), epochs.passed()), (3, 2));
        workers.pop();
        assert_eq!(epochs.passed(), 3, "no worker is left");
    }
}
