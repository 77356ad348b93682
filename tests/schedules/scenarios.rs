//! Concurrent uses of the limiter, and what must hold after every interleaving of them.
//!
//! Time stands still at tick 1, so the cost admitted plus the cost left always equals the burst.
//! The explorer itself detects deadlocks and threads that wait forever.

use crate::limiter::{BucketRef, Charge, LimitId, Limiter, Outcome, Rate, SlotAllocator};
use crate::sync::{Arc, spawn};

const NOW: u64 = 1;

/// One unit a second: nothing refills while time stands still, and levels are whole numbers at
/// every burst.
fn rate(burst: u64) -> Rate {
    Rate::new(1, 1_000_000_000, burst).expect("the rate is in range")
}

fn enforced(BucketRef { slot, rate }: BucketRef) -> Charge {
    Charge { slot, rate, shadow: false }
}

fn id(number: usize) -> LimitId {
    LimitId([number as u8; 16])
}

/// A limiter with a full bucket for each burst.
fn buckets<const N: usize>(bursts: [u64; N]) -> (Arc<Limiter>, SlotAllocator, [Charge; N]) {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let mut allocation = allocator.begin(&limiter);
    let mut number = 0;
    let charges = bursts.map(|burst| {
        let rate = rate(burst);
        let slot = allocation.assign(|| id(number), None, rate).expect("a free slot");
        number += 1;
        enforced(BucketRef { slot, rate })
    });
    let pending = allocation.commit();
    let no_buckets = std::iter::empty::<(BucketRef, fn() -> LimitId)>();
    allocator.reclaim(&limiter, pending, no_buckets, NOW);
    (Arc::new(limiter), allocator, charges)
}

/// 1 if the charge was admitted, 0 if it was refused.
fn admitted(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Admitted(_) => 1,
        Outcome::Refused(_) => 0,
        other => panic!("neither admitted nor refused: {other:?}"),
    }
}

/// The remaining cost of a bucket.
fn left(limiter: &Limiter, charge: Charge) -> u32 {
    match limiter.charge(&[charge], NOW, 0) {
        Outcome::Admitted(report) => report.limit.expect("the limit is enforced").balance.remaining,
        other => panic!("a peek is always admitted: {other:?}"),
    }
}

/// `threads` threads charge two limits in opposite orders. As many charges are admitted as the
/// smaller limit has room for, and both limits are charged for all of them.
pub fn opposite_orders(threads: u32) {
    let (limiter, _allocator, [small, large]) = buckets([u64::from(threads) - 1, 5]);
    let charge = move |limiter: &Limiter, thread: u32| {
        let charges = if thread.is_multiple_of(2) { [small, large] } else { [large, small] };
        admitted(limiter.charge(&charges, NOW, 1))
    };
    let others: Vec<_> = (1..threads)
        .map(|thread| {
            let limiter = Arc::clone(&limiter);
            spawn(move || charge(&limiter, thread))
        })
        .collect();
    let own = charge(&limiter, 0);
    let sum = own + others.into_iter().map(|thread| thread.join().expect("the thread ends")).sum::<u32>();
    assert_eq!(sum, threads - 1, "as many as fit, without a false refusal");
    assert_eq!((left(&limiter, small), left(&limiter, large)), (0, 5 - sum));
}

/// The same with a charge that checks first and charges afterwards, which must fail.
pub fn opposite_orders_racily() {
    let (limiter, _allocator, [small, large]) = buckets([1, 5]);
    let threads = [[small, large], [large, small]].map(|charges| {
        let limiter = Arc::clone(&limiter);
        spawn(move || u32::from(limiter.charge_racily(&charges, NOW, 1)))
    });
    let sum: u32 = threads.map(|thread| thread.join().expect("the thread ends")).into_iter().sum();
    assert!(sum <= 1, "OVERDRAWN: the burst is 1");
}

/// One thread charges two limits while another charges one of them. Exactly one charge is admitted,
/// and a refusal charges neither limit.
pub fn together_and_alone() {
    let (limiter, _allocator, [small, large]) = buckets([1, 3]);
    let both = spawn({
        let limiter = Arc::clone(&limiter);
        move || admitted(limiter.charge(&[large, small], NOW, 1))
    });
    let alone = admitted(limiter.charge(&[small], NOW, 1));
    let both = both.join().expect("the thread ends");
    assert_eq!(both + alone, 1);
    assert_eq!((left(&limiter, small), left(&limiter, large)), (0, 3 - both), "a refusal charges neither");
}

/// Two threads charge a shadow limit that has room for one of them. It is charged once, and exactly
/// one of the threads is told that it would have refused.
pub fn shadow() {
    let (limiter, _allocator, [observed, large]) = buckets([1, 3]);
    let charges = [Charge { shadow: true, ..observed }, large];
    let would_refuse = move |limiter: &Limiter| match limiter.charge(&charges, NOW, 1) {
        Outcome::Admitted(report) => u32::from(report.shadow == Some(0)),
        other => panic!("the enforced limit has room: {other:?}"),
    };
    let other = spawn({
        let limiter = Arc::clone(&limiter);
        move || would_refuse(&limiter)
    });
    let sum = would_refuse(&limiter) + other.join().expect("the thread ends");
    assert_eq!((sum, left(&limiter, observed), left(&limiter, large)), (1, 0, 1));
}

/// One thread refunds while another charges. In either order, no cost is lost and none is created.
pub fn charge_and_refund() {
    let (limiter, _allocator, charges @ [small, large]) = buckets([2, 3]);
    assert_eq!(admitted(limiter.charge(&charges, NOW, 2)), 1);
    let refunding = spawn({
        let limiter = Arc::clone(&limiter);
        move || admitted(limiter.refund(&[large, small], NOW, 1))
    });
    let charged = admitted(limiter.charge(&charges, NOW, 1));
    let alone = admitted(limiter.charge(&[large], NOW, 1));
    assert_eq!(refunding.join().expect("the thread ends"), 1);
    assert_eq!(alone, 1, "the larger limit has room in either order");
    assert_eq!((left(&limiter, small), left(&limiter, large)), (1 - charged, 1 - charged));
}

/// A reload changes a limit's burst, while threads charge it at the old rate and, once they find it
/// superseded, at the new rate. The balance is migrated once and accounts for every admission.
/// Afterwards the old slot is reclaimed.
pub fn charge_and_rate_change(others: usize) {
    let (limiter, mut allocator, [old]) = buckets([2]);
    let old_bucket = BucketRef { slot: old.slot, rate: old.rate };
    let mut allocation = allocator.begin(&limiter);
    let slot = allocation.assign(|| id(0), Some(old_bucket), rate(4)).expect("a free slot");
    let new = enforced(BucketRef { slot, rate: rate(4) });
    let pending = allocation.commit();
    let charging: Vec<_> = (0..others)
        .map(|_| {
            let limiter = Arc::clone(&limiter);
            spawn(move || match limiter.charge(&[old], NOW, 1) {
                Outcome::Superseded => admitted(limiter.charge(&[new], NOW, 1)),
                outcome => admitted(outcome),
            })
        })
        .collect();
    let own = admitted(limiter.charge(&[new], NOW, 1));
    let own = own + admitted(limiter.charge(&[new], NOW, 1));
    let sum = own + charging.into_iter().map(|thread| thread.join().expect("the thread ends")).sum::<u32>();
    // The threads have ended, so the old snapshot is no longer in use.
    allocator.reclaim(&limiter, pending, [(old_bucket, || id(0))].into_iter(), NOW);
    assert_eq!((sum, left(&limiter, new)), (2, 0), "what was in the old bucket, at either rate");
    assert_eq!(allocator.in_use(), 1);
}

/// A thread charges two limits while a reload changes one of them. The charge is all or nothing,
/// even if the first bucket is already locked when the second is found superseded.
pub fn several_and_rate_change() {
    let (limiter, mut allocator, charges @ [first, second]) = buckets([2, 2]);
    let old = charges.map(|Charge { slot, rate, .. }| BucketRef { slot, rate });
    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign(|| id(0), Some(old[0]), old[0].rate), Some(first.slot));
    let slot = allocation.assign(|| id(1), Some(old[1]), rate(4)).expect("a free slot");
    let new = enforced(BucketRef { slot, rate: rate(4) });
    let pending = allocation.commit();
    let charging = spawn({
        let limiter = Arc::clone(&limiter);
        move || match limiter.charge(&[second, first], NOW, 1) {
            Outcome::Superseded => admitted(limiter.charge(&[new, first], NOW, 1)),
            outcome => admitted(outcome),
        }
    });
    let own = admitted(limiter.charge(&[first, new], NOW, 1));
    let other = charging.join().expect("the thread ends");
    allocator.reclaim(&limiter, pending, (0..2).map(|number| (old[number], move || id(number))), NOW);
    assert_eq!((own, other), (1, 1));
    assert_eq!((left(&limiter, first), left(&limiter, new)), (0, 0));
    assert_eq!(allocator.in_use(), 2, "the old slot is free");
    assert!(left(&limiter, second) > 0, "a free slot is full");
}
