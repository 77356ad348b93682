//! What tells a snapshot from others, and how old it is.

use std::sync::Arc;

use crate::limiter::TICKS_PER_NANOSECOND;
use crate::now::Now;
use crate::rules::GlobalPolicy;

const TICKS_PER_SECOND: u64 = 1_000_000_000 * TICKS_PER_NANOSECOND;

/// What tells a snapshot from others, and holds for all of its keys.
#[derive(Clone, Debug, Default)]
pub struct Stamp {
    /// Number of the snapshot; the first is 1.
    pub generation: u64,
    /// Unix second at which the source was written, as the file says it: it can be in the future.
    pub source_time: u32,
    /// [Ticks](Now::ticks) at which this process first loaded a source of that time.
    pub loaded: u64,
    /// The daemon's own rules.
    pub global_policy: Arc<GlobalPolicy>,
}

impl Stamp {
    /// Age of the source in seconds: what the calendar says now, and at least the time that has passed since it was loaded.
    ///
    /// The calendar can be wrong while a source is loaded and be set right later, or the other way round, so nothing that it said at
    /// the load is kept. The time since the load is measured by a clock that cannot be set.
    ///
    /// * A calendar that was behind at the load, or ahead of it, makes no difference once it is right.
    /// * A source from the future ages from its load on. Otherwise it would not age before that time has come.
    /// * However the calendar is set back, no source is served for longer than `max_staleness` after its load.
    pub fn source_age(&self, now: Now) -> u32 {
        let by_calendar = now.unix.saturating_sub(self.source_time);
        let since_load = now.ticks.saturating_sub(self.loaded) / TICKS_PER_SECOND;
        by_calendar.max(u32::try_from(since_load).unwrap_or(u32::MAX))
    }

    /// Whether the source is older than its rules allow.
    pub fn is_stale(&self, now: Now) -> bool {
        self.global_policy.max_staleness.is_some_and(|limit| self.source_age(now) > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    /// A right calendar at the load.
    const NOON: i64 = 1_800_000_000;

    /// A calendar that is this many seconds ahead, so many seconds after the load.
    fn now(after: i64, ahead: i64) -> Now {
        Now { ticks: 1 + after as u64 * TICKS_PER_SECOND, unix: (NOON + after + ahead) as u32 }
    }

    #[test]
    fn clock_steps_make_neither_fresh_keys_stale_nor_stale_keys_fresh() {
        // max_staleness is an hour. (when the file was written, ahead at the load, then (after, ahead, stale)…)
        type Row<'a> = (&'a str, i64, &'a [(i64, i64, bool)]);
        let table: &[Row<'_>] = &[
            ("a right calendar", -60, &[(0, 0, false), (HOUR - 60, 0, false), (HOUR, 0, true)]),
            (
                "behind at the load",
                -60,
                &[(0, -DAY, false), (5, 0, false), (HOUR - 60, 0, false), (HOUR, 0, true)],
            ),
            (
                "ahead at the load",
                -60,
                &[(0, DAY, true), (5, 0, false), (HOUR - 60, 0, false), (HOUR, 0, true)],
            ),
            (
                "behind later",
                -60,
                &[(0, 0, false), (5, -DAY, false), (HOUR, -DAY, false), (HOUR + 1, -DAY, true)],
            ),
            (
                "a file from the future",
                DAY,
                &[(0, 0, false), (HOUR, 0, false), (HOUR + 1, 0, true), (2 * DAY, 0, true)],
            ),
            (
                "from the future as it seems",
                -60,
                &[(0, -HOUR, false), (HOUR, 0, true), (HOUR + 1, -HOUR, true)],
            ),
            ("an old file", -2 * HOUR, &[(0, 0, true), (5, DAY, true), (HOUR + 1, -DAY, true)]),
            ("1970 and right again", -60, &[(0, -NOON, false), (9, 0, false), (HOUR, 0, true)]),
        ];
        for (what, written, steps) in table {
            let global_policy =
                Arc::new(GlobalPolicy { max_staleness: Some(HOUR as u32), ..GlobalPolicy::default() });
            let stamp = Stamp {
                source_time: (NOON + written) as u32,
                loaded: now(0, 0).ticks,
                global_policy,
                generation: 1,
            };
            for (after, ahead, stale) in *steps {
                assert_eq!(
                    stamp.is_stale(now(*after, *ahead)),
                    *stale,
                    "{what}, {after} s later, {ahead} s ahead"
                );
            }
        }
    }

    #[test]
    fn age_saturates_and_is_not_limited_without_a_rule() {
        let stamp = Stamp { source_time: u32::MAX, ..Stamp::default() };
        assert_eq!(stamp.source_age(Now { ticks: 0, unix: 0 }), 0);
        assert!(!Stamp::default().is_stale(Now { ticks: u64::MAX, unix: u32::MAX - 1 }));
    }
}
