//! Compares a new set of keys with the current one, on several threads if there are many keys.

use crate::reload::memory_limits::{MemoryError, MemoryLimits, THREAD_BYTES};
use crate::reload::parallel;
use keyward_engine::snapshot::{CompareOptions, Comparison, Diff, KeyTable, RowMap, Snapshot};

/// What publishing `new` after `old` would change, and which of its rows `old` has already.
pub(super) fn compare<'s>(
    new: &KeyTable,
    old: Option<&'s Snapshot>,
    options: CompareOptions,
) -> (Diff, RowMap<'s>) {
    let Some(old) = old else { return new.compare(None, options) };
    let comparison = Comparison::new(old.table(), new, options);
    match compare_in_parallel(&comparison, parallel::worker_count()) {
        Some(parts) => comparison.finish_with_row_map(parts, old),
        None => new.compare(Some(old), options),
    }
}

/// What replacing `old` by `new` would change.
pub(super) fn diff(new: &KeyTable, old: &KeyTable, options: CompareOptions) -> Diff {
    let comparison = Comparison::new(old, new, options);
    match compare_in_parallel(&comparison, parallel::worker_count()) {
        Some(parts) => comparison.finish(parts),
        None => new.diff_from(Some(old), options),
    }
}

/// Checks that there is memory for a comparison.
pub(super) fn require_memory(limits: &MemoryLimits, new: &KeyTable) -> Result<(), MemoryError> {
    limits.require(new.comparing_bytes(), (parallel::worker_count() + 1) * THREAD_BYTES)
}

/// `None` if there are too few keys for several threads, or no threads can be started.
fn compare_in_parallel(comparison: &Comparison<'_>, threads: usize) -> Option<Diff> {
    let mut parts = comparison.parts();
    if parts.len() < 2 || threads < 2 {
        return None;
    }
    let workers: Vec<_> = (0..threads).map(|_| comparison.comparer()).collect();
    let mut diff = Diff::default();
    let append = |part| {
        diff.append(part);
        Ok::<_, std::io::Error>(())
    };
    parallel::map_ordered(workers, || Ok(parts.next()), append).ok()?;
    Some(diff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keyward_engine::limiter::{Limiter, SlotAllocator};
    use keyward_engine::record::{Digest, KeyRecord, Status};
    use keyward_engine::snapshot::{Builder, SnapshotMeta};

    const OPTIONS: CompareOptions = CompareOptions { now: 1, by_key_id: false };

    /// Enough rows for several parts.
    const ROWS: u32 = 80_000;

    fn keys(rows: impl Iterator<Item = (u32, &'static str, Status)>) -> KeyTable {
        let mut builder = Builder::new(7, ROWS as usize);
        for (number, owner, status) in rows {
            let mut hash = Digest::default();
            hash[..4].copy_from_slice(&number.to_le_bytes());
            let key_id = format!("k{number}");
            let record = KeyRecord { owner, status, ..KeyRecord::new(hash, &key_id) };
            builder.add(number.into(), &record).expect("no contradictions");
        }
        builder.finish()
    }

    #[test]
    fn parallel_comparison_equals_sequential_one() {
        let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
        let mut allocation = allocator.begin(&limiter);
        let old = keys((0..ROWS).map(|number| (number, "o", Status::Active)));
        let old = old.into_snapshot(&mut allocation, None, SnapshotMeta::default()).expect("room");
        let changed = |number: u32| match number % 1_000 {
            1 => (number, "p", Status::Active),
            2 => (number, "o", Status::Revoked),
            3 => (number + ROWS, "o", Status::Active),
            _ => (number, "o", Status::Active),
        };
        // In the same order except for removed rows, and in reverse order.
        let thinned = keys((0..ROWS).filter(|number| number % 777 != 5).map(changed));
        let reversed = keys((0..ROWS).rev().map(changed));
        for new in [thinned, reversed] {
            let (alone, _) = new.compare(Some(&old), OPTIONS);
            assert!(
                alone.changed > 0
                    && alone.added > 0
                    && alone.removed > 0
                    && alone.deactivated > alone.removed
            );
            for threads in [2, 3] {
                let comparison = Comparison::new(old.table(), &new, OPTIONS);
                let parts = compare_in_parallel(&comparison, threads).expect("several parts");
                assert_eq!(comparison.finish(parts), alone);
            }
        }
        let none = keys(std::iter::empty());
        assert!(compare_in_parallel(&Comparison::new(old.table(), &none, OPTIONS), 1).is_none());
    }
}
