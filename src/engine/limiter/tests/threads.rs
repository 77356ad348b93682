//! Charges from several threads, and during reloads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::*;
use crate::limiter::lock::LockedBuckets;

/// Two threads charge both buckets, in opposite orders, and one thread charges each bucket alone,
/// while time stands still. Exactly the bursts are admitted, and a charge of both buckets is
/// admitted by both or by none.
#[test]
fn concurrent_charges_do_not_overdraw_several_limits() {
    const BURST: u64 = 20_000;
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = new_buckets(&limiter, &mut allocator, &[rate(1, BURST), rate(1, 2 * BURST)]);
    let reversed = [charges[1], charges[0]];
    let (both, first, second) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let start = Barrier::new(4);
    let charge_repeatedly = |charges: &[Charge], admitted: &AtomicU64| {
        start.wait();
        for _ in 0..BURST {
            if let Outcome::Admitted(_) = charge(&limiter, charges, 1, 1) {
                admitted.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| charge_repeatedly(&charges, &both));
        scope.spawn(|| charge_repeatedly(&reversed, &both));
        scope.spawn(|| charge_repeatedly(&charges[..1], &first));
        scope.spawn(|| charge_repeatedly(&charges[1..], &second));
    });
    let [both, first, second] = [both, first, second].map(AtomicU64::into_inner);
    assert_eq!(both + first, BURST, "the first bucket is spent completely");
    assert_eq!(second, BURST, "the second bucket has room for every charge of it alone");
    assert_eq!(u64::from(remaining(&limiter, charges[1], 1)), 2 * BURST - second - both);
}

/// A migration waits for the end of a charge that has locked the old bucket.
#[test]
fn locked_bucket_is_not_migrated() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    let mut allocation = allocator.begin(&limiter);
    let slot = allocation.assign(|| id("a"), Some(old), rate(1, 20)).expect("a free slot");
    let new = BucketRef { slot, rule: rate(1, 20) };
    // Not reclaimed: the old snapshot is still in use.
    let _ = allocation.commit();
    let old_charge = [enforced(old)];
    let mut locked = LockedBuckets::new(&limiter.buckets);
    limiter.buckets.lock_all(&old_charge, at(1), &mut locked).expect("not superseded");
    let (send, migrated) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| send.send(remaining(&limiter, enforced(new), 1)));
        let waits = migrated.recv_timeout(Duration::from_millis(50)).is_err();
        for bucket in locked.buckets() {
            let rule = old.rule.at(at(1), &limiter.buckets.calendar);
            bucket.word = rule.charge(bucket.word, 4).expect("the cost fits");
        }
        drop(locked);
        assert!(waits, "the bucket is locked");
        assert_eq!(migrated.recv(), Ok(6));
    });
    assert_eq!(charge(&limiter, &old_charge, 1, 1), Outcome::Superseded);
}

/// Reloads change a limit back and forth while threads charge it at the rate they saw last. Time
/// stands still and a rate change does not refill, so no more than the burst is admitted.
#[test]
fn concurrent_charges_do_not_overdraw_a_limit_whose_rate_changes() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let rates = [rate(1, 50_000), rate(3, 50_000)];
    let current = ArcSwap::from_pointee(reload(&limiter, &mut allocator, &[], &[("a", rates[0])], 1)[0]);
    let (admitted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    match charge(&limiter, &[enforced(**current.load())], 1, 1) {
                        Outcome::Admitted(_) => _ = admitted.fetch_add(1, Ordering::Relaxed),
                        Outcome::Superseded => {}
                        _ => stop.store(true, Ordering::Relaxed),
                    }
                }
            });
        }
        for change in 1.. {
            let old = **current.load();
            let mut allocation = allocator.begin(&limiter);
            let rate = rates[change % 2];
            let slot = allocation.assign(|| id("a"), Some(old), rate).expect("a free slot");
            // Never reclaimed, because a thread may still use the old slot: it stays superseded.
            let _ = allocation.commit();
            current.store(Arc::new(BucketRef { slot, rule: rate }));
            if change % 64 == 0 {
                // A thread that is the first to charge after many changes follows all of them, which
                // would overflow its stack. A daemon reclaims after each change.
                remaining(&limiter, enforced(**current.load()), 1);
            }
            if stop.load(Ordering::Relaxed) || change > 100_000 {
                stop.store(true, Ordering::Relaxed);
                break;
            }
        }
    });
    let last = **current.load();
    let left = remaining(&limiter, enforced(last), 1);
    assert_eq!(admitted.into_inner() + u64::from(left), 50_000);
}

/// Slots go through their whole life cycle many times: their limit changes, they are migrated,
/// reclaimed and immediately assigned to another bucket. Meanwhile threads charge the slots of the
/// newest snapshot, none of which may stay superseded.
#[test]
fn slot_in_use_does_not_stay_superseded() {
    const BUCKETS: usize = 64;
    const RELOADS: usize = 200;
    const THREADS: usize = 6;
    let names: Vec<String> = (0..BUCKETS).map(|number| format!("bucket {number}")).collect();
    let wanted = |rate: Rule| names.iter().map(|name| (name.as_str(), rate)).collect::<Vec<_>>();
    let rates = [rate(1_000, 1 << 30), rate(2_000, 1 << 30)];
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let current = ArcSwap::from_pointee(reload(&limiter, &mut allocator, &[], &wanted(rates[0]), 1));
    let (rounds, stop) =
        (std::array::from_fn::<AtomicU64, THREADS, _>(|_| AtomicU64::new(0)), AtomicBool::new(false));
    thread::scope(|scope| {
        for own_rounds in &rounds {
            scope.spawn(|| {
                let mut superseded = 0;
                while !stop.load(Ordering::Relaxed) {
                    let buckets = current.load_full();
                    for bucket in buckets.iter() {
                        if charge(&limiter, &[enforced(*bucket)], 1, 1) != Outcome::Superseded {
                            continue;
                        }
                        let is_newest = Arc::ptr_eq(&buckets, &current.load_full());
                        superseded = if is_newest { superseded + 1 } else { 0 };
                        assert!(superseded < 10_000, "slot {} is in use but superseded", bucket.slot);
                        break;
                    }
                    own_rounds.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        for change in 1..=RELOADS {
            let old = current.load_full();
            let rate = rates[change % 2];
            let mut allocation = allocator.begin(&limiter);
            let buckets = old.iter().zip(&names).map(|(previous, name)| BucketRef {
                slot: allocation.assign(|| id(name), Some(*previous), rate).expect("a free slot"),
                rule: rate,
            });
            let buckets: Vec<BucketRef> = buckets.collect();
            let pending = allocation.commit();
            current.store(Arc::new(buckets));
            // A thread no longer uses the old buckets once it has started and finished another
            // round.
            let before: Vec<u64> = rounds.iter().map(|rounds| rounds.load(Ordering::Acquire)).collect();
            let is_behind =
                |(rounds, before): (&AtomicU64, &u64)| rounds.load(Ordering::Acquire) < before + 2;
            while !stop.load(Ordering::Relaxed) && rounds.iter().zip(&before).any(is_behind) {
                thread::yield_now();
            }
            let old = old.iter().zip(&names).map(|(bucket, name)| (*bucket, || id(name)));
            allocator.reclaim(&limiter, pending, old, at(1));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(allocator.in_use(), BUCKETS as u64);
}
