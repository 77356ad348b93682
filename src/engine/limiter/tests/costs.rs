//! A cost for each limit of a request, and which limit refuses it.

use super::*;

/// A limit of each kind.
fn new_limits() -> (Limiter, [Charge; 3]) {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let credits = Rule::credits(8, 5).expect("in range");
    let window = Rule::window(6, Period::Day, 5).expect("in range");
    let charges = new_buckets(&limiter, &mut allocator, &[overdrawable(1, 5, 5), credits, window]);
    (limiter, charges.try_into().expect("three limits"))
}

fn with_costs(charges: [Charge; 3], costs: [u32; 3]) -> [Charge; 3] {
    std::array::from_fn(|at| Charge { cost: costs[at], ..charges[at] })
}

fn available(limiter: &Limiter, charges: [Charge; 3]) -> [i64; 3] {
    charges.map(|of| {
        let report = charge(limiter, &[of], 1, 0).report().expect("an answer");
        report.limit.expect("a limit").balance.available
    })
}

#[test]
fn each_limit_is_charged_its_own_cost_or_none() {
    let (limiter, charges) = new_limits();
    let mut balances = LimitBalances::new();
    let outcome = limiter.charge(&with_costs(charges, [1, 3, 0]), at(1), Some(&mut balances));
    assert!(matches!(outcome, Outcome::Admitted(_)));
    let changed = |balances: &LimitBalances| {
        let mut changed: Vec<_> = balances.iter().map(|of| (of.position, of.changed)).collect();
        changed.sort_unstable();
        changed
    };
    assert_eq!(changed(&balances), [(0, 1), (1, 3), (2, 0)]);
    assert_eq!(available(&limiter, charges), [4, 5, 6]);
    balances.clear();
    let outcome = limiter.charge(&with_costs(charges, [1, 6, 1]), at(1), Some(&mut balances));
    assert!(matches!(outcome, Outcome::OutOfCredit(_)));
    assert_eq!(changed(&balances), [(0, 0), (1, 0), (2, 0)]);
    assert_eq!(available(&limiter, charges), [4, 5, 6]);
}

#[test]
fn limit_that_is_not_charged_refuses_nothing() {
    let (limiter, charges) = new_limits();
    let debited = limiter.debit(&costing(&charges, 99), at(1), None);
    assert!(matches!(debited, Outcome::Admitted(_)));
    assert_eq!(available(&limiter, charges), [-5; 3]);
    assert!(matches!(refund(&limiter, &charges[2..], 1, 11), Outcome::Admitted(_)));
    let outcome = limiter.charge(&with_costs(charges, [0, 0, 4]), at(1), None);
    assert!(matches!(outcome, Outcome::Admitted(_)));
    // The limit that refuses is named, although others are overdrawn for longer.
    let outcome = limiter.charge(&with_costs(charges, [0, 0, 3]), at(1), None);
    let Outcome::Refused(report) = outcome else { panic!("{outcome:?}") };
    let DecidingLimit { position, balance } = report.limit.expect("a limit");
    assert_eq!((position, balance.available), (2, 2));
    assert!(balance.retry_after > 0);
    let outcome = limiter.charge(&with_costs(charges, [1, 0, 0]), at(1), None);
    let Outcome::Refused(report) = outcome else { panic!("{outcome:?}") };
    let DecidingLimit { position, balance } = report.limit.expect("a limit");
    assert_eq!((position, balance.retry_after), (0, 6 * SECOND));
}

/// A refusal that waiting does not end comes first, and one that nothing ends before all.
#[test]
fn severest_refusal_decides() {
    let (limiter, [bucket, credits, window]) = new_limits();
    let spent = limiter.charge(&costing(&[bucket, credits, window], 5), at(1), None);
    assert!(matches!(spent, Outcome::Admitted(_)));
    let (wait, exceeds) = (Charge { cost: 2, ..bucket }, Charge { cost: 7, ..window });
    let out = Charge { cost: 4, ..credits };
    let fits = Charge { cost: 1, ..window };
    let kind = |charges: &[Charge]| {
        let outcome = limiter.charge(charges, at(1), None);
        let limit = outcome.report().expect("an answer").limit.expect("a limit");
        let kind = match outcome {
            Outcome::Refused(_) => "wait",
            Outcome::OutOfCredit(_) => "out of credit",
            Outcome::ExceedsBurst(_) => "exceeds",
            other => panic!("{other:?}"),
        };
        (kind, limit.position, limit.balance.retry_after > 0)
    };
    for (charges, expected) in [
        ([wait, out, exceeds], ("exceeds", 2, false)),
        ([exceeds, out, wait], ("exceeds", 0, false)),
        ([fits, out, wait], ("out of credit", 1, false)),
        ([wait, fits, out], ("out of credit", 2, false)),
        ([fits, wait, Charge { cost: 0, ..out }], ("wait", 1, true)),
        ([wait, Charge { shadow: true, ..out }, Charge { shadow: true, ..exceeds }], ("wait", 0, true)),
    ] {
        assert_eq!(kind(&charges), expected, "{charges:?}");
    }
    assert_eq!(available(&limiter, [bucket, credits, window]), [0, 3, 1]);
}
