//! Reloads: slots that are reused, migrated, retained and reclaimed.

use super::*;

#[test]
fn reload_keeps_balances() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10)), ("b", rate(1, 10))], 1);
    assert!(matches!(charge(&limiter, &[enforced(old[0])], 1, 7), Outcome::Admitted(_)));

    let previous = [("a", old[0]), ("b", old[1])];
    let same = reload(&limiter, &mut allocator, &previous, &[("b", rate(1, 10)), ("a", rate(1, 10))], 1);
    assert_eq!((same[1], same[0]), (old[0], old[1]), "an unchanged limit keeps its slot");

    let changed = reload(&limiter, &mut allocator, &previous, &[("a", rate(5, 100)), ("b", rate(1, 10))], 1);
    assert_ne!(changed[0].slot, old[0].slot);
    assert_eq!(remaining(&limiter, enforced(changed[0]), 1), 3, "a changed limit keeps its balance");
    assert_eq!(allocator.in_use(), 2, "the old slot is free again");
}

#[test]
fn old_bucket_that_is_full_no_later_than_the_new_one_is_released() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    assert!(matches!(charge(&limiter, &[enforced(old)], 1, 2), Outcome::Admitted(_)));
    // At twice the rate, four units take as long as two.
    let new = reload(&limiter, &mut allocator, &[("a", old)], &[("a", rate(2, 12))], 1)[0];
    assert_eq!(remaining(&limiter, enforced(new), 1), 8);
    assert_eq!((allocator.in_use(), allocator.retained()), (1, 0));
}

#[test]
fn charge_of_a_migrated_slot_is_superseded() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    let old_charge = enforced(old);
    let mut allocation = allocator.begin(&limiter);
    let slot = allocation.assign(|| id("a"), Some(old), rate(1, 4)).expect("a free slot");
    let new = Charge { slot, rule: rate(1, 4), cost: 0, shadow: false };
    let pending = allocation.commit();

    assert!(
        matches!(charge(&limiter, &[old_charge], 1, 9), Outcome::Admitted(_)),
        "the new slot has not been used yet"
    );
    assert!(
        matches!(charge(&limiter, &[new], 1, 1), Outcome::Admitted(_)),
        "the first charge migrates the balance"
    );
    assert_eq!(charge(&limiter, &[old_charge], 1, 1), Outcome::Superseded);
    assert_eq!(charge(&limiter, &[old_charge, new], 1, 1), Outcome::Superseded);
    assert_eq!(remaining(&limiter, new, 1), 0);
    allocator.reclaim(&limiter, pending, [(old, || id("a"))].into_iter(), at(1));
    assert_eq!(remaining(&limiter, new, 1), 0);
}

#[test]
fn key_that_is_removed_and_added_again_is_not_refilled() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10)), ("b", rate(1, 10))], 1);
    let spent = enforced(old[0]);
    assert!(matches!(charge(&limiter, &[spent], 1, 10), Outcome::Admitted(_)));

    let previous = [("a", old[0]), ("b", old[1])];
    assert!(reload(&limiter, &mut allocator, &previous, &[], 1).is_empty());
    assert_eq!((allocator.in_use(), allocator.retained()), (1, 1), "only the spent bucket is retained");
    let added = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    assert_eq!(remaining(&limiter, enforced(added), 1), 0);

    let full = 1 + capacity(rate(1, 10));
    assert!(reload(&limiter, &mut allocator, &[("a", added)], &[], full).is_empty());
    assert_eq!((allocator.in_use(), allocator.retained()), (0, 0), "a full bucket is not retained");
}

#[test]
fn key_that_is_added_again_at_another_rate_keeps_its_level() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    assert!(matches!(charge(&limiter, &[enforced(old)], 1, 4), Outcome::Admitted(_)));
    assert!(reload(&limiter, &mut allocator, &[("a", old)], &[], 1).is_empty());
    let added = reload(&limiter, &mut allocator, &[], &[("a", rate(10, 100))], 1)[0];
    assert_eq!(remaining(&limiter, enforced(added), 1), 6);
}

#[test]
fn full_bucket_of_a_smaller_limit_does_not_refill_the_larger_limit() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let (large, small) = (rate(1, 30), rate(10, 20));
    let old = reload(&limiter, &mut allocator, &[], &[("a", large)], 1)[0];
    assert!(matches!(charge(&limiter, &[enforced(old)], 1, 15), Outcome::Admitted(_)));
    let changed = reload(&limiter, &mut allocator, &[("a", old)], &[("a", small)], 1)[0];
    assert_eq!(
        (allocator.in_use(), allocator.retained()),
        (2, 1),
        "the bucket of the large limit is retained"
    );
    // A second later, the bucket of the small limit is full, and its key is removed.
    let later = 1 + capacity(rate(1, 1));
    assert_eq!(remaining(&limiter, enforced(changed), later), 20);
    assert!(reload(&limiter, &mut allocator, &[("a", changed)], &[], later).is_empty());
    let added = reload(&limiter, &mut allocator, &[], &[("a", large)], later)[0];
    assert_eq!(remaining(&limiter, enforced(added), later), 16, "the large limit has refilled one unit");
    assert_eq!((allocator.in_use(), allocator.retained()), (1, 0));
}

#[test]
fn bucket_with_several_rates_keeps_each_balance_or_takes_the_lowest() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let rates = [rate(1, 30), rate(1, 20)];
    let mut previous: Vec<BucketRef> = Vec::new();
    let mut reload = |limiter: &Limiter, wanted: &[Rule]| {
        let mut allocation = allocator.begin(limiter);
        let assigned = allocation.assign_all(id("a"), &previous, wanted).expect("free slots");
        let pending = allocation.commit();
        allocator.reclaim(limiter, pending, [(&previous, || id("a"))].into_iter(), at(1));
        previous = assigned.clone();
        let in_wanted_order = wanted.iter().map(|rate| {
            assigned.iter().copied().find(|bucket| bucket.rule == *rate).expect("each rate has a slot")
        });
        (in_wanted_order.collect::<Vec<BucketRef>>(), allocator.retained())
    };
    let left = |buckets: &[BucketRef]| -> Vec<u32> {
        buckets.iter().map(|bucket| remaining(&limiter, enforced(*bucket), 1)).collect()
    };
    let (buckets, _) = reload(&limiter, &rates);
    for (bucket, cost) in buckets.iter().zip([5, 18]) {
        assert!(matches!(charge(&limiter, &[enforced(*bucket)], 1, cost), Outcome::Admitted(_)));
    }
    assert_eq!(reload(&limiter, &[]).1, 2);
    let (buckets, retained) = reload(&limiter, &[rates[1], rates[0]]);
    assert_eq!((left(&buckets), retained), (vec![2, 25], 0), "the same rates as before");
    reload(&limiter, &[]);
    let (buckets, _) = reload(&limiter, &rates[..1]);
    assert_eq!(left(&buckets), [2], "one rate fewer");
    reload(&limiter, &[]);
    let (buckets, _) = reload(&limiter, &[rates[0], rate(3, 40)]);
    assert_eq!(left(&buckets), [2, 2], "another rate");
    let (buckets, _) = reload(&limiter, &[rate(5, 50), rate(6, 60)]);
    assert_eq!(left(&buckets), [2, 2], "as many rates, but others");
}

#[test]
fn dropped_allocation_is_undone() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    let mut allocation = allocator.begin(&limiter);
    assert!(allocation.assign(|| id("a"), Some(old), rate(2, 2)).is_some());
    assert!(allocation.assign(|| id("b"), None, rate(2, 2)).is_some());
    drop(allocation);
    assert_eq!(allocator.in_use(), 1);
    assert!(matches!(charge(&limiter, &[enforced(old)], 1, 1), Outcome::Admitted(_)));
}

#[test]
fn contiguous_slots_are_assigned_only_while_no_bucket_exists() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign_contiguous(300_000, [7, 9].into_iter()), Some(()));
    drop(allocation);
    assert_eq!(allocator.in_use(), 0, "a dropped allocation is undone");
    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign_contiguous(300_000, [7, 9].into_iter()), Some(()));
    let pending = allocation.commit();
    let no_buckets = std::iter::empty::<(BucketRef, fn() -> LimitId)>();
    allocator.reclaim(&limiter, pending, no_buckets, at(1));
    assert_eq!(allocator.in_use(), 299_998);
    for slot in [0, 6, 299_999] {
        assert_eq!(remaining(&limiter, enforced(BucketRef { slot, rule: rate(1, 5) }), 1), 5);
    }

    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign_contiguous(1, std::iter::empty()), None, "slots are in use");
    let mut next = || allocation.assign(|| id("new"), None, rate(1, 1));
    assert_eq!([next(), next(), next()], [Some(9), Some(7), Some(300_000)]);
    drop(allocation);

    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let saved = saved_bucket("a", rate(1, 1), 5);
    assert_eq!(allocator.restore(&limiter, [saved], 0, at(1)), 1);
    let assigned = allocator.begin(&limiter).assign_contiguous(1, std::iter::empty());
    assert_eq!(assigned, None, "a bucket is retained");
}
