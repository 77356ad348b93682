//! The cost of each policy: a request for a key with the policy, against one for a key without any.
//! Keys without policies must not pay for those of others.
//!
//! One million keys, batches of 64, by digest unless noted otherwise, one thread pinned to the
//! first processor, as in `benches/verify.rs`. In each case all keys have the same policy, and the
//! request passes it. `1 of 100 scopes` requires one scope of a key that has a hundred; `1 of 5000
//! networks` has a list of 5,000 ranges. The table at the end has medians per request, and their
//! ratios to the plain key of the same run.

#![allow(clippy::expect_used, reason = "a bench panics if its setup fails")]

use std::hint::black_box;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use keyward_engine::global_policy::GlobalPolicy;
use keyward_engine::limiter::Limiter;
use keyward_engine::now::Now;
use keyward_engine::pepper::{Pepper, Peppers};
use keyward_engine::record::{KeyRecord, Limit, Origin, Per, Plans, parse_limits};
use keyward_engine::snapshot::{Snapshot, SnapshotMeta, View};
use keyward_engine::verify::Verifier;
use keyward_protocol::{CostsBuf, Credential, Debit, Refund, ScopeMode, Scopes, Verify};
use sha2::{Digest, Sha256};

use keyward_bench_keys::{self as keys, Fixture, KEY_BYTES, Seeded};
use support::pin::{Pinned, processors};
use support::summary::{BenchId, Summary};

mod support;

const BATCH: usize = 64;
/// As in `benches/verify.rs`.
const PREPARED: usize = 1024;
const BATCH_INTERVAL: u64 = 1_000;

/// A policy, and the requests that are measured with it.
struct Case {
    name: &'static str,
    limits: &'static str,
    /// Limits of the keys' plan.
    plan: fn() -> Vec<Limit>,
    /// Adds the policy to a key.
    configure_key: fn(&mut KeyRecord<'_>),
    /// Adds the fields that the policy checks to a request.
    configure_request: for<'a> fn(&mut Verify<'a>),
    raw_key: bool,
    pepper: bool,
    kind: RequestKind,
}

#[derive(Clone, Copy)]
enum RequestKind {
    Verify,
    Refund,
    Debit,
}

const PLAIN: Case = Case {
    name: "plain",
    limits: "",
    plan: Vec::new,
    configure_key: |_| (),
    configure_request: |_| (),
    raw_key: false,
    pepper: false,
    kind: RequestKind::Verify,
};

const SCOPE: Scopes<'static> = Scopes { names: "orders:read", mode: ScopeMode::All };

const MONTHLY: &str = "1000000000/month";
const CREDITS: &str = "credits=4000000000";
const THREE_KINDS: &str =
    "requests=10000000/s burst 1000000000; monthly=1000000000/month; credits=4000000000";

/// A cost for one of the limits in [`keys::TWO_HIGH_LIMITS`].
static COSTS: LazyLock<CostsBuf> = LazyLock::new(|| {
    let mut costs = CostsBuf::new();
    costs.push("daily", 15).expect("a cost");
    costs
});

const CASES: [Case; 20] = [
    PLAIN,
    Case { name: "one limit", limits: keys::HIGH_LIMIT, ..PLAIN },
    Case { name: "two limits", limits: keys::TWO_HIGH_LIMITS, ..PLAIN },
    Case { name: "owner limit", plan: || plan(Per::Owner, false), ..PLAIN },
    Case {
        name: "one limit and one shadow limit",
        limits: keys::HIGH_LIMIT,
        plan: || plan(Per::Key, true),
        ..PLAIN
    },
    Case { name: "calendar window", limits: MONTHLY, ..PLAIN },
    Case { name: "credits", limits: CREDITS, ..PLAIN },
    Case { name: "limit, calendar window and credits", limits: THREE_KINDS, ..PLAIN },
    Case {
        name: "two limits, one of them with a cost by name",
        limits: keys::TWO_HIGH_LIMITS,
        configure_request: |request| request.costs = COSTS.as_costs(),
        ..PLAIN
    },
    Case {
        name: "two limits, and their balances in the answer",
        limits: keys::TWO_HIGH_LIMITS,
        configure_request: |request| request.want_balances = true,
        ..PLAIN
    },
    Case { name: "debits, one at a time", limits: keys::HIGH_LIMIT, kind: RequestKind::Debit, ..PLAIN },
    Case { name: "refunds, one at a time", limits: keys::HIGH_LIMIT, kind: RequestKind::Refund, ..PLAIN },
    Case { name: "environment", configure_request: |request| request.environment = Some("live"), ..PLAIN },
    Case {
        name: "1 of 1 scope",
        configure_key: |record| record.scopes = [Box::from("orders:read")].into(),
        configure_request: |request| request.scopes = Some(SCOPE),
        ..PLAIN
    },
    Case {
        name: "1 of 100 scopes",
        configure_key: |record| {
            let other = (0..99).map(|number| Box::from(format!("service{number}:read")));
            record.scopes = other.chain([Box::from("orders:*")]).collect();
        },
        configure_request: |request| request.scopes = Some(SCOPE),
        ..PLAIN
    },
    Case {
        name: "1 network",
        configure_key: |record| record.allowed_ips = Some(["10.0.0.0/8".parse().expect("a network")].into()),
        configure_request: |request| request.ip = Some("::ffff:10.1.2.3".parse().expect("an address")),
        ..PLAIN
    },
    Case {
        name: "1 of 5000 networks",
        configure_key: |record| {
            let network = |n: u32| format!("10.{}.{}.0/25", n / 250, n % 250).parse().expect("a network");
            record.allowed_ips = Some((0..5_000).map(network).collect());
        },
        configure_request: |request| request.ip = Some("::ffff:10.7.77.7".parse().expect("an address")),
        ..PLAIN
    },
    Case {
        name: "1 origin",
        configure_key: |record| {
            record.allowed_origins =
                Some([Origin::parse("https://*.example.com").expect("an origin")].into());
        },
        configure_request: |request| request.origin = Some("https://app.example.com"),
        ..PLAIN
    },
    Case { name: "raw key", raw_key: true, ..PLAIN },
    Case { name: "raw key with pepper", raw_key: true, pepper: true, ..PLAIN },
];

fn plan(per: Per, shadow: bool) -> Vec<Limit> {
    let limits = parse_limits("team=10000000/s burst 1000000000").expect("limits");
    limits.into_iter().map(|limit| Limit { per, shadow, ..limit }).collect()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut summary = Summary::new();
    let keys = if support::is_trial_run() { 1_000 } else { 1_000_000 };
    for case in &CASES {
        measure(&mut criterion, &mut summary, keys, case);
    }
    criterion.final_summary();
    summary.print("one request, against a plain key");
}

fn measure(criterion: &mut Criterion, summary: &mut Summary, keys: u64, case: &Case) {
    let id = |name: &str| BenchId {
        group: "policy, 1 M keys".into(),
        function: name.into(),
        parameter: format!("batch {BATCH}"),
        requests: BATCH as u64,
    };
    let case_id = id(case.name);
    let mut group = criterion.benchmark_group(&case_id.group);
    group.throughput(Throughput::Elements(case_id.requests));
    let mut workload = None;
    group.bench_function(BenchmarkId::new(&case_id.function, &case_id.parameter), |bencher| {
        // Built on first use, because a filter may exclude most cases.
        let workload = workload.get_or_insert_with(|| Workload::new(keys, case));
        let _pinned = Pinned::to(processors().0);
        bencher.iter_custom(|batches| workload.run(case, batches));
    });
    group.finish();
    summary.add(case_id, id(PLAIN.name));
}

/// Verifies random keys of a case's snapshot.
struct Workload {
    snapshot: Snapshot,
    limiter: Limiter,
    keys: u64,
    random: Seeded,
    now: Now,
}

impl Workload {
    fn new(keys: u64, case: &Case) -> Self {
        let plans = Plans::new([("pro".into(), (case.plan)())], None).expect("a plan");
        let pepper = || Pepper::new(b"a pepper of at least 128 bits").expect("a pepper");
        let peppers = case.pepper.then(|| Peppers { current: pepper(), previous: None });
        let stamp = SnapshotMeta {
            global_policy: Arc::new(GlobalPolicy { peppers, ..GlobalPolicy::default() }),
            ..SnapshotMeta::default()
        };
        let mut fixture = Fixture::new();
        let snapshot =
            fixture.snapshot_with(keys, case.limits, stamp, None, Arc::new(plans), case.configure_key);
        Self { snapshot, limiter: fixture.limiter, keys, random: Seeded::new(1), now: keys::START }
    }

    /// The time that `batches` batches take, without preparing them.
    fn run(&mut self, case: &Case, batches: u64) -> Duration {
        let mut total = Duration::ZERO;
        let mut remaining = usize::try_from(batches).expect("an iteration count fits") * BATCH;
        while remaining > 0 {
            let count = remaining.min(PREPARED);
            let raw_keys: Vec<[u8; KEY_BYTES]> =
                (0..count).map(|_| keys::raw_key(self.random.below(self.keys))).collect();
            let requests: Vec<Verify<'_>> = raw_keys.iter().map(|key| request(case, key)).collect();
            let start = Instant::now();
            for batch in requests.chunks(BATCH) {
                self.now.nanoseconds += BATCH_INTERVAL;
                self.answer(case, batch);
            }
            total += start.elapsed();
            remaining -= count;
        }
        total
    }

    #[inline]
    fn answer(&self, case: &Case, batch: &[Verify<'_>]) {
        let Self { snapshot, limiter, now, .. } = self;
        let verifier = Verifier {
            view: Some(View::of(snapshot)),
            limiter,
            global_policy: snapshot.global_policy(),
            now: *now,
        };
        // The verdicts do not matter here, only the time.
        match case.kind {
            RequestKind::Verify => {}
            RequestKind::Refund => {
                for request in batch {
                    let refund = Refund::new(0, 1, request.credential);
                    let _ = verifier.refund(&refund, |decision| _ = black_box(decision));
                }
                return;
            }
            RequestKind::Debit => {
                for request in batch {
                    let debit = Debit::new(0, 1, request.credential);
                    let _ = verifier.debit(&debit, |decision| _ = black_box(decision));
                }
                return;
            }
        }
        let answered = verifier.verify(batch, |decision| {
            debug_assert!(decision.verdict().is_allowed());
            black_box(decision);
        });
        black_box(answered);
    }
}

fn request<'a>(case: &Case, key: &'a [u8; KEY_BYTES]) -> Verify<'a> {
    let credential =
        if case.raw_key { Credential::RawKey(key) } else { Credential::Digest(Sha256::digest(key).into()) };
    let mut request = Verify::new(0, credential);
    (case.configure_request)(&mut request);
    request
}
