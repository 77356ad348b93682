//! Limits that are watched but not enforced, costs that can never fit, and costs that are given back.

use super::*;

fn shadow(charge: Charge) -> Charge {
    Charge { shadow: true, ..charge }
}

fn admitted(outcome: Outcome) -> ChargeReport {
    match outcome {
        Outcome::Admitted(charged) => charged,
        other => panic!("not admitted: {other:?}"),
    }
}

/// What is left of a shadow limit: a peek names enforced limits only.
fn left(limiter: &Limiter, charge: Charge, now: u64) -> u32 {
    remaining(limiter, Charge { shadow: false, ..charge }, now)
}

#[test]
fn a_shadow_limit_is_charged_and_refuses_nothing() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(1, 2), rate(1, 5), rate(1, 1)]);
    let charges = [shadow(charges[0]), charges[1], shadow(charges[2])];
    let mut watched = Vec::new();
    for spent in 1..=5 {
        let charged = admitted(limiter.charge(&charges, 1, 1));
        assert_eq!(decided(charged), (1, 5 - spent), "only an enforced limit is named");
        watched.push(charged.shadow);
    }
    assert_eq!(watched, [None, Some(2), Some(0), Some(0), Some(0)], "the first that would have refused");
    let Outcome::Refused(charged) = limiter.charge(&charges, 1, 1) else { panic!("the second is empty") };
    assert_eq!((decided(charged).0, charged.shadow), (1, Some(0)));
}

#[test]
fn a_refusal_charges_no_shadow_limit_either() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(1, 9), rate(1, 1)]);
    let charges = [shadow(charges[0]), charges[1]];
    admitted(limiter.charge(&charges, 1, 1));
    assert!(matches!(limiter.charge(&charges, 1, 1), Outcome::Refused(_)));
    assert_eq!(left(&limiter, charges[0], 1), 8);
}

#[test]
fn a_key_with_nothing_but_shadow_limits_is_always_admitted() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let only = [shadow(fresh(&limiter, &mut allocator, &[rate(1, 1)])[0])];
    assert_eq!(admitted(limiter.charge(&only, 1, 1)), ChargeReport { limit: None, shadow: None });
    assert_eq!(admitted(limiter.charge(&only, 1, 1)), ChargeReport { limit: None, shadow: Some(0) });
    assert_eq!(
        admitted(limiter.charge(&only, 1, 7)),
        ChargeReport { limit: None, shadow: Some(0) },
        "over the burst"
    );
    assert_eq!(admitted(limiter.charge(&only, 1, 0)), ChargeReport::default(), "a peek would not be refused");
    assert_eq!(admitted(limiter.charge(&[], 1, 1)), ChargeReport::default(), "and one without any");
}

#[test]
fn a_cost_over_a_burst_names_the_first_enforced_limit_that_it_is_over() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(1, 1), rate(1, 9), rate(1, 4), rate(1, 3)]);
    let charges = [shadow(charges[0]), charges[1], charges[2], charges[3]];
    let Outcome::ExceedsBurst(charged) = limiter.charge(&charges, 1, 5) else { panic!("over two bursts") };
    assert_eq!((decided(charged), charged.shadow), ((2, 4), Some(0)));
    assert_eq!(charged.limit.map(|named| named.balance.retry_after), Some(0), "no wait would help");
    let Outcome::ExceedsBurst(charged) = limiter.charge(&charges[3..], 1, 4) else {
        panic!("over its burst")
    };
    assert_eq!(decided(charged), (0, 3));
    admitted(limiter.charge(&charges[3..], 1, 3));
    assert!(matches!(limiter.charge(&charges[3..], 1, 4), Outcome::ExceedsBurst(_)), "empty or not");
    assert!(matches!(limiter.charge(&charges, 1, 4), Outcome::ExceedsBurst(_)), "whatever else is empty");
}

#[test]
fn a_refund_goes_up_to_the_burst() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(1, 10), rate(1, 4), rate(1, 6)]);
    let charges = [charges[0], charges[1], shadow(charges[2])];
    admitted(limiter.charge(&charges, 7, 4));
    assert_eq!(decided(admitted(limiter.refund(&charges, 7, 1))), (1, 1));
    let all = |now| charges.map(|charge| left(&limiter, charge, now));
    assert_eq!(all(7), [7, 1, 3]);
    admitted(limiter.refund(&charges[1..2], 7, 1));
    assert_eq!(all(7), [7, 2, 3], "one limit alone");
    admitted(limiter.refund(&charges, 7, u32::MAX));
    assert_eq!(all(7), [10, 4, 6], "and not one more");
    assert!(matches!(limiter.charge(&charges[1..2], 7, 5), Outcome::ExceedsBurst(_)));
    admitted(limiter.charge(&charges[1..2], 7, 4));
    assert!(matches!(limiter.charge(&charges[1..2], 7, 1), Outcome::Refused(_)));
}

/// Otherwise the first limit would be given back twice, when the request is asked again.
#[test]
fn a_refund_that_is_superseded_gives_nothing_back() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let names = [("a", rate(1, 10)), ("b", rate(1, 10))];
    let old = reload(&limiter, &mut allocator, &[], &names, 1);
    let charges = [enforced(old[0]), enforced(old[1])];
    admitted(limiter.charge(&charges, 1, 10));
    let mut allocation = allocator.begin(&limiter);
    assert!(allocation.assign(|| named("a"), Some(old[0]), old[0].rate).is_some());
    let slot = allocation.assign(|| named("b"), Some(old[1]), rate(1, 20)).expect("room");
    let _settlement = allocation.commit();
    let new = Charge { slot, rate: rate(1, 20), shadow: false };
    assert_eq!(remaining(&limiter, new, 1), 0, "taken over");
    assert_eq!(limiter.refund(&charges, 1, 5), Outcome::Superseded);
    assert_eq!(remaining(&limiter, charges[0], 1), 0);
    assert_eq!(decided(admitted(limiter.refund(&[charges[0], new], 1, 5))), (0, 5));
}

#[test]
fn more_limits_than_a_key_can_have_are_refused() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(1, 10); MAX_CHARGES + 1]);
    assert_eq!(limiter.charge(&charges, 1, 1), Outcome::Refused(ChargeReport::default()));
    assert_eq!(limiter.refund(&charges, 1, 1), Outcome::Refused(ChargeReport::default()));
    admitted(limiter.charge(&charges[1..], 1, 1));
}
