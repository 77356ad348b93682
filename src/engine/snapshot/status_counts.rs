//! Counts of the keys by what a request with them would be answered, limits and restrictions apart.

use crate::record::Status;
use crate::snapshot::View;

/// The number of keys by status. Every row is counted once, by the first problem that a request with
/// it would be refused for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusCounts {
    /// Keys that work.
    pub active: u64,
    /// Disabled keys.
    pub disabled: u64,
    /// Revoked keys: by their rows, an operator or a refused source.
    pub revoked: u64,
    /// Keys that will be valid later.
    pub not_yet_valid: u64,
    /// Keys that have been valid.
    pub expired: u64,
}

impl View<'_> {
    /// Counts the keys as of the Unix second `now`. Looks at all of them.
    pub fn count_statuses(self, now: u32) -> StatusCounts {
        let mut counts = StatusCounts::default();
        for key in self.snapshot.keys() {
            let access = self.overlay.map_or_else(|| key.access(), |overlay| overlay.access(key));
            let count = match access.status {
                Status::Revoked => &mut counts.revoked,
                Status::Disabled => &mut counts.disabled,
                Status::Active if now < key.not_before() => &mut counts.not_yet_valid,
                Status::Active if now >= access.expires_at => &mut counts.expired,
                Status::Active => &mut counts.active,
            };
            *count += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{Limiter, SlotAllocator};
    use crate::record::KeyRecord;
    use crate::snapshot::test_record::{builder, numbered};
    use crate::snapshot::{Overlay, Snapshot, SnapshotMeta};

    const NOW: u32 = 1_800_000_000;

    fn snapshot(records: &[KeyRecord<'_>]) -> Snapshot {
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let mut allocation = allocator.begin(&limiter);
        builder(records).finish().into_snapshot(&mut allocation, None, SnapshotMeta::default()).expect("room")
    }

    /// A key for each status, and for each pair of problems: the first one counts, as for a request.
    #[test]
    fn key_is_counted_by_its_first_problem() {
        let with = |number, status, not_before, expires_at| KeyRecord {
            status,
            not_before,
            expires_at,
            ..numbered(number)
        };
        let snapshot = snapshot(&[
            with(0, Status::Active, 0, u32::MAX),
            with(1, Status::Active, NOW, NOW + 1),
            with(2, Status::Active, NOW + 1, u32::MAX),
            with(3, Status::Active, 0, NOW),
            with(4, Status::Disabled, 0, NOW),
            with(5, Status::Revoked, NOW + 1, u32::MAX),
            with(6, Status::Active, 5, 6),
        ]);
        let expected = StatusCounts { active: 2, disabled: 1, revoked: 1, not_yet_valid: 1, expired: 2 };
        assert_eq!(View::of(&snapshot).count_statuses(NOW), expected);
        let later = StatusCounts { active: 2, not_yet_valid: 0, expired: 3, ..expected };
        assert_eq!(View::of(&snapshot).count_statuses(NOW + 1), StatusCounts { expired: 3, ..later });
    }

    #[test]
    fn revocation_counts_before_and_after_it_is_marked() {
        let snapshot = snapshot(&[numbered(0), numbered(1), numbered(2)]);
        let mut overlay = Overlay::default();
        snapshot.keys().take(2).for_each(|key| overlay.set_row(key, true));
        let expected = StatusCounts { active: 1, revoked: 2, ..StatusCounts::default() };
        let view = View { overlay: Some(&overlay), ..View::of(&snapshot) };
        assert_eq!(view.count_statuses(NOW), expected);
        snapshot.mark_revocations(&overlay);
        assert_eq!(View::of(&snapshot).count_statuses(NOW), expected);
    }
}
