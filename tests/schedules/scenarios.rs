//! Concurrent uses of the limiter, and what must hold after every interleaving of them.
//!
//! Time stands still, so the cost admitted or debited plus the cost left always equals the burst, the
//! count or the grant. The explorer itself detects deadlocks and threads that wait forever.

use crate::limiter::{BucketRef, Charge, LimitId, Limiter, Outcome, Period, Rate, Rule, SlotAllocator};
use crate::now::Now;
use crate::sync::{Arc, spawn};

const NOW: Now = Now { nanoseconds: 1, unix: 1_800_000_000, millisecond: 0 };

/// One unit a second: nothing refills while time stands still, and levels are whole numbers at
/// every burst.
fn rate(burst: u64) -> Rule {
    overdrawable(burst, 0)
}

fn overdrawable(burst: u64, overdraft: u32) -> Rule {
    let rate = Rate::new(1, 1_000_000_000, burst).expect("the rate is in range");
    Rule::bucket(rate, overdraft).expect("the overdraft is in range")
}

fn window(count: u64, overdraft: u32) -> Rule {
    Rule::window(count, Period::Month(1), overdraft).expect("the count is in range")
}

fn credits(granted: u64, overdraft: u32) -> Rule {
    Rule::credits(granted, overdraft).expect("the grant is in range")
}

fn enforced(BucketRef { slot, rule }: BucketRef) -> Charge {
    Charge { slot, rule, cost: 0, shadow: false }
}

fn bucket(Charge { slot, rule, .. }: Charge) -> BucketRef {
    BucketRef { slot, rule }
}

/// The limits, with this cost on each.
fn costing<const N: usize>(charges: [Charge; N], cost: u32) -> [Charge; N] {
    charges.map(|charge| Charge { cost, ..charge })
}

fn charge<const N: usize>(limiter: &Limiter, charges: [Charge; N], cost: u32) -> Outcome {
    limiter.charge(&costing(charges, cost), NOW, None)
}

fn refund<const N: usize>(limiter: &Limiter, charges: [Charge; N], cost: u32) -> Outcome {
    limiter.refund(&costing(charges, cost), NOW, None)
}

fn debit<const N: usize>(limiter: &Limiter, charges: [Charge; N], cost: u32) -> Outcome {
    limiter.debit(&costing(charges, cost), NOW, None)
}

fn id(number: usize) -> LimitId {
    LimitId([number as u8; 16])
}

/// A limiter with a full bucket for each burst.
fn buckets<const N: usize>(bursts: [u64; N]) -> (Arc<Limiter>, SlotAllocator, [Charge; N]) {
    limits(bursts.map(rate))
}

/// A limiter with an unspent limit for each rule.
fn limits<const N: usize>(rules: [Rule; N]) -> (Arc<Limiter>, SlotAllocator, [Charge; N]) {
    let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
    let mut allocation = allocator.begin(&limiter);
    let mut number = 0;
    let charges = rules.map(|rule| {
        let slot = allocation.assign(|| id(number), None, rule).expect("a free slot");
        number += 1;
        enforced(BucketRef { slot, rule })
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
        Outcome::Refused(_) | Outcome::OutOfCredit(_) => 0,
        other => panic!("neither admitted nor refused: {other:?}"),
    }
}

/// What is available of a limit.
fn left(limiter: &Limiter, of: Charge) -> i64 {
    match charge(limiter, [of], 0) {
        Outcome::Admitted(report) => report.limit.expect("the limit is enforced").balance.available,
        other => panic!("a peek is always admitted: {other:?}"),
    }
}

/// `threads` threads charge two limits in opposite orders. As many charges are admitted as the
/// smaller limit has room for, and both limits are charged for all of them.
pub fn opposite_orders(threads: u32) {
    let (limiter, _allocator, [small, large]) = buckets([u64::from(threads) - 1, 5]);
    let charge_both = move |limiter: &Limiter, thread: u32| {
        let charges = if thread.is_multiple_of(2) { [small, large] } else { [large, small] };
        admitted(charge(limiter, charges, 1))
    };
    let others: Vec<_> = (1..threads)
        .map(|thread| {
            let limiter = Arc::clone(&limiter);
            spawn(move || charge_both(&limiter, thread))
        })
        .collect();
    let own = charge_both(&limiter, 0);
    let sum = own + others.into_iter().map(|thread| thread.join().expect("the thread ends")).sum::<u32>();
    assert_eq!(sum, threads - 1, "as many as fit, without a false refusal");
    assert_eq!((left(&limiter, small), left(&limiter, large)), (0, i64::from(5 - sum)));
}

/// The same with a charge that checks first and charges afterwards, which must fail.
pub fn opposite_orders_racily() {
    let (limiter, _allocator, [small, large]) = buckets([1, 5]);
    let threads = [[small, large], [large, small]].map(|charges| {
        let limiter = Arc::clone(&limiter);
        spawn(move || u32::from(limiter.charge_racily(&costing(charges, 1), NOW)))
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
        move || admitted(charge(&limiter, [large, small], 1))
    });
    let alone = admitted(charge(&limiter, [small], 1));
    let both = both.join().expect("the thread ends");
    assert_eq!(both + alone, 1);
    assert_eq!(
        (left(&limiter, small), left(&limiter, large)),
        (0, i64::from(3 - both)),
        "a refusal charges neither"
    );
}

/// Two threads charge a shadow limit that has room for one of them. It is charged once, and exactly
/// one of the threads is told that it would have refused.
pub fn shadow() {
    let (limiter, _allocator, [observed, large]) = buckets([1, 3]);
    let charges = [Charge { shadow: true, ..observed }, large];
    let would_refuse = move |limiter: &Limiter| match charge(limiter, charges, 1) {
        Outcome::Admitted(report) => u32::from(report.shadow.contains(0)),
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
    assert_eq!(admitted(charge(&limiter, charges, 2)), 1);
    let refunding = spawn({
        let limiter = Arc::clone(&limiter);
        move || admitted(refund(&limiter, [large, small], 1))
    });
    let charged = i64::from(admitted(charge(&limiter, charges, 1)));
    let alone = admitted(charge(&limiter, [large], 1));
    assert_eq!(refunding.join().expect("the thread ends"), 1);
    assert_eq!(alone, 1, "the larger limit has room in either order");
    assert_eq!((left(&limiter, small), left(&limiter, large)), (1 - charged, 1 - charged));
}

/// A reload changes a limit's burst, while threads charge it at the old rate and, once they find it
/// superseded, at the new rate. The balance is migrated once and accounts for every admission.
/// Afterwards the old slot is reclaimed.
pub fn charge_and_rate_change(others: usize) {
    let (limiter, mut allocator, [old]) = buckets([2]);
    let old_bucket = bucket(old);
    let mut allocation = allocator.begin(&limiter);
    let slot = allocation.assign(|| id(0), Some(old_bucket), rate(4)).expect("a free slot");
    let new = enforced(BucketRef { slot, rule: rate(4) });
    let pending = allocation.commit();
    let charging: Vec<_> = (0..others)
        .map(|_| {
            let limiter = Arc::clone(&limiter);
            spawn(move || match charge(&limiter, [old], 1) {
                Outcome::Superseded => admitted(charge(&limiter, [new], 1)),
                outcome => admitted(outcome),
            })
        })
        .collect();
    let own = admitted(charge(&limiter, [new], 1));
    let own = own + admitted(charge(&limiter, [new], 1));
    let sum = own + charging.into_iter().map(|thread| thread.join().expect("the thread ends")).sum::<u32>();
    // The threads have ended, so the old snapshot is no longer in use.
    allocator.reclaim(&limiter, pending, [(old_bucket, || id(0))].into_iter(), NOW);
    assert_eq!((sum, left(&limiter, new)), (2, 0), "what was in the old bucket, at either rate");
    assert_eq!(allocator.in_use(), 1);
}

/// A thread charges two limits while a reload changes the one at `changed`. The charge is all or
/// nothing, even if the first bucket is already locked when the second is found superseded. The
/// threads do not wait for each other either if the old slot comes before the one that both lock.
pub fn several_and_rate_change(changed: usize) {
    let (limiter, mut allocator, charges) = buckets([2, 2]);
    let (kept, changed) = (charges[1 - changed], charges[changed]);
    let id_of = |charge: Charge| id(charge.slot as usize);
    let mut allocation = allocator.begin(&limiter);
    assert_eq!(allocation.assign(|| id_of(kept), Some(bucket(kept)), kept.rule), Some(kept.slot));
    let slot = allocation.assign(|| id_of(changed), Some(bucket(changed)), rate(4)).expect("a free slot");
    let new = enforced(BucketRef { slot, rule: rate(4) });
    let pending = allocation.commit();
    let charging = spawn({
        let limiter = Arc::clone(&limiter);
        move || match charge(&limiter, [changed, kept], 1) {
            Outcome::Superseded => admitted(charge(&limiter, [new, kept], 1)),
            outcome => admitted(outcome),
        }
    });
    let own = admitted(charge(&limiter, [kept, new], 1));
    let other = charging.join().expect("the thread ends");
    let old = [kept, changed].map(|charge| (bucket(charge), move || id_of(charge)));
    allocator.reclaim(&limiter, pending, old.into_iter(), NOW);
    assert_eq!((own, other), (1, 1));
    assert_eq!((left(&limiter, kept), left(&limiter, new)), (0, 0));
    assert_eq!(allocator.in_use(), 2, "the old slot is free");
    assert!(left(&limiter, changed) > 0, "a free slot is full");
}

/// A thread debits a bucket, which it locks, while another charges it without a lock. The charge is
/// admitted if it comes first, or if the debit leaves room; nothing is lost in either order.
pub fn charge_beside_a_debit() {
    let (limiter, _allocator, [of]) = limits([overdrawable(3, 2)]);
    let debiting = spawn({
        let limiter = Arc::clone(&limiter);
        move || admitted(debit(&limiter, [of], 3))
    });
    let charged = i64::from(admitted(charge(&limiter, [of], 1)));
    assert_eq!(debiting.join().expect("the thread ends"), 1);
    assert_eq!(left(&limiter, of), -charged, "3 were debited, and {charged} charged");
}

/// What a debit of one limit has changed.
fn debited(limiter: &Limiter, of: Charge, cost: u32) -> u32 {
    let mut balances = crate::limiter::LimitBalances::new();
    let outcome = limiter.debit(&[Charge { cost, ..of }], NOW, Some(&mut balances));
    assert!(matches!(outcome, Outcome::Admitted(_)), "{outcome:?}");
    balances.first().expect("the limit is enforced").changed
}

/// Threads debit one limit down to its floor. Together they are told what has left it.
pub fn debits_to_the_floor(rule: Rule, others: usize) {
    let (limiter, _allocator, [of]) = limits([rule]);
    let before = left(&limiter, of);
    let floor = -i64::from(rule.overdraft());
    let debiting: Vec<_> = (0..others)
        .map(|_| {
            let limiter = Arc::clone(&limiter);
            spawn(move || debited(&limiter, of, 2))
        })
        .collect();
    let own = debited(&limiter, of, 2);
    let sum = own + debiting.into_iter().map(|thread| thread.join().expect("the thread ends")).sum::<u32>();
    let wanted = 2 * (others as i64 + 1);
    assert_eq!(i64::from(sum), wanted.min(before - floor));
    assert_eq!(left(&limiter, of), before - i64::from(sum));
}

pub fn debits_of_each_kind(others: usize) {
    for rule in [overdrawable(1, 2), window(1, 2), credits(1, 2)] {
        debits_to_the_floor(rule, others);
    }
}

/// The same with a debit that does not lock its limit, which must fail.
pub fn debits_racily() {
    let (limiter, _allocator, [of]) = limits([overdrawable(3, 2)]);
    let of = Charge { cost: 1, ..of };
    let debiting = spawn({
        let limiter = Arc::clone(&limiter);
        move || limiter.debit_racily(of, NOW)
    });
    limiter.debit_racily(of, NOW);
    debiting.join().expect("the thread ends");
    assert_eq!(left(&limiter, of), 1, "LOST DEBIT: 2 of 3 were debited");
}

/// The same beside a charge, which the debit may overwrite.
pub fn debit_racily_beside_a_charge() {
    let (limiter, _allocator, [of]) = limits([overdrawable(3, 2)]);
    let debiting = spawn({
        let limiter = Arc::clone(&limiter);
        move || limiter.debit_racily(Charge { cost: 1, ..of }, NOW)
    });
    assert_eq!(admitted(charge(&limiter, [of], 1)), 1);
    debiting.join().expect("the thread ends");
    assert_eq!(left(&limiter, of), 1, "OVERDRAWN: a charge is lost");
}

/// A limit of which 2 of 3 are spent is refunded while it is debited. A refund that comes first
/// returns what is spent, and no more.
pub fn refund_beside_a_debit() {
    let (limiter, _allocator, charges @ [of, other]) = limits([overdrawable(3, 1), credits(9, 0)]);
    assert_eq!(admitted(charge(&limiter, charges, 2)), 1);
    let refunding = spawn({
        let limiter = Arc::clone(&limiter);
        move || admitted(refund(&limiter, [other, of], 5))
    });
    assert_eq!(admitted(debit(&limiter, [of, other], 3)), 1);
    assert_eq!(refunding.join().expect("the thread ends"), 1);
    let left = (left(&limiter, of), left(&limiter, other));
    // Refunded first: 2 of each are returned, then 3 are debited. Debited first: down to the floor of
    // the bucket, and 5 of each are spent; the bucket gets back the 4 that it has lost.
    assert!([(0, 6), (3, 9)].contains(&left), "{left:?}");
}

/// A request with a cost for each of three limits of different kinds, while a reload changes the rule
/// of the bucket and tops up the credits, and a debit of the old snapshot is under way.
pub fn several_kinds_and_rule_changes() {
    let (limiter, mut allocator, old @ [_, month, grant]) =
        limits([overdrawable(2, 1), window(4, 0), credits(3, 2)]);
    let mut allocation = allocator.begin(&limiter);
    let mut number = 0;
    let new = [overdrawable(3, 1), month.rule, credits(5, 2)].map(|rule| {
        let previous = Some(bucket(old[number]));
        let slot = allocation.assign(|| id(number), previous, rule).expect("a free slot");
        number += 1;
        enforced(BucketRef { slot, rule })
    });
    assert_eq!((new[1].slot, new[2].slot), (month.slot, grant.slot), "their words mean the same");
    let pending = allocation.commit();
    let costs = |[tokens, month, grant]: [Charge; 3], order: [usize; 3]| {
        let charges =
            [Charge { cost: 1, ..tokens }, Charge { cost: 2, ..month }, Charge { cost: 3, ..grant }];
        order.map(|at| charges[at])
    };
    let debiting = spawn({
        let limiter = Arc::clone(&limiter);
        move || match limiter.debit(&costs(old, [2, 0, 1]), NOW, None) {
            Outcome::Superseded => admitted(limiter.debit(&costs(new, [1, 2, 0]), NOW, None)),
            outcome => admitted(outcome),
        }
    });
    let charged = i64::from(admitted(limiter.charge(&costs(new, [0, 1, 2]), NOW, None)));
    assert_eq!(debiting.join().expect("the thread ends"), 1);
    allocator.reclaim(&limiter, pending, (0..3).map(|at| (bucket(old[at]), move || id(at))), NOW);
    // The credits have room for both only if the charge comes first: a debit may overdraw them.
    let left = new.map(|of| left(&limiter, of));
    let spent = [1 + charged, 2 + 2 * charged, 3 + 3 * charged];
    assert_eq!(left, [2 - spent[0], 4 - spent[1], 5 - spent[2]], "all or none");
    assert_eq!(allocator.in_use(), 3, "the old slot is free");
}
