//! The guarantees of the limiter that involve more than one bucket: several limits, reloads,
//! threads.

use super::*;

mod charges;
mod reloads;
mod restarts;
mod shadow;
mod threads;

const SECOND: u64 = 1_000_000_000;

/// `count` units a second.
fn rate(count: u64, burst: u64) -> Rate {
    Rate::new(count, SECOND, burst).expect("the rate is in range")
}

fn id(name: &str) -> LimitId {
    LimitId::for_key(name, "default")
}

fn enforced(BucketRef { slot, rate }: BucketRef) -> Charge {
    Charge { slot, rate, shadow: false }
}

/// Position and remaining cost of the deciding limit.
fn deciding(report: ChargeReport) -> (usize, u32) {
    let DecidingLimit { position, balance } = report.limit.expect("a limit is enforced");
    (position, balance.remaining)
}

/// The remaining cost of an enforced limit.
fn remaining(limiter: &Limiter, charge: Charge, now: u64) -> u32 {
    match limiter.charge(&[charge], now, 0) {
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
    wanted: &[(&str, Rate)],
    now: u64,
) -> Vec<BucketRef> {
    let mut allocation = allocator.begin(limiter);
    let buckets = wanted.iter().map(|(name, rate)| {
        let old = previous.iter().find(|(other, _)| other == name).map(|(_, bucket)| *bucket);
        BucketRef { slot: allocation.assign(|| id(name), old, *rate).expect("a free slot"), rate: *rate }
    });
    let buckets = buckets.collect();
    let pending = allocation.commit();
    allocator.reclaim(limiter, pending, previous.iter().map(|(name, bucket)| (*bucket, || id(name))), now);
    buckets
}

/// Enforced charges of new buckets, one for each rate.
fn new_buckets(limiter: &Limiter, allocator: &mut SlotAllocator, rates: &[Rate]) -> Vec<Charge> {
    let names: Vec<String> = (0..rates.len()).map(|number| format!("bucket {number}")).collect();
    let wanted: Vec<(&str, Rate)> = names.iter().map(String::as_str).zip(rates.iter().copied()).collect();
    reload(limiter, allocator, &[], &wanted, 1).into_iter().map(enforced).collect()
}
