//! The decision, without socket or codec: [`Verifier::verify`] on batches of 1, 16 and 64, against the SHA-256 of
//! the same 40-byte keys by the same crate.
//!
//! * `hit`: known keys without limits. `miss`: keys that nobody has.
//! * `one limit`, `two limits`: known keys with limits that admit them. `rate limited`: known keys whose only limit
//!   refuses them.
//! * `by digest`: the client has hashed. `by raw key`: the daemon hashes.
//! * `memory`: cache lines at random places of 128 MiB, the other thing that a look-up cannot be faster than.
//! * `encoded`: every answer is also written as a frame, which reads the key's texts; the others only look at it.
//!
//! Keys are drawn at random from the whole table, so that a table which does not fit into the caches is read from
//! memory, as it is in life. Requests are prepared 1,024 at a time outside the measured time, from the keys'
//! numbers alone. Time goes on by a microsecond for each batch. One thread, pinned to the first processor.
//!
//! How to read it: criterion prints the time of a whole batch and the requests per second. The table at the end has
//! medians per request; its ratio is to `sha256` of this run, so 1.00 is what hashing the key once costs, and `by
//! raw key` contains that. `KEYWARD_BENCH_10M=1` adds a table of ten million keys (2 GiB, and a few minutes more).
//! With glibc, `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` shows what huge pages are worth to the larger tables.

#![allow(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use keyward::limiter::{Limiter, TICKS_PER_NANOSECOND};
use keyward::now::Now;
use keyward::rules::GlobalPolicy;
use keyward::snapshot::Snapshot;
use keyward::verify::Verifier;
use keyward_protocol::{Credential, Verdict, Verify};
use sha2::{Digest, Sha256};

use support::Seeded;
use support::keys::{self, KEY_BYTES, Tables};
use support::lines::Lines;
use support::pin::{Pinned, processors};
use support::summary::{Id, Summary};

mod support;

const BATCHES: [usize; 3] = [1, 16, 64];

/// Requests that are prepared at once: a multiple of every batch, and little enough that they stay in the second-level
/// cache, where a connection's requests are.
const PREPARED: usize = 1024;

/// Time between two batches.
const BETWEEN: u64 = 1_000 * TICKS_PER_NANOSECOND;

/// Keys of tables, and what they are called.
const SIZES: [(u64, &str); 3] = [(1_000, "1 k keys"), (1_000_000, "1 M keys"), (10_000_000, "10 M keys")];

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut summary = Summary::new();
    let hash = sha256(&mut criterion, &mut summary);
    memory(&mut criterion, &mut summary, &hash);
    let largest = match (support::is_trial(), std::env::var_os("KEYWARD_BENCH_10M")) {
        (true, _) => 1_000,
        (false, None) => 1_000_000,
        (false, Some(_)) => 10_000_000,
    };
    for (keys, name) in SIZES.into_iter().filter(|(keys, _)| *keys <= largest) {
        for case in &CASES {
            measure(&mut criterion, &mut summary, &hash, (keys, name), case);
        }
    }
    criterion.final_summary();
    summary.print("one request, against SHA-256 of one key");
}

/// The baseline.
fn sha256(criterion: &mut Criterion, summary: &mut Summary) -> Id {
    let id = Id {
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

/// The other limit: what a cache line costs that is not in any cache.
fn memory(criterion: &mut Criterion, summary: &mut Summary, hash: &Id) {
    let lines = Lines::new();
    let mut group = criterion.benchmark_group("memory");
    group.throughput(Throughput::Elements(BATCHES[2] as u64));
    let id = |function: &str| Id {
        group: "memory".into(),
        function: function.into(),
        parameter: "64 lines".into(),
        requests: 64,
    };
    let (walk, together) = (id("one after another"), id("asked for together"));
    let mut at = 0;
    group.bench_function(BenchmarkId::new(&walk.function, &walk.parameter), |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter(|| at = black_box(lines.walk(at, walk.requests)));
    });
    let mut random = Seeded::new(2);
    group.bench_function(BenchmarkId::new(&together.function, &together.parameter), |bencher| {
        let _pinned = Pinned::to(processors().0);
        bencher.iter(|| black_box(lines.together::<64>(&mut random)));
    });
    group.finish();
    summary.add(walk, hash.clone());
    summary.add(together, hash.clone());
}

/// A table, and what it is asked.
struct Case {
    limits: &'static str,
    /// Charge every key once before.
    used_up: bool,
    questions: &'static [Question],
}

#[derive(Clone, Copy)]
struct Question {
    name: &'static str,
    verdict: Verdict,
    raw: bool,
    encoded: bool,
}

const HIT: Question =
    Question { name: "hit by digest", verdict: Verdict::Allowed, raw: false, encoded: false };
const MISS: Question = Question { name: "miss by digest", verdict: Verdict::UnknownKey, ..HIT };

const CASES: [Case; 4] = [
    Case {
        limits: "",
        used_up: false,
        questions: &[
            HIT,
            Question { name: "hit by digest, encoded", encoded: true, ..HIT },
            Question { name: "hit by raw key", raw: true, ..HIT },
            MISS,
            Question { name: "miss by raw key", raw: true, ..MISS },
        ],
    },
    Case {
        limits: keys::ENDLESS,
        used_up: false,
        questions: &[
            Question { name: "one limit by digest", ..HIT },
            Question { name: "one limit by digest, encoded", encoded: true, ..HIT },
            Question { name: "one limit by raw key", raw: true, ..HIT },
        ],
    },
    Case {
        limits: keys::ENDLESS_TWICE,
        used_up: false,
        questions: &[Question { name: "two limits by digest", ..HIT }],
    },
    Case {
        limits: keys::ONCE,
        used_up: true,
        questions: &[Question { name: "rate limited by digest", verdict: Verdict::RateLimited, ..HIT }],
    },
];

fn measure(
    criterion: &mut Criterion,
    summary: &mut Summary,
    hash: &Id,
    (keys, name): (u64, &str),
    case: &Case,
) {
    let mut tables = Tables::new();
    let snapshot = tables.snapshot(keys, case.limits, None);
    let mut asking = Asking::new(&snapshot, &tables.limiter, keys);
    if case.used_up {
        asking.use_up();
    }
    let mut group = criterion.benchmark_group(format!("verify, {name}"));
    for question in case.questions {
        asking.check(*question);
        for batch in BATCHES {
            let parameter = format!("batch {batch}");
            group.throughput(Throughput::Elements(batch as u64));
            group.bench_function(BenchmarkId::new(question.name, &parameter), |bencher| {
                let _pinned = Pinned::to(processors().0);
                bencher.iter_custom(|batches| asking.ask(*question, batches, batch));
            });
            let id = Id {
                group: format!("verify, {name}"),
                function: question.name.into(),
                parameter,
                requests: batch as u64,
            };
            summary.add(id, hash.clone());
        }
    }
    group.finish();
}

/// Someone who asks about keys at random.
struct Asking<'s> {
    snapshot: &'s Snapshot,
    limiter: &'s Limiter,
    global_policy: GlobalPolicy,
    keys: u64,
    random: Seeded,
    now: Now,
    frames: Vec<u8>,
}

impl<'s> Asking<'s> {
    fn new(snapshot: &'s Snapshot, limiter: &'s Limiter, keys: u64) -> Self {
        let frames = Vec::with_capacity(1 << 16);
        Self {
            snapshot,
            limiter,
            global_policy: GlobalPolicy::default(),
            keys,
            random: Seeded::new(1),
            now: keys::START,
            frames,
        }
    }

    /// How long so many batches take, their preparation apart.
    fn ask(&mut self, question: Question, batches: u64, batch: usize) -> Duration {
        let mut total = Duration::ZERO;
        let mut left = usize::try_from(batches).expect("an iteration count fits") * batch;
        while left > 0 {
            let raw = self.draw(question, left.min(PREPARED));
            let requests = requests(question, &raw);
            let start = Instant::now();
            for requests in requests.chunks(batch) {
                self.now.ticks += BETWEEN;
                self.verify(question, requests);
            }
            total += start.elapsed();
            left -= requests.len();
        }
        total
    }

    #[inline]
    fn verify(&mut self, question: Question, requests: &[Verify<'_>]) {
        let Self { snapshot, limiter, global_policy, now, frames, .. } = self;
        let verifier = Verifier { snapshot: Some(snapshot), limiter, global_policy, now: *now };
        let answered = if question.encoded {
            frames.clear();
            verifier.verify(requests, |decision| decision.encode(frames))
        } else {
            verifier.verify(requests, |decision| {
                black_box(decision);
            })
        };
        black_box(answered);
    }

    fn draw(&mut self, question: Question, count: usize) -> Vec<[u8; KEY_BYTES]> {
        let unknown = if question.verdict == Verdict::UnknownKey { self.keys } else { 0 };
        (0..count).map(|_| keys::raw_key(unknown + self.random.below(self.keys))).collect()
    }

    /// That the question has the answer that it is named for.
    fn check(&mut self, question: Question) {
        let raw = self.draw(question, PREPARED);
        let verifier = Verifier {
            snapshot: Some(self.snapshot),
            limiter: self.limiter,
            global_policy: &self.global_policy,
            now: self.now,
        };
        let answered = verifier
            .verify(&requests(question, &raw), |decision| assert_eq!(decision.verdict(), question.verdict));
        assert_eq!(answered, PREPARED);
    }

    /// Charges every key once.
    fn use_up(&mut self) {
        let verifier = Verifier {
            snapshot: Some(self.snapshot),
            limiter: self.limiter,
            global_policy: &self.global_policy,
            now: self.now,
        };
        for number in 0..self.keys {
            let request = Verify::new(0, Credential::Digest(keys::digest(number)));
            verifier.verify(&[request], |decision| assert_eq!(decision.verdict(), Verdict::Allowed));
        }
    }
}

fn requests(question: Question, raw: &[[u8; KEY_BYTES]]) -> Vec<Verify<'_>> {
    raw.iter()
        .enumerate()
        .map(|(id, key)| {
            let credential = match question.raw {
                true => Credential::RawKey(key),
                false => Credential::Digest(Sha256::digest(key).into()),
            };
            Verify::new(id as u32, credential)
        })
        .collect()
}
