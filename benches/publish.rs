//! The cost of publishing a snapshot, for the workers and for the publisher.
//!
//! * `load`: the load that a worker does once for each filled buffer, while nothing is published
//! * `verify while publishing`: batches of 64 known keys with one limit, each after a `load`, while
//!   another thread publishes nothing, and while it publishes every millisecond, a thousand times as
//!   often as keys are exported
//! * `publish`: [`Publisher::swap`] with two subscriptions, while no worker loads, and while one
//!   loads continuously
//!
//! The two snapshots that are published in turn hold the same keys and charge the same buckets.
//! Both stay alive, so no time is spent on freeing them. With 1 k keys they stay in the caches, and
//! the ratio in the table at the end is the cost of the swaps; with 1 M keys each is larger than
//! most caches. The measured thread is pinned to the first processor, the other thread to the
//! second. With only one processor, the measurements with two threads are left out.

#![allow(clippy::expect_used, reason = "a bench panics if its setup fails")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use keyward_daemon::publish::{Publisher, Subscription};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::Limiter;
use keyward_engine::now::Now;
use keyward_engine::snapshot::Snapshot;
use keyward_engine::verify::{BATCH_SIZE, Verifier};
use keyward_protocol::{Credential, Verify};

use keyward_bench_keys::{self as keys, Fixture, Seeded};
use support::pin::{Pinned, processors};
use support::summary::{BenchId, Summary};

mod support;

/// The number of workers that the publisher serves.
const SUBSCRIPTIONS: usize = 2;

/// Time between two publications by the other thread.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(1);

/// Requests that are prepared outside the measured time at once.
const PREPARED: usize = 16 * BATCH_SIZE;

/// Time between two batches.
const BATCH_INTERVAL: u64 = 10_000;

const IDLE: &str = "nothing published";
const PUBLISHING: &str = "published every ms";

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut summary = Summary::new();
    let sizes: &[(u64, &str)] = if support::is_trial_run() {
        &[(1_000, "1 k keys")]
    } else {
        &[(1_000, "1 k keys"), (1_000_000, "1 M keys")]
    };
    for (keys, name) in sizes {
        verify(&mut criterion, &mut summary, *keys, name);
    }
    let mut fixture = Fixture::new();
    let snapshots = pair(&mut fixture, 1_000);
    load(&mut criterion, &snapshots);
    publish(&mut criterion, &snapshots);
    criterion.final_summary();
    summary.print("one request, against nothing published");
}

type Pair = [Arc<Snapshot>; 2];

fn pair(fixture: &mut Fixture, keys: u64) -> Pair {
    let first = fixture.snapshot(keys, keys::HIGH_LIMIT, None);
    let second = fixture.snapshot(keys, keys::HIGH_LIMIT, Some(&first));
    [Arc::new(first), Arc::new(second)]
}

fn load(criterion: &mut Criterion, [first, _]: &Pair) {
    let (publisher, mut subscriptions) = Publisher::new(SUBSCRIPTIONS);
    publisher.swap(Arc::clone(first));
    let subscription = subscriptions.first_mut().expect("a subscription");
    criterion.bench_function("load, nothing published", |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter(|| black_box(subscription.load()).is_some());
    });
}

fn verify(criterion: &mut Criterion, summary: &mut Summary, keys: u64, name: &str) {
    let mut fixture = Fixture::new();
    let snapshots = pair(&mut fixture, keys);
    let (publisher, mut subscriptions) = Publisher::new(SUBSCRIPTIONS);
    publisher.swap(Arc::clone(&snapshots[0]));
    let mut worker = Worker {
        subscription: subscriptions.remove(0),
        limiter: &fixture.limiter,
        global_policy: GlobalPolicy::default(),
        keys,
        random: Seeded::new(1),
        now: keys::START,
    };
    let id = |parameter: &str| BenchId {
        group: format!("verify while publishing, {name}"),
        function: format!("batch {BATCH_SIZE}"),
        parameter: parameter.into(),
        requests: BATCH_SIZE as u64,
    };
    let mut group = criterion.benchmark_group(id(IDLE).group);
    group.throughput(Throughput::Elements(BATCH_SIZE as u64));
    group.bench_function(BenchmarkId::new(id(IDLE).function, IDLE), |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter_custom(|batches| worker.answer(batches));
    });
    summary.add(id(IDLE), id(IDLE));
    if let Some(second) = processors().1 {
        let mut next = snapshots.iter().cycle();
        let publish = || {
            thread::sleep(PUBLISH_INTERVAL);
            next.next().map(|snapshot| publisher.swap(Arc::clone(snapshot)));
        };
        with_background_thread(second, publish, || {
            group.bench_function(BenchmarkId::new(id(PUBLISHING).function, PUBLISHING), |bencher| {
                let _pinned = Pinned::to(processors().0);
                bencher.iter_custom(|batches| worker.answer(batches));
            });
        });
        summary.add(id(PUBLISHING), id(IDLE));
    }
    group.finish();
}

fn publish(criterion: &mut Criterion, snapshots: &Pair) {
    let (publisher, mut subscriptions) = Publisher::new(SUBSCRIPTIONS);
    let mut next = snapshots.iter().cycle();
    let mut group = criterion.benchmark_group("publish");
    let mut publish = |group: &mut criterion::BenchmarkGroup<'_, _>, name: &str| {
        group.bench_function(name, |bencher| {
            let _pinned = Pinned::to(processors().0);
            bencher.iter(|| next.next().map(|snapshot| publisher.swap(Arc::clone(snapshot))));
        });
    };
    publish(&mut group, "no loads");
    if let (Some(second), Some(subscription)) = (processors().1, subscriptions.first_mut()) {
        let load = || {
            black_box(subscription.load());
        };
        with_background_thread(second, load, || publish(&mut group, "continuous loads"));
    }
    group.finish();
}

/// Runs `measured` while another thread, pinned to `processor`, calls `background` in a loop.
fn with_background_thread(processor: usize, mut background: impl FnMut() + Send, measured: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _pinned = Pinned::to(processor);
            while !done.load(Ordering::Relaxed) {
                background();
            }
        });
        // Also if `measured` panics, because the scope waits for the thread.
        let _guard = StopGuard(&done);
        measured();
    });
}

/// Stops the background thread when it is dropped.
struct StopGuard<'a>(&'a AtomicBool);

impl Drop for StopGuard<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A worker's use of the snapshot between a read and a write.
struct Worker<'a> {
    subscription: Subscription,
    limiter: &'a Limiter,
    global_policy: GlobalPolicy,
    keys: u64,
    random: Seeded,
    now: Now,
}

impl Worker<'_> {
    /// The time that `batches` batches take, without preparing their requests.
    fn answer(&mut self, batches: u64) -> Duration {
        let mut total = Duration::ZERO;
        let mut remaining = usize::try_from(batches).expect("an iteration count fits") * BATCH_SIZE;
        while remaining > 0 {
            let requests: Vec<Verify<'_>> = (0..remaining.min(PREPARED))
                .map(|_| keys::digest(self.random.below(self.keys)))
                .map(|digest| Verify::new(0, Credential::Digest(digest)))
                .collect();
            let start = Instant::now();
            for requests in requests.chunks(BATCH_SIZE) {
                self.now.nanoseconds += BATCH_INTERVAL;
                let Self { limiter, global_policy, now, subscription, .. } = self;
                let verifier = Verifier { view: subscription.load(), limiter, global_policy, now: *now };
                let answered = verifier.verify(requests, |decision| {
                    black_box(decision);
                });
                assert_eq!(answered, requests.len());
            }
            total += start.elapsed();
            remaining -= requests.len();
        }
        total
    }
}
