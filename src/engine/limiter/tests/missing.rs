//! A slot that was never assigned: nothing is charged, and nothing waits for it.

use super::*;
use crate::limiter::reset::LimitBuckets;

/// In a chunk of slots that does not exist.
const MISSING: u32 = u32::MAX;

#[test]
fn missing_slot_admits_nothing_and_ends_every_wait() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let existing = new_buckets(&limiter, &mut allocator, &[rate(1, 10)])[0];
    let day = Rule::window(9, Period::Day, 2).expect("in range");
    let credits = Rule::credits(9, 2).expect("in range");
    for rule in [rate(1, 10), overdrawable(1, 10, 5), day, credits] {
        let missing = enforced(BucketRef { slot: MISSING, rule });
        assert!(limiter.bucket(MISSING).is_none());
        let shadow = Charge { shadow: true, cost: 1, ..missing };
        for charges in [&[missing][..], &[existing, missing], &[missing, existing]] {
            for cost in [0, 1] {
                let costing = costing(charges, cost);
                for wanted in [false, true] {
                    let mut balances = LimitBalances::new();
                    let outcome = limiter.charge(&costing, at(1), wanted.then_some(&mut balances));
                    assert_eq!(outcome, Outcome::Superseded);
                    assert!(balances.is_empty());
                }
                for adjust in [Limiter::debit, Limiter::refund] {
                    assert_eq!(adjust(&limiter, &costing, at(1), None), Outcome::Superseded);
                }
            }
        }
        assert_eq!(limiter.charge(&[shadow], at(1), None), Outcome::Superseded);
        let bucket = BucketRef { slot: MISSING, rule };
        let limit = LimitBuckets { id: id("a"), bucket, shared: &[] };
        assert!(allocator.reset(&limiter, &[limit], at(1)).is_none());
        assert!(allocator.balances(&limiter, &[limit], at(1)).is_none());
        assert_eq!(allocator.set_calendar_back(&limiter, std::iter::once(bucket), at(1)), 0);
        allocator.renew(&limiter, std::iter::once(bucket), at(1 << 60));
    }
    assert_eq!(remaining(&limiter, existing, 1), 10, "nothing was charged");
}

#[test]
fn migrations_from_and_to_a_missing_slot_end() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let existing = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    let missing = BucketRef { slot: MISSING, rule: rate(1, 20) };
    assert!(matches!(charge(&limiter, &[enforced(existing)], 1, 7), Outcome::Admitted(_)));
    let mut allocation = allocator.begin(&limiter);
    let rules = [rate(1, 30), rate(1, 40)];
    let assigned = allocation.assign_all(id("a"), &[existing, missing], &rules).expect("free slots");
    let _ = allocation.commit();
    limiter.buckets.complete_migration(MISSING, at(1));
    for bucket in assigned {
        assert_eq!(remaining(&limiter, enforced(bucket), 1), 3, "the balance of the slot that exists");
    }
}
