//! Words that wrap around: a bucket that is full is charged as full at any time, and one that is in
//! debt is never taken for a full one.

use super::*;
use crate::limiter::lock::LockedBuckets;

/// Ticks until a word wraps around.
const WRAP: u64 = 1 << 61;

/// A rate of the largest scale: its words wrap around after 39 hours.
fn fast(overdraft: u32) -> Rule {
    let rate = Rate::new(9_999_991, SECOND, 3).expect("in range");
    assert_eq!(rate.scale().get(), 1 << 14);
    Rule::bucket(rate, overdraft).expect("in range")
}

/// Nanoseconds until a word of this rule wraps around.
fn wrap(rule: Rule) -> u64 {
    let Rule::Bucket { rate, .. } = rule else { panic!("a token bucket") };
    WRAP / u64::from(rate.scale().get())
}

fn new_charge(rule: Rule, now: u64) -> (Limiter, SlotAllocator, Charge) {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    assert_eq!(allocator.restore(&limiter, [], 0, at(now)), 0);
    let of = reload(&limiter, &mut allocator, &[], &[("a", rule)], now)[0];
    (limiter, allocator, enforced(of))
}

fn scan(limiter: &Limiter, allocator: &SlotAllocator, of: Charge, now: u64) -> Vec<SavedLimit> {
    let bucket = BucketRef { slot: of.slot, rule: of.rule };
    allocator.scan_balances(limiter, [(bucket, || id("a"))].into_iter(), at(now)).at(at(now)).collect()
}

/// Ages at which a word looks full, or in more debt than is possible.
#[test]
fn old_full_bucket_is_charged_as_full() {
    let rule = fast(2);
    let wrap = wrap(rule);
    for age in [
        wrap / 8,
        wrap / 2 - 1,
        wrap / 2,
        wrap / 2 + 1,
        wrap - 1_000,
        wrap + 1,
        3 * wrap / 2,
        2 * wrap - 1_000,
    ] {
        for beside in [false, true] {
            let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
            let charges = new_buckets(&limiter, &mut allocator, &[rule, rate(1, 9)]);
            let charges = if beside { &charges[..] } else { &charges[..1] };
            assert!(matches!(charge(&limiter, charges, 1, 3), Outcome::Admitted(_)));
            let now = 1 + 10_000 + age;
            assert_eq!(available(&limiter, charges[0], now), 3, "{age}");
            assert!(matches!(charge(&limiter, charges, now, 3), Outcome::Admitted(_)), "{age}");
            assert!(matches!(charge(&limiter, charges, now, 1), Outcome::Refused(_)), "{age}");
            assert!(matches!(charge(&limiter, charges, now + 101, 1), Outcome::Admitted(_)), "{age}");
        }
    }
}

#[test]
fn scans_renew_full_buckets_so_that_none_wraps_around() {
    let rule = fast(2);
    let (limiter, allocator, of) = new_charge(rule, 1);
    let step = wrap(rule) / 16;
    for round in 0..80 {
        // Around the moments at which a word that is never renewed looks as if it were in debt.
        let (late, early) = (round % 3, round % 5);
        let now = (round + 1) * step + late - early;
        assert_eq!(scan(&limiter, &allocator, of, now), [], "{round}");
        assert_eq!(available(&limiter, of, now), 3, "{round}");
    }
    // One that has wrapped around already is renewed too, before it looks as if it were in debt.
    let (limiter, allocator, of) = new_charge(rule, 1);
    assert_eq!(scan(&limiter, &allocator, of, wrap(rule) / 2 + 100), []);
    assert_eq!(available(&limiter, of, wrap(rule) - 300), 3);
}

/// Without a state directory, nothing is scanned.
#[test]
fn renewal_keeps_full_buckets_from_wrapping_around() {
    let rule = fast(2);
    let (limiter, mut allocator, of) = new_charge(rule, 1);
    let live = BucketRef { slot: of.slot, rule };
    let retained = saved_bucket("gone", rule, 1);
    assert_eq!(allocator.restore(&limiter, [retained], 0, at(1)), 1);
    let step = wrap(rule) / 6;
    for round in 1..30 {
        allocator.renew(&limiter, std::iter::once(live), at(round * step));
        for early in 0..3 {
            let now = (round + 1) * step - early;
            assert_eq!(available(&limiter, of, now), 3, "{round}");
        }
    }
    let none = std::iter::empty::<(BucketRef, fn() -> LimitId)>();
    assert_eq!(allocator.scan_balances(&limiter, none, at(30 * step)).at(at(30 * step)).len(), 0);
}

#[test]
fn scan_does_not_replace_a_word_that_is_locked() {
    let rule = fast(0);
    let (limiter, allocator, of) = new_charge(rule, 1);
    let now = 1 + wrap(rule) / 4;
    let charges = [of];
    let mut locked = LockedBuckets::new(&limiter.buckets);
    limiter.buckets.lock_all(&charges, at(now), &mut locked).expect("not superseded");
    assert_eq!(scan(&limiter, &allocator, of, now), []);
    assert!(limiter.buckets.slots.load(of.slot).is_locked());
    drop(locked);
    assert_eq!(available(&limiter, of, now), 3);
}

#[test]
fn retained_full_bucket_is_neither_saved_nor_wraps_around() {
    let rule = fast(0);
    let (limiter, mut allocator, of) = new_charge(rule, 1);
    assert!(matches!(charge(&limiter, &[of], 1, 3), Outcome::Admitted(_)));
    let bucket = BucketRef { slot: of.slot, rule };
    assert!(reload(&limiter, &mut allocator, &[("a", bucket)], &[], 1).is_empty());
    assert_eq!(allocator.retained(), 1);
    let saved = |now| -> Vec<SavedLimit> {
        let none = std::iter::empty::<(BucketRef, fn() -> LimitId)>();
        allocator.scan_balances(&limiter, none, at(now)).at(at(now)).collect()
    };
    assert_eq!(saved(1).len(), 1);
    let step = wrap(rule) / 16;
    for round in 1..40 {
        assert_eq!(saved(round * step + 400), [], "{round}");
    }
}

/// Time passes in steps of less than a unit, from the floor until the bucket is full.
#[test]
fn debt_is_exact_wherever_the_ticks_wrap_around() {
    let rule = fast(4);
    let Rule::Bucket { rate, .. } = rule else { panic!("a token bucket") };
    let (period, scale) = (u128::from(rate.period().get()), u128::from(rate.scale().get()));
    for before in [0, 1, 350, 699, 700, 2_000] {
        let start = wrap(rule) - before;
        let (limiter, _, of) = new_charge(rule, start);
        let debited = limiter.debit(&[Charge { cost: 99, ..of }], at(start), None);
        assert!(matches!(debited, Outcome::Admitted(_)));
        for passed in (0..1_000).step_by(7) {
            let level = -4 + (u128::from(passed) * scale / period) as i64;
            assert_eq!(available(&limiter, of, start + passed), level.min(3), "{before} {passed}");
        }
    }
}

/// The dangerous case: seen from an earlier time, a debt looks larger, and a debt that is too large is
/// that of a full bucket.
#[test]
fn word_that_is_read_at_an_earlier_time_than_its_charge_is_not_full() {
    let rule = fast(2);
    let late = 1 << 40;
    let empty = || {
        let (limiter, allocator, of) = new_charge(rule, 1);
        assert!(matches!(charge(&limiter, &[of], late, 3), Outcome::Admitted(_)));
        (limiter, allocator, of)
    };
    for early in [1, late / 2, late - 1_000, late - 1] {
        for both in [false, true] {
            let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
            let charges = new_buckets(&limiter, &mut allocator, &[rule, rate(1, 9)]);
            let charges = if both { &charges[..] } else { &charges[..1] };
            assert!(matches!(charge(&limiter, charges, late, 3), Outcome::Admitted(_)));
            assert!(matches!(charge(&limiter, charges, early, 1), Outcome::Refused(_)), "{early}");
        }
        let (limiter, ..) = empty();
        let (limiter2, _, of) = empty();
        drop(limiter);
        assert_eq!(available(&limiter2, of, early), 0, "a peek at {early}");
        let debited = limiter2.debit(&[Charge { cost: 9, ..of }], at(early), None);
        assert!(matches!(debited, Outcome::Admitted(_)));
        assert_eq!(available(&limiter2, of, early), -2, "a debit at {early}");
        let (limiter, allocator, of) = empty();
        let balance = |limits: &[SavedLimit]| limits.first().map(|limit| limit.balance);
        let Rule::Bucket { rate, .. } = rule else { panic!("a token bucket") };
        let bucket = BucketRef { slot: of.slot, rule };
        let live = || [(bucket, || id("a"))].into_iter();
        let scan = allocator.scan_balances(&limiter, live(), at(early));
        let exact = SavedBalance::Bucket { debt: rate.capacity() };
        assert_eq!(balance(&scan.at(at(late)).collect::<Vec<_>>()), Some(exact));
        // Not allowed, and still nothing is forgotten.
        let Some(SavedBalance::Bucket { debt }) = balance(&scan.at(at(early)).collect::<Vec<_>>()) else {
            panic!("it is saved")
        };
        assert!(debt >= rate.capacity(), "a save at {early}");
        let (limiter, mut allocator, of) = empty();
        let old = BucketRef { slot: of.slot, rule };
        let changed = reload(&limiter, &mut allocator, &[("a", old)], &[("a", fast(1))], early)[0];
        assert_eq!(available(&limiter, enforced(changed), early), 0, "a migration at {early}");
        assert!(reload(&limiter, &mut allocator, &[("a", changed)], &[], early).is_empty());
        assert!(allocator.retained() > 0, "an absence at {early}");
    }
}

#[test]
fn new_bucket_is_full_after_any_uptime() {
    for rule in [fast(2), rate(1, 5)] {
        for before in [0, 1, 200, 400, 600, 5_000] {
            let now = wrap(rule) - before;
            let (limiter, mut allocator, _) = new_charge(rule, 1);
            assert_eq!(charge(&limiter, &[], now, 0), Outcome::Admitted(ChargeReport::default()));
            assert!(matches!(limiter.refund(&[], at(now), None), Outcome::Admitted(_)));
            let added = reload(&limiter, &mut allocator, &[], &[("b", rule)], now)[0];
            assert_eq!(available(&limiter, enforced(added), now), rule.limit() as i64, "{before}");
        }
    }
}
