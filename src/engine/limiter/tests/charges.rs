//! Charges of several limits: all or none, and which limit the report names.

use super::*;

#[test]
fn refusal_by_one_limit_charges_none() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 10), rate(1, 3), rate(1, 5)]);
    for left in [2, 1, 0] {
        let Outcome::Admitted(report) = charge(&limiter, &charges, 1, 1) else {
            panic!("the cost is within all bursts")
        };
        assert_eq!(deciding(report), (1, left), "the tightest limit decides");
    }
    let Outcome::Refused(report) = charge(&limiter, &charges, 1, 1) else {
        panic!("the second bucket is empty")
    };
    assert_eq!((deciding(report).0, report.shadow.first()), (1, None));
    assert_eq!(report.limit.map(|limit| limit.balance.retry_after), Some(period(rate(1, 3))));
    let left: Vec<u32> = charges.iter().map(|charge| remaining(&limiter, *charge, 1)).collect();
    assert_eq!(left, [7, 0, 2], "no bucket was charged");
}

#[test]
fn refusal_reports_the_limit_with_the_longest_wait() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(100, 1), rate(1, 1), rate(10, 1)]);
    assert!(matches!(charge(&limiter, &charges, 1, 1), Outcome::Admitted(_)));
    let Outcome::Refused(report) = charge(&limiter, &charges, 1, 1) else { panic!("all buckets are empty") };
    assert_eq!(deciding(report).0, 1);
}

#[test]
fn peek_charges_nothing() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 2), rate(1, 3)]);
    for _ in 0..10 {
        let Outcome::Admitted(report) = charge(&limiter, &charges, 1, 0) else {
            panic!("a peek is always admitted")
        };
        assert_eq!(deciding(report), (0, 2));
    }
}

#[test]
fn latest_time_is_that_of_the_latest_charge_refund_or_peek() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 9), rate(1, 9)]);
    for (latest, count) in [(10, 1), (20, 2)] {
        let charges = &charges[..count];
        assert!(matches!(charge(&limiter, charges, latest, 1), Outcome::Admitted(_)));
        assert_eq!(limiter.latest_time(), latest);
        assert!(matches!(charge(&limiter, charges, latest + 1, 0), Outcome::Admitted(_)));
        assert_eq!(limiter.latest_time(), latest + 1);
        assert!(matches!(refund(&limiter, charges, latest + 2, 1), Outcome::Admitted(_)));
        assert_eq!(limiter.latest_time(), latest + 2);
        assert!(matches!(charge(&limiter, charges, 1, 1), Outcome::Admitted(_)));
        assert_eq!(limiter.latest_time(), latest + 2, "a clock that lags behind");
    }
}

#[test]
fn lagging_clock_does_not_cause_a_false_refusal() {
    for count in 1..=2 {
        // Of its own, because a limiter remembers its latest tick.
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let charges = new_buckets(&limiter, &mut allocator, &[rate(10, 2), rate(10, 2)][..count]);
        assert!(matches!(charge(&limiter, &charges, 1_000_000, 1), Outcome::Admitted(_)));
        assert!(matches!(charge(&limiter, &charges, 999_000, 1), Outcome::Admitted(_)), "{count} limits");
        assert!(matches!(charge(&limiter, &charges, 999_000, 1), Outcome::Refused(_)), "{count} limits");
    }
}

#[test]
fn cost_whose_time_overflows_is_refused() {
    // One unit takes 2^57 ticks, so 128 units take 2^64.
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[Rule::SLOWEST, rate(1, 1_000)]);
    for cost in [128, 129, u32::MAX] {
        assert!(matches!(charge(&limiter, &charges, 1, cost), Outcome::ExceedsBurst(_)), "{cost}");
        assert!(matches!(charge(&limiter, &charges[..1], 1, cost), Outcome::ExceedsBurst(_)), "{cost}");
    }
    assert_eq!(remaining(&limiter, charges[1], 1), 1_000);
}
