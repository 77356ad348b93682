//! Credits: only a larger grant gives more of them.

use super::*;

const CREDITS: &str = "credits";

fn granted(granted: u64) -> Rule {
    credits(granted, 0)
}

fn credits(granted: u64, overdraft: u32) -> Rule {
    Rule::credits(granted, overdraft).expect("in range")
}

/// What is available at a time in nanoseconds.
fn left(limiter: &Limiter, bucket: BucketRef, now: u64) -> i64 {
    charge(limiter, &[enforced(bucket)], now, 0)
        .report()
        .and_then(|report| report.limit)
        .expect("a limit")
        .balance
        .available
}

fn is_admitted(limiter: &Limiter, bucket: BucketRef, cost: u32) -> bool {
    matches!(charge(limiter, &[enforced(bucket)], 1, cost), Outcome::Admitted(_))
}

fn new_credits(rule: Rule) -> (Limiter, SlotAllocator, BucketRef) {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let bucket = reload(&limiter, &mut allocator, &[], &[(CREDITS, rule)], 1)[0];
    (limiter, allocator, bucket)
}

#[test]
fn credits_are_spent_once() {
    let (limiter, mut allocator, bucket) = new_credits(granted(10));
    assert!(is_admitted(&limiter, bucket, 7));
    let Outcome::OutOfCredit(report) = charge(&limiter, &[enforced(bucket)], 1, 4) else {
        panic!("3 are left")
    };
    let balance = report.limit.expect("a limit").balance;
    assert_eq!((balance.available, balance.retry_after, balance.reset), (3, 0, NEVER));
    assert!(is_admitted(&limiter, bucket, 3));
    let same = reload(&limiter, &mut allocator, &[(CREDITS, bucket)], &[(CREDITS, granted(10))], 1 << 60)[0];
    assert_eq!((same, left(&limiter, same, u64::MAX)), (bucket, 0), "neither time nor a reload refills it");
    assert!(
        matches!(charge(&limiter, &[enforced(bucket)], 1, 11), Outcome::OutOfCredit(_)),
        "more than granted"
    );
}

#[test]
fn larger_grant_tops_up_and_a_smaller_one_takes_away() {
    let (limiter, mut allocator, first) = new_credits(granted(10));
    assert!(is_admitted(&limiter, first, 8));
    let mut current = first;
    for (grant, expected) in [(15, 7), (10, 2), (5, -3), (0, -8), (8, 0), (9, 1)] {
        current = reload(&limiter, &mut allocator, &[(CREDITS, current)], &[(CREDITS, granted(grant))], 1)[0];
        assert_eq!((current.slot, left(&limiter, current, 1)), (first.slot, expected), "{grant} granted");
        assert_eq!(is_admitted(&limiter, current, 1), expected > 0);
        let charges = costing(&[enforced(current)], 1);
        if expected > 0 {
            assert!(matches!(limiter.refund(&charges, at(1), None), Outcome::Admitted(_)));
        }
    }
    let debited = |bucket| {
        let mut balances = LimitBalances::new();
        limiter.debit(&costing(&[enforced(bucket)], 9), at(1), Some(&mut balances));
        balances[0].changed
    };
    let wanted = [(CREDITS, credits(5, 2))];
    current = reload(&limiter, &mut allocator, &[(CREDITS, current)], &wanted, 1)[0];
    assert_eq!((debited(current), left(&limiter, current, 1)), (0, -3), "it is below the floor");
    current = reload(&limiter, &mut allocator, &[(CREDITS, current)], &[(CREDITS, credits(9, 2))], 1)[0];
    assert_eq!((debited(current), left(&limiter, current, 1)), (3, -2));
}

#[test]
fn refund_returns_no_more_than_was_spent() {
    let (limiter, _, bucket) = new_credits(granted(10));
    assert!(is_admitted(&limiter, bucket, 4));
    assert!(matches!(refund(&limiter, &[enforced(bucket)], 1, u32::MAX), Outcome::Admitted(_)));
    assert_eq!(left(&limiter, bucket, 1), 10);
    assert!(is_admitted(&limiter, bucket, 10) && !is_admitted(&limiter, bucket, 1));
}

/// Neither credits nor windows that are not over make room for others.
#[test]
fn spent_credits_are_retained_whatever_else_is() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let hour = Rule::window(5, Period::Hour, 0).expect("in range");
    let wanted = [(CREDITS, granted(10)), ("hour", hour)];
    let old = reload(&limiter, &mut allocator, &[], &wanted, 1);
    assert!(is_admitted(&limiter, old[0], 4) && is_admitted(&limiter, old[1], 5));
    assert!(reload(&limiter, &mut allocator, &[(CREDITS, old[0]), ("hour", old[1])], &[], 1).is_empty());
    // More token buckets than are retained, of keys that are gone. They are full later than in an hour.
    let many = (0..70_000_u32).map(|number| SavedLimit {
        id: LimitId(u128::from(number + 1).to_le_bytes()),
        rule: rate(1, 1 << 20),
        is_former: false,
        balance: SavedBalance::Bucket { debt: 10_000 * SECOND + u64::from(number / 2) },
    });
    allocator.restore(&limiter, many, 0, at(1));
    assert!(reload(&limiter, &mut allocator, &[], &[], 1).is_empty());
    assert_eq!(allocator.retained(), (1 << 16) + 2);
    // All of them are full, and the hour is not over.
    assert!(reload(&limiter, &mut allocator, &[], &[], 1 << 60).is_empty());
    assert_eq!(allocator.retained(), 2);
    let added = reload(&limiter, &mut allocator, &[], &[(CREDITS, granted(12)), ("hour", hour)], 1 << 60);
    assert_eq!([0, 1].map(|at: usize| left(&limiter, added[at], 1 << 60)), [8, 0]);
    assert_eq!(allocator.in_use(), 2);
}

#[test]
fn restart_keeps_what_was_spent() {
    let (limiter, allocator, bucket) = new_credits(granted(10));
    assert!(is_admitted(&limiter, bucket, 4));
    let scan = allocator.scan_balances(&limiter, [(bucket, || id(CREDITS))].into_iter(), at(1));
    let saved: Vec<SavedLimit> = scan.at(at(1)).collect();
    let balance = SavedBalance::Credits { spent: 4 };
    assert_eq!(saved, [SavedLimit { id: id(CREDITS), rule: granted(10), is_former: false, balance }]);
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    assert_eq!(allocator.restore(&limiter, saved, 1 << 57, at(1)), 1);
    // The grant has changed meanwhile.
    let added = reload(&limiter, &mut allocator, &[], &[(CREDITS, granted(7))], 1)[0];
    assert_eq!((left(&limiter, added, 1), allocator.in_use()), (3, 1));
}

#[test]
fn largest_numbers_do_not_overflow() {
    let (limiter, mut allocator, bucket) = new_credits(credits(MAX_CREDITS, u32::MAX));
    let balance = SavedBalance::Credits { spent: 1 << 60 };
    let saved = SavedLimit { id: id(CREDITS), rule: granted(1), is_former: false, balance };
    assert_eq!(left(&limiter, bucket, 1), MAX_CREDITS as i64);
    assert!(reload(&limiter, &mut allocator, &[(CREDITS, bucket)], &[], 1).is_empty());
    assert_eq!(allocator.restore(&limiter, [saved], 0, at(1)), 1);
    let wanted = [(CREDITS, credits(MAX_CREDITS, u32::MAX))];
    let added = reload(&limiter, &mut allocator, &[], &wanted, 1)[0];
    assert!(!is_admitted(&limiter, added, u32::MAX));
    let debit = limiter.debit(&costing(&[enforced(added)], u32::MAX), at(1), None);
    assert!(matches!(debit, Outcome::Admitted(_)));
    assert_eq!(left(&limiter, added, 1), MAX_CREDITS as i64 - (1 << 60));
}
