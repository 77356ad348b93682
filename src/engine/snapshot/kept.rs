//! Which rows of a new set of keys the snapshot before it has already: found out once, by what counts the changes, and used
//! again by what claims the buckets.
//!
//! Two million-row tables are compared by finding every row of one in the other. Most are where the export has them too, after the
//! row before; the others are looked up, in places that no cache holds. Rows are looked up [`WINDOW`] at a time, in steps: each
//! step reads what the next one needs of all of them, so that their cache misses overlap.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use arrayvec::ArrayVec;

use crate::snapshot::entry::Entry;
use crate::snapshot::index::Probe;
use crate::snapshot::{Key, Keys, Snapshot, same_digest};
use keyward_memory::{Huge, HugeVec, prefetch};

/// Rows that are looked up together: more than a processor can wait for at once, and few enough that what was fetched for the
/// first is still there after the last.
pub(super) const WINDOW: usize = 64;

/// No row before has this digest.
const NEW: u32 = u32::MAX;

/// One has, and is called otherwise.
const RENAMED: u32 = u32::MAX - 1;

/// For each row of a new set of keys, where the snapshot before has it.
pub struct Kept<'s> {
    pub(super) old: Option<&'s Snapshot>,
    /// Empty: nobody has looked.
    rows: HugeVec<AtomicU32>,
}

impl<'s> Kept<'s> {
    /// Nothing is known of the rows, except what was there before.
    pub(super) fn unknown(old: Option<&'s Snapshot>) -> Self {
        Self { old, rows: HugeVec::new_in(Huge) }
    }

    /// What was found out about the rows.
    pub(super) fn known(old: Option<&'s Snapshot>, Found(rows): Found) -> Self {
        Self { old, rows }
    }

    /// The key of the snapshot before whose buckets row `at` goes on with: that of its key id.
    pub(super) fn before<'k>(&self, at: usize, key_id: impl FnOnce() -> &'k str) -> Option<Key<'s>> {
        let old = self.old?;
        match self.rows.get(at).map(|row| row.load(Relaxed)) {
            Some(row) if row < RENAMED => old.key_at(row),
            _ => old.find_by_id(key_id()),
        }
    }

    /// Of `entries`, which are the new rows, those that the snapshot before has under the same key id, each with its own there.
    pub(super) fn rows_of<'k>(&self, entries: &'k [Entry]) -> impl Iterator<Item = (&'k Entry, &'s Entry)> {
        let before = self.old.map_or(&[][..], |old| &old.keys.entries);
        let rows = entries.iter().zip(&self.rows);
        rows.filter_map(|(entry, row)| Some((entry, before.get(row.load(Relaxed) as usize)?)))
    }

    /// Fetches what `before` will look at for the rows from `start` on.
    pub(super) fn fetch(&self, start: usize) {
        let Some(old) = self.old else { return };
        let rows = self.rows.iter().skip(start).take(WINDOW);
        let entries = rows.filter_map(|row| old.keys.entries.get(row.load(Relaxed) as usize));
        std::hint::black_box(entries.fold(0, |sum, entry| sum ^ entry.buckets));
    }
}

/// For each row, where an older set of keys has it. Each is set once, by whichever thread has found it.
pub(super) struct Found(HugeVec<AtomicU32>);

impl Found {
    /// So far, none of so many rows.
    pub(super) fn none_of(rows: usize) -> Self {
        let mut found = HugeVec::new_in(Huge);
        found.extend((0..rows).map(|_| AtomicU32::new(NEW)));
        Self(found)
    }

    pub(super) fn set(&self, row: u32, before: u32, is_renamed: bool) {
        if let Some(found) = self.0.get(row as usize) {
            found.store(if is_renamed { RENAMED } else { before.min(RENAMED) }, Relaxed);
        }
    }

    /// The rows that are nowhere, ascending.
    pub(super) fn new_rows(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.0).filter(|(_, found)| found.load(Relaxed) == NEW).map(|(row, _)| row)
    }
}

impl Keys {
    /// The row of each of up to [`WINDOW`] others, by its digest, as [`find_exactly`](Self::find_exactly) finds it.
    ///
    /// `next` is the row that is expected for the first: most exports are in the order of the one before, and then each row is the one
    /// after the one for the row before, and nothing has to be looked up. What has to be has what is compared next fetched: the
    /// row, and its texts.
    pub(super) fn find_all(&self, others: &[Entry], next: &mut u32, found: &mut Vec<Option<u32>>) {
        found.clear();
        let mut elsewhere: ArrayVec<(usize, Probe), WINDOW> = ArrayVec::new();
        for (at, other) in others.iter().enumerate().take(WINDOW) {
            let expected = self.entries.get(*next as usize);
            if expected.is_some_and(|entry| same_digest(&entry.digest, &other.digest)) {
                found.push(Some(*next));
                *next += 1;
            } else {
                found.push(None);
                elsewhere.push((at, Probe::of_digest(&other.digest, self.seed)));
            }
        }
        if elsewhere.is_empty() {
            return;
        }
        elsewhere.iter().for_each(|(_, probe)| self.index.prefetch(*probe));
        for (at, probe) in &elsewhere {
            found[*at] = self.index.candidate(*probe);
            self.entry_of(found[*at]).into_iter().for_each(prefetch);
        }
        for (at, _) in &elsewhere {
            let texts = self.entry_of(found[*at]).map(|entry| entry.identity.key_id().start);
            texts.and_then(|start| self.arena.as_str().as_bytes().get(start)).into_iter().for_each(prefetch);
        }
        for (at, _) in &elsewhere {
            let digest = &others[*at].digest;
            if !self.entry_of(found[*at]).is_none_or(|entry| same_digest(&entry.digest, digest)) {
                found[*at] = self.find_exactly(digest);
            }
        }
        if let Some(Some(last)) = found.last() {
            *next = last + 1;
        }
    }

    fn entry_of(&self, id: Option<u32>) -> Option<&Entry> {
        self.entries.get(id? as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limiter::{Limiter, SlotAllocator};
    use crate::record::{KeyRecord, parse_limits};
    use crate::snapshot::{Builder, CompareOptions, Stamp};

    const LIMITS: [&str; 3] = ["10/s", "20/s", "10/s; daily=7/d"];

    /// Rows of a digest, a key id, and limits that go with the key id.
    fn keys(rows: &[(u8, u8)], limits: &[usize]) -> Keys {
        let mut builder = Builder::new(7, 0);
        for ((digest, key), line) in rows.iter().zip(1..) {
            let key_id = format!("k{key}");
            let limits = LIMITS[limits[usize::from(*key)]];
            let record = KeyRecord {
                owner: "acme",
                limits: parse_limits(limits).expect("limits").into(),
                ..KeyRecord::new([*digest; 32], &key_id)
            };
            // A digest that is there twice is left out.
            let _ = builder.add(line, &record);
        }
        builder.finish()
    }

    fn slots(snapshot: &Snapshot) -> Vec<u32> {
        snapshot.buckets().map(|(bucket, _)| bucket.slot).collect()
    }

    proptest! {
        /// Keys that come, go, are renamed, in rotation, and limited otherwise: what is known of rows changes no bucket.
        #[test]
        fn buckets_are_the_same_whether_rows_were_compared_or_not(
            before in prop::collection::vec((any::<u8>(), 0_u8..40), 0..200),
            after in prop::collection::vec((any::<u8>(), 0_u8..40), 0..200),
            kept in 0_usize..200,
            limits in prop::collection::vec(0_usize..3, 80),
        ) {
            let after = [&before[..kept.min(before.len())], &after].concat();
            let claimed = [false, true].map(|compared| {
                let (limiter, mut allocator) = (Limiter::new(), SlotAllocator::new());
                let mut allocation = allocator.begin(&limiter);
                let old = keys(&before, &limits[..40]).publishable(&mut allocation, None, Stamp::default());
                let old = old.expect("room");
                let pending = allocation.commit();
                allocator.reclaim(&limiter, pending, old.buckets().take(0), 1);
                let new = keys(&after, &limits[40..]);
                let mut allocation = allocator.begin(&limiter);
                let new = match compared {
                    true => {
                        let (_, kept) = new.compare(Some(&old), CompareOptions { now: 1, by_key_id: false });
                        new.publishable_after(&mut allocation, &kept, Stamp::default())
                    }
                    false => new.publishable(&mut allocation, Some(&old), Stamp::default()),
                };
                (slots(&old), slots(&new.expect("room")))
            });
            prop_assert_eq!(&claimed[0], &claimed[1]);
        }
    }
}
