//! The latest time at which any thread has used the limiter.

use crate::now::Now;
use crate::sync::{AtomicU64, Ordering};

/// The maximum of all times passed to the limiter, in nanoseconds, on a cache line of its own.
///
/// A thread reads the clock and charges a little later; meanwhile another thread may have charged
/// at a later time. Seen from the earlier time, that charge looks larger than it was, by the
/// difference, and a cost that fits could be refused. So no charge uses a time earlier than a
/// charge before it, and no charge is refused at such a time.
#[repr(align(128))]
pub(super) struct LatestTime(AtomicU64);

impl LatestTime {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Raises the latest time to `nanoseconds`, and returns it: `nanoseconds`, or a later time from
    /// another thread.
    #[inline]
    pub(super) fn advance(&self, nanoseconds: u64) -> u64 {
        let latest = self.0.load(Ordering::Acquire);
        if latest >= nanoseconds {
            latest
        } else {
            self.0.fetch_max(nanoseconds, Ordering::AcqRel).max(nanoseconds)
        }
    }

    /// `now`, at the latest time.
    pub(super) fn advance_to(&self, now: Now) -> Now {
        now.with_nanoseconds(self.advance(now.nanoseconds))
    }
}
