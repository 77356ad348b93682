//! What each policy costs: a request to a key that carries it, beside one to a key that carries nothing. Who uses no policy must not
//! pay for those that exist.
//!
//! One million keys, batches of 64, by digest unless it says otherwise, one thread pinned to the first processor, as in
//! `benches/verify.rs`. In each case all keys carry the same policy, and the request passes it. `1 of 100 scopes` asks for one
//! scope of a key that has a hundred; `in 1 of 5000 networks` has a list of so many ranges. The table at the end has medians per
//! request, and their ratio to the plain key of this run.

#![allow(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use keyward::limiter::{Limiter, TICKS_PER_NANOSECOND};
use keyward::now::Now;
use keyward::pepper::{Pepper, Peppers};
use keyward::record::{KeyRecord, Limit, Origin, Per, Plans, parse_limits};
use keyward::rules::GlobalPolicy;
use keyward::snapshot::{Snapshot, Stamp};
use keyward::verify::Verifier;
use keyward_protocol::{Credential, Refund, ScopeMode, Scopes, Verify};
use sha2::{Digest, Sha256};

use support::Seeded;
use support::keys::{self, KEY_BYTES, Tables};
use support::pin::{Pinned, processors};
use support::summary::{Id, Summary};

mod support;

const BATCH: usize = 64;
/// As in `benches/verify.rs`.
const PREPARED: usize = 1024;
const BETWEEN: u64 = 1_000 * TICKS_PER_NANOSECOND;

/// What a key carries, and what is asked of it.
struct Case {
    name: &'static str,
    limits: &'static str,
    /// Limits of the plan that the keys are on.
    plan: fn() -> Vec<Limit>,
    shape: fn(&mut KeyRecord<'_>),
    ask: for<'a> fn(&mut Verify<'a>),
    raw: bool,
    peppered: bool,
    refund: bool,
}

const PLAIN: Case = Case {
    name: "plain",
    limits: "",
    plan: Vec::new,
    shape: |_| (),
    ask: |_| (),
    raw: false,
    peppered: false,
    refund: false,
};

const SCOPE: Scopes<'static> = Scopes { names: "orders:read", mode: ScopeMode::All };

const CASES: [Case; 14] = [
    PLAIN,
    Case { name: "one limit", limits: keys::ENDLESS, ..PLAIN },
    Case { name: "two limits", limits: keys::ENDLESS_TWICE, ..PLAIN },
    Case { name: "a limit of the owner", plan: || plan(Per::Owner, false), ..PLAIN },
    Case {
        name: "one limit and one in shadow",
        limits: keys::ENDLESS,
        plan: || plan(Per::Key, true),
        ..PLAIN
    },
    Case { name: "refund one by one", limits: keys::ENDLESS, refund: true, ..PLAIN },
    Case { name: "environment", ask: |request| request.environment = Some("live"), ..PLAIN },
    Case {
        name: "1 of 1 scope",
        shape: |record| record.scopes = [Box::from("orders:read")].into(),
        ask: |request| request.scopes = Some(SCOPE),
        ..PLAIN
    },
    Case {
        name: "1 of 100 scopes",
        shape: |record| {
            let other = (0..99).map(|number| Box::from(format!("service{number}:read")));
            record.scopes = other.chain([Box::from("orders:*")]).collect();
        },
        ask: |request| request.scopes = Some(SCOPE),
        ..PLAIN
    },
    Case {
        name: "in 1 network",
        shape: |record| record.allowed_ips = Some(["10.0.0.0/8".parse().expect("a network")].into()),
        ask: |request| request.ip = Some("::ffff:10.1.2.3".parse().expect("an address")),
        ..PLAIN
    },
    Case {
        name: "in 1 of 5000 networks",
        shape: |record| {
            let network = |n: u32| format!("10.{}.{}.0/25", n / 250, n % 250).parse().expect("a network");
            record.allowed_ips = Some((0..5_000).map(network).collect());
        },
        ask: |request| request.ip = Some("::ffff:10.7.77.7".parse().expect("an address")),
        ..PLAIN
    },
    Case {
        name: "from 1 origin",
        shape: |record| {
            record.allowed_origins =
                Some([Origin::parse("https://*.example.com").expect("an origin")].into());
        },
        ask: |request| request.origin = Some("https://app.example.com"),
        ..PLAIN
    },
    Case { name: "raw key", raw: true, ..PLAIN },
    Case { name: "raw key with pepper", raw: true, peppered: true, ..PLAIN },
];

fn plan(per: Per, shadow: bool) -> Vec<Limit> {
    let limits = parse_limits("team=10000000/s burst 1000000000").expect("limits");
    limits.into_iter().map(|limit| Limit { per, shadow, ..limit }).collect()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut summary = Summary::new();
    let keys = if support::is_trial() { 1_000 } else { 1_000_000 };
    for case in &CASES {
        measure(&mut criterion, &mut summary, keys, case);
    }
    criterion.final_summary();
    summary.print("one request, against a plain key");
}

fn measure(criterion: &mut Criterion, summary: &mut Summary, keys: u64, case: &Case) {
    let id = |name: &str| Id {
        group: "policy, 1 M keys".into(),
        function: name.into(),
        parameter: format!("batch {BATCH}"),
        requests: BATCH as u64,
    };
    let own = id(case.name);
    let mut group = criterion.benchmark_group(&own.group);
    group.throughput(Throughput::Elements(own.requests));
    let mut asking = None;
    group.bench_function(BenchmarkId::new(&own.function, &own.parameter), |bencher| {
        // Built when it is wanted: a filter leaves most cases out.
        let asking = asking.get_or_insert_with(|| Asking::new(keys, case));
        let _pinned = Pinned::to(processors().0);
        bencher.iter_custom(|batches| asking.ask(case, batches));
    });
    group.finish();
    summary.add(own, id("plain"));
}

struct Asking {
    snapshot: Snapshot,
    limiter: Limiter,
    keys: u64,
    random: Seeded,
    now: Now,
}

impl Asking {
    fn new(keys: u64, case: &Case) -> Self {
        let plans = Plans::new([("pro".into(), (case.plan)())], None).expect("a plan");
        let pepper = || Pepper::new(b"a pepper of at least 128 bits").expect("a pepper");
        let peppers = case.peppered.then(|| Peppers { current: pepper(), previous: None });
        let stamp = Stamp {
            global_policy: Arc::new(GlobalPolicy { peppers, ..GlobalPolicy::default() }),
            ..Stamp::default()
        };
        let mut tables = Tables::new();
        let snapshot = tables.snapshot_of(keys, case.limits, stamp, None, Arc::new(plans), case.shape);
        Self { snapshot, limiter: tables.limiter, keys, random: Seeded::new(1), now: keys::START }
    }

    /// How long so many batches take, their preparation apart.
    fn ask(&mut self, case: &Case, batches: u64) -> Duration {
        let mut total = Duration::ZERO;
        let mut left = usize::try_from(batches).expect("an iteration count fits") * BATCH;
        while left > 0 {
            let count = left.min(PREPARED);
            let raw: Vec<[u8; KEY_BYTES]> =
                (0..count).map(|_| keys::raw_key(self.random.below(self.keys))).collect();
            let requests: Vec<Verify<'_>> = raw.iter().map(|key| request(case, key)).collect();
            let start = Instant::now();
            for batch in requests.chunks(BATCH) {
                self.now.ticks += BETWEEN;
                self.answer(case, batch);
            }
            total += start.elapsed();
            left -= count;
        }
        total
    }

    #[inline]
    fn answer(&self, case: &Case, batch: &[Verify<'_>]) {
        let Self { snapshot, limiter, now, .. } = self;
        let verifier = Verifier {
            snapshot: Some(snapshot),
            limiter,
            global_policy: snapshot.global_policy(),
            now: *now,
        };
        if case.refund {
            for request in batch {
                let refund = Refund { request_id: 0, cost: 1, credential: request.credential, limit: None };
                black_box(verifier.refund(&refund));
            }
            return;
        }
        let answered = verifier.verify(batch, |decision| {
            debug_assert!(decision.verdict().is_allowed());
            black_box(decision);
        });
        black_box(answered);
    }
}

fn request<'a>(case: &Case, key: &'a [u8; KEY_BYTES]) -> Verify<'a> {
    let credential = match case.raw {
        true => Credential::RawKey(key),
        false => Credential::Digest(Sha256::digest(key).into()),
    };
    let mut request = Verify::new(0, credential);
    (case.ask)(&mut request);
    request
}
