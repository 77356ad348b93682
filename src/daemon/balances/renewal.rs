//! Renews balances that nothing else reads. The word of a full token bucket that is not used wraps
//! around at some time, after more than a day at the fastest rates, and then shows a debt for a
//! moment. A save renews such words, but there is none without a state directory, nor while nothing
//! is charged.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use keyward_engine::limiter::{Limiter, SlotAllocator};
use keyward_engine::snapshot::Snapshot;
use keyward_state::time::Instant;

use crate::clock::Clock;

/// Interval of the renewals. The fastest words wrap around after 39 hours, and are old after five.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(6 * 3600);

/// When the next renewal is due.
#[derive(Debug)]
pub struct BalanceRenewal {
    interval: Duration,
    last: Instant,
}

impl BalanceRenewal {
    /// A renewal every `interval`, for the first time after one.
    pub fn every(interval: Duration) -> Self {
        Self { interval, last: Instant::now() }
    }

    /// The time until the next one.
    pub fn due_in(&self) -> Duration {
        self.interval.saturating_sub(self.last.elapsed())
    }

    /// Renews all balances if that is due. `snapshot` is the one in force. No reload may be in progress.
    pub fn renew_if_due(
        &mut self,
        limiter: &Limiter,
        allocator: &Mutex<SlotAllocator>,
        snapshot: Option<&Snapshot>,
        clock: &Clock,
    ) {
        if !self.due_in().is_zero() {
            return;
        }
        let allocator = allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let live = snapshot.into_iter().flat_map(Snapshot::buckets).map(|(limit, _)| limit);
        allocator.renew(limiter, live, clock.now());
        self.last = Instant::now();
    }
}
