//! What an operator does to balances, while requests continue.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::*;
use crate::limiter::reset::LimitBuckets;

const DAY: u32 = 86_400;

/// A day's noon.
const NOON: u32 = 1_800_014_400;

fn only(name: &str, bucket: BucketRef) -> LimitBuckets<'static> {
    LimitBuckets { id: id(name), bucket, shared: &[] }
}

fn daily(count: u64) -> Rule {
    Rule::window(count, Period::Day, 0).expect("in range")
}

fn on(unix: u32) -> Now {
    Now { unix, ..at(1) }
}

fn available(limiter: &Limiter, charge: Charge, now: Now) -> i64 {
    let mut balances = LimitBalances::new();
    let peek = limiter.charge(&[Charge { cost: 0, ..charge }], now, Some(&mut balances));
    assert!(matches!(peek, Outcome::Admitted(_)));
    balances[0].balance.available
}

#[test]
fn reset_makes_every_kind_of_limit_unspent() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let rules = [overdrawable(1, 10, 5), daily(20), Rule::credits(30, 0).expect("in range")];
    let charges = new_buckets(&limiter, &mut allocator, &rules);
    let now = on(NOON);
    assert!(matches!(limiter.debit(&costing(&charges, 12), now, None), Outcome::Admitted(_)));
    let limits: Vec<LimitBuckets<'_>> = charges
        .iter()
        .map(|Charge { slot, rule, .. }| only("a", BucketRef { slot: *slot, rule: *rule }))
        .collect();
    let read = |allocator: &SlotAllocator| {
        let balances = allocator.balances(&limiter, &limits, now).expect("not superseded");
        balances.iter().map(|balance| balance.available).collect::<Vec<_>>()
    };
    assert_eq!(read(&allocator), [-2, 8, 18]);
    let before = limiter.resets();
    let reset = allocator.reset(&limiter, &limits[..2], now).expect("not superseded");
    assert_eq!(reset.iter().map(|balance| balance.available).collect::<Vec<_>>(), [-2, 8]);
    assert_eq!(read(&allocator), [10, 20, 18], "only what was named");
    assert_ne!(limiter.resets(), before, "the next save contains it");
}

/// A retained bucket would give the balance back at the next change of the rate.
#[test]
fn reset_includes_former_rates_and_the_other_buckets_of_an_owner() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let (slow, fast) = (rate(1, 100), rate(1_000, 50));
    let old = reload(&limiter, &mut allocator, &[], &[("a", slow), ("b", slow)], 1);
    assert!(matches!(charge(&limiter, &[enforced(old[0])], 1, 100), Outcome::Admitted(_)));
    assert!(matches!(charge(&limiter, &[enforced(old[1])], 1, 100), Outcome::Admitted(_)));
    let previous = [("a", old[0]), ("b", old[1])];
    let new = reload(&limiter, &mut allocator, &previous, &[("a", fast), ("b", slow)], 1);
    assert_eq!(allocator.retained(), 1, "the former rate of a");
    let shared = [new[0], new[1]];
    let limit = LimitBuckets { shared: &shared, ..only("a", new[0]) };
    assert!(allocator.reset(&limiter, &[limit], at(1)).is_some());
    assert_eq!(remaining(&limiter, enforced(new[1]), 1), 100, "the owner's other bucket");
    let back = reload(&limiter, &mut allocator, &[("a", new[0]), ("b", new[1])], &[("a", slow)], 1);
    assert_eq!(remaining(&limiter, enforced(back[0]), 1), 50, "the level of the full bucket stays");
}

/// Time stands still, so what is admitted is what the resets have found spent, and what is spent in
/// the end. A charge that a reset overwrote would be admitted in addition.
#[test]
fn concurrent_charges_and_resets_admit_exactly_what_was_spent() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 200), daily(300)]);
    let limits: Vec<LimitBuckets<'_>> = charges
        .iter()
        .map(|Charge { slot, rule, .. }| only("a", BucketRef { slot: *slot, rule: *rule }))
        .collect();
    let admitted = [AtomicU64::new(0), AtomicU64::new(0)];
    let stop = AtomicBool::new(false);
    let mut spent = [0, 0];
    let mut add = |balances: &[Balance]| {
        for ((spent, rule), balance) in spent.iter_mut().zip([200, 300]).zip(balances) {
            *spent += u64::try_from(rule - balance.available).expect("not over the limit");
        }
    };
    thread::scope(|scope| {
        // Both limits, and each alone.
        for first_and_last in [(0, 1), (0, 1), (0, 0), (1, 1)] {
            let (charges, admitted, stop, limiter) = (&charges, &admitted, &stop, &limiter);
            scope.spawn(move || {
                let (first, last) = first_and_last;
                while !stop.load(Ordering::Relaxed) {
                    if let Outcome::Admitted(_) = charge(limiter, &charges[first..=last], 1, 1) {
                        admitted[first..=last]
                            .iter()
                            .for_each(|count| _ = count.fetch_add(1, Ordering::Relaxed));
                    }
                }
            });
        }
        for _ in 0..20_000 {
            add(&allocator.reset(&limiter, &limits, at(1)).expect("not superseded"));
        }
        stop.store(true, Ordering::Relaxed);
    });
    add(&allocator.balances(&limiter, &limits, at(1)).expect("not superseded"));
    assert_eq!(admitted.map(AtomicU64::into_inner), spent);
}

#[test]
fn calendar_that_is_set_back_refills_nothing() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let [live, gone, bucket] = reload(
        &limiter,
        &mut allocator,
        &[],
        &[("live", daily(10)), ("gone", daily(10)), ("bucket", rate(1, 10))],
        1,
    )[..] else {
        panic!("three buckets");
    };
    let charge_on = |bucket: BucketRef, unix: u32, cost: u32| {
        let outcome = limiter.charge(&costing(&[enforced(bucket)], cost), on(unix), None);
        matches!(outcome, Outcome::Admitted(_))
    };
    let ahead = NOON + 30 * DAY;
    assert!(charge_on(live, ahead, 7) && charge_on(gone, ahead, 7) && charge_on(bucket, ahead, 7));
    let previous = [("live", live), ("gone", gone), ("bucket", bucket)];
    let kept =
        reload(&limiter, &mut allocator, &previous, &[("live", daily(10)), ("bucket", rate(1, 10))], 1);
    assert_eq!(kept[0], live);
    assert!(!charge_on(live, NOON, 4), "windows do not go back by themselves");
    assert!(!charge_on(live, NOON + 29 * DAY, 4), "the quota waits");
    assert_eq!(limiter.latest_unix(), ahead);
    assert_eq!(
        allocator.set_calendar_back(&limiter, kept.iter().copied(), on(NOON)),
        2,
        "the retained one too"
    );
    assert_eq!(limiter.latest_unix(), NOON);
    assert!(!charge_on(live, NOON, 4), "nothing is refilled");
    assert!(charge_on(live, NOON, 3));
    assert!(charge_on(live, NOON + DAY, 10), "the next day is a new window");
    assert_eq!(
        available(&limiter, enforced(bucket), on(NOON)),
        3,
        "a token bucket does not use the calendar"
    );
    assert_eq!(allocator.set_calendar_back(&limiter, kept.into_iter(), on(NOON + DAY)), 0);
}

/// Threads charge a quota, with a clock that has been corrected, while the calendar is set back.
/// Afterwards no word and no cached window is in the future, and nothing was admitted twice.
#[test]
fn calendar_is_set_back_while_threads_charge() {
    const COUNT: u64 = 400;
    for _ in 0..300 {
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let charges = new_buckets(&limiter, &mut allocator, &[daily(COUNT)]);
        let bucket = BucketRef { slot: charges[0].slot, rule: charges[0].rule };
        limiter.advance_calendar(NOON + 7 * DAY);
        let (admitted, begun) = (AtomicU64::new(0), AtomicU64::new(0));
        let charge_until_refused = |unix: u32| {
            while let Outcome::Admitted(_) = limiter.charge(&costing(&charges, 1), on(unix), None) {
                admitted.fetch_add(1, Ordering::Relaxed);
                begun.fetch_add(1, Ordering::Relaxed);
            }
        };
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| charge_until_refused(NOON));
            }
            while begun.load(Ordering::Relaxed) < COUNT / 8 {
                thread::yield_now();
            }
            allocator.set_calendar_back(&limiter, std::iter::once(bucket), on(NOON));
        });
        assert_eq!(admitted.load(Ordering::Relaxed), COUNT);
        assert_eq!(limiter.latest_unix(), NOON);
        charge_until_refused(NOON + DAY);
        assert_eq!(admitted.load(Ordering::Relaxed), 2 * COUNT, "the next day is a new window");
    }
}
