//! Promise 4, on the limiter itself: never more than the bucket, and not less than it either.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use keyward_daemon::clock::Clock;
use keyward_engine::limiter::{BucketId, Charge, Limiter, Outcome, Rate, SlotAllocator};

fn bucket(limiter: &Limiter, rate: Rate) -> Charge {
    let mut allocator = SlotAllocator::new();
    let mut allocation = allocator.begin(limiter);
    let slot = allocation.assign(|| BucketId::for_key("key", "default"), None, rate).expect("room for one");
    let _nothing_to_settle = allocation.commit();
    Charge { slot, rate, shadow: false }
}

/// Eight threads take what they can for three seconds: at most burst + rate x t, at least 99 % of it.
#[test]
fn eight_threads_burn_one_bucket() {
    const THREADS: usize = 8;
    const TIME: Duration = Duration::from_secs(3);
    // Bursts of half a second: a machine that is busy elsewhere for a moment must not let the bucket run over.
    for (count, burst) in [(50_000, 25_000), (300_000, 150_000), (7, 3)] {
        let rate = Rate::new(count, 1_000_000_000, burst).expect("in range");
        let (limiter, clock) = (Limiter::new(), Clock::new());
        let charge = bucket(&limiter, rate);
        let admitted = AtomicU64::new(0);
        // The bucket is full until its first charge: time counts from before that to after the last.
        let begin = Instant::now();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                let (clock, limiter, admitted) = (clock.clone(), &limiter, &admitted);
                scope.spawn(move || {
                    let mut own = 0;
                    while begin.elapsed() < TIME {
                        if let Outcome::Admitted(_) = limiter.charge(&[charge], clock.now().ticks, 1) {
                            own += 1;
                        }
                    }
                    admitted.fetch_add(own, Ordering::Relaxed);
                });
            }
        });
        let most = burst as f64 + count as f64 * begin.elapsed().as_secs_f64();
        let least = (burst as f64 + count as f64 * TIME.as_secs_f64()) * 0.99;
        let admitted = admitted.into_inner() as f64;
        assert!(admitted <= most, "{count}/s burst {burst}: {admitted} admitted, at most {most} allowed");
        assert!(admitted >= least.floor() - 1.0, "{count}/s burst {burst}: {admitted} admitted of {least}");
    }
}
