//! The promises of the limiter that take more than one word: several limits, reloads, threads.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::*;

mod shadow;

const SECOND: u64 = 1_000_000_000;

fn rate(count: u64, burst: u64) -> Rate {
    Rate::new(count, SECOND, burst).expect("in range")
}

fn named(name: &str) -> BucketId {
    BucketId::for_key(name, "default")
}

fn enforced(BucketRef { slot, rate }: BucketRef) -> Charge {
    Charge { slot, rate, shadow: false }
}

/// Position and remaining of the limit that decided.
fn decided(charged: ChargeReport) -> (usize, u32) {
    let DecidingLimit { position, balance } = charged.limit.expect("a limit is enforced");
    (position, balance.remaining)
}

/// One reload that wants these buckets, and finds `previous` in the snapshot before it.
fn reload(
    limiter: &Limiter,
    allocator: &mut SlotAllocator,
    previous: &[(&str, BucketRef)],
    wanted: &[(&str, Rate)],
    now: u64,
) -> Vec<BucketRef> {
    let mut allocation = allocator.begin(limiter);
    let slots = wanted.iter().map(|(name, rate)| {
        let had = previous.iter().find(|(had, _)| had == name).map(|(_, slot)| *slot);
        BucketRef { slot: allocation.assign(|| named(name), had, *rate).expect("room"), rate: *rate }
    });
    let slots = slots.collect();
    let pending = allocation.commit();
    allocator.reclaim(limiter, pending, previous.iter().map(|(name, slot)| (*slot, || named(name))), now);
    slots
}

fn fresh(limiter: &Limiter, allocator: &mut SlotAllocator, rates: &[Rate]) -> Vec<Charge> {
    let names: Vec<String> = (0..rates.len()).map(|number| format!("bucket {number}")).collect();
    let wanted: Vec<(&str, Rate)> = names.iter().map(String::as_str).zip(rates.iter().copied()).collect();
    reload(limiter, allocator, &[], &wanted, 1).into_iter().map(enforced).collect()
}

fn remaining(limiter: &Limiter, charge: Charge, now: u64) -> u32 {
    match limiter.charge(&[charge], now, 0) {
        Outcome::Admitted(charged) => decided(charged).1,
        other => panic!("a peek is always admitted: {other:?}"),
    }
}

#[test]
fn a_refusal_by_one_limit_charges_none() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(1, 10), rate(1, 3), rate(1, 5)]);
    for left in [2, 1, 0] {
        let Outcome::Admitted(charged) = limiter.charge(&charges, 1, 1) else { panic!("within all bursts") };
        assert_eq!(decided(charged), (1, left), "the tightest decides");
    }
    let Outcome::Refused(charged) = limiter.charge(&charges, 1, 1) else { panic!("the second is empty") };
    assert_eq!(decided(charged).0, 1);
    assert_eq!(charged.limit.map(|named| named.balance.retry_after), Some(rate(1, 3).period().get()));
    let left: Vec<u32> = charges.iter().map(|charge| remaining(&limiter, *charge, 1)).collect();
    assert_eq!(left, [7, 0, 2], "and none of the others was charged");
}

#[test]
fn the_longest_wait_is_the_one_that_is_named() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(100, 1), rate(1, 1), rate(10, 1)]);
    assert!(matches!(limiter.charge(&charges, 1, 1), Outcome::Admitted(_)));
    let Outcome::Refused(charged) = limiter.charge(&charges, 1, 1) else { panic!("all are empty") };
    assert_eq!(decided(charged).0, 1);
}

#[test]
fn a_peek_charges_nothing() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(1, 2), rate(1, 3)]);
    for _ in 0..10 {
        let Outcome::Admitted(charged) = limiter.charge(&charges, 1, 0) else { panic!("a peek") };
        assert_eq!(decided(charged), (0, 2));
    }
}

#[test]
fn a_reload_neither_refills_nor_forgets() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10)), ("b", rate(1, 10))], 1);
    assert!(matches!(limiter.charge(&[enforced(old[0])], 1, 7), Outcome::Admitted(_)));

    let had = [("a", old[0]), ("b", old[1])];
    let same = reload(&limiter, &mut allocator, &had, &[("b", rate(1, 10)), ("a", rate(1, 10))], 1);
    assert_eq!((same[1], same[0]), (old[0], old[1]), "an unchanged limit keeps its slot");

    let had = [("a", old[0]), ("b", old[1])];
    let changed = reload(&limiter, &mut allocator, &had, &[("a", rate(5, 100)), ("b", rate(1, 10))], 1);
    assert_ne!(changed[0].slot, old[0].slot);
    assert_eq!(remaining(&limiter, enforced(changed[0]), 1), 3, "a changed one keeps its balance");
    assert_eq!(allocator.in_use(), 2, "and its old slot is free again");
}

#[test]
fn who_still_uses_the_old_rate_is_sent_to_the_new_snapshot() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    let old_charge = enforced(old);
    let mut allocation = allocator.begin(&limiter);
    let slot = allocation.assign(|| named("a"), Some(old), rate(1, 4)).expect("room");
    let new = Charge { slot, rate: rate(1, 4), shadow: false };
    let pending = allocation.commit();

    assert!(
        matches!(limiter.charge(&[old_charge], 1, 9), Outcome::Admitted(_)),
        "nobody has the new one yet"
    );
    assert!(
        matches!(limiter.charge(&[new], 1, 1), Outcome::Admitted(_)),
        "the first to ask takes the balance over"
    );
    assert_eq!(limiter.charge(&[old_charge], 1, 1), Outcome::Superseded);
    assert_eq!(limiter.charge(&[old_charge, new], 1, 1), Outcome::Superseded);
    assert_eq!(remaining(&limiter, new, 1), 0);
    allocator.reclaim(&limiter, pending, [(old, || named("a"))].into_iter(), 1);
    assert_eq!(remaining(&limiter, new, 1), 0);
}

#[test]
fn a_key_that_vanishes_and_returns_has_not_been_refilled() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10)), ("b", rate(1, 10))], 1);
    let spent = enforced(old[0]);
    assert!(matches!(limiter.charge(&[spent], 1, 10), Outcome::Admitted(_)));

    let had = [("a", old[0]), ("b", old[1])];
    assert!(reload(&limiter, &mut allocator, &had, &[], 1).is_empty());
    assert_eq!(
        (allocator.in_use(), allocator.retained()),
        (1, 1),
        "the full one is free, the other is remembered"
    );
    let back = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    assert_eq!(remaining(&limiter, enforced(back), 1), 0);

    let full = 1 + rate(1, 10).capacity();
    assert!(reload(&limiter, &mut allocator, &[("a", back)], &[], full).is_empty());
    assert_eq!(
        (allocator.in_use(), allocator.retained()),
        (0, 0),
        "what is full again need not be remembered"
    );
}

#[test]
fn a_smaller_limit_that_is_full_again_does_not_fill_the_larger_one() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let (large, small) = (rate(1, 30), rate(10, 20));
    let old = reload(&limiter, &mut allocator, &[], &[("a", large)], 1)[0];
    assert!(matches!(limiter.charge(&[enforced(old)], 1, 15), Outcome::Admitted(_)));
    let changed = reload(&limiter, &mut allocator, &[("a", old)], &[("a", small)], 1)[0];
    assert_eq!((allocator.in_use(), allocator.retained()), (2, 1), "what it was is remembered");
    // A second later the small one is full, and vanishes.
    let later = 1 + rate(1, 1).capacity();
    assert_eq!(remaining(&limiter, enforced(changed), later), 20);
    assert!(reload(&limiter, &mut allocator, &[("a", changed)], &[], later).is_empty());
    let back = reload(&limiter, &mut allocator, &[], &[("a", large)], later)[0];
    assert_eq!(remaining(&limiter, enforced(back), later), 16, "what the large one has refilled since");
    assert_eq!((allocator.in_use(), allocator.retained()), (1, 0));
}

#[test]
fn a_name_with_several_rates_goes_on_as_it_was_or_with_the_least() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let rates = [rate(1, 30), rate(1, 20)];
    let mut had: Vec<BucketRef> = Vec::new();
    let mut reload = |limiter: &Limiter, wanted: &[Rate]| {
        let mut allocation = allocator.begin(limiter);
        let slots = allocation.assign_all(named("a"), &had, wanted).expect("room");
        let pending = allocation.commit();
        allocator.reclaim(limiter, pending, had.iter().map(|slot| (*slot, || named("a"))), 1);
        had = slots.clone();
        let left = wanted.iter().map(|rate| slots.iter().find(|slot| slot.rate == *rate).copied());
        (left.map(|slot| slot.expect("as wanted")).collect::<Vec<BucketRef>>(), allocator.retained())
    };
    let left = |slots: &[BucketRef]| -> Vec<u32> {
        slots.iter().map(|slot| remaining(&limiter, enforced(*slot), 1)).collect()
    };
    let (slots, _) = reload(&limiter, &rates);
    for (slot, cost) in slots.iter().zip([5, 18]) {
        assert!(matches!(limiter.charge(&[enforced(*slot)], 1, cost), Outcome::Admitted(_)));
    }
    assert_eq!(reload(&limiter, &[]).1, 2);
    let (slots, parked) = reload(&limiter, &[rates[1], rates[0]]);
    assert_eq!((left(&slots), parked), (vec![2, 25], 0), "the same rates as before");
    reload(&limiter, &[]);
    let (slots, _) = reload(&limiter, &rates[..1]);
    assert_eq!(left(&slots), [2], "one of them");
    reload(&limiter, &[]);
    let (slots, _) = reload(&limiter, &[rates[0], rate(3, 40)]);
    assert_eq!(left(&slots), [2, 2], "another");
}

#[test]
fn a_claim_that_is_dropped_leaves_no_trace() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let old = reload(&limiter, &mut allocator, &[], &[("a", rate(1, 10))], 1)[0];
    let mut allocation = allocator.begin(&limiter);
    assert!(allocation.assign(|| named("a"), Some(old), rate(2, 2)).is_some());
    assert!(allocation.assign(|| named("b"), None, rate(2, 2)).is_some());
    drop(allocation);
    assert_eq!(allocator.in_use(), 1);
    assert!(matches!(limiter.charge(&[enforced(old)], 1, 1), Outcome::Admitted(_)));
}

#[test]
fn the_first_slots_are_handed_out_together_and_only_once() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign_contiguous(300_000, [7, 9].into_iter()), Some(()));
    drop(allocation);
    assert_eq!(allocator.in_use(), 0, "a claim that is dropped leaves no trace");
    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign_contiguous(300_000, [7, 9].into_iter()), Some(()));
    let pending = allocation.commit();
    allocator.reclaim(
        &limiter,
        pending,
        [(BucketRef { slot: 0, rate: rate(1, 1) }, || named("none"))].into_iter().take(0),
        1,
    );
    assert_eq!(allocator.in_use(), 299_998);
    for slot in [0, 6, 299_999] {
        assert_eq!(remaining(&limiter, enforced(BucketRef { slot, rate: rate(1, 5) }), 1), 5);
    }
    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign_contiguous(1, std::iter::empty()), None, "slots are in use");
    let mut next = || allocation.assign(|| named("new"), None, rate(1, 1));
    assert_eq!([next(), next(), next()], [Some(9), Some(7), Some(300_000)]);
    drop(allocation);
    let wait_unlocked = allocator.restore(
        &limiter,
        [persist::SavedBucket { id: named("a"), rate: rate(1, 1), debt: 5 }],
        0,
        1,
    );
    assert_eq!(
        (wait_unlocked, allocator.begin(&limiter).assign_contiguous(1, std::iter::empty())),
        (1, None)
    );
}

#[test]
fn a_thread_whose_clock_lags_is_not_refused_what_is_there() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    for count in 1..=2 {
        let charges = fresh(&limiter, &mut allocator, &[rate(10, 2), rate(10, 2)][..count]);
        assert!(matches!(limiter.charge(&charges, 1_000_000, 1), Outcome::Admitted(_)));
        assert!(matches!(limiter.charge(&charges, 999_000, 1), Outcome::Admitted(_)), "{count} limits");
        assert!(matches!(limiter.charge(&charges, 999_000, 1), Outcome::Refused(_)), "{count} limits");
    }
}

/// Threads charge two buckets together while others charge each alone, and time stands still: exactly the bursts
/// are admitted, and a pair is admitted in both or in neither.
#[test]
fn threads_cannot_overdraw_several_limits() {
    const BURST: u64 = 20_000;
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let charges = fresh(&limiter, &mut allocator, &[rate(1, BURST), rate(1, 2 * BURST)]);
    let reversed = [charges[1], charges[0]];
    let (both, first, second) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let begin = Barrier::new(4);
    let burn = |charges: &[Charge], admitted: &AtomicU64| {
        begin.wait();
        for _ in 0..BURST {
            if let Outcome::Admitted(_) = limiter.charge(charges, 1, 1) {
                admitted.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| burn(&charges, &both));
        scope.spawn(|| burn(&reversed, &both));
        scope.spawn(|| burn(&charges[..1], &first));
        scope.spawn(|| burn(&charges[1..], &second));
    });
    let [both, first, second] = [both, first, second].map(AtomicU64::into_inner);
    assert_eq!(both + first, BURST, "the first bucket is spent to the last");
    assert_eq!(second, BURST, "the second has room for all who ask for it alone");
    assert_eq!(u64::from(remaining(&limiter, charges[1], 1)), 2 * BURST - second - both);
}

/// Reloads change a limit back and forth while threads charge it with whatever rate they saw last: what is admitted
/// never exceeds the largest burst, because time stands still and no change refills.
#[test]
fn threads_cannot_overdraw_a_limit_that_is_being_changed() {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let rates = [rate(1, 50_000), rate(3, 50_000)];
    let current =
        arc_swap::ArcSwap::from_pointee(reload(&limiter, &mut allocator, &[], &[("a", rates[0])], 1)[0]);
    let (admitted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let BucketRef { slot, rate } = **current.load();
                    match limiter.charge(&[Charge { slot, rate, shadow: false }], 1, 1) {
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
            let slot = allocation.assign(|| named("a"), Some(old), rate).expect("room");
            // Left unsettled: the slot of the old rate stays superseded, as it does until all workers have passed.
            let _settlement = allocation.commit();
            current.store(std::sync::Arc::new(BucketRef { slot, rate }));
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

/// The whole life of a slot, over and over: changed, inherited, wait_unlocked, freed, and given to another bucket at once, while
/// threads that have only ever seen the newest slots charge them. None of those may ever be superseded for good.
#[test]
fn a_slot_that_is_in_use_is_never_superseded() {
    const BUCKETS: usize = 64;
    const RELOADS: usize = 200;
    const THREADS: usize = 6;
    let names: Vec<String> = (0..BUCKETS).map(|number| format!("bucket {number}")).collect();
    let wanted = |rate: Rate| names.iter().map(|name| (name.as_str(), rate)).collect::<Vec<_>>();
    let rates = [rate(1_000, 1 << 30), rate(2_000, 1 << 30)];
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let current =
        arc_swap::ArcSwap::from_pointee(reload(&limiter, &mut allocator, &[], &wanted(rates[0]), 1));
    let (rounds, stop) =
        (std::array::from_fn::<AtomicU64, THREADS, _>(|_| AtomicU64::new(0)), AtomicBool::new(false));
    thread::scope(|scope| {
        for own in &rounds {
            scope.spawn(|| {
                let mut stuck = 0;
                while !stop.load(Ordering::Relaxed) {
                    let slots = current.load_full();
                    for BucketRef { slot, rate } in slots.iter().copied() {
                        if limiter.charge(&[Charge { slot, rate, shadow: false }], 1, 1)
                            == Outcome::Superseded
                        {
                            stuck = if std::sync::Arc::ptr_eq(&slots, &current.load_full()) {
                                stuck + 1
                            } else {
                                0
                            };
                            assert!(stuck < 10_000, "slot {slot} is in use, and superseded");
                            break;
                        }
                    }
                    own.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
        for change in 1..=RELOADS {
            let old = current.load_full();
            let rate = rates[change % 2];
            let mut allocation = allocator.begin(&limiter);
            let slots: Vec<BucketRef> = old
                .iter()
                .zip(&names)
                .map(|(had, name)| BucketRef {
                    slot: allocation.assign(|| named(name), Some(*had), rate).expect("room"),
                    rate,
                })
                .collect();
            let pending = allocation.commit();
            current.store(std::sync::Arc::new(slots));
            // Every thread has passed once it has begun and ended a round since.
            let before: Vec<u64> = rounds.iter().map(|own| own.load(Ordering::Acquire)).collect();
            while !stop.load(Ordering::Relaxed)
                && rounds.iter().zip(&before).any(|(own, before)| own.load(Ordering::Acquire) < before + 2)
            {
                thread::yield_now();
            }
            let buckets = old.iter().zip(&names).map(|(slot, name)| (*slot, || named(name)));
            allocator.reclaim(&limiter, pending, buckets, 1);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(allocator.in_use(), BUCKETS as u64);
}
