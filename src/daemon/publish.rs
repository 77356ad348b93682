//! The atomic swap of snapshots, and the wait until nobody answers as things were before.
//!
//! Whatever changes what is answered ends an *epoch*: the swap to a new snapshot, and an operator's revocation, which
//! changes the current one in place. The change is stored first and the epoch advanced after it, while a worker reads the
//! epoch first and looks at the snapshot after that, once per filled buffer. So a worker that has read an epoch sees
//! every change up to it, and tags what it answers with an epoch that is never too new.
//!
//! A worker *passes* an epoch once it can no longer write an answer of an older one: the cached snapshot is refreshed, and
//! no connection of the worker has such an answer waiting for its peer to read. Only then is a reload or a revocation
//! acknowledged (promise 2), and only then is an old snapshot freed, by the thread that reloads, so that no request ever
//! pays for it. A reload and any number of revocations may wait at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwapOption, Cache};
use tokio::sync::watch;

use keyward_engine::snapshot::Snapshot;

type Current = Arc<ArcSwapOption<Snapshot>>;

/// The writing side: one, owned by whoever reloads.
pub struct Publisher {
    current: Current,
    epochs: Epochs,
}

/// A look at what is being served, for anyone off the request path.
#[derive(Clone)]
pub struct SnapshotReader {
    current: Current,
}

/// Ends epochs and waits for the workers to have passed them: for whoever changes what is answered.
#[derive(Clone)]
pub struct Epochs {
    now: Arc<AtomicU64>,
    announce: watch::Sender<u64>,
    passed: Arc<[watch::Receiver<u64>]>,
}

/// A snapshot that was just swapped in.
pub struct Published {
    /// The epoch that began with it: once it is [passed](Epochs::passed), the snapshot is in force on every connection.
    pub epoch: u64,
    /// The snapshot before it, which workers may still be using until then.
    pub old: Option<Arc<Snapshot>>,
}

/// A worker's side.
pub struct Subscription {
    cache: Cache<Current, Option<Arc<Snapshot>>>,
    now: Arc<AtomicU64>,
    /// Says when there is a new epoch.
    pub announced: watch::Receiver<u64>,
    /// To be told the epoch that the worker has passed.
    pub passed: watch::Sender<u64>,
}

impl Publisher {
    /// Nothing published yet, and `workers` subscriptions to it. The first epoch is 0.
    pub fn new(workers: usize) -> (Self, Vec<Subscription>) {
        let current: Current = Arc::default();
        let now = Arc::new(AtomicU64::new(0));
        let (announce, announced) = watch::channel(0);
        let (subscriptions, passed): (Vec<_>, Vec<_>) = (0..workers)
            .map(|_| {
                let (passed, by_worker) = watch::channel(0);
                let cache = Cache::new(Arc::clone(&current));
                let (now, announced) = (Arc::clone(&now), announced.clone());
                (Subscription { cache, now, announced, passed }, by_worker)
            })
            .unzip();
        (Self { current, epochs: Epochs { now, announce, passed: passed.into() } }, subscriptions)
    }

    /// What is being served.
    pub fn reader(&self) -> SnapshotReader {
        SnapshotReader { current: Arc::clone(&self.current) }
    }

    /// The epochs, for who waits for them or ends them in another way.
    pub fn epochs(&self) -> Epochs {
        self.epochs.clone()
    }

    /// Makes `snapshot` the current one. From here on every buffer that is filled is answered from it; what is already
    /// being answered is waited for with [`Epochs::passed`].
    pub fn publish(&self, snapshot: Arc<Snapshot>) -> Published {
        let old = self.current.swap(Some(snapshot));
        Published { epoch: self.epochs.advance(), old }
    }
}

impl Epochs {
    /// Ends the epoch and returns the new one. Whatever the caller stored before is seen by every buffer that is filled
    /// in it.
    pub fn advance(&self) -> u64 {
        let mut epoch = 0;
        // Under the channel's own lock, so that two who change something at once announce in the order that they count.
        self.announce.send_modify(|announced| {
            *announced += 1;
            epoch = *announced;
            self.now.store(epoch, Ordering::Release);
        });
        epoch
    }

    /// Waits until every worker has passed `epoch`. A worker that has ended has passed everything.
    pub async fn wait_passed(&self, epoch: u64) {
        for worker in &*self.passed {
            let mut worker = worker.clone();
            let _ended = worker.wait_for(|passed| *passed >= epoch).await;
        }
    }
}

impl SnapshotReader {
    /// The current snapshot.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }
}

impl Subscription {
    /// The epoch, as of this call: to be read before the snapshot is [loaded](Self::load), so that what is answered from
    /// it is at least as new.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    /// The current snapshot, as of this call.
    pub fn load(&mut self) -> Option<&Snapshot> {
        self.cache.load().as_deref()
    }

    /// The same, for who has to keep it.
    pub fn load_arc(&mut self) -> Option<&Arc<Snapshot>> {
        self.cache.load().as_ref()
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
    fn an_epoch_is_passed_when_every_worker_has_passed_it_or_ended() {
        let (publisher, mut workers) = Publisher::new(2);
        let epochs = publisher.epochs();
        assert_eq!((epochs.advance(), epochs.advance()), (1, 2));
        assert!(workers.iter().all(|worker| worker.epoch() == 2 && *worker.announced.borrow() == 2));
        workers[0].passed.send_replace(2);
        assert!(!is_passed(&epochs, 1));
        workers[1].passed.send_replace(1);
        // Two wait at once, for different epochs.
        assert!(is_passed(&epochs, 1) && !is_passed(&epochs, 2));
        workers.pop();
        assert!(is_passed(&epochs, 2) && !is_passed(&epochs, 3));
    }
}
