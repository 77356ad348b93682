//! Never more than the limit, for the limiter alone: under contention a bucket admits its limit, no
//! more and no less.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keyward_daemon::clock::Clock;
use keyward_engine::limiter::{
    Charge, LimitBalances, LimitId, Limiter, Outcome, Period, Rate, Rule, RuleKind, SlotAllocator,
};
use keyward_engine::now::Now;

const THREADS: u64 = 8;
const SECOND: u64 = 1_000_000_000;

/// A request of 1 to a limit with this rule.
fn allocate(limiter: &Limiter, rule: Rule) -> Charge {
    let mut allocator = SlotAllocator::new();
    let mut allocation = allocator.begin(limiter);
    let id = || LimitId::for_key("key", "default", rule.kind());
    let slot = allocation.assign(id, None, rule).expect("room for one");
    // There is no previous bucket to reclaim.
    let _ = allocation.commit();
    Charge { slot, rule, cost: 1, shadow: false }
}

fn bucket(count: u64, burst: u64, overdraft: u32) -> Rule {
    Rule::bucket(Rate::new(count, SECOND, burst).expect("in range"), overdraft).expect("in range")
}

fn is_admitted(limiter: &Limiter, charge: Charge, now: Now) -> bool {
    matches!(limiter.charge(&[charge], now, None), Outcome::Admitted(_))
}

/// Eight threads charge one bucket for three seconds, with the daemon's clock. It admits at most
/// burst + rate x t, and at least 99 % of that.
#[test]
fn contended_bucket_admits_its_limit() {
    const DURATION: Duration = Duration::from_secs(3);
    // A burst is half a second's refill, so that a bucket does not become full while other
    // processes use the machine.
    for (count, burst) in [(50_000, 25_000), (300_000, 150_000), (7, 3)] {
        let (limiter, clock) = (Limiter::new(), Clock::new());
        let charge = allocate(&limiter, bucket(count, burst, 0));
        let admitted = AtomicU64::new(0);
        // The bucket is full until its first charge. The measured time spans all charges.
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                let (clock, limiter, admitted) = (clock.clone(), &limiter, &admitted);
                scope.spawn(move || {
                    let mut count = 0;
                    while start.elapsed() < DURATION {
                        count += u64::from(is_admitted(limiter, charge, clock.now()));
                    }
                    admitted.fetch_add(count, Ordering::Relaxed);
                });
            }
        });
        let max = burst as f64 + count as f64 * start.elapsed().as_secs_f64();
        let min = (burst as f64 + count as f64 * DURATION.as_secs_f64()) * 0.99;
        let admitted = admitted.into_inner() as f64;
        assert!(admitted <= max, "{count}/s burst {burst}: {admitted} admitted, at most {max} allowed");
        assert!(admitted >= min.floor() - 1.0, "{count}/s burst {burst}: {admitted} of {min} admitted");
    }
}

/// Eight threads charge one bucket. Each charge advances a simulated clock by a quarter of the time
/// in which the bucket gains a unit. It admits at least 99 % of burst + rate x t, on any machine.
#[test]
fn contended_bucket_admits_no_less_than_its_limit() {
    const ATTEMPTS: u64 = 100_000;
    const ATTEMPTS_PER_UNIT: u64 = 4;
    for (count, burst) in [(50_000, 25_000), (1_000, 100), (8, 4)] {
        let limiter = Limiter::new();
        let charge = allocate(&limiter, bucket(count, burst, 0));
        let step = SECOND / (count * ATTEMPTS_PER_UNIT);
        let (clock, admitted) = (AtomicU64::new(1), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let now = || Now::default().with_nanoseconds(clock.fetch_add(step, Ordering::Relaxed));
                    let attempts = (0..ATTEMPTS).filter(|_| is_admitted(&limiter, charge, now()));
                    admitted.fetch_add(attempts.count() as u64, Ordering::Relaxed);
                });
            }
        });
        let max = burst + THREADS * ATTEMPTS / ATTEMPTS_PER_UNIT;
        let admitted = admitted.into_inner();
        assert!((max * 99 / 100..=max).contains(&admitted), "{count}/s burst {burst}: {admitted} of {max}");
    }
}

/// Eight threads charge, debit and refund one limit of each kind while time stands still. What was
/// admitted and debited, and not refunded, is what has left the limit: it ends at its floor.
#[test]
fn contended_limit_loses_exactly_what_was_charged_and_debited() {
    const CALLS: u64 = 60_000;
    let now = Now { nanoseconds: 1, unix: 1_800_000_000, millisecond: 0 };
    let limit = 300_000_u32;
    let overdraft = 50_000;
    let rules = [
        bucket(1, limit.into(), overdraft),
        Rule::window(limit.into(), Period::Month(1), overdraft).expect("in range"),
        Rule::credits(limit.into(), overdraft).expect("in range"),
    ];
    for (kind, rule) in [RuleKind::Bucket, RuleKind::Window, RuleKind::Credits].into_iter().zip(rules) {
        assert_eq!(rule.kind(), kind);
        let limiter = Limiter::new();
        let charge = allocate(&limiter, rule);
        let (taken, returned) = (AtomicU64::new(0), AtomicU64::new(0));
        let available = || {
            let outcome = limiter.charge(&[Charge { cost: 0, ..charge }], now, None);
            outcome.report().and_then(|report| report.limit).expect("a limit").balance.available
        };
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let (limiter, taken, returned) = (&limiter, &taken, &returned);
                scope.spawn(move || {
                    for call in 0..CALLS {
                        let mut balances = LimitBalances::new();
                        let of = [Charge { cost: 1 + (call % 3) as u32, ..charge }];
                        let (outcome, sum) = match (call + thread) % 8 {
                            0 => (limiter.refund(&of, now, Some(&mut balances)), returned),
                            1..=3 => (limiter.debit(&of, now, Some(&mut balances)), taken),
                            _ => {
                                let admitted = u64::from(is_admitted(limiter, charge, now));
                                taken.fetch_add(admitted, Ordering::Relaxed);
                                continue;
                            }
                        };
                        assert!(matches!(outcome, Outcome::Admitted(_)));
                        sum.fetch_add(balances[0].changed.into(), Ordering::Relaxed);
                    }
                });
            }
        });
        let lost = taken.into_inner() as i64 - returned.into_inner() as i64;
        assert_eq!(available(), i64::from(limit) - lost, "{kind:?}");
        assert!((-i64::from(overdraft)..0).contains(&available()), "{kind:?}: {}", available());
        let debited = limiter.debit(&[Charge { cost: u32::MAX, ..charge }], now, None);
        assert!(matches!(debited, Outcome::Admitted(_)));
        assert_eq!(available(), -i64::from(overdraft), "{kind:?}");
    }
}
