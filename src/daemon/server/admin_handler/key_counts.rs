//! Counts of the keys by status, for `metrics`.
//!
//! Operators and time change the status of keys after they are loaded. All keys are looked at, on a
//! blocking thread: a million of them take 10 ms. The result is kept for a minute, or until the
//! generation changes.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;
use tokio::task::JoinError;

use crate::clock::Clock;
use crate::publish::SnapshotReader;
use keyward_engine::snapshot::StatusCounts;

/// How long a count is reported: the delay with which a key that becomes valid or expires shows.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The latest count.
#[derive(Default)]
pub(in crate::server) struct KeyCounts {
    /// Held while keys are counted, so that they are counted once for all who ask.
    latest: Mutex<Option<Counted>>,
}

#[derive(Clone, Copy)]
struct Counted {
    generation: u64,
    at: Instant,
    counts: StatusCounts,
}

impl KeyCounts {
    /// The counts of the keys in force. `None`: there is no snapshot.
    pub(super) async fn current(
        &self,
        snapshots: &SnapshotReader,
        clock: &Clock,
    ) -> Result<Option<StatusCounts>, JoinError> {
        let mut latest = self.latest.lock().await;
        let Some(published) = snapshots.published() else { return Ok(None) };
        if let Some(counted) =
            latest.filter(|counted| counted.is_current(published.generation(), Instant::now()))
        {
            return Ok(Some(counted.counts));
        }
        let (now, at, generation) = (clock.now().unix, Instant::now(), published.generation());
        let counts = tokio::task::spawn_blocking(move || published.view().count_statuses(now)).await?;
        *latest = Some(Counted { generation, at, counts });
        Ok(Some(counts))
    }
}

impl Counted {
    fn is_current(&self, generation: u64, now: Instant) -> bool {
        self.generation == generation && now.saturating_duration_since(self.at) < MAX_AGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_repeated_in_the_next_generation_and_after_a_minute() {
        let at = Instant::now();
        let counted = Counted { generation: 3, at, counts: StatusCounts::default() };
        let is_current =
            |generation, seconds| counted.is_current(generation, at + Duration::from_secs(seconds));
        assert!(is_current(3, 0) && is_current(3, 59));
        assert!(!is_current(3, 60) && !is_current(4, 0) && !is_current(2, 0));
    }
}
