//! What identifies a snapshot, and how old its source is.

use std::sync::Arc;

use crate::global_policy::GlobalPolicy;
use crate::now::Now;

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// The properties of a snapshot that hold for all of its keys.
#[derive(Clone, Debug, Default)]
pub struct SnapshotMeta {
    /// The [table generation](crate::snapshot::Snapshot::table_generation).
    pub generation: u64,
    /// Unix second at which the source was written, according to the file. It can lie in the
    /// future.
    pub source_time: u32,
    /// [Nanoseconds](Now::nanoseconds) at which this process first loaded a source with this `source_time`.
    pub first_loaded: u64,
    /// The global policy.
    pub global_policy: Arc<GlobalPolicy>,
}

impl SnapshotMeta {
    /// Age of the source in seconds: its age by the wall clock, but at least the time since it was
    /// loaded.
    ///
    /// The wall clock may be wrong during the load and corrected later, or the other way round, so
    /// no reading from the load is kept. The time since the load is measured with the monotonic
    /// clock.
    ///
    /// * A wall clock that was wrong at the load has no effect once it is right.
    /// * A source from the future ages from its load on. Otherwise it would not age until its time
    ///   has come.
    /// * No source is served for longer than `max_staleness` after its load, however far the wall
    ///   clock is set back.
    pub fn source_age(&self, now: Now) -> u32 {
        let by_wall_clock = now.unix.saturating_sub(self.source_time);
        let since_load = now.nanoseconds.saturating_sub(self.first_loaded) / NANOSECONDS_PER_SECOND;
        by_wall_clock.max(u32::try_from(since_load).unwrap_or(u32::MAX))
    }

    /// Whether the source is older than the policy allows.
    pub fn is_stale(&self, now: Now) -> bool {
        self.global_policy.max_staleness.is_some_and(|limit| self.source_age(now) > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    /// The true time of the load.
    const NOON: i64 = 1_800_000_000;

    /// `after` seconds past the load, with a wall clock that is `ahead` seconds fast.
    fn now(after: i64, ahead: i64) -> Now {
        Now {
            nanoseconds: 1 + after as u64 * NANOSECONDS_PER_SECOND,
            unix: (NOON + after + ahead) as u32,
            millisecond: 0,
        }
    }

    #[test]
    fn clock_steps_make_neither_fresh_keys_stale_nor_stale_keys_fresh() {
        // max_staleness is one hour. Columns: case, seconds between load and write, then (after,
        // ahead, stale) for each step.
        type Row<'a> = (&'a str, i64, &'a [(i64, i64, bool)]);
        let table: &[Row<'_>] = &[
            ("correct clock", -60, &[(0, 0, false), (HOUR - 60, 0, false), (HOUR, 0, true)]),
            (
                "slow at the load",
                -60,
                &[(0, -DAY, false), (5, 0, false), (HOUR - 60, 0, false), (HOUR, 0, true)],
            ),
            (
                "fast at the load",
                -60,
                &[(0, DAY, true), (5, 0, false), (HOUR - 60, 0, false), (HOUR, 0, true)],
            ),
            (
                "set back later",
                -60,
                &[(0, 0, false), (5, -DAY, false), (HOUR, -DAY, false), (HOUR + 1, -DAY, true)],
            ),
            (
                "source from the future",
                DAY,
                &[(0, 0, false), (HOUR, 0, false), (HOUR + 1, 0, true), (2 * DAY, 0, true)],
            ),
            (
                "slow clock makes the source look future",
                -60,
                &[(0, -HOUR, false), (HOUR, 0, true), (HOUR + 1, -HOUR, true)],
            ),
            ("old source", -2 * HOUR, &[(0, 0, true), (5, DAY, true), (HOUR + 1, -DAY, true)]),
            ("clock at 1970, then corrected", -60, &[(0, -NOON, false), (9, 0, false), (HOUR, 0, true)]),
        ];
        for (what, written, steps) in table {
            let global_policy =
                Arc::new(GlobalPolicy { max_staleness: Some(HOUR as u32), ..GlobalPolicy::default() });
            let meta = SnapshotMeta {
                source_time: (NOON + written) as u32,
                first_loaded: now(0, 0).nanoseconds,
                global_policy,
                generation: 1,
            };
            for (after, ahead, stale) in *steps {
                assert_eq!(
                    meta.is_stale(now(*after, *ahead)),
                    *stale,
                    "{what}, {after} s later, {ahead} s ahead"
                );
            }
        }
    }

    #[test]
    fn source_age_saturates_and_is_unlimited_without_max_staleness() {
        let meta = SnapshotMeta { source_time: u32::MAX, ..SnapshotMeta::default() };
        assert_eq!(meta.source_age(Now::default()), 0);
        assert!(!SnapshotMeta::default().is_stale(Now {
            nanoseconds: u64::MAX,
            unix: u32::MAX - 1,
            millisecond: 999
        }));
    }
}
