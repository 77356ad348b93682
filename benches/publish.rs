//! The swap of snapshots: what it costs the workers, and what it costs whoever publishes.
//!
//! * `load`: [`Subscription::load`], which a worker calls once for each filled buffer, while nothing is published.
//! * `verify`: batches of 64 known keys with one limit, each after a `load`, while another thread publishes
//!   nothing; and while it publishes every millisecond, which is a thousand times as often as anyone exports keys.
//! * `publish`: [`Publisher::publish`] itself, with two subscriptions: while nobody loads, and while a worker does
//!   without pause.
//!
//! The two snapshots that take turns hold the same keys and charge the same buckets; both stay alive, so that no
//! time is spent on freeing them. With 1 k keys they stay in the caches, and the ratio in the table at the end is
//! the price of the swaps; with 1 M keys either is larger than most caches. Measured on the first processor; the
//! other thread is pinned to the second, and where there is only one, what needs two is left out.

#![allow(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use keyward::limiter::{Limiter, TICKS_PER_NANOSECOND};
use keyward::now::Now;
use keyward::publish::{Publisher, Subscription};
use keyward::rules::GlobalPolicy;
use keyward::snapshot::Snapshot;
use keyward::verify::{BATCH_SIZE, Verifier};
use keyward_protocol::{Credential, Verify};

use support::Seeded;
use support::keys::{self, Tables};
use support::pin::{Pinned, processors};
use support::summary::{Id, Summary};

mod support;

/// Workers, as far as the publisher knows.
const SUBSCRIPTIONS: usize = 2;

/// How often the other thread publishes.
const EVERY: Duration = Duration::from_millis(1);

/// Requests that are prepared at once.
const PREPARED: usize = 16 * BATCH_SIZE;

/// Time between two batches.
const BETWEEN: u64 = 10_000 * TICKS_PER_NANOSECOND;

const QUIET: &str = "nothing published";
const BUSY: &str = "published every ms";

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut summary = Summary::new();
    let sizes: &[(u64, &str)] = if support::is_trial() {
        &[(1_000, "1 k keys")]
    } else {
        &[(1_000, "1 k keys"), (1_000_000, "1 M keys")]
    };
    for (keys, name) in sizes {
        verify(&mut criterion, &mut summary, *keys, name);
    }
    let mut tables = Tables::new();
    let snapshots = pair(&mut tables, 1_000);
    load(&mut criterion, &snapshots);
    publish(&mut criterion, &snapshots);
    criterion.final_summary();
    summary.print("one request, against nothing published");
}

type Pair = [Arc<Snapshot>; 2];

fn pair(tables: &mut Tables, keys: u64) -> Pair {
    let first = tables.snapshot(keys, keys::ENDLESS, None);
    let second = tables.snapshot(keys, keys::ENDLESS, Some(&first));
    [Arc::new(first), Arc::new(second)]
}

fn load(criterion: &mut Criterion, [first, _]: &Pair) {
    let (publisher, mut subscriptions) = Publisher::new(SUBSCRIPTIONS);
    publisher.publish(Arc::clone(first));
    let subscription = subscriptions.first_mut().expect("a subscription");
    criterion.bench_function("load, nothing published", |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter(|| black_box(subscription.load()).is_some());
    });
}

fn verify(criterion: &mut Criterion, summary: &mut Summary, keys: u64, name: &str) {
    let mut tables = Tables::new();
    let snapshots = pair(&mut tables, keys);
    let (publisher, mut subscriptions) = Publisher::new(SUBSCRIPTIONS);
    publisher.publish(Arc::clone(&snapshots[0]));
    let mut worker = Worker {
        subscription: subscriptions.remove(0),
        limiter: &tables.limiter,
        global_policy: GlobalPolicy::default(),
        keys,
        random: Seeded::new(1),
        now: keys::START,
    };
    let id = |parameter: &str| Id {
        group: format!("verify while publishing, {name}"),
        function: format!("batch {BATCH_SIZE}"),
        parameter: parameter.into(),
        requests: BATCH_SIZE as u64,
    };
    let mut group = criterion.benchmark_group(id(QUIET).group);
    group.throughput(Throughput::Elements(BATCH_SIZE as u64));
    group.bench_function(BenchmarkId::new(id(QUIET).function, QUIET), |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter_custom(|batches| worker.answer(batches));
    });
    summary.add(id(QUIET), id(QUIET));
    if let Some(second) = processors().1 {
        let mut turn = snapshots.iter().cycle();
        let publish = || {
            thread::sleep(EVERY);
            turn.next().map(|snapshot| publisher.publish(Arc::clone(snapshot)));
        };
        meanwhile(second, publish, || {
            group.bench_function(BenchmarkId::new(id(BUSY).function, BUSY), |bencher| {
                let _pinned = Pinned::to(processors().0);
                bencher.iter_custom(|batches| worker.answer(batches));
            });
        });
        summary.add(id(BUSY), id(QUIET));
    }
    group.finish();
}

fn publish(criterion: &mut Criterion, snapshots: &Pair) {
    let (publisher, mut subscriptions) = Publisher::new(SUBSCRIPTIONS);
    let mut turn = snapshots.iter().cycle();
    let mut group = criterion.benchmark_group("publish");
    let mut publish = |group: &mut criterion::BenchmarkGroup<'_, _>, name: &str| {
        group.bench_function(name, |bencher| {
            let _pinned = Pinned::to(processors().0);
            bencher.iter(|| turn.next().map(|snapshot| publisher.publish(Arc::clone(snapshot))));
        });
    };
    publish(&mut group, "nobody loads");
    if let (Some(second), Some(subscription)) = (processors().1, subscriptions.first_mut()) {
        let load = || {
            black_box(subscription.load());
        };
        meanwhile(second, load, || publish(&mut group, "a worker loads without pause"));
    }
    group.finish();
}

/// Runs `measured` while another thread, pinned to `processor`, does `disturb` over and over.
fn meanwhile(processor: usize, mut disturb: impl FnMut() + Send, measured: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _pinned = Pinned::to(processor);
            while !done.load(Ordering::Relaxed) {
                disturb();
            }
        });
        // Also when `measured` panics: the scope waits for the thread.
        let _end = Finally(&done);
        measured();
    });
}

struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a worker does between a read and a write, as far as the snapshot is concerned.
struct Worker<'a> {
    subscription: Subscription,
    limiter: &'a Limiter,
    global_policy: GlobalPolicy,
    keys: u64,
    random: Seeded,
    now: Now,
}

impl Worker<'_> {
    /// How long so many batches take, the preparation of the requests apart.
    fn answer(&mut self, batches: u64) -> Duration {
        let mut total = Duration::ZERO;
        let mut left = usize::try_from(batches).expect("an iteration count fits") * BATCH_SIZE;
        while left > 0 {
            let requests: Vec<Verify<'_>> = (0..left.min(PREPARED))
                .map(|_| keys::digest(self.random.below(self.keys)))
                .map(|digest| Verify::new(0, Credential::Digest(digest)))
                .collect();
            let start = Instant::now();
            for requests in requests.chunks(BATCH_SIZE) {
                self.now.ticks += BETWEEN;
                let Self { limiter, global_policy, now, subscription, .. } = self;
                let verifier = Verifier { snapshot: subscription.load(), limiter, global_policy, now: *now };
                let answered = verifier.verify(requests, |decision| {
                    black_box(decision);
                });
                assert_eq!(answered, requests.len());
            }
            total += start.elapsed();
            left -= requests.len();
        }
        total
    }
}
