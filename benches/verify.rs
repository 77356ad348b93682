//! The decision, without socket or codec: [`Verifier::verify`] with batches of 1, 16 and 64,
//! against the SHA-256 of the same 40-byte keys by the same crate.
//!
//! * `hit`: known keys without limits. `miss`: unknown keys.
//! * `one limit`, `two limits`: known keys with limits that admit the requests. `rate limited`: known
//!   keys whose only limit is used up.
//! * `by digest`: the client has hashed the key. `by raw key`: the daemon hashes it.
//! * `encoded`: every answer is also encoded as a frame, which reads the key's strings.
//! * `memory`: cache lines at random addresses in 128 MiB, the other lower bound of a look-up.
//!
//! Keys are drawn at random from the whole key set, so a set that does not fit into the caches is
//! read from memory, as in production. Requests are prepared 1,024 at a time outside the measured
//! time, from the keys' numbers alone. The clock advances by a microsecond for each batch. One
//! thread, pinned to the first processor.
//!
//! criterion prints the time of a whole batch and the requests per second. The table at the end has
//! medians per request, and their ratios to `sha256` of the same run: 1.00 is the cost of hashing a
//! key once, which `by raw key` includes. `KEYWARD_BENCH_10M=1` adds a set of ten million keys (2
//! GiB and a few more minutes). benches/targets reads the results by these ids.

#![allow(clippy::expect_used, reason = "a bench panics if its setup fails")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::Limiter;
use keyward_engine::now::Now;
use keyward_engine::snapshot::{Snapshot, View};
use keyward_engine::verify::Verifier;
use keyward_protocol::{Credential, Verdict, Verify};
use sha2::{Digest, Sha256};

use keyward_bench_keys::{self as keys, Fixture, KEY_BYTES, Seeded};
use support::cache_lines::LineTable;
use support::pin::{Pinned, processors};
use support::summary::{BenchId, Summary};

mod support;

const BATCHES: [usize; 3] = [1, 16, 64];

/// Requests that are prepared at once: a multiple of every batch size, and few enough to stay in
/// the L2 cache, as a connection's requests do.
const PREPARED: usize = 1024;

/// Time between two batches.
const BATCH_INTERVAL: u64 = 1_000;

/// Sizes of key sets, and their names.
const SIZES: [(u64, &str); 3] = [(1_000, "1 k keys"), (1_000_000, "1 M keys"), (10_000_000, "10 M keys")];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut summary = Summary::new();
    let reference = sha256(&mut criterion, &mut summary);
    memory(&mut criterion, &mut summary, &reference);
    let largest = if support::is_trial_run() {
        1_000
    } else if std::env::var_os("KEYWARD_BENCH_10M").is_some() {
        10_000_000
    } else {
        1_000_000
    };
    for (keys, name) in SIZES.into_iter().filter(|(keys, _)| *keys <= largest) {
        for case in &CASES {
            measure(&mut criterion, &mut summary, &reference, (keys, name), case);
        }
    }
    criterion.final_summary();
    summary.print("one request, against SHA-256 of one key");
}

/// The reference of all ratios.
fn sha256(criterion: &mut Criterion, summary: &mut Summary) -> BenchId {
    let id = BenchId {
        group: "sha256".into(),
        function: "keys of 40 bytes".into(),
        parameter: "batch 64".into(),
        requests: 64,
    };
    let mut group = criterion.benchmark_group(&id.group);
    group.throughput(Throughput::Elements(id.requests));
    group.bench_function(BenchmarkId::new(&id.function, &id.parameter), |bencher| {
        let _pinned = Pinned::to(processors().0);
        let keys: Vec<[u8; KEY_BYTES]> = (0..id.requests).map(keys::raw_key).collect();
        bencher.iter(|| {
            for key in black_box(&keys) {
                black_box(Sha256::digest(key));
            }
        });
    });
    group.finish();
    summary.add(id.clone(), id.clone());
    id
}

/// The cost of a cache line that is in no cache.
fn memory(criterion: &mut Criterion, summary: &mut Summary, reference: &BenchId) {
    let lines = LineTable::new();
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::Elements(BATCHES[2] as u64));
    let id = |function: &str| BenchId {
        group: "memory".into(),
        function: function.into(),
        parameter: "64 lines".into(),
        requests: 64,
    };
    let (dependent, prefetched) = (id("dependent loads"), id("prefetched together"));
    let mut line = 0;
    group.bench_function(BenchmarkId::new(&dependent.function, &dependent.parameter), |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter(|| line = black_box(lines.follow(line, dependent.requests)));
    });
    let mut random = Seeded::new(2);
    group.bench_function(BenchmarkId::new(&prefetched.function, &prefetched.parameter), |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter(|| black_box(lines.read_prefetched::<64>(&mut random)));
    });
    group.finish();
    summary.add(dependent, reference.clone());
    summary.add(prefetched, reference.clone());
}

/// A key set, and the workloads that are measured with it.
struct Case {
    limits: &'static str,
    /// Whether every key is charged once before.
    used_up: bool,
    workloads: &'static [Workload],
}

#[derive(Clone, Copy)]
struct Workload {
    name: &'static str,
    /// The verdict of every request.
    verdict: Verdict,
    raw_key: bool,
    encoded: bool,
}

const HIT: Workload =
    Workload { name: "hit by digest", verdict: Verdict::Allowed, raw_key: false, encoded: false };
const MISS: Workload = Workload { name: "miss by digest", verdict: Verdict::UnknownKey, ..HIT };

const CASES: [Case; 4] = [
    Case {
        limits: "",
        used_up: false,
        workloads: &[
            HIT,
            Workload { name: "hit by digest, encoded", encoded: true, ..HIT },
            Workload { name: "hit by raw key", raw_key: true, ..HIT },
            MISS,
            Workload { name: "miss by raw key", raw_key: true, ..MISS },
        ],
    },
    Case {
        limits: keys::HIGH_LIMIT,
        used_up: false,
        workloads: &[
            Workload { name: "one limit by digest", ..HIT },
            Workload { name: "one limit by digest, encoded", encoded: true, ..HIT },
            Workload { name: "one limit by raw key", raw_key: true, ..HIT },
        ],
    },
    Case {
        limits: keys::TWO_HIGH_LIMITS,
        used_up: false,
        workloads: &[Workload { name: "two limits by digest", ..HIT }],
    },
    Case {
        limits: keys::ONE_PER_DAY,
        used_up: true,
        workloads: &[Workload { name: "rate limited by digest", verdict: Verdict::RateLimited, ..HIT }],
    },
];

fn measure(
    criterion: &mut Criterion,
    summary: &mut Summary,
    reference: &BenchId,
    (keys, name): (u64, &str),
    case: &Case,
) {
    let mut fixture = Fixture::new();
    let snapshot = fixture.snapshot(keys, case.limits, None);
    let mut driver = Driver::new(&snapshot, &fixture.limiter, keys);
    if case.used_up {
        driver.use_up();
    }
    let mut group = criterion.benchmark_group(format!("verify, {name}"));
    for workload in case.workloads {
        driver.assert_verdict(*workload);
        for batch in BATCHES {
            let parameter = format!("batch {batch}");
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(workload.name, &parameter), |bencher| {
                let _pinned = Pinned::to(processors().0);
                bencher.iter_custom(|batches| driver.run(*workload, batches, batch));
            });
            let id = BenchId {
                group: format!("verify, {name}"),
                function: workload.name.into(),
                parameter,
                requests: batch as u64,
            };
            summary.add(id, reference.clone());
        }
    }
    group.finish();
}

/// Verifies random keys.
struct Driver<'s> {
    snapshot: &'s Snapshot,
    limiter: &'s Limiter,
    global_policy: GlobalPolicy,
    key_count: u64,
    random: Seeded,
    now: Now,
    frames: Vec<u8>,
}

impl<'s> Driver<'s> {
    fn new(snapshot: &'s Snapshot, limiter: &'s Limiter, keys: u64) -> Self {
        let frames = Vec::with_capacity(1 << 16);
        Self {
            snapshot,
            limiter,
            global_policy: GlobalPolicy::default(),
            key_count: keys,
            random: Seeded::new(1),
            now: keys::START,
            frames,
        }
    }

    /// The time that `batches` batches take, without preparing them.
    fn run(&mut self, workload: Workload, batches: u64, batch: usize) -> Duration {
        let mut total = Duration::ZERO;
        let mut remaining = usize::try_from(batches).expect("an iteration count fits") * batch;
        while remaining > 0 {
            let keys = self.draw(workload, remaining.min(PREPARED));
            let requests = requests(workload, &keys);
            let start = Instant::now();
            for requests in requests.chunks(batch) {
                self.now.nanoseconds += BATCH_INTERVAL;
                self.verify(workload, requests);
            }
            total += start.elapsed();
            remaining -= requests.len();
        }
        total
    }

    #[inline]
    fn verify(&mut self, workload: Workload, requests: &[Verify<'_>]) {
        let Self { snapshot, limiter, global_policy, now, frames, .. } = self;
        let verifier = Verifier { view: Some(View::of(snapshot)), limiter, global_policy, now: *now };
        let answered = if workload.encoded {
            frames.clear();
            verifier.verify(requests, |decision| decision.encode(frames))
        } else {
            verifier.verify(requests, |decision| {
                black_box(decision);
            })
        };
        black_box(answered);
    }

    fn draw(&mut self, workload: Workload, count: usize) -> Vec<[u8; KEY_BYTES]> {
        let first_key = if workload.verdict == Verdict::UnknownKey { self.key_count } else { 0 };
        (0..count).map(|_| keys::raw_key(first_key + self.random.below(self.key_count))).collect()
    }

    /// Asserts that requests get the workload's verdict.
    fn assert_verdict(&mut self, workload: Workload) {
        let keys = self.draw(workload, PREPARED);
        let verifier = Verifier {
            view: Some(View::of(self.snapshot)),
            limiter: self.limiter,
            global_policy: &self.global_policy,
            now: self.now,
        };
        let answered = verifier
            .verify(&requests(workload, &keys), |decision| assert_eq!(decision.verdict(), workload.verdict));
        assert_eq!(answered, PREPARED);
    }

    /// Charges every key once.
    fn use_up(&mut self) {
        let verifier = Verifier {
            view: Some(View::of(self.snapshot)),
            limiter: self.limiter,
            global_policy: &self.global_policy,
            now: self.now,
        };
        for number in 0..self.key_count {
            let request = Verify::new(0, Credential::Digest(keys::digest(number)));
            verifier.verify(&[request], |decision| assert_eq!(decision.verdict(), Verdict::Allowed));
        }
    }
}

fn requests(workload: Workload, keys: &[[u8; KEY_BYTES]]) -> Vec<Verify<'_>> {
    keys.iter()
        .enumerate()
        .map(|(id, key)| {
            let credential = if workload.raw_key {
                Credential::RawKey(key)
            } else {
                Credential::Digest(Sha256::digest(key).into())
            };
            Verify::new(id as u32, credential)
        })
        .collect()
}
