//! Counters of a worker's answers and connections. Only the worker's thread writes them, so
//! counting needs no locked instruction; any thread may read them.

use std::sync::atomic::{AtomicU64, Ordering};

use keyward_protocol::{VERDICT_LIMIT, Verdict};

use super::sample::Samples;

/// One worker's counters. The alignment keeps them off the cache lines of other data.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    verdicts: [AtomicU64; VERDICT_LIMIT as usize],
    refunds: AtomicU64,
    debits: AtomicU64,
    errors: AtomicU64,
    shadow_denials: AtomicU64,
    connections: AtomicU64,
    samples: Samples,
}

/// A plain load and store suffice, because there is one writer.
fn increment(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

impl Counters {
    /// Counts an answer with this verdict.
    pub fn count_verdict(&self, verdict: Verdict) {
        if let Some(counter) = self.verdicts.get(usize::from(verdict.value())) {
            increment(counter);
        }
    }

    /// Counts an answer to a REFUND.
    pub fn count_refund(&self) {
        increment(&self.refunds);
    }

    /// Counts an answer to a DEBIT.
    pub fn count_debit(&self) {
        increment(&self.debits);
    }

    /// Counts an ERROR frame.
    pub fn count_error(&self) {
        increment(&self.errors);
    }

    /// Counts a request that a limit in shadow mode would have refused.
    pub fn count_shadow_denial(&self) {
        increment(&self.shadow_denials);
    }

    /// Counts an accepted connection.
    pub fn count_connection(&self) {
        increment(&self.connections);
    }

    /// The number of answers with this verdict.
    pub fn verdicts(&self, verdict: Verdict) -> u64 {
        self.verdicts.get(usize::from(verdict.value())).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// The number of answers to REFUNDs.
    pub fn refunds(&self) -> u64 {
        self.refunds.load(Ordering::Relaxed)
    }

    /// The number of answers to DEBITs.
    pub fn debits(&self) -> u64 {
        self.debits.load(Ordering::Relaxed)
    }

    /// The number of ERROR frames.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// The number of requests that a limit in shadow mode would have refused.
    pub fn shadow_denials(&self) -> u64 {
        self.shadow_denials.load(Ordering::Relaxed)
    }

    /// A sample of the turns.
    pub fn samples(&self) -> &Samples {
        &self.samples
    }

    /// The number of accepted connections.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}
