//! Never more than the limit, for the limiter alone: under contention a bucket admits its limit, no
//! more and no less.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keyward_daemon::clock::Clock;
use keyward_engine::limiter::{Charge, LimitId, Limiter, Outcome, Rate, SlotAllocator, TICKS_PER_NANOSECOND};

const THREADS: u64 = 8;
const SECOND: u64 = 1_000_000_000;

fn allocate_bucket(limiter: &Limiter, rate: Rate) -> Charge {
    let mut allocator = SlotAllocator::new();
    let mut allocation = allocator.begin(limiter);
    let slot = allocation.assign(|| LimitId::for_key("key", "default"), None, rate).expect("room for one");
    // There is no previous bucket to reclaim.
    let _ = allocation.commit();
    Charge { slot, rate, shadow: false }
}

fn is_admitted(limiter: &Limiter, charge: Charge, ticks: u64) -> bool {
    matches!(limiter.charge(&[charge], ticks, 1), Outcome::Admitted(_))
}

/// Eight threads charge one bucket for three seconds, with the daemon's clock. It admits at most
/// burst + rate x t, and at least 99 % of that.
#[test]
fn contended_bucket_admits_its_limit() {
    const DURATION: Duration = Duration::from_secs(3);
    // A burst is half a second's refill, so that a bucket does not become full while other
    // processes use the machine.
    for (count, burst) in [(50_000, 25_000), (300_000, 150_000), (7, 3)] {
        let rate = Rate::new(count, SECOND, burst).expect("in range");
        let (limiter, clock) = (Limiter::new(), Clock::new());
        let charge = allocate_bucket(&limiter, rate);
        let admitted = AtomicU64::new(0);
        // The bucket is full until its first charge. The measured time spans all charges.
        let start = Instant::now();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                let (clock, limiter, admitted) = (clock.clone(), &limiter, &admitted);
                scope.spawn(move || {
                    let mut count = 0;
                    while start.elapsed() < DURATION {
                        count += u64::from(is_admitted(limiter, charge, clock.now().ticks));
                    }
                    admitted.fetch_add(count, Ordering::Relaxed);
                });
            }
        });
        let max = burst as f64 + count as f64 * start.elapsed().as_secs_f64();
        let min = (burst as f64 + count as f64 * DURATION.as_secs_f64()) * 0.99;
        let admitted = admitted.into_inner() as f64;
        assert!(admitted <= max, "{count}/s burst {burst}: {admitted} admitted, at most {max} allowed");
        assert!(admitted >= min.floor() - 1.0, "{count}/s burst {burst}: {admitted} of {min} admitted");
    }
}

/// Eight threads charge one bucket. Each charge advances a simulated clock by a quarter of the time
/// in which the bucket gains a unit. It admits at least 99 % of burst + rate x t, on any machine.
#[test]
fn contended_bucket_admits_no_less_than_its_limit() {
    const ATTEMPTS: u64 = 100_000;
    const ATTEMPTS_PER_UNIT: u64 = 4;
    for (count, burst) in [(50_000, 25_000), (1_000, 100), (8, 4)] {
        let rate = Rate::new(count, SECOND, burst).expect("in range");
        let limiter = Limiter::new();
        let charge = allocate_bucket(&limiter, rate);
        let step = SECOND * TICKS_PER_NANOSECOND / (count * ATTEMPTS_PER_UNIT);
        let (clock, admitted) = (AtomicU64::new(1), AtomicU64::new(0));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let attempts = (0..ATTEMPTS)
                        .filter(|_| is_admitted(&limiter, charge, clock.fetch_add(step, Ordering::Relaxed)));
                    admitted.fetch_add(attempts.count() as u64, Ordering::Relaxed);
                });
            }
        });
        let max = burst + THREADS * ATTEMPTS / ATTEMPTS_PER_UNIT;
        let admitted = admitted.into_inner();
        assert!((max * 99 / 100..=max).contains(&admitted), "{count}/s burst {burst}: {admitted} of {max}");
    }
}
