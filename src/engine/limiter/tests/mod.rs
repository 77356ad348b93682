//! The guarantees of the limiter that involve more than one bucket: several limits, reloads,
//! threads.

use super::*;
use crate::limiter::persist::SavedLimit;
use crate::now::Now;

mod charges;
mod costs;
mod credits;
mod missing;
mod overdrafts;
mod reloads;
mod resets;
mod restarts;
mod shadow;
mod shared;
mod threads;
mod windows;
mod wrapping;

const SECOND: u64 = 1_000_000_000;

/// `count` units a second, without an overdraft.
fn rate(count: u64, burst: u64) -> Rule {
    overdrawable(count, burst, 0)
}

/// `count` units a second.
fn overdrawable(count: u64, burst: u64, overdraft: u32) -> Rule {
    Rule::bucket(Rate::new(count, SECOND, burst).expect("the rate is in range"), overdraft).expect("in range")
}

/// Nanoseconds for one unit, and for all, at a rate that divides a second.
fn period_and_capacity(rule: Rule) -> (u64, u64) {
    let Rule::Bucket { rate, .. } = rule else { panic!("a token bucket") };
    assert_eq!(rate.scale().get(), 1);
    (rate.period().get(), rate.capacity())
}

fn period(rule: Rule) -> u64 {
    period_and_capacity(rule).0
}

fn capacity(rule: Rule) -> u64 {
    period_and_capacity(rule).1
}

/// The moment at `nanoseconds`.
fn at(nanoseconds: u64) -> Now {
    Now { nanoseconds, unix: 1_800_000_000, millisecond: 0 }
}

fn id(name: &str) -> LimitId {
    LimitId::for_key(name, "default", RuleKind::Bucket)
}

fn saved_bucket(name: &str, rule: Rule, debt: u64) -> SavedLimit {
    SavedLimit { id: id(name), rule, is_former: false, balance: SavedBalance::Bucket { debt } }
}

fn enforced(BucketRef { slot, rule }: BucketRef) -> Charge {
    Charge { slot, rule, cost: 0, shadow: false }
}

/// The charges, with this cost on each limit.
fn costing(charges: &[Charge], cost: u32) -> Vec<Charge> {
    charges.iter().map(|charge| Charge { cost, ..*charge }).collect()
}

fn charge(limiter: &Limiter, charges: &[Charge], nanoseconds: u64, cost: u32) -> Outcome {
    limiter.charge(&costing(charges, cost), at(nanoseconds), None)
}

/// What is available of one limit.
fn available(limiter: &Limiter, of: Charge, now: u64) -> i64 {
    charge(limiter, &[of], now, 0)
        .report()
        .and_then(|report| report.limit)
        .expect("a limit")
        .balance
        .available
}

fn refund(limiter: &Limiter, charges: &[Charge], nanoseconds: u64, cost: u32) -> Outcome {
    limiter.refund(&costing(charges, cost), at(nanoseconds), None)
}

/// Position and remaining cost of the deciding limit.
fn deciding(report: ChargeReport) -> (usize, u32) {
    let DecidingLimit { position, balance } = report.limit.expect("a limit is enforced");
    (position, balance.remaining())
}

/// The remaining cost of an enforced limit.
fn remaining(limiter: &Limiter, charge: Charge, now: u64) -> u32 {
    match self::charge(limiter, &[charge], now, 0) {
        Outcome::Admitted(report) => deciding(report).1,
        other => panic!("a peek is always admitted: {other:?}"),
    }
}

/// Reloads to a snapshot that has the buckets `wanted`. The snapshot before it has the buckets
/// `previous`.
fn reload(
    limiter: &Limiter,
    allocator: &mut SlotAllocator,
    previous: &[(&str, BucketRef)],
    wanted: &[(&str, Rule)],
    now: u64,
) -> Vec<BucketRef> {
    let mut allocation = allocator.begin(limiter);
    let buckets = wanted.iter().map(|(name, rate)| {
        let old = previous.iter().find(|(other, _)| other == name).map(|(_, bucket)| *bucket);
        let rule = *rate;
        BucketRef { slot: allocation.assign(|| id(name), old, rule).expect("a free slot"), rule }
    });
    let buckets = buckets.collect();
    let pending = allocation.commit();
    allocator.reclaim(
        limiter,
        pending,
        previous.iter().map(|(name, bucket)| (*bucket, || id(name))),
        at(now),
    );
    buckets
}

/// Enforced charges of new buckets, one for each rate.
fn new_buckets(limiter: &Limiter, allocator: &mut SlotAllocator, rates: &[Rule]) -> Vec<Charge> {
    let names: Vec<String> = (0..rates.len()).map(|number| format!("bucket {number}")).collect();
    let wanted: Vec<(&str, Rule)> = names.iter().map(String::as_str).zip(rates.iter().copied()).collect();
    reload(limiter, allocator, &[], &wanted, 1).into_iter().map(enforced).collect()
}
