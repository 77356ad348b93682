//! Debits: down to the floor of each limit, and what that means for later requests.

use super::*;

/// What a debit changes of each limit, by position, and what is available then.
fn debit(limiter: &Limiter, charges: &[Charge], now: u64) -> Vec<(usize, u32, i64)> {
    let mut balances = LimitBalances::new();
    let outcome = limiter.debit(charges, at(now), Some(&mut balances));
    assert!(matches!(outcome, Outcome::Admitted(_)), "{outcome:?}");
    assert!(balances.iter().all(|of| of.shadow == charges[of.position].shadow));
    let mut sorted: Vec<_> =
        balances.iter().map(|of| (of.position, of.changed, of.balance.available)).collect();
    sorted.sort_unstable();
    sorted
}

fn new_charge(rule: Rule) -> (Limiter, SlotAllocator, Charge) {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let of = new_buckets(&limiter, &mut allocator, &[rule])[0];
    (limiter, allocator, of)
}

#[test]
fn overdrawn_bucket_says_when_a_cost_fits() {
    let (limiter, _, of) = new_charge(overdrawable(1, 10, 5));
    assert_eq!(debit(&limiter, &[Charge { cost: 99, ..of }], 1), [(0, 15, -5)]);
    let refused = [(1, 6 * SECOND), (10, 15 * SECOND)];
    let with_balances = [true, false].into_iter().flat_map(|asks| refused.map(|of| (asks, of)));
    for (asks, (cost, expected)) in with_balances {
        let mut balances = LimitBalances::new();
        let outcome = limiter.charge(&[Charge { cost, ..of }], at(1), asks.then_some(&mut balances));
        let Outcome::Refused(report) = outcome else { panic!("{outcome:?}") };
        let balance = report.limit.expect("a limit").balance;
        assert_eq!((balance.available, balance.retry_after, balance.reset), (-5, expected, 15 * SECOND));
        assert_eq!(balance.remaining(), 0);
    }
    let Outcome::ExceedsBurst(report) = charge(&limiter, &[of], 1, 11) else { panic!("over the burst") };
    assert_eq!(report.limit.expect("a limit").balance.retry_after, 0, "waiting does not help");
    assert!(matches!(charge(&limiter, &[of], 6 * SECOND, 1), Outcome::Refused(_)), "a nanosecond early");
    assert!(matches!(charge(&limiter, &[of], 6 * SECOND + 1, 1), Outcome::Admitted(_)));
}

#[test]
fn debit_leaves_the_part_of_a_unit_above_the_floor() {
    let (limiter, _, of) = new_charge(overdrawable(1, 3, 2));
    let cost = |cost| [Charge { cost, ..of }];
    assert_eq!(debit(&limiter, &cost(5), 1), [(0, 5, -2)]);
    let half = SECOND / 2;
    assert_eq!(debit(&limiter, &cost(1), 1 + half), [(0, 0, -2)], "half a unit is not one");
    assert_eq!(debit(&limiter, &cost(9), 1 + 2 * half), [(0, 1, -2)]);
    assert_eq!(debit(&limiter, &cost(9), 1 + 5 * half), [(0, 1, -2)], "half a unit is left");
    assert_eq!(debit(&limiter, &cost(9), 1 + 6 * half), [(0, 1, -2)]);
    // What a refund returns has not been refilled.
    let refunded = limiter.refund(&cost(u32::MAX), at(1 + 6 * half), None);
    assert!(matches!(refunded, Outcome::Admitted(_)));
    assert_eq!(available(&limiter, of, 1 + 6 * half), 3);
}

#[test]
fn limit_without_an_overdraft_is_debited_to_zero() {
    for rule in [rate(1, 4), Rule::credits(4, 0).expect("in range")] {
        let (limiter, _, of) = new_charge(rule);
        assert_eq!(debit(&limiter, &[Charge { cost: 9, ..of }], 1), [(0, 4, 0)]);
        assert_eq!(debit(&limiter, &[Charge { cost: 9, ..of }], 1), [(0, 0, 0)]);
    }
}

#[test]
fn each_limit_is_debited_to_its_own_floor() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let window = Rule::window(6, Period::Hour, 1).expect("in range");
    let credits = Rule::credits(20, 0).expect("in range");
    let rules = [overdrawable(1, 2, 3), window, credits, rate(1, 5)];
    let charges = new_buckets(&limiter, &mut allocator, &rules);
    let costs = |costs: [u32; 4]| -> Vec<Charge> {
        let charges = charges.iter().zip(costs).enumerate();
        charges.map(|(at, (charge, cost))| Charge { cost, shadow: at == 3, ..*charge }).collect()
    };
    // The shadow limit is debited too.
    assert_eq!(debit(&limiter, &costs([4, 0, 7, 9]), 1), [(0, 4, -2), (1, 0, 6), (2, 7, 13), (3, 5, 0)]);
    assert_eq!(debit(&limiter, &costs([4, 9, 9, 0]), 1), [(0, 1, -3), (1, 7, -1), (2, 9, 4), (3, 0, 0)]);
    assert_eq!(available(&limiter, charges[3], 1), 0);
    assert!(matches!(charge(&limiter, &charges[..1], 1, 1), Outcome::Refused(_)));
    assert!(matches!(charge(&limiter, &charges[1..2], 1, 1), Outcome::Refused(_)));
    assert!(matches!(charge(&limiter, &charges[2..3], 1, 4), Outcome::Admitted(_)));
}

#[test]
fn change_of_the_overdraft_refills_nothing() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let with = |overdraft| overdrawable(1, 10, overdraft);
    let mut current = reload(&limiter, &mut allocator, &[], &[("a", with(8))], 1)[0];
    assert_eq!(debit(&limiter, &costing(&[enforced(current)], 16), 1), [(0, 16, -6)]);
    for (overdraft, expected) in [(20, -6), (2, -2), (8, -6), (0, 0), (9, -6)] {
        current = reload(&limiter, &mut allocator, &[("a", current)], &[("a", with(overdraft))], 1)[0];
        assert_eq!(available(&limiter, enforced(current), 1), expected, "overdraft {overdraft}");
        assert!(matches!(charge(&limiter, &[enforced(current)], 1, 1), Outcome::Refused(_)));
    }
    // Nor does an absence, at the other overdraft.
    assert!(reload(&limiter, &mut allocator, &[("a", current)], &[], 1).is_empty());
    let added = reload(&limiter, &mut allocator, &[], &[("a", with(8))], 1)[0];
    assert_eq!(available(&limiter, enforced(added), 1), -6);
    assert_eq!(available(&limiter, enforced(added), 1 + 6 * SECOND), 0);
}

#[test]
fn restored_debt_below_the_floor_of_a_changed_rule_is_that_of_the_floor() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let saved = saved_bucket("a", overdrawable(1, 10, 8), 18 * SECOND);
    assert_eq!(allocator.restore(&limiter, [saved], 2 * SECOND, at(5)), 1);
    let added = reload(&limiter, &mut allocator, &[], &[("a", overdrawable(3, 10, 2))], 5)[0];
    assert_eq!(available(&limiter, enforced(added), 5), -2);
    assert_eq!(allocator.retained(), 1, "the old rule remembers more");
}

/// A capacity and an overdraft that are as large as a rate admits.
#[test]
fn bucket_at_the_lowest_floor_is_not_full() {
    let rate = Rate::from_ticks(1 << 40, 8, 1 << 19).expect("in range");
    for overdraft in [1 << 18, 1 << 19, 1 << 20] {
        let rule = Rule::bucket(rate, overdraft).expect("in range");
        let (limiter, _, of) = new_charge(rule);
        let burst = 1 << 19;
        let floor = -i64::from(overdraft);
        assert_eq!(debit(&limiter, &[Charge { cost: u32::MAX, ..of }], 1), [(0, burst + overdraft, floor)]);
        assert!(matches!(charge(&limiter, &[of], 1, 1), Outcome::Refused(_)));
        assert_eq!(available(&limiter, of, 1), floor);
        let unit = (1 << 40) / 8;
        assert_eq!(available(&limiter, of, 1 + unit), floor + 1);
    }
    assert!(Rule::bucket(rate, (1 << 20) + 1).is_err(), "it would take more than 4.5 years to refill");
}
