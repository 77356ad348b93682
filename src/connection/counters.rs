//! What a worker has done. Only its own thread writes, so that counting is a plain addition; anyone may read.

use std::sync::atomic::{AtomicU64, Ordering};

use keyward_protocol::Verdict;

/// Verdicts have values below this.
const VERDICTS: usize = 16;

/// One worker's counters, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    verdicts: [AtomicU64; VERDICTS],
    refunds: AtomicU64,
    faults: AtomicU64,
    connections: AtomicU64,
}

/// One writer needs no locked instruction.
fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl Counters {
    /// An answer with this verdict was made.
    pub fn verdict(&self, verdict: Verdict) {
        if let Some(counter) = self.verdicts.get(usize::from(verdict.value())) {
            increment(counter);
        }
    }

    /// A REFUND was answered.
    pub fn refund(&self) {
        increment(&self.refunds);
    }

    /// An ERROR was made.
    pub fn fault(&self) {
        increment(&self.faults);
    }

    /// A connection was accepted.
    pub fn connection(&self) {
        increment(&self.connections);
    }

    /// How many answers had this verdict.
    pub fn answered(&self, verdict: Verdict) -> u64 {
        self.verdicts.get(usize::from(verdict.value())).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// How many REFUNDs were answered.
    pub fn refunds(&self) -> u64 {
        self.refunds.load(Ordering::Relaxed)
    }

    /// How many ERRORs were made.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// How many connections were accepted.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}
