//! Balances across restarts: what is saved, and what is restored.

use super::*;

/// The balances that a scan at `now` saves, by debt.
fn saved(
    limiter: &Limiter,
    allocator: &SlotAllocator,
    live: &[(&str, BucketRef)],
    now: u64,
) -> Vec<SavedLimit> {
    let live = live.iter().map(|(name, bucket)| (*bucket, || id(name)));
    let mut saved: Vec<_> = allocator.scan_balances(limiter, live, at(now)).at(at(now)).collect();
    saved.sort_by_key(|limit| match limit.balance {
        SavedBalance::Bucket { debt } => debt,
        SavedBalance::Window { spent, .. } | SavedBalance::Credits { spent } => spent,
    });
    saved
}

#[test]
fn buckets_that_are_not_full_are_saved_once() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let rate = rate(1, 10);
    let period = period(rate);
    let wanted = [("live", rate), ("full", rate), ("gone", rate)];
    let old = reload(&limiter, &mut allocator, &[], &wanted, 1);
    for (bucket, cost) in [(old[0], 3), (old[2], 5)] {
        assert!(matches!(charge(&limiter, &[enforced(bucket)], 1, cost), Outcome::Admitted(_)));
    }
    let previous = [("live", old[0]), ("full", old[1]), ("gone", old[2])];
    let new = reload(&limiter, &mut allocator, &previous, &wanted[..2], 1);
    // Three rows of one key list the same bucket.
    let live = [("live", new[0]), ("full", new[1]), ("live", new[0]), ("live", new[0])];
    let bucket = |name, debt| saved_bucket(name, rate, debt);
    let at = |now| saved(&limiter, &allocator, &live, now);
    assert_eq!(at(1), [bucket("live", 3 * period), bucket("gone", 5 * period)]);
    assert_eq!(at(1 + period), [bucket("live", 2 * period), bucket("gone", 4 * period)]);
    assert_eq!(at(3 * period), [bucket("live", 1), bucket("gone", 2 * period + 1)]);
    assert_eq!(at(1 + 3 * period), [bucket("gone", 2 * period)]);
}

#[test]
fn restored_balance_is_refilled_for_the_elapsed_time() {
    let rate = rate(1, 10);
    let (period, elapsed, now) = (period(rate), 1_000, 77);
    let names = ["spent", "refilled", "nearly refilled", "half"];
    let debts = [10 * period, elapsed, elapsed + 1, elapsed + 5 * period];
    let buckets = names.iter().zip(debts).map(|(name, debt)| saved_bucket(name, rate, debt));
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    assert_eq!(allocator.restore(&limiter, buckets, elapsed, at(now)), 3);
    assert_eq!((allocator.in_use(), allocator.retained()), (3, 3), "a full bucket needs no slot");
    let wanted = names.map(|name| (name, rate));
    let assigned = reload(&limiter, &mut allocator, &[], &wanted, now);
    let left = |now| [0, 1, 2, 3].map(|at: usize| remaining(&limiter, enforced(assigned[at]), now));
    assert_eq!(left(now), [0, 10, 9, 5]);
    assert_eq!(left(now + 1), [0, 10, 10, 5]);
    assert_eq!(left(now + period - elapsed), [1, 10, 10, 5]);
}

/// The clock of the new process may be behind a tick that the limiter has seen.
#[test]
fn restored_balance_counts_from_the_latest_time() {
    let rate = rate(1, 10);
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate]);
    assert!(matches!(charge(&limiter, &charges, 5_000, 0), Outcome::Admitted(_)));
    let spent = saved_bucket("a", rate, capacity(rate));
    assert_eq!(allocator.restore(&limiter, [spent], 0, at(1)), 1);
    let assigned = reload(&limiter, &mut allocator, &[], &[("a", rate)], 5_000)[0];
    assert_eq!(remaining(&limiter, enforced(assigned), 5_000), 0);
}
