//! The latest tick at which any thread has used the limiter.

use crate::sync::{AtomicU64, Ordering};

/// The maximum of all ticks passed to the limiter, on a cache line of its own.
///
/// A thread reads the clock and charges a little later; meanwhile another thread may have charged
/// at a later tick. Seen from the earlier tick, that charge looks larger than it was, by the
/// difference, and a cost that fits could be refused. So no charge uses a tick earlier than a
/// charge before it, and no charge is refused at such a tick.
#[repr(align(128))]
pub(super) struct LatestTick(AtomicU64);

impl LatestTick {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Raises the latest tick to `now`, and returns it: `now`, or a later tick from another thread.
    pub(super) fn advance(&self, now: u64) -> u64 {
        let latest = self.0.load(Ordering::Acquire);
        if latest >= now { latest } else { self.0.fetch_max(now, Ordering::AcqRel).max(now) }
    }
}
