//! The order of precedence, and that batching does not change the answers.

use std::sync::Arc;

use keyward_protocol::{CostsBuf, Credential, Debit, Refund, ScopeMode, Scopes};
use proptest::prelude::*;

use super::*;
use crate::key_format;
use crate::limiter::{Rate, Rule, SlotAllocator};
use crate::record::{KeyRecord, Limit, Origin, Status};
use crate::snapshot::{Builder, SnapshotMeta, View};

mod forgery;
mod metadata;
mod overlay;
mod peppers;

/// The seed of the index of a test's snapshot.
const SEED: u64 = 0x5eed;

const NOW: Now = Now { nanoseconds: 1 << 40, unix: 1_000_000, millisecond: 0 };

/// What `read` returns for the decision about a refund.
fn refunded<T>(verifier: &Verifier<'_>, refund: &Refund<'_>, read: impl FnOnce(&Decision<'_>) -> T) -> T {
    let mut value = None;
    verifier.refund(refund, |decision| value = Some(read(decision))).expect("no newer snapshot");
    value.expect("an answer")
}

fn record(key: &str) -> KeyRecord<'_> {
    KeyRecord::new(key_format::hash(key.as_bytes()), key)
}

fn limits(rates: &[(&str, u64)]) -> Arc<[Limit]> {
    let limit = |(name, burst): &(&str, u64)| {
        let rate = Rate::new(1, 1_000_000_000, *burst).expect("in range");
        Limit::new(*name, Rule::bucket(rate, 0).expect("in range"))
    };
    rates.iter().map(limit).collect()
}

fn snapshot(limiter: &Limiter, records: &[KeyRecord<'_>]) -> Snapshot {
    let mut builder = Builder::new(SEED, 0);
    for (record, line) in records.iter().zip(2..) {
        builder.add(line, record).expect("no duplicates");
    }
    let mut allocator = SlotAllocator::new();
    let mut allocation = allocator.begin(limiter);
    let snapshot = builder
        .finish()
        .into_snapshot(
            &mut allocation,
            None,
            SnapshotMeta {
                generation: 7,
                source_time: NOW.unix - 100,
                first_loaded: NOW.nanoseconds,
                ..SnapshotMeta::default()
            },
        )
        .expect("room");
    // There is no earlier snapshot, so no bucket is inherited.
    let _ = allocation.commit();
    snapshot
}

fn digest(key: &str) -> Credential<'_> {
    Credential::Digest(key_format::hash(key.as_bytes()))
}

fn verdicts(verifier: &Verifier<'_>, requests: &[Verify<'_>]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    assert_eq!(verifier.verify(requests, |decision| verdicts.push(decision.verdict())), requests.len());
    verdicts
}

/// The system's clock is set back and forward; the monotonic clock is not.
#[test]
fn clock_steps_move_the_validity_of_keys_but_neither_spend_nor_refill_buckets() {
    const YEAR: u32 = 31_536_000;
    let mut key = record("k");
    (key.not_before, key.expires_at) = (NOW.unix, NOW.unix + 60);
    key.limits = limits(&[("requests", 3)]);
    let limiter = Limiter::new();
    let snapshot = snapshot(&limiter, &[key]);
    let global_policy = GlobalPolicy::default();
    let verdict_at = |unix: u32| {
        let now = Now { unix, ..NOW };
        let verifier = Verifier {
            view: Some(View::of(&snapshot)),
            limiter: &limiter,
            global_policy: &global_policy,
            now,
        };
        verdicts(&verifier, &[Verify::new(1, digest("k"))])[0]
    };
    assert_eq!(verdict_at(NOW.unix), Verdict::Allowed);
    for (unix, verdict) in [
        (NOW.unix - 1, Verdict::NotYetValid),
        (0, Verdict::NotYetValid),
        (NOW.unix + 60, Verdict::Expired),
        (NOW.unix + YEAR, Verdict::Expired),
        (NOW.unix + 59, Verdict::Allowed),
        (u32::MAX - 1, Verdict::Expired),
        (NOW.unix, Verdict::Allowed),
        // The bucket is empty, whatever the calendar says.
        (NOW.unix + 59, Verdict::RateLimited),
        (NOW.unix, Verdict::RateLimited),
    ] {
        assert_eq!(verdict_at(unix), verdict, "at {unix}");
    }
}

/// Starts with a key and a request to which every denial applies, and removes the cause of each
/// verdict in turn: the next one in SPEC.md's order must follow.
#[test]
fn first_denial_in_order_of_precedence_is_the_verdict() {
    let mut key = record("k");
    key.status = Status::Revoked;
    key.not_before = NOW.unix + 1;
    key.expires_at = NOW.unix;
    key.environment = "live";
    key.scopes = [Box::from("a:*")].into();
    key.allowed_ips = Some(["10.0.0.0/8".parse().expect("a network")].into());
    key.allowed_origins = Some([Origin::parse("https://a.test").expect("an origin")].into());
    key.limits = limits(&[("small", 1), ("large", 5)]);
    let mut request = Verify {
        cost: 2,
        scopes: Some(Scopes { names: "a:x b", mode: ScopeMode::All }),
        environment: Some("test"),
        ..Verify::new(1, Credential::RawKey(b"acme_live_typo"))
    };
    let mut global_policy = GlobalPolicy {
        minted_prefixes: vec!["acme_live_".parse().expect("a prefix")],
        max_staleness: Some(99),
        ..GlobalPolicy::default()
    };
    let limiter = Limiter::new();
    let mut have_snapshot = false;

    type Fix = fn(&mut KeyRecord<'_>, &mut Verify<'_>, &mut GlobalPolicy, &mut bool);
    let steps: [(Verdict, Fix); 14] = [
        (Verdict::NotReady, |_, _, _, have| *have = true),
        (Verdict::StaleSnapshot, |_, _, global_policy, _| global_policy.max_staleness = Some(100)),
        (Verdict::MalformedKey, |_, request, _, _| request.credential = Credential::RawKey(b"other")),
        (Verdict::UnknownKey, |_, request, _, _| request.credential = digest("k")),
        (Verdict::Revoked, |key, _, _, _| key.status = Status::Disabled),
        (Verdict::Disabled, |key, _, _, _| key.status = Status::Active),
        (Verdict::NotYetValid, |key, _, _, _| key.not_before = NOW.unix),
        (Verdict::Expired, |key, _, _, _| key.expires_at = NOW.unix + 1),
        (Verdict::WrongEnvironment, |_, request, _, _| request.environment = Some("live")),
        (Verdict::IpNotAllowed, |_, request, _, _| {
            request.ip = Some("::ffff:10.1.1.1".parse().expect("an address"))
        }),
        (Verdict::OriginNotAllowed, |_, request, _, _| request.origin = Some("https://a.test")),
        (Verdict::MissingScope, |_, request, _, _| {
            request.scopes = Some(Scopes { names: "b a:x", mode: ScopeMode::Any });
        }),
        (Verdict::CostExceedsBurst, |_, request, _, _| request.cost = 1),
        (Verdict::Allowed, |_, _, _, _| ()),
    ];
    for (expected, fix) in steps {
        let built = snapshot(&limiter, std::slice::from_ref(&key));
        let view = have_snapshot.then(|| View::of(&built));
        let verifier = Verifier { view, limiter: &limiter, global_policy: &global_policy, now: NOW };
        let mut got = None;
        verifier.verify(&[request], |decision| {
            let answer = decision.answer();
            got = Some((answer.verdict, answer.generation, answer.key_id.to_owned()))
        });
        let generation = if have_snapshot { 7 } else { 0 };
        let without_key = matches!(
            expected,
            Verdict::NotReady | Verdict::StaleSnapshot | Verdict::MalformedKey | Verdict::UnknownKey
        );
        let key_id = if without_key { "" } else { "k" };
        assert_eq!(got, Some((expected, generation, key_id.to_owned())));
        if expected == Verdict::Allowed {
            // Each step builds a new snapshot with full buckets; only the last one was charged.
            assert_eq!(verdicts(&verifier, &[request]), [Verdict::RateLimited]);
        }
        fix(&mut key, &mut request, &mut global_policy, &mut have_snapshot);
    }
}

#[test]
fn denied_request_is_not_charged() {
    let limiter = Limiter::new();
    let mut key = record("k");
    key.limits = limits(&[("only", 1)]);
    key.environment = "live";
    let snapshot = snapshot(&limiter, &[key]);
    let global_policy = GlobalPolicy::default();
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    let good = Verify::new(1, digest("k"));
    let wrong = Verify { environment: Some("test"), ..good };
    let expensive = Verify { cost: 2, ..good };
    let peek = Verify { cost: 0, ..good };
    assert_eq!(
        verdicts(&verifier, &[wrong, expensive, peek, good, good, peek]),
        [
            Verdict::WrongEnvironment,
            Verdict::CostExceedsBurst,
            Verdict::Allowed,
            Verdict::Allowed,
            Verdict::RateLimited,
            Verdict::Allowed
        ]
    );
}

/// After years of uptime the ticks of a bucket have wrapped around.
#[test]
fn limits_hold_after_centuries() {
    let limiter = Limiter::new();
    let mut key = record("k");
    key.limits = limits(&[("only", 3)]);
    let snapshot = snapshot(&limiter, &[key]);
    let global_policy = GlobalPolicy::default();
    let now = Now { nanoseconds: u64::MAX - (1 << 60), ..NOW };
    let verifier =
        Verifier { view: Some(View::of(&snapshot)), limiter: &limiter, global_policy: &global_policy, now };
    let charge = Verify::new(1, digest("k"));
    let peek = Verify { cost: 0, ..charge };
    let expected =
        [Verdict::Allowed, Verdict::Allowed, Verdict::Allowed, Verdict::RateLimited, Verdict::Allowed];
    assert_eq!(verdicts(&verifier, &[charge, charge, charge, charge, peek]), expected);
}

#[test]
fn every_limit_of_a_key_is_charged() {
    let limiter = Limiter::new();
    let mut key = record("k");
    key.limits = limits(&[("large", 9), ("small", 2)]);
    let snapshot = snapshot(&limiter, &[key]);
    let global_policy = GlobalPolicy::default();
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    assert_eq!(
        verdicts(&verifier, &[Verify::new(1, digest("k")); 3]),
        [Verdict::Allowed, Verdict::Allowed, Verdict::RateLimited]
    );
}

#[test]
fn shadow_limit_alone_never_denies() {
    let limiter = Limiter::new();
    let mut key = record("k");
    let enforced = limits(&[("only", 1)]);
    key.limits = enforced.iter().map(|limit| Limit { shadow: true, ..limit.clone() }).collect();
    let snapshot = snapshot(&limiter, &[key]);
    let global_policy = GlobalPolicy::default();
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    let mut answers = Vec::new();
    for cost in [1, 1, 5, 0] {
        let request = Verify { cost, ..Verify::new(1, digest("k")) };
        verifier.verify(&[request], |decision| {
            answers.push((decision.verdict(), decision.is_shadow_limited(), decision.usage().cost));
        });
    }
    let allowed = |shadow_limited, cost| (Verdict::Allowed, shadow_limited, cost);
    assert_eq!(answers, [allowed(false, 1), allowed(true, 1), allowed(true, 5), allowed(false, 0)]);
}

/// The costs of a request for one limit only.
fn only(limit: Option<&str>, cost: u32) -> CostsBuf {
    let mut costs = CostsBuf::new();
    limit.into_iter().for_each(|name| costs.push(name, cost).expect("a valid cost"));
    costs
}

#[test]
fn usage_is_the_row_and_what_was_charged_or_refunded() {
    let limiter = Limiter::new();
    let mut limited = record("limited");
    limited.limits = limits(&[("small", 2), ("large", 9)]);
    let mut single = record("single");
    single.limits = limits(&[("only", 2)]);
    let snapshot = snapshot(&limiter, &[record("free"), limited, single]);
    let global_policy = GlobalPolicy::default();
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    let usage = |key: &str, cost| {
        let mut usage = None;
        let request = Verify { cost, ..Verify::new(1, digest(key)) };
        verifier.verify(&[request], |decision| {
            usage = Some(RequestUsage { changes: None, ..decision.usage() });
        });
        usage.expect("an answer")
    };
    let refund = |key: &str, limit| {
        let costs = only(limit, 1);
        let cost = u32::from(limit.is_none());
        let refund = Refund { costs: costs.as_costs(), ..Refund::new(1, cost, digest(key)) };
        refunded(&verifier, &refund, |decision| RequestUsage { changes: None, ..decision.usage() })
    };
    let of = |key: &str, cost| {
        let entry = snapshot.find(&key_format::hash(key.as_bytes())).map(Key::entry_number);
        assert!(entry.is_some());
        RequestUsage { entry, cost, ..RequestUsage::default() }
    };
    assert_eq!(usage("free", 5), of("free", 5));
    for key in ["limited", "single"] {
        assert_eq!(usage(key, 2), of(key, 2));
        assert_eq!(usage(key, 2), of(key, 0), "a refusal");
        assert_eq!(usage(key, 0), of(key, 0), "a peek");
        assert_eq!(refund(key, None), of(key, 1));
    }
    assert_eq!(refund("limited", Some("large")), of("limited", 0), "a refund of one limit");
    assert_eq!(
        (usage("unknown", 1), refund("unknown", None)),
        (RequestUsage::default(), RequestUsage::default())
    );
}

/// Position and amount of each limit that a request has changed, as the usage log records it.
fn changed(usage: RequestUsage<'_>) -> Option<Vec<(usize, u32)>> {
    let mut changed: Vec<_> = usage.changes?.iter().map(|of| (of.position, of.changed)).collect();
    changed.sort_unstable();
    Some(changed)
}

#[test]
fn usage_has_what_each_limit_was_really_charged_debited_and_refunded() {
    let limiter = Limiter::new();
    let mut key = record("k");
    key.limits = limits(&[("small", 5), ("soft", 4), ("large", 9)]);
    Arc::make_mut(&mut key.limits)[1].shadow = true;
    let snapshot = snapshot(&limiter, &[key]);
    let global_policy = GlobalPolicy::default();
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    let costs = |names: &[(&str, u32)]| {
        let mut costs = CostsBuf::new();
        names.iter().for_each(|(name, cost)| costs.push(name, *cost).expect("a valid cost"));
        costs
    };
    let verify = |cost, names: &[(&str, u32)], want_balances| {
        let (costs, mut usage) = (costs(names), None);
        let costs = costs.as_costs();
        let request = Verify { cost, costs, want_balances, ..Verify::new(1, digest("k")) };
        verifier.verify(&[request], |decision| {
            let shadow = decision.usage().shadow.first();
            let shown = decision.answer().balances.map(|balances| balances.iter().count());
            assert_eq!(shown, want_balances.then_some(2), "without the shadow limit");
            usage = Some((decision.verdict(), decision.usage().cost, changed(decision.usage()), shadow));
        });
        usage.expect("an answer")
    };
    let allowed = |cost, changes: Option<[u32; 3]>, shadow| {
        (Verdict::Allowed, cost, changes.map(|of| (0..).zip(of).collect()), shadow)
    };
    assert_eq!(verify(1, &[], false), allowed(1, None, None));
    assert_eq!(verify(0, &[], true), allowed(0, None, None), "a peek");
    let all = &[("large", 0), ("small", 0), ("soft", 0)];
    assert_eq!(verify(5, all, false), allowed(0, None, None), "a peek: every limit is named with 0");
    assert_eq!(verify(1, &[], true), allowed(1, None, None), "every limit was charged the cost");
    assert_eq!(verify(1, &[("large", 1)], false), allowed(1, None, None));
    assert_eq!(verify(0, &[("large", 2)], false), allowed(0, Some([0, 0, 2]), None));
    let without_soft = allowed(1, Some([1, 0, 0]), Some(1));
    assert_eq!(verify(1, &[("large", 0), ("soft", 2)], true), without_soft);
    let (verdict, cost, changes, _) = verify(2, &[("large", 1)], true);
    assert_eq!((verdict, cost, changes), (Verdict::RateLimited, 0, None), "nothing was charged");
    assert_eq!(verify(1, &[("lrage", 1)], true).2, None);

    let (soft, mistyped) = (costs(&[("soft", 9)]), costs(&[("lrage", 9)]));
    let debit = Debit { costs: soft.as_costs(), ..Debit::new(1, 3, digest("k")) };
    let mut debited = None;
    let done =
        verifier.debit(&debit, |decision| debited = Some((decision.usage().cost, changed(decision.usage()))));
    assert_eq!(
        (done, debited),
        (Ok(()), Some((3, Some(vec![(0, 1), (1, 1), (2, 3)])))),
        "down to the floors"
    );
    let refund = Refund::new(1, 5, digest("k"));
    let usage = refunded(&verifier, &refund, |decision| changed(decision.usage()));
    assert_eq!(usage, Some(vec![(0, 5), (1, 4), (2, 5)]), "as far as it was spent");
    let mistyped = Debit { costs: mistyped.as_costs(), ..Debit::new(1, 3, digest("k")) };
    let done = verifier.debit(&mistyped, |decision| {
        assert_eq!((decision.usage().cost, changed(decision.usage())), (0, None));
    });
    assert_eq!(done, Ok(()));
}

#[test]
fn empty_network_or_origin_list_denies_every_request() {
    let limiter = Limiter::new();
    let mut networks = record("no networks");
    networks.allowed_ips = Some([].into());
    let mut origins = record("no origins");
    origins.allowed_origins = Some([].into());
    let snapshot = snapshot(&limiter, &[networks, origins, record("open")]);
    let global_policy = GlobalPolicy::default();
    let verifier = Verifier {
        view: Some(View::of(&snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    let ips = [None, Some("::ffff:10.1.1.1"), Some("2001:db8::1"), Some("::")];
    for ip in ips.map(|ip| ip.map(|ip| ip.parse().expect("an address"))) {
        for origin in [None, Some("https://a.test"), Some("")] {
            for environment in [None, Some("")] {
                let asked = |key| Verify { ip, origin, environment, ..Verify::new(1, digest(key)) };
                let [networks, origins, open] =
                    ["no networks", "no origins", "open"].map(|key| verdicts(&verifier, &[asked(key)])[0]);
                let expected = match environment {
                    None => [Verdict::IpNotAllowed, Verdict::OriginNotAllowed, Verdict::Allowed],
                    Some(_) => [Verdict::WrongEnvironment; 3],
                };
                assert_eq!([networks, origins, open], expected, "{ip:?} {origin:?} {environment:?}");
            }
        }
    }
}

#[test]
fn superseded_bucket_ends_the_batch_without_a_charge() {
    let limiter = Limiter::new();
    let (mut allocator, mut builder) = (SlotAllocator::new(), Builder::new(1, 0));
    let (mut key, free) = (record("k"), record("free"));
    key.limits = limits(&[("only", 9)]);
    builder.add(2, &key).expect("new");
    builder.add(3, &free).expect("new");
    let mut allocation = allocator.begin(&limiter);
    let old = builder
        .finish()
        .into_snapshot(&mut allocation, None, SnapshotMeta { generation: 1, ..SnapshotMeta::default() })
        .expect("room");
    let _ = allocation.commit();

    let mut builder = Builder::new(2, 0);
    key.limits = limits(&[("only", 5)]);
    builder.add(2, &key).expect("new");
    let mut allocation = allocator.begin(&limiter);
    let new = builder
        .finish()
        .into_snapshot(&mut allocation, Some(&old), SnapshotMeta { generation: 2, ..SnapshotMeta::default() })
        .expect("room");
    // The inherited buckets stay unsettled: the old snapshot must still see them as superseded.
    let _ = allocation.commit();

    let global_policy = GlobalPolicy::default();
    let on = |snapshot| Verifier {
        view: Some(View::of(snapshot)),
        limiter: &limiter,
        global_policy: &global_policy,
        now: NOW,
    };
    let (limited, unlimited) = (Verify::new(1, digest("k")), Verify::new(2, digest("free")));
    assert_eq!(verdicts(&on(&old), &[limited, limited]), [Verdict::Allowed; 2]);
    assert_eq!(verdicts(&on(&new), &[limited]), [Verdict::Allowed]);
    let mut answers = Vec::new();
    let mut requests = vec![unlimited; 2 * BATCH_SIZE];
    requests[2] = limited;
    let answered = on(&old).verify(&requests, |decision| answers.push(decision.verdict()));
    assert_eq!((answered, answers), (2, vec![Verdict::Allowed; 2]));
    assert_eq!(
        verdicts(&on(&new), &[limited; 5])[..],
        [[Verdict::Allowed; 4].as_slice(), &[Verdict::RateLimited]].concat()
    );
}

proptest! {
    /// Batching is an optimisation: it must not change any answer.
    #[test]
    fn batched_answers_equal_unbatched_answers(
        picks in prop::collection::vec((0usize..40, 0u32..4), 1..200),
    ) {
        let names: Vec<String> = (0..30).map(|number| format!("key {number}")).collect();
        let build = |limiter: &Limiter| {
            let records: Vec<KeyRecord<'_>> = names.iter().enumerate().map(|(number, name)| {
                let mut record = record(name);
                record.limits = match number % 3 {
                    0 => limits(&[]),
                    1 => limits(&[("one", 3)]),
                    _ => limits(&[("one", 3), ("two", 2)]),
                };
                record
            }).collect();
            snapshot(limiter, &records)
        };
        let asked: Vec<String> = picks.iter().map(|(number, _)| format!("key {number}")).collect();
        let requests: Vec<Verify<'_>> = asked.iter().zip(&picks).zip(0..).map(|((name, (_, cost)), id)| {
            Verify { cost: *cost, ..Verify::new(id, digest(name)) }
        }).collect();
        let global_policy = GlobalPolicy::default();
        let answers = |batch: usize| {
            let limiter = Limiter::new();
            let snapshot = build(&limiter);
            let verifier = Verifier { view: Some(View::of(&snapshot)), limiter: &limiter, global_policy: &global_policy, now: NOW };
            let mut answers = Vec::new();
            for chunk in requests.chunks(batch) {
                verifier.verify(chunk, |decision| {
                    let answer = decision.answer();
                    let limit = (answer.limit.name.to_owned(), answer.limit.limit, answer.limit.remaining);
                    answers.push((answer.request_id, answer.verdict, answer.key_id.to_owned(), limit));
                });
            }
            answers
        };
        prop_assert_eq!(answers(1), answers(requests.len()));
    }
}
