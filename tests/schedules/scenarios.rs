//! What threads do to the limiter at once, and what has to hold after every interleaving of it.
//!
//! Time stands still at tick 1, so that what is admitted plus what is left is the burst, exactly, whatever happened in
//! between. The explorer itself finds a deadlock, and a thread that waits for ever.

use crate::limiter::{BucketId, BucketRef, Charge, Limiter, Outcome, Rate, SlotAllocator};
use crate::sync::{Arc, spawn};

const NOW: u64 = 1;

/// One unit a second: nothing refills while time stands still, and levels are whole numbers under every burst.
fn rate(burst: u64) -> Rate {
    Rate::new(1, 1_000_000_000, burst).expect("in range")
}

fn enforced(BucketRef { slot, rate }: BucketRef) -> Charge {
    Charge { slot, rate, shadow: false }
}

fn name(number: usize) -> BucketId {
    BucketId([number as u8; 16])
}

/// A bucket for each burst.
fn buckets<const N: usize>(bursts: [u64; N]) -> (Arc<Limiter>, SlotAllocator, [Charge; N]) {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let mut allocation = allocator.begin(&limiter);
    let mut number = 0;
    let charges = bursts.map(|burst| {
        let rate = rate(burst);
        let slot = allocation.assign(|| name(number), None, rate).expect("room");
        number += 1;
        enforced(BucketRef { slot, rate })
    });
    let pending = allocation.commit();
    allocator.reclaim(&limiter, pending, std::iter::empty::<(BucketRef, fn() -> BucketId)>(), NOW);
    (Arc::new(limiter), allocator, charges)
}

/// 1 where it was admitted, 0 where it was refused.
fn admitted(outcome: Outcome) -> u32 {
    match outcome {
        Outcome::Admitted(_) => 1,
        Outcome::Refused(_) => 0,
        other => panic!("neither admitted nor refused: {other:?}"),
    }
}

fn left(limiter: &Limiter, charge: Charge) -> u32 {
    match limiter.charge(&[charge], NOW, 0) {
        Outcome::Admitted(charged) => charged.limit.expect("it is enforced").balance.remaining,
        other => panic!("a peek is admitted: {other:?}"),
    }
}

/// Two limits in opposite orders by `threads` threads, while time stands still: as many are admitted as the smaller
/// has room for, and both are charged for all of them.
pub fn opposite_orders(threads: u32) {
    let (limiter, _ledger, [small, large]) = buckets([u64::from(threads) - 1, 5]);
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
    let sum = own + others.into_iter().map(|thread| thread.join().expect("it ends")).sum::<u32>();
    assert_eq!(sum, threads - 1, "as many as fit, and no false refusal");
    assert_eq!((left(&limiter, small), left(&limiter, large)), (0, 5 - sum));
}

/// The same with the charge that looks first and adds then.
pub fn opposite_orders_racily() {
    let (limiter, _ledger, [small, large]) = buckets([1, 5]);
    let charging = [[small, large], [large, small]].map(|charges| {
        let limiter = Arc::clone(&limiter);
        spawn(move || u32::from(limiter.charge_racily(&charges, NOW, 1)))
    });
    let sum: u32 = charging.map(|thread| thread.join().expect("it ends")).into_iter().sum();
    assert!(sum <= 1, "OVERDRAWN: the burst is 1");
}

/// One charges two limits together while another charges one of them alone: the lone charge neither slips in between
/// nor is lost.
pub fn together_and_alone() {
    let (limiter, _ledger, [small, large]) = buckets([1, 3]);
    let both = spawn({
        let limiter = Arc::clone(&limiter);
        move || admitted(limiter.charge(&[large, small], NOW, 1))
    });
    let alone = admitted(limiter.charge(&[small], NOW, 1));
    let both = both.join().expect("it ends");
    assert_eq!(both + alone, 1);
    assert_eq!((left(&limiter, small), left(&limiter, large)), (0, 3 - both), "a refusal charges neither");
}

/// A shadow limit that has room for one of two is charged by one, and by exactly that one which is told so.
pub fn shadow() {
    let (limiter, _ledger, [watched, large]) = buckets([1, 3]);
    let charges = [Charge { shadow: true, ..watched }, large];
    let would_refuse = move |limiter: &Limiter| match limiter.charge(&charges, NOW, 1) {
        Outcome::Admitted(charged) => u32::from(charged.shadow == Some(0)),
        other => panic!("the enforced limit has room: {other:?}"),
    };
    let other = spawn({
        let limiter = Arc::clone(&limiter);
        move || would_refuse(&limiter)
    });
    let sum = would_refuse(&limiter) + other.join().expect("it ends");
    assert_eq!((sum, left(&limiter, watched), left(&limiter, large)), (1, 0, 1));
}

/// One gives back what another is charged at the same time: whichever comes first, nothing is lost and nothing is made.
pub fn charge_and_refund() {
    let (limiter, _ledger, charges @ [small, large]) = buckets([2, 3]);
    assert_eq!(admitted(limiter.charge(&charges, NOW, 2)), 1);
    let refunding = spawn({
        let limiter = Arc::clone(&limiter);
        move || admitted(limiter.refund(&[large, small], NOW, 1))
    });
    let charged = admitted(limiter.charge(&charges, NOW, 1));
    let alone = admitted(limiter.charge(&[large], NOW, 1));
    assert_eq!(refunding.join().expect("it ends"), 1);
    assert_eq!(alone, 1, "the larger has room for it either way");
    assert_eq!((left(&limiter, small), left(&limiter, large)), (1 - charged, 1 - charged));
}

/// A reload changes a limit's burst, settles and frees the old slot, while a thread charges it with the old rate and then,
/// when it is sent there, with the new one: the balance is taken over once, and every admission is in it.
pub fn charge_and_rate_change(others: usize) {
    let (limiter, mut allocator, [old]) = buckets([2]);
    let had = BucketRef { slot: old.slot, rate: old.rate };
    let mut allocation = allocator.begin(&limiter);
    let new =
        BucketRef { rate: rate(4), slot: allocation.assign(|| name(0), Some(had), rate(4)).expect("room") };
    let pending = allocation.commit();
    let charging: Vec<_> = (0..others)
        .map(|_| {
            let limiter = Arc::clone(&limiter);
            spawn(move || match limiter.charge(&[old], NOW, 1) {
                Outcome::Superseded => admitted(limiter.charge(&[enforced(new)], NOW, 1)),
                outcome => admitted(outcome),
            })
        })
        .collect();
    let own = admitted(limiter.charge(&[enforced(new)], NOW, 1));
    let own = own + admitted(limiter.charge(&[enforced(new)], NOW, 1));
    let sum = own + charging.into_iter().map(|thread| thread.join().expect("it ends")).sum::<u32>();
    // Every worker has passed: they have joined.
    allocator.reclaim(&limiter, pending, [(had, || name(0))].into_iter(), NOW);
    let left = left(&limiter, enforced(new));
    assert_eq!((sum, left), (2, 0), "what was in the old bucket, whichever was asked for it");
    assert_eq!(allocator.in_use(), 1);
}

/// A charge of two limits, one of which a reload changes: all or nothing, though the first word is held when the second turns
/// out to be superseded.
pub fn several_and_rate_change() {
    let (limiter, mut allocator, charges @ [first, second]) = buckets([2, 2]);
    let slots = charges.map(|Charge { slot, rate, .. }| BucketRef { slot, rate });
    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign(|| name(0), Some(slots[0]), slots[0].rate), Some(first.slot));
    let slot = allocation.assign(|| name(1), Some(slots[1]), rate(4)).expect("room");
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
    let other = charging.join().expect("it ends");
    allocator.reclaim(&limiter, pending, (0..2).map(|at| (slots[at], move || name(at))), NOW);
    assert_eq!((own, other), (1, 1));
    assert_eq!((left(&limiter, first), left(&limiter, new)), (0, 0));
    assert_eq!((left(&limiter, second) > 0, allocator.in_use()), (true, 2), "the old slot is free, and full");
}
