//! The atomic swap of snapshots, and the wait until nobody uses the old one.
//!
//! A worker takes the current snapshot once per filled buffer, through a cache that costs one load. It *passes* a
//! generation once it can no longer write an answer from an older snapshot: the cache is refreshed, and no connection of
//! the worker has such an answer waiting for its peer to read. Only then is a reload acknowledged (promise 2), and only
//! then is the old snapshot freed, by the thread that reloads, so that no request ever pays for it.

use std::sync::Arc;

use arc_swap::{ArcSwapOption, Cache};
use tokio::sync::watch;

use crate::snapshot::Snapshot;

type Current = Arc<ArcSwapOption<Snapshot>>;

/// The writing side: one, owned by whoever reloads.
pub struct Publisher {
    current: Current,
    announce: watch::Sender<u64>,
    passed: Vec<watch::Receiver<u64>>,
}

/// A look at what is being served, for anyone off the request path.
#[derive(Clone)]
pub struct Served {
    current: Current,
}

/// A worker's side.
pub struct Subscription {
    cache: Cache<Current, Option<Arc<Snapshot>>>,
    /// Says when there is a new generation.
    pub announced: watch::Receiver<u64>,
    /// To be told the generation that the worker has passed.
    pub passed: watch::Sender<u64>,
}

impl Publisher {
    /// Nothing published yet, and `workers` subscriptions to it.
    pub fn new(workers: usize) -> (Self, Vec<Subscription>) {
        let current: Current = Arc::default();
        let (announce, announced) = watch::channel(0);
        let (subscriptions, passed) = (0..workers)
            .map(|_| {
                let (worker, publisher) = watch::channel(0);
                let cache = Cache::new(Arc::clone(&current));
                (Subscription { cache, announced: announced.clone(), passed: worker }, publisher)
            })
            .unzip();
        (Self { current, announce, passed }, subscriptions)
    }

    /// What is being served.
    pub fn served(&self) -> Served {
        Served { current: Arc::clone(&self.current) }
    }

    /// Makes `snapshot` the current one, and returns the one before it. From here on every buffer that is filled is
    /// answered from `snapshot`; what is already being answered is waited for with [`passed`](Self::passed).
    pub fn publish(&self, snapshot: Arc<Snapshot>) -> Option<Arc<Snapshot>> {
        let generation = snapshot.generation();
        let old = self.current.swap(Some(snapshot));
        self.announce.send_replace(generation);
        old
    }

    /// Waits until every worker has passed `generation`. A worker that has ended has passed everything.
    pub async fn passed(&mut self, generation: u64) {
        for worker in &mut self.passed {
            let _ended = worker.wait_for(|passed| *passed >= generation).await;
        }
    }
}

impl Served {
    /// The current snapshot.
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.current.load_full()
    }
}

impl Subscription {
    /// The current snapshot, as of this call.
    pub fn load(&mut self) -> Option<&Snapshot> {
        self.cache.load().as_deref()
    }
}
