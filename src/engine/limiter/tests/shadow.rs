//! Shadow limits, costs over a burst, and refunds.

use super::*;
use crate::limiter::outcome::ShadowRefusals;

fn shadow(charge: Charge) -> Charge {
    Charge { shadow: true, ..charge }
}

fn admitted(outcome: Outcome) -> ChargeReport {
    match outcome {
        Outcome::Admitted(report) => report,
        other => panic!("not admitted: {other:?}"),
    }
}

/// The remaining cost of a limit, shadow or enforced. It is read as enforced, because a peek
/// reports enforced limits only.
fn left(limiter: &Limiter, charge: Charge, now: u64) -> u32 {
    remaining(limiter, Charge { shadow: false, ..charge }, now)
}

#[test]
fn shadow_limit_is_charged_but_never_refuses() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 2), rate(1, 5), rate(1, 1)]);
    let charges = [shadow(charges[0]), charges[1], shadow(charges[2])];
    let mut refusals = Vec::new();
    for spent in 1..=5 {
        let report = admitted(charge(&limiter, &charges, 1, 1));
        assert_eq!(deciding(report), (1, 5 - spent), "only an enforced limit decides");
        refusals.push(report.shadow.first());
    }
    assert_eq!(refusals, [None, Some(2), Some(0), Some(0), Some(0)], "the first that would have refused");
    let Outcome::Refused(report) = charge(&limiter, &charges, 1, 1) else {
        panic!("the enforced bucket is empty")
    };
    assert_eq!((deciding(report).0, report.shadow.first()), (1, Some(0)));
}

#[test]
fn refusal_charges_no_shadow_limit() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 9), rate(1, 1)]);
    let charges = [shadow(charges[0]), charges[1]];
    admitted(charge(&limiter, &charges, 1, 1));
    assert!(matches!(charge(&limiter, &charges, 1, 1), Outcome::Refused(_)));
    assert_eq!(left(&limiter, charges[0], 1), 8);
}

#[test]
fn key_with_only_shadow_limits_is_always_admitted() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let only = [shadow(new_buckets(&limiter, &mut allocator, &[rate(1, 1)])[0])];
    let would_refuse = ChargeReport { limit: None, shadow: ShadowRefusals::default().with(0) };
    assert_eq!(admitted(charge(&limiter, &only, 1, 1)), ChargeReport::default());
    assert_eq!(admitted(charge(&limiter, &only, 1, 1)), would_refuse);
    assert_eq!(admitted(charge(&limiter, &only, 1, 7)), would_refuse, "over the burst");
    assert_eq!(admitted(charge(&limiter, &only, 1, 0)), ChargeReport::default(), "a peek is never refused");
    assert_eq!(admitted(charge(&limiter, &[], 1, 1)), ChargeReport::default(), "a key without limits");
}

#[test]
fn cost_over_a_burst_reports_the_first_enforced_limit_that_it_exceeds() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 1), rate(1, 9), rate(1, 4), rate(1, 3)]);
    let charges = [shadow(charges[0]), charges[1], charges[2], charges[3]];
    let Outcome::ExceedsBurst(report) = charge(&limiter, &charges, 1, 5) else {
        panic!("the cost is over two enforced bursts")
    };
    assert_eq!((deciding(report), report.shadow.first()), ((2, 4), Some(0)));
    assert_eq!(report.limit.map(|limit| limit.balance.retry_after), Some(0), "waiting does not help");
    let Outcome::ExceedsBurst(report) = charge(&limiter, &charges[3..], 1, 4) else {
        panic!("the cost is over the burst")
    };
    assert_eq!(deciding(report), (0, 3));
    admitted(charge(&limiter, &charges[3..], 1, 3));
    assert!(matches!(charge(&limiter, &charges[3..], 1, 4), Outcome::ExceedsBurst(_)), "an empty bucket");
    assert!(matches!(charge(&limiter, &charges, 1, 4), Outcome::ExceedsBurst(_)), "beside other limits");
}

#[test]
fn refund_fills_a_bucket_up_to_its_burst() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 10), rate(1, 4), rate(1, 6)]);
    let charges = [charges[0], charges[1], shadow(charges[2])];
    admitted(charge(&limiter, &charges, 7, 4));
    assert_eq!(deciding(admitted(refund(&limiter, &charges, 7, 1))), (1, 1));
    let all = |now| charges.map(|charge| left(&limiter, charge, now));
    assert_eq!(all(7), [7, 1, 3]);
    admitted(refund(&limiter, &charges[1..2], 7, 1));
    assert_eq!(all(7), [7, 2, 3], "a refund of one limit");
    admitted(refund(&limiter, &charges, 7, u32::MAX));
    assert_eq!(all(7), [10, 4, 6], "a refund over the burst");
    assert!(matches!(charge(&limiter, &charges[1..2], 7, 5), Outcome::ExceedsBurst(_)));
    admitted(charge(&limiter, &charges[1..2], 7, 4));
    assert!(matches!(charge(&limiter, &charges[1..2], 7, 1), Outcome::Refused(_)));
}

#[test]
fn refund_of_a_unit_that_is_refilled_in_part_fills_the_bucket() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 10)]);
    admitted(charge(&limiter, &charges, 1, 1));
    let now = 1 + SECOND / 2;
    admitted(refund(&limiter, &charges, now, 1));
    assert_eq!(left(&limiter, charges[0], now), 10);
    admitted(charge(&limiter, &charges, now, 10));
    assert!(matches!(charge(&limiter, &charges, now, 1), Outcome::Refused(_)));
}

/// If it refunded the first limit, the retry would refund that limit again.
#[test]
fn superseded_refund_changes_no_limit() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let wanted = [("a", rate(1, 10)), ("b", rate(1, 10))];
    let old = reload(&limiter, &mut allocator, &[], &wanted, 1);
    let charges = [enforced(old[0]), enforced(old[1])];
    admitted(charge(&limiter, &charges, 1, 10));
    let mut allocation = allocator.begin(&limiter);
    assert!(allocation.assign(|| id("a"), Some(old[0]), old[0].rule).is_some());
    let slot = allocation.assign(|| id("b"), Some(old[1]), rate(1, 20)).expect("a free slot");
    // Not reclaimed: the old snapshot is still in use.
    let _ = allocation.commit();
    let new = Charge { slot, rule: rate(1, 20), cost: 0, shadow: false };
    assert_eq!(remaining(&limiter, new, 1), 0, "the balance is migrated");
    assert_eq!(refund(&limiter, &charges, 1, 5), Outcome::Superseded);
    assert_eq!(remaining(&limiter, charges[0], 1), 0);
    assert_eq!(deciding(admitted(refund(&limiter, &[charges[0], new], 1, 5))), (0, 5));
}

#[test]
fn charge_of_too_many_limits_is_refused() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, 10); MAX_CHARGES + 1]);
    assert_eq!(charge(&limiter, &charges, 1, 1), Outcome::Refused(ChargeReport::default()));
    assert_eq!(refund(&limiter, &charges, 1, 1), Outcome::Refused(ChargeReport::default()));
    admitted(charge(&limiter, &charges[1..], 1, 1));
    admitted(refund(&limiter, &charges[1..], 1, 1));
    admitted(charge(&limiter, &charges[1..], 1, 1));
    assert_eq!(deciding(admitted(charge(&limiter, &charges, 1, 0))), (1, 9), "a peek locks nothing");
}
