//! Which rows of a new table the previous snapshot has.
//!
//! Comparing two tables of a million rows means finding every row of one in the other. Most rows
//! are found right after the row before. The others take look-ups that miss every cache, so
//! [`find_window`](crate::snapshot::KeyTable::find_window) overlaps them. The
//! [comparison](super::Comparison) does this once; the buckets then reuse the result.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use keyward_memory::{HugePages, HugeVec};

use crate::snapshot::entry::Entry;
use crate::snapshot::key_table::WINDOW;
use crate::snapshot::{Key, Snapshot};

/// Where the previous snapshot has each row of a new table.
pub struct RowMap<'s> {
    pub(in crate::snapshot) old: Option<&'s Snapshot>,
    /// Empty if the tables have not been compared.
    matches: RowMatches,
}

impl<'s> RowMap<'s> {
    /// A map without a comparison: each row is looked up in `old` by its key id.
    pub(in crate::snapshot) fn unknown(old: Option<&'s Snapshot>) -> Self {
        Self { old, matches: RowMatches(HugeVec::new_in(HugePages)) }
    }

    /// The result of a comparison with `old`.
    pub(super) fn known(old: &'s Snapshot, matches: RowMatches) -> Self {
        Self { old: Some(old), matches }
    }

    /// The previous key whose buckets row `at` continues: the one with the same key id.
    pub(in crate::snapshot) fn previous_key<'k>(
        &self,
        at: usize,
        key_id: impl FnOnce() -> &'k str,
    ) -> Option<Key<'s>> {
        let old = self.old?;
        match self.matches.0.get(at).map(|row| row.load(Relaxed)) {
            Some(row) if row < RENAMED => old.key_at(row),
            _ => old.find_by_id(key_id()),
        }
    }

    /// The entries of the new table that the previous snapshot has under the same key id, each with
    /// its previous entry.
    pub(in crate::snapshot) fn matched_entries<'k>(
        &self,
        entries: &'k [Entry],
    ) -> impl Iterator<Item = (&'k Entry, &'s Entry)> {
        let before = self.old.map_or(&[][..], |old| &old.keys.entries);
        let rows = entries.iter().zip(&self.matches.0);
        rows.filter_map(|(entry, row)| Some((entry, before.get(row.load(Relaxed) as usize)?)))
    }

    /// Fetches what [`previous_key`](Self::previous_key) reads for the [`WINDOW`] rows from `start`
    /// on.
    pub(in crate::snapshot) fn prefetch(&self, start: usize) {
        let Some(old) = self.old else { return };
        let rows = self.matches.0.iter().skip(start).take(WINDOW);
        let entries = rows.filter_map(|row| old.keys.entries.get(row.load(Relaxed) as usize));
        std::hint::black_box(entries.fold(0, |sum, entry| sum ^ entry.buckets));
    }
}

/// The previous entry of each row of a new table, or [`NEW`], or [`RENAMED`]. Each is set once, by
/// the thread that finds it.
pub(super) struct RowMatches(HugeVec<AtomicU32>);

/// No previous row has this digest.
const NEW: u32 = u32::MAX;

/// A previous row has this digest and another key id.
const RENAMED: u32 = u32::MAX - 1;

impl RowMatches {
    /// All of `rows` rows are new so far.
    pub(super) fn none_of(rows: usize) -> Self {
        let mut matches = HugeVec::new_in(HugePages);
        matches.extend((0..rows).map(|_| AtomicU32::new(NEW)));
        Self(matches)
    }

    pub(super) fn set(&self, row: u32, before: u32, is_renamed: bool) {
        if let Some(found) = self.0.get(row as usize) {
            found.store(if is_renamed { RENAMED } else { before.min(RENAMED) }, Relaxed);
        }
    }

    /// The rows without a match, ascending.
    pub(super) fn new_rows(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.0).filter(|(_, found)| found.load(Relaxed) == NEW).map(|(row, _)| row)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limiter::{Limiter, SlotAllocator};
    use crate::now::Now;
    use crate::record::{KeyRecord, parse_limits};
    use crate::snapshot::{Builder, CompareOptions, KeyTable, SnapshotMeta};

    const LIMITS: [&str; 3] = ["10/s", "20/s", "10/s; daily=7/d"];

    /// A table of (digest, key) pairs. The limits depend on the key.
    fn keys(rows: &[(u8, u8)], limits: &[usize]) -> KeyTable {
        let mut builder = Builder::new(7, 0);
        for ((digest, key), line) in rows.iter().zip(1..) {
            let key_id = format!("k{key}");
            let limits = LIMITS[limits[usize::from(*key)]];
            let record = KeyRecord {
                owner: "acme",
                limits: parse_limits(limits).expect("limits").into(),
                ..KeyRecord::new([*digest; 32], &key_id)
            };
            // A repeated digest is left out.
            let _ = builder.add(line, &record);
        }
        builder.finish()
    }

    fn slots(snapshot: &Snapshot) -> Vec<u32> {
        let buckets = snapshot.buckets().flat_map(|(limit, _)| limit.as_ref().to_vec());
        let mut slots: Vec<u32> = buckets.map(|bucket| bucket.slot).collect();
        slots.sort_unstable();
        slots
    }

    proptest! {
        /// Keys are added, removed, renamed, rotated and given other limits. The row map changes no
        /// bucket.
        #[test]
        fn buckets_do_not_depend_on_the_row_map(
            before in prop::collection::vec((any::<u8>(), 0_u8..40), 0..200),
            after in prop::collection::vec((any::<u8>(), 0_u8..40), 0..200),
            unchanged in 0_usize..200,
            limits in prop::collection::vec(0_usize..3, 80),
        ) {
            let after = [&before[..unchanged.min(before.len())], &after].concat();
            let slots_of_both = [false, true].map(|compared| {
                let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
                let mut allocation = allocator.begin(&limiter);
                let old = keys(&before, &limits[..40]).into_snapshot(&mut allocation, None, SnapshotMeta::default());
                let old = old.expect("room");
                let pending = allocation.commit();
                allocator.reclaim(&limiter, pending, old.buckets().take(0), Now::default());
                let new = keys(&after, &limits[40..]);
                let mut allocation = allocator.begin(&limiter);
                let new = if compared {
                    let options = CompareOptions { now: 1, by_key_id: false };
                    let (_, row_map) = new.compare(Some(&old), options);
                    new.into_snapshot_with(&mut allocation, &row_map, SnapshotMeta::default())
                } else {
                    new.into_snapshot(&mut allocation, Some(&old), SnapshotMeta::default())
                };
                (slots(&old), slots(&new.expect("room")))
            });
            prop_assert_eq!(&slots_of_both[0], &slots_of_both[1]);
        }
    }
}
